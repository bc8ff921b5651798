"""The cells in C++ are those in torch: values, gradients, every path, every number of threads."""

from __future__ import annotations

import os

import gymnasium
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import upslope as us
from upslope.policies import native_cells
from upslope.policies.cells import GruCell, LstmCell
from upslope.policies.memory import MEMORIES, Sequences
from upslope.policies.native_cells import BUILT, NativeGruCell, NativeLstmCell

if not BUILT and os.environ.get("CI"):
    raise AssertionError("the native part must be there in CI")
if not BUILT:
    pytest.skip("no native part", allow_module_level=True)

from upslope import _native

INSTRUCTION_SETS = _native.instruction_sets()
GATES, WIDTHS = {"lstm": 4, "gru": 3}, {"lstm": 2, "gru": 1}
NATIVE = {"lstm": NativeLstmCell, "gru": NativeGruCell}
TORCH = {"lstm": LstmCell, "gru": GruCell}
KINDS = tuple(GATES)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """Each path that this machine has, in turn."""
    before = _native.instruction_set()
    _native.use_instruction_set(request.param)
    yield request.param
    _native.use_instruction_set(before)


@pytest.fixture
def threads():
    """Sets torch's number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counts_of(lengths: list[int]) -> list[int]:
    return [sum(length > t for length in lengths) for t in range(max(lengths))]


def case(kind: str, size: int, lengths: list[int], seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Projections, weight and (of a GRU) bias; and the memory at the start."""
    gates = GATES[kind] * size
    leaves = [normal(seed, sum(lengths), gates), normal(seed + 1, gates, size) * size**-0.5]
    leaves += [normal(seed + 2, gates)] if kind == "gru" else []
    return leaves, normal(seed + 3, len(lengths), WIDTHS[kind] * size)


def found_by(cell, leaves: list[Tensor], start: Tensor, lengths: list[int]) -> list[Tensor]:
    """Hidden rows, and the gradients of the leaves under fixed weights of the rows."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    hidden = cell.apply(*leaves, start, counts_of(lengths))
    weigh = normal(9, *hidden.shape).to(hidden.dtype)
    return [hidden.detach(), *torch.autograd.grad((hidden * weigh).sum(), leaves)]


def exact(cell, leaves: list[Tensor], start: Tensor, lengths: list[int]) -> list[Tensor]:
    """The same in torch and float64."""
    return found_by(cell, [leaf.double() for leaf in leaves], start.double(), lengths)


# ---- equality ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("instruction_set")
def test_values_and_gradients_are_those_of_torch(kind):
    """To float32's rounding of sums: a few units of the largest number of each array."""

    @given(
        size=st.integers(1, 70),
        lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=40, deadline=None)
    def holds(size: int, lengths: list[int], seed: int) -> None:
        lengths = sorted(lengths, reverse=True)
        leaves, start = case(kind, size, lengths, seed)
        found = found_by(NATIVE[kind], leaves, start, lengths)
        wanted = exact(TORCH[kind], leaves, start, lengths)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.dtype == torch.float32
            assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())

    holds()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("instruction_set")
