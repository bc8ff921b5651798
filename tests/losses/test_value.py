"""The value loss: hand numbers, clipping, masks, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ArgumentError, ShapeError
from upslope.losses import value_loss


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_mean_squared_error_without_a_half():
    value = tensor(1, 2, 3).requires_grad_()
    loss = value_loss(value, tensor(0, 2, 5))
    assert loss.item() == pytest.approx(5 / 3)
    loss.backward()
    torch.testing.assert_close(value.grad, tensor(2, 0, -4) / 3)


@pytest.mark.parametrize(
    ("value", "target", "expected", "slope"),
    [
        (1.1, 2, 0.81, -1.8),  # inside the clip: as without
        (1.5, 2, 0.64, 0),  # moved too far towards the target: held at 1.2
        (0.5, 2, 2.25, -3),  # moved away: the clip would flatter, so the error itself
    ],
)
def test_clip_by_hand(value, target, expected, slope):
    value = tensor(value).requires_grad_()
    loss = value_loss(value, tensor(target), tensor(1), 0.2)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert value.grad.item() == pytest.approx(slope)


@given(
    st.lists(st.tuples(*[st.floats(-9, 9)] * 3), min_size=1, max_size=9),
    st.floats(0, 3),
)
@settings(max_examples=60)
def test_clip_is_its_definition(triples, clip):
    value, target, old = (tensor(*x) for x in zip(*triples, strict=True))
    total = 0.0
    for v, g, o in triples:
        held = min(max(v, o - clip), o + clip)
        total += max((v - g) ** 2, (held - g) ** 2)
    found = value_loss(value, target, old, clip).item()
    assert found == pytest.approx(total / len(triples), rel=1e-9, abs=1e-12)


def test_targets_are_constants():
    value, target, old = (tensor(1, 2).requires_grad_() for _ in range(3))
    value_loss(value, target, old, 0.2).backward()
    assert value.grad is not None
    assert target.grad is None
    assert old.grad is None


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_mask_is_the_mean_over_what_counts(clip):
    mask = torch.tensor([[True, False], [False, True]])
    value, target, old = torch.randn(3, 2, 2, dtype=torch.float64).unbind()
    value.requires_grad_()
    given_old = None if clip is None else old
    expected = value_loss(value[mask], target[mask], None if clip is None else old[mask], clip)
    torch.testing.assert_close(value_loss(value, target, given_old, clip, mask=mask), expected)
    with torch.no_grad():
        value[~mask], target[~mask], old[~mask] = math.nan, math.inf, -math.inf
    loss = value_loss(value, target, given_old, clip, mask=mask)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert value.grad.isfinite().all()
    assert (value.grad[~mask] == 0).all()
    nothing = value_loss(value, target, given_old, clip, mask=torch.zeros_like(mask))
    assert nothing.item() == 0


def test_one_without_the_other_is_refused():
    x = tensor(1, 2)
    with pytest.raises(ArgumentError, match="got only old_value"):
        value_loss(x, x, x)
    with pytest.raises(ArgumentError, match="got only clip_range"):
        value_loss(x, x, clip_range=0.2)
    with pytest.raises(ArgumentError, match="clip_range takes a number of at least 0, got -1"):
        value_loss(x, x, x, -1)


def test_shapes_are_refused_never_broadcast():
    x, column = torch.zeros(4), torch.zeros(4, 1)
    with pytest.raises(ShapeError, match="target takes"):
        value_loss(x, column)
    with pytest.raises(ShapeError, match="target takes"):
        value_loss(column, x)
    with pytest.raises(ShapeError, match="old_value takes"):
        value_loss(x, x, column, 0.2)
    with pytest.raises(ShapeError, match="mask takes"):
        value_loss(x, x, mask=column.bool())
