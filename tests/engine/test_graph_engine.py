"""Steps that wait for nothing: torch's steps, on a CPU without the graphs that a GPU records."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

import upslope as us
from upslope.agents.ppo import ppo_loss
from upslope.engine.choose import make_engine
from upslope.engine.graph_engine import MOST_GRAPHS, GraphEngine
from upslope.engine.torch_engine import TorchEngine
from upslope.errors import ArgumentError, NotFiniteError
from upslope.policies.make import make_policy
from upslope.rollout.buffer import Batch, Chunks

ROWS = 60
OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,), np.float32),
}


def policy_of(observation="vector", action="discrete", seed=0):
    generator = torch.Generator().manual_seed(seed)
    space = OBSERVATIONS[observation], ACTIONS[action]
    return make_policy("cnn" if observation == "image" else None, *space, generator=generator)


def batch_of(observation="vector", action="discrete", masked=False, seed=1) -> Batch:
    g = torch.Generator().manual_seed(seed)
    if observation == "vector":
        seen = torch.randn(ROWS, 3, generator=g)
    else:
        seen = torch.randint(0, 256, (ROWS, 36, 36, 1), generator=g, dtype=torch.uint8)
    taken = {
        "discrete": lambda: torch.randint(0, 3, (ROWS,), generator=g),
        "multi": lambda: torch.randint(0, 2, (ROWS, 2), generator=g),
        "box": lambda: torch.randn(ROWS, 2, generator=g),
    }[action]()
    columns = [torch.randn(ROWS, generator=g) for _ in range(4)]
    batch = Batch(seen, taken, columns[0] - 2, *columns[1:])
    if masked:
        batch.action_mask = torch.rand(ROWS, 3, generator=g) > 0.3
        batch.action_mask[torch.arange(ROWS), taken] = True
    return batch


def loss_of(clip_range=0.2, clip_range_vf=None):
    coefficients = {"vf_coef": 0.5, "ent_coef": 0.01}
    return partial(ppo_loss, clip_range=clip_range, clip_range_vf=clip_range_vf, **coefficients)


def indices(count, *lengths, seed=2):
    g = torch.Generator().manual_seed(seed)
    return [torch.randperm(ROWS, generator=g)[: lengths[k % len(lengths)]] for k in range(count)]


def both(**kinds) -> tuple[GraphEngine, TorchEngine]:
    return tuple(kind(policy_of(**kinds), max_grad_norm=0.5) for kind in (GraphEngine, TorchEngine))


def close(graph: GraphEngine, plain: TorchEngine) -> None:
    assert graph.steps == plain.steps
    for name in ("value", "first_moment", "second_moment"):
        found, expected = getattr(graph.flat, name), getattr(plain.flat, name)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), name


CASES = [
    ("vector", "discrete", False),
    ("vector", "discrete", True),
    ("vector", "multi", False),
    ("vector", "box", False),
    ("image", "discrete", False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("observation", "action", "masked"), CASES)
@pytest.mark.parametrize("chunked", [False, True])
def test_its_epochs_are_torchs(observation, action, masked, chunked):
    graph, plain = both(observation=observation, action=action)
    for epoch in range(4):
        batch = batch_of(observation, action, masked, seed=epoch)  # other memory each time
        loss = loss_of(0.2 if epoch < 2 else 0.1, 0.3)
        minibatches = indices(6, 20, 19, seed=epoch)
        chunks = Chunks(minibatches[0], torch.tensor([12, 8])) if chunked else None
        found, expected = (
            engine.epoch(loss, batch, minibatches, 1e-3, chunks) for engine in (graph, plain)
        )
        assert found.keys() == expected.keys()
        for name, numbers in expected.items():
            assert torch.allclose(found[name], numbers, rtol=1e-4, atol=1e-5), name
        assert torch.allclose(graph.chunk_gradients, plain.chunk_gradients, rtol=1e-4, atol=1e-6)
        close(graph, plain)
    assert graph.steps == 24
    assert len(graph._steps) == 4  # two lengths, two clip ranges


def test_without_a_largest_norm():
    graph, plain = (k(policy_of(), max_grad_norm=None) for k in (GraphEngine, TorchEngine))
    for engine in (graph, plain):
        for index in indices(5, 30):
            engine.step(loss_of(), batch_of(), index, 1e-2)
    close(graph, plain)


@pytest.mark.slow
def test_what_was_recorded_is_kept_within_bounds():
    graph, plain = both()
    for rows in range(10, 10 + MOST_GRAPHS + 3):
        for engine in (graph, plain):
            engine.step(loss_of(), batch_of(), torch.arange(rows), 1e-3)
    assert len(graph._steps) == 3
    close(graph, plain)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_gradient_that_is_not_finite_stops_the_epoch(chunked):
    graph, plain = both()
    batch, minibatches = batch_of(), [torch.arange(k, k + 10) for k in (0, 10, 20, 30)]
    chunks = Chunks(minibatches[0], torch.tensor([5, 5])) if chunked else None
    batch.target[25] = torch.inf
    plain.epoch(loss_of(), batch, minibatches[:2], 1e-3, chunks)
    with pytest.raises(NotFiniteError, match="optimisation step 3 is not finite"):
        graph.epoch(loss_of(), batch, minibatches, 1e-3, chunks)
    close(graph, plain)
    for engine in (graph, plain):
        engine.epoch(loss_of(), batch, minibatches[3:], 1e-3)
    close(graph, plain)


class Nothing(TorchDispatchMode):
    """Refuses what waits for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if any(part in name for part in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.")):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("observation", "action", "masked"), CASES)
def test_a_step_waits_for_nothing(observation, action, masked):
    engine = GraphEngine(policy_of(observation, action), max_grad_norm=0.5)
    engine._keep(batch_of(observation, action, masked))
    with Nothing():
        engine.advance(loss_of(0.2, 0.3), torch.arange(20))
        with pytest.raises(AssertionError, match="waits for the device"):
            float(engine.rate)


@pytest.mark.slow
@pytest.mark.parametrize("agent", [us.PPO, us.ActorCritic, us.REINFORCE])
def test_learning_is_torchs(agent, monkeypatch):
    def learned() -> TorchEngine:
        settings = {"n_envs": 4, "n_steps": 32, "engine": "torch", "seed": 3}
        return agent("CartPole-v1", **settings).learn(4 * 32 * 5).engine

    plain = learned()
    monkeypatch.setattr(
        us.agents.agent, "make_engine", lambda _, *args, **k: GraphEngine(*args, **k)
    )
    graph = learned()
    assert type(graph) is GraphEngine
    assert type(plain) is TorchEngine
    close(graph, plain)


def test_it_takes_a_gpu():
    with pytest.raises(ArgumentError, match="engine='graph' takes device='cuda', got device='cpu'"):
        make_engine("graph", policy_of(), max_grad_norm=0.5)
    with pytest.raises(ArgumentError, match="engine='graph' does not apply: traces"):
        us.ActorCritic("CartPole-v1", engine="graph", traces=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("observation", "action", "masked"), CASES)
def test_on_a_gpu(observation, action, masked):
    policies = [policy_of(observation, action).to("cuda") for _ in range(2)]
    graph = make_engine("graph", policies[0], max_grad_norm=0.5)
    plain = TorchEngine(policies[1], max_grad_norm=0.5)
    for epoch in range(3):
        batch = batch_of(observation, action, masked, seed=epoch)
        fields = {n: v.to("cuda") for n, v in vars_of(batch).items() if v is not None}
        for engine in (graph, plain):
            engine.epoch(loss_of(), Batch(**fields), indices(6, 20, 19, seed=epoch), 1e-3)
    assert graph.steps == plain.steps
    assert torch.allclose(graph.flat.value, plain.flat.value, rtol=1e-3, atol=1e-5)


def vars_of(batch: Batch) -> dict[str, torch.Tensor | None]:
    return {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