def test_long_and_wide_sequences(kind):
    """Several blocks of segments, of widths around the panels that a weight is cut into."""
    for size, lengths in ((64, [100] * 3 + [40] * 50 + [1] * 9), (130, [9] * 30), (256, [5, 2])):
        leaves, start = case(kind, size, lengths)
        found = found_by(NATIVE[kind], leaves, start, lengths)
        for ours, theirs in zip(found, exact(TORCH[kind], leaves, start, lengths), strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("instruction_set")
def test_large_numbers_saturate_and_nan_stays(kind):
    leaves, start = case(kind, 5, [3, 3, 2])
    leaves[0] *= 1e4
    found = found_by(NATIVE[kind], leaves, start, [3, 3, 2])
    for ours, theirs in zip(found, exact(TORCH[kind], leaves, start, [3, 3, 2]), strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-4)
    leaves[0][1, :] = torch.nan  # of segment 1, whose other rows are 4 and 7
    hidden = found_by(NATIVE[kind], leaves, start, [3, 3, 2])[0]
    assert hidden.isnan().any(1).nonzero().flatten().tolist() == [1, 4, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_need_not_lie_one_after_another(kind):
    """Transposed inputs and gradients are read as what they are."""
    lengths = [3, 2]
    leaves, start = case(kind, 6, lengths)
    turned = [leaf.t().contiguous().t() if leaf.ndim == 2 else leaf for leaf in leaves]
    counts = counts_of(lengths)
    found = []
    for given_ in (leaves, turned):
        given_ = [leaf.detach().requires_grad_() for leaf in given_]
        hidden = NATIVE[kind].apply(*given_, start.t().contiguous().t(), counts)
        found.append([hidden, *torch.autograd.grad(hidden, given_, normal(4, 6, 5).t())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- threads -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("instruction_set")
def test_the_number_of_threads_changes_no_bit(kind, threads):
    """Of what the cells add up themselves; torch's product for the weight is left aside."""
    for size, lengths in ((7, [9, 8, 8, 3, 1]), (32, [6] * 70 + [2] * 31)):
        leaves, start = case(kind, size, lengths)
        found = []
        for n in (1, 2, 3, 5):
            threads(n)
            hidden, d_projected, *_ = found_by(NATIVE[kind], leaves, start, lengths)
            found.append((hidden, d_projected))
        for other in found[1:]:
            assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_segments_know_nothing_of_each_other(kind):
    """A segment alone gives the bits that it gives among others."""
    lengths = [7, 6, 6, 4, 4, 4, 3, 2]
    (projected, *rest), start = case(kind, 33, lengths)
    counts = counts_of(lengths)
    hidden = NATIVE[kind].apply(projected, *rest, start, counts)
    for k, length in enumerate(lengths):
        rows = [sum(counts[:t]) + k for t in range(length)]
        alone = NATIVE[kind].apply(projected[rows], *rest, start[k : k + 1], [1] * length)
        assert torch.equal(alone, hidden[rows])


# ---- where they are taken ------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_native_and_float64_is_not(kind, monkeypatch):
    layer = MEMORIES[kind](3, 4).initialise(torch.Generator().manual_seed(0))
    rows = torch.tensor([0, 1, 1, 2, 0])
    features, start = normal(1, 5, 3), normal(2, 2, layer.state_size)
    native = layer.sequences(features, Sequences(rows, start))
    assert type(native.grad_fn.next_functions[1][0]).__name__ == f"{NATIVE[kind].__name__}Backward"
    double = layer.double().sequences(features.double(), Sequences(rows, start.double()))
    assert type(double.grad_fn.next_functions[1][0]).__name__ == f"{TORCH[kind].__name__}Backward"
    torch.testing.assert_close(native, double.float())
    monkeypatch.setattr(native_cells, "BUILT", False)
    torchs = layer.float().sequences(features, Sequences(rows, start))
    assert type(torchs.grad_fn.next_functions[1][0]).__name__ == f"{TORCH[kind].__name__}Backward"
    torch.testing.assert_close(native, torchs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_is_recorded(kind, monkeypatch):
    """An exact resume elsewhere needs the same sums."""

    def engine_of(policy):
        env = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
        agent = us.PPO(env, policy=policy, n_envs=2, engine="torch")
        return agent.state()[1]["made_with"]["engine"]

    assert engine_of(kind) == f"torch, memory native {_native.instruction_set()}"
    assert engine_of("mlp") == "torch"
    monkeypatch.setattr(native_cells, "BUILT", False)
    assert engine_of(kind) == "torch"


# ---- what is refused -----------------------------------------------------------------------------
def test_arrays_that_do_not_fit_are_refused():
    def call(rows=3, gates=8, size=2, start=(2, 4), counts=(2, 1)):
        given_ = [normal(0, *shape).numpy() for shape in ((rows, gates), (8, size), start)]
        found = [normal(0, *shape).numpy() for shape in ((3, 2), (3, 8), (3, 2))]
        _native.lstm_forward(list(counts), 1, *given_, *found)

    call()
    for wrong in (
        {"rows": 4},
        {"gates": 7},
        {"size": 3},
        {"start": (2, 3)},
        {"start": (3, 4)},
        {"counts": (1, 2)},
        {"counts": (2, 1, 0)},
        {"counts": (2, 2)},
        {"counts": ()},
    ):
        with pytest.raises(ValueError, match=r"shape|width|counts"):
            call(**wrong)
