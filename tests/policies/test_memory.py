"""Recurrent layers over whole sequences: equal to torch's own, taken step by step with resets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.policies.cells import GruCell
from upslope.policies.memory import MEMORIES, Gru, Lstm, Memory, Sequences

KINDS = ("lstm", "gru")
INPUTS, SIZE = 3, 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(kind: str) -> Memory:
    """A layer in float64 with biases that are not zero."""
    layer = MEMORIES[kind](INPUTS, SIZE).initialise(seeded()).double()
    for name, parameter in layer.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, generator=seeded(len(name)))
    return layer


def torch_step(layer: nn.Module, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step of torch's own layer for one row."""
    if isinstance(layer, nn.GRU):
        hidden, _ = layer(features.view(1, 1, -1), state.view(1, 1, -1))
        return hidden.view(-1), hidden.view(-1)
    h, c = state.view(2, 1, 1, -1)
    hidden, (h, c) = layer(features.view(1, 1, -1), (h.contiguous(), c.contiguous()))
    return hidden.view(-1), torch.cat([h.view(-1), c.view(-1)])


def row_by_row(layer: nn.Module, features: Tensor, segment: list[int], start: Tensor) -> Tensor:
    """Take the rows one by one; each segment goes on from its own memory."""
    memory: dict[int, Tensor] = {}
    found = []
    for row, number in zip(features, segment, strict=True):
        empty = start[number] if number < len(start) else torch.zeros_like(start[0])
        hidden, memory[number] = torch_step(layer, row, memory.get(number, empty))
        found.append(hidden)
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
@given(segment=st.lists(st.integers(0, 6), min_size=1, max_size=20), n=st.integers(1, 4))
@settings(max_examples=40)
def test_sequences_are_torchs_layer_row_by_row(kind, segment, n):
    """Values, and the gradients of inputs and of every weight, to float64's precision."""
    layer = layer_of(kind)
    start = torch.randn(n, layer.state_size, generator=seeded(1), dtype=torch.float64)
    inputs = torch.randn(len(segment), INPUTS, generator=seeded(2), dtype=torch.float64)
    weigh = torch.randn(len(segment), SIZE, generator=seeded(3), dtype=torch.float64)
    found = []
    for run in (
        lambda x: layer.sequences(x, Sequences(torch.tensor(segment), start)),
        lambda x: row_by_row(layer.layer, x, segment, start),
    ):
        features = inputs.clone().requires_grad_()
        hidden = run(features)
        wanted = [features, *layer.layer.parameters()]
        found.append((hidden, *torch.autograd.grad((hidden.sin() * weigh).sum(), wanted)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_one_long_sequence_is_torchs_layer(kind):
    layer = layer_of(kind)
    features = torch.randn(30, INPUTS, generator=seeded(2), dtype=torch.float64)
    rows = Sequences(torch.zeros(30, dtype=torch.int64), torch.zeros(1, layer.state_size).double())
    torch.testing.assert_close(layer.sequences(features, rows), layer.layer(features)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_sequences(kind):
    """N environments step by step, some of which begin anew, as collecting does it."""
    layer, n_steps, n = layer_of(kind), 12, 3
    features = torch.randn(n_steps, n, INPUTS, generator=seeded(2), dtype=torch.float64)
    begins = torch.rand(n_steps, n, generator=seeded(3)) < 0.2
    begins[0] = False
    state = start = torch.randn(n, layer.state_size, generator=seeded(1), dtype=torch.float64)
    hidden = []
    for now, new in zip(features, begins, strict=True):
        one, state = layer(now, state * ~new.unsqueeze(1))
        hidden.append(one)
    segment = begins.long().cumsum(0) * n + torch.arange(n)
    assert begins.sum() > 3
    found = layer.sequences(features.flatten(0, 1), Sequences(segment.flatten(), start))
    torch.testing.assert_close(found.view(n_steps, n, SIZE), torch.stack(hidden))


def test_gru_backward_is_that_of_finite_differences():
    start = torch.randn(3, 2, generator=seeded(), dtype=torch.float64)
    shapes = [(6, 6), (6, 2), (6,)]
    leaves = [
        torch.randn(*shape, generator=seeded(1), dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    assert torch.autograd.gradcheck(lambda *x: GruCell.apply(*x, start, [3, 2, 1])[0], leaves)


# ---- the order of rows ---------------------------------------------------------------------------
def test_packed_by_hand():
    """Rows of two environments, the first of which begins anew after a row."""
    segment = torch.tensor([0, 1, 2, 1, 2, 1])
    start = torch.tensor([[5.0], [6.0]])
    order, counts, memory = Sequences(segment, start).packed()
    assert order.tolist() == [1, 2, 0, 3, 4, 5]  # segment 1 has three rows, 2 two, 0 one
    assert counts == [3, 2, 1]
    assert memory.tolist() == [[6], [0], [5]]


@pytest.mark.slow
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 5))
@settings(max_examples=100)
def test_packed(numbers, n):
    segment, start = torch.tensor(numbers), torch.arange(1.0, n + 1).unsqueeze(1)
    order, counts, memory = Sequences(segment, start).packed()
    assert sorted(order.tolist()) == list(range(len(numbers)))
    assert sum(counts) == len(numbers)
    assert counts == sorted(counts, reverse=True)
    assert len(memory) == counts[0] == len(set(numbers))
    first = order[: counts[0]]
    for rank, row in enumerate(first.tolist()):
        own = [i for i, number in enumerate(numbers) if number == numbers[row]]
        assert row == own[0]
        wanted = numbers[row] + 1 if numbers[row] < n else 0
        assert memory[rank].item() == wanted
        steps = torch.split(order, counts)
        assert [int(step[rank]) for step in steps[: len(own)]] == own
        assert all(len(step) <= rank for step in steps[len(own) :])


def test_rows_of_whole_segments_keep_their_memory():
    start = torch.tensor([[5.0], [6.0], [7.0]])
    rows = Sequences(torch.tensor([0, 1, 2, 0, 4, 2]), start)
    part = rows[torch.tensor([1, 2, 4, 5])]
    assert part.segment.tolist() == [1, 2, 4, 2]
    assert part.packed()[2].tolist() == [[7], [6], [0]]


# ---- weights -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_weights_are_orthogonal_gate_by_gate(kind, gates):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    layer = MEMORIES[kind](5, 8).initialise(seeded())
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in layer.layer.named_parameters():
        if "bias" in name:
            assert not parameter.any()
            continue
        parts = parameter.detach().split(8)
        assert len(parts) == gates
        for gate in parts:
            square = gate.T @ gate if gate.shape[1] < 8 else gate @ gate.T
            torch.testing.assert_close(square, torch.eye(len(square)), atol=1e-5, rtol=0)
    again = MEMORIES[kind](5, 8).initialise(seeded())
    assert torch.equal(again.layer.weight_hh_l0, layer.layer.weight_hh_l0)


def test_sizes():
    assert (Lstm(3, 5).state_size, Gru(3, 5).state_size) == (10, 5)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "8", None])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_are_refused(kind, size):
    with pytest.raises(ArgumentError, match=r"memory_size=.*takes a whole number of at least 1"):
        MEMORIES[kind](3, size)
