"""Bellman targets: hand numbers, ends, masks, and the loss."""

from __future__ import annotations

import pytest
import torch

from upslope.errors import ShapeError
from upslope.losses.bellman import double_q_target, expected_sarsa_target, q_target, td_loss

REWARD = torch.tensor([1.0, 2, -1])
DISCOUNT = torch.tensor([0.5, 0, 0.25])
NEXT_Q = torch.tensor([[1.0, 3], [7, 9], [-4, -8]])
CHOOSER = torch.tensor([[5.0, 3], [1, 2], [0, 1]])


def test_q_target_by_hand():
    assert q_target(REWARD, DISCOUNT, NEXT_Q).tolist() == [2.5, 2, -2]


def test_double_q_target_by_hand():
    """The chooser takes actions 0, 1, 1; the other values them at 1, 9, -8."""
    assert double_q_target(REWARD, DISCOUNT, CHOOSER, NEXT_Q).tolist() == [1.5, 2, -3]
    same = double_q_target(REWARD, DISCOUNT, NEXT_Q, NEXT_Q)
    assert torch.equal(same, q_target(REWARD, DISCOUNT, NEXT_Q))


def test_expected_sarsa_target_by_hand():
    policy = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0, 1]])
    found = expected_sarsa_target(REWARD, DISCOUNT, NEXT_Q, policy)
    assert found.tolist() == [1.75, 2, -3]
    greedy = torch.nn.functional.one_hot(NEXT_Q.argmax(1), 2).float()
    found = expected_sarsa_target(REWARD, DISCOUNT, NEXT_Q, greedy)
    assert torch.equal(found, q_target(REWARD, DISCOUNT, NEXT_Q))


def test_illegal_actions_have_no_part():
    legal = torch.tensor([[True, False], [True, True], [False, True]])
    assert q_target(REWARD, DISCOUNT, NEXT_Q, legal).tolist() == [1.5, 2, -3]
    found = double_q_target(REWARD, DISCOUNT, -CHOOSER, NEXT_Q, legal)
    assert found.tolist() == [1.5, 2, -3]


def test_nothing_follows_a_discount_of_0():
    worst = torch.full((3, 2), torch.inf)
    zero = torch.zeros(3)
    assert torch.equal(q_target(REWARD, zero, worst), REWARD)
    assert torch.equal(q_target(REWARD, zero, worst * torch.nan), REWARD)


def test_the_loss_and_its_gradient():
    value = torch.tensor([0.0, 0, 0], requires_grad=True)
    target = torch.tensor([0.5, 4, -2], requires_grad=True)
    loss = td_loss(value, target)
    assert loss.item() == pytest.approx((0.125 + 3.5 + 1.5) / 3)
    loss.backward()
    assert (3 * value.grad).tolist() == pytest.approx([-0.5, -1, 1])
    assert target.grad is None
    value.grad = None
    loss = td_loss(value, target, huber=False)
    assert loss.item() == pytest.approx((0.125 + 8 + 2) / 3)
    loss.backward()
    assert (3 * value.grad).tolist() == pytest.approx([-0.5, -4, 2])


def test_shapes_are_refused_not_broadcast():
    with pytest.raises(ShapeError):
        q_target(REWARD[:, None], DISCOUNT, NEXT_Q)
    with pytest.raises(ShapeError):
        q_target(REWARD, DISCOUNT[:1], NEXT_Q)
    with pytest.raises(ShapeError):
        double_q_target(REWARD, DISCOUNT, CHOOSER[:, :1], NEXT_Q)
    with pytest.raises(ShapeError):
        td_loss(REWARD, REWARD[:, None])
