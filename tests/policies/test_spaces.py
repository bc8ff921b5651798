"""Spaces: what a policy takes and gives, and what is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

import upslope.policies.spaces
from upslope.errors import ArgumentError
from upslope.policies.distributions import Categorical, DiagonalGaussian
from upslope.policies.spaces import ActionHead, unbatched


def test_discrete():
    head = ActionHead(spaces.Discrete(5))
    assert (head.size, head.shape, head.dtype) == (5, (), np.int64)
    assert list(head.parameters()) == []
    distribution = head(torch.zeros(3, 5))
    assert isinstance(distribution, Categorical)
    torch.testing.assert_close(distribution.entropy(), torch.full((3,), 5.0).log())


def test_discrete_start_is_added_on_the_way_to_the_environment():
    space = spaces.Discrete(3, start=-1)
    sent = ActionHead(space).to_environment(np.array([0, 1, 2]))
    assert sent.tolist() == [-1, 0, 1]
    assert all(space.contains(action) for action in sent)
    plain = np.array([0, 2])
    assert ActionHead(spaces.Discrete(3)).to_environment(plain).tolist() == [0, 2]


def test_box_is_clipped_only_on_the_way_to_the_environment():
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32))
    head = ActionHead(space, log_std_init=0.5)
    assert (head.size, head.shape, head.dtype) == (2, (2,), np.float32)
    assert head.log_std.tolist() == [0.5, 0.5]
    distribution = head(torch.tensor([[7.0, -7.0]] * 50))
    assert isinstance(distribution, DiagonalGaussian)
    drawn = distribution.sample(torch.Generator().manual_seed(0)).detach()
    assert drawn[:, 0].min() > 1  # far outside, and not touched
    assert distribution.log_prob(drawn).mean() > -6  # that of what was drawn: -3.84 expected
    sent = head.to_environment(drawn.numpy())
    assert np.array_equal(sent, np.tile(np.array([1, 0], np.float32), (50, 1)))
    assert drawn[:, 0].min() > 1  # `to_environment` left them alone


def test_unbounded_box_is_not_clipped():
    head = ActionHead(spaces.Box(-np.inf, np.inf, (1,), np.float32))
    drawn = np.array([[1e30], [-1e30]], np.float32)
    assert np.array_equal(head.to_environment(drawn), drawn)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_box_of_any_shape_is_flat_inside_and_shaped_outside(shape, dtype):
    space = spaces.Box(-2, 2, shape, dtype)
    head = ActionHead(space)
    assert head.shape == (head.size,)
    sent = head.to_environment(np.linspace(-3, 3, 4 * head.size, dtype=np.float32).reshape(4, -1))
    assert sent.shape == (4, *shape)
    assert sent.dtype == dtype
    assert sent.min() == -2
    assert sent.max() == 2
    if shape == (2, 3):  # row by row, as numpy flattens
        row = np.arange(6, dtype=np.float32)[None] / 5
        assert np.array_equal(head.to_environment(row)[0], row.reshape(2, 3))


# ---- choices, bits, nested -----------------------------------------------------------------------
FLOAT = spaces.Box(np.array([-2, 0.1], np.float32), np.array([1, 0.7], np.float32))
GRID = spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[0, -1], [5, 2]]))
HYBRID = spaces.Dict(
    [
        ("turn", FLOAT),
        ("gear", spaces.Discrete(3, start=-1)),
        ("rest", spaces.Tuple([spaces.MultiBinary(2), spaces.Box(-1, 1, (3,), np.float64)])),
    ]
)
ALL = {
    "Discrete": spaces.Discrete(4, start=2),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3], start=[1, -1]),
    "MultiDiscrete of two axes": GRID,
    "MultiBinary": spaces.MultiBinary(3),
    "MultiBinary of two axes": spaces.MultiBinary((2, 2)),
    "Box": FLOAT,
    "Dict": HYBRID,
    "Tuple": spaces.Tuple([GRID, spaces.Discrete(2), FLOAT]),
    "Tuple of choices": spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row_of(batch, n: int):
    """Row n of a batch that is nested like its space."""
    if isinstance(batch, dict):
        return {key: row_of(inner, n) for key, inner in batch.items()}
    return tuple(row_of(one, n) for one in batch) if isinstance(batch, tuple) else batch[n]


@pytest.mark.parametrize("scale", ["parameter", "network", "exploration"])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_is_in_the_space(name, squash, scale):
    if scale == "exploration" and squash:
        return
    head = ActionHead(ALL[name], scale=scale, squash=squash, latent=5)
    latent = torch.randn(40, 5, generator=seeded(1))
    head.explore(seeded(2), 40)
    outputs = 2 * torch.randn(40, head.size, generator=seeded(3))
    distribution = head(outputs, None, latent)
    for action in (distribution.sample(seeded(4)), distribution.mode()):
        assert action.shape == (40, *head.shape)
        packed = action.detach().numpy()
        assert packed.dtype == head.dtype
        sent = head.to_environment(packed)
        assert all(ALL[name].contains(row_of(sent, n)) for n in range(40))
        assert ALL[name].contains(unbatched(sent))
        assert distribution.log_prob(action).shape == distribution.entropy().shape == (40,)


def test_multi_discrete_of_two_axes_by_hand():
    head = ActionHead(GRID)
    assert (head.size, head.shape, head.dtype, head.masks) == (11, (4,), np.int64, [11])
    logits = torch.randn(6, 11, generator=seeded())
    distribution = head(logits)
    apart = [Categorical(part) for part in logits.split([2, 3, 4, 2], -1)]
    drawn = distribution.sample(seeded(1))
    wanted = sum(one.log_prob(value) for one, value in zip(apart, drawn.T, strict=True))
    torch.testing.assert_close(distribution.log_prob(drawn), wanted)
    torch.testing.assert_close(distribution.entropy(), sum(one.entropy() for one in apart))
    sent = head.to_environment(np.array([[0, 0, 0, 0], [1, 2, 3, 1]]))
    assert sent.tolist() == [[[0, -1], [5, 2]], [[1, 1], [8, 3]]]


def test_hybrid_by_hand():
    head = ActionHead(HYBRID, log_std_init=-1)
    assert (head.size, head.shape, head.dtype) == (2 + 3 + 2 + 3, (8,), np.float32)
    assert (head.sizes, head.masks) == ([2, 3, 2, 3], [0, 3, 4, 0])
    head.log_std.data[:] = torch.tensor([-1.0, -2, -3, -4, -5])
    turn, gear, bits, push = head(torch.arange(20.0).view(2, 10)).parts
    assert turn.mean.tolist() == [[0, 1], [10, 11]]
    torch.testing.assert_close(
        gear.log_probs, torch.tensor([[2.0, 3, 4]] * 2).log_softmax(-1), check_stride=False
    )
    assert bits.mode().tolist() == [[1, 1], [1, 1]]
    assert push.mean.tolist() == [[7, 8, 9], [17, 18, 19]]
    assert turn.log_std[0].tolist() == [-1, -2]
    assert push.log_std[0].tolist() == [-3, -4, -5]  # not the deviations of the first box
    sent = head.to_environment(np.array([[0.5, 0.5, 2, 1, 0, -9, 0.25, 9]], np.float32))
    assert list(sent) == ["turn", "gear", "rest"]
    assert sent["turn"].tolist() == [[0.5, 0.5]]
    assert sent["gear"].tolist() == [1]
    assert [one.tolist() for one in sent["rest"]] == [[[1, 0]], [[-1, 0.25, 1]]]
    assert [one.dtype for one in sent["rest"]] == [np.int8, np.float64]


def test_masks_reach_their_parts():
    head = ActionHead(HYBRID)
    mask = torch.tensor([[0, 1, 1, 1, 0, 1, 1]]).bool().expand(500, 7)
    drawn = head(torch.zeros(500, 10), mask).sample(seeded())
    assert set(drawn[:, 2].tolist()) == {1, 2}
    assert set(drawn[:, 3].tolist()) == {0}  # only a 0 is legal
    assert set(drawn[:, 4].tolist()) == {0, 1}


def test_deviations_from_the_network():
    space = spaces.Tuple([FLOAT, spaces.Box(-1, 1, (1,))])
    head = ActionHead(space, log_std_init=0.5, scale="network")
    assert (head.size, head.sizes, list(head.parameters())) == (6, [4, 2], [])
    first, second = head(torch.tensor([[1.0, 2, -0.25, 9, 3, -9]])).parts
    assert (first.mean.tolist(), second.mean.tolist()) == ([[1, 2]], [[3]])
    assert first.log_std.tolist() == [[0.25, 2]]
    assert second.log_std.tolist() == [[-5]]


def test_deviations_from_the_last_layer():
    space = spaces.Tuple([FLOAT, spaces.Discrete(2), spaces.Box(-1, 1, (1,))])
    head = ActionHead(space, log_std_init=-1, scale="exploration", latent=4)
    assert head.log_std.shape == (4, 3)
    latent = torch.ones(2, 4)
    first, _, last = head(torch.zeros(2, 5), None, latent).parts
    variance = 4 * np.exp(-2) + 1e-6  # four features of 1
    torch.testing.assert_close(first.log_std, torch.full((2, 2), 0.5 * np.log(variance).item()))
    head.explore(seeded(), 2)
    first, _, last = head(torch.zeros(2, 5), None, latent).parts
    noise = torch.cat([first.sample(seeded(1)), last.sample(seeded(2))], dim=1)
    torch.testing.assert_close(noise, head.matrix.sum(1))  # each box has its own columns


def test_exploration_draws_at_the_deviations():
    head = ActionHead(FLOAT, scale="exploration", latent=3)
    head.log_std.data[:] = torch.tensor([[-2.0, 0], [1, 0.5], [0, -1]])
    head.explore(seeded(), 20_000)
    z = (head.matrix / head.log_std.detach().exp()).double()
    assert ((z.square().mean(0) - 1) * np.sqrt(20_000 / 2)).abs().max() < 4.5
    first = head.matrix
    head.explore(seeded(), 20_000)
    assert torch.equal(head.matrix, first)
    whole = ActionHead(spaces.Discrete(2), scale="exploration", latent=3)
    whole.explore(seeded(), 4)
    assert whole.matrix is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_squashed_actions_reach_their_bounds_and_no_further(dtype):
    space = spaces.Box(
        np.array([-2, 0.1, -3e4, 1e-3], dtype), np.array([1, 0.7, 3e4, 123.4], dtype), dtype=dtype
    )
    head = ActionHead(space, squash=True)
    for sign, bound in ((1, space.high), (-1, space.low)):
        sent = head.to_environment(np.full((1, 4), 20.0 * sign, np.float32))
        np.testing.assert_array_equal(sent[0], bound)
    middle = head.to_environment(np.zeros((1, 4), np.float32))[0]
    np.testing.assert_allclose(middle, (space.high / 2 + space.low / 2), rtol=2e-3)
    u = np.linspace(-3, 3, 50, dtype=np.float32)[:, None].repeat(4, 1)
    sent = head.to_environment(u)
    assert sent.dtype == dtype
    assert (np.diff(sent, axis=0) > 0).all()
    wanted = (np.tanh(u) + 1) / 2 * (space.high.astype(float) - space.low) + space.low
    np.testing.assert_allclose(sent, wanted, rtol=2e-3, atol=1e-2)


def test_squashed_bounds_of_all_finite_floats():
    top = np.finfo(np.float32).max
    head = ActionHead(spaces.Box(-top, top, (1,), np.float32), squash=True)
    sent = head.to_environment(np.array([[-20], [0], [20]], np.float32))
    assert sent[:, 0].tolist() == [-top, 0, top]


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Box(-1, np.inf, (1,)), {"squash": True}, "squash=True takes .* with bounds, got"),
        (spaces.Dict(a=spaces.Box(-np.inf, 1, (1,))), {"squash": True}, "squash=True takes"),
        (FLOAT, {"squash": True, "scale": "exploration"}, "it takes squash=False"),
        (FLOAT, {"scale": "netwrok"}, r"scale='netwrok': .*did you mean 'network'"),
        (spaces.Box(0, 9, (1,), np.int64), {}, "actions of a Box are floats"),
        (spaces.Tuple([spaces.Box(0, 9, (1,), np.uint8)]), {}, r"action space \[0\] Box"),
        (spaces.Dict(a=spaces.Text(3)), {}, r"action space\['a'\] Text"),
    ],
)
def test_heads_that_are_refused(space, kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        ActionHead(space, latent=2, **kwargs)


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (2, 3), ()])
def test_each_number_is_clipped_to_its_own_bounds(built, dtype, shape, monkeypatch):
    monkeypatch.setattr("upslope.policies.spaces.BUILT", built and upslope.policies.spaces.BUILT)
    draws = np.random.default_rng(0)
    low = draws.normal(size=shape) - 1
    low = np.asarray(low, dtype)
    space = spaces.Box(low, low + 1, shape, dtype)
    head = ActionHead(space)
    action = draws.normal(size=(50, head.size)).astype(np.float32) * 3
    kept = action.copy()
    sent = head.to_environment(action)
    assert sent.dtype == dtype
    expected = np.clip(kept.reshape(50, *shape), space.low, space.high)
    assert np.array_equal(sent, expected.astype(dtype))
    assert np.array_equal(action, kept)
    assert not np.array_equal(sent, kept.reshape(50, *shape))
    action[7] = np.nan
    assert np.isnan(head.to_environment(action)[7]).all()
