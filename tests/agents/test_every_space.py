"""Every combination of observations, actions, masks and memory, end to end, with every agent.

An algorithm joins by its settings in `AGENTS`, and with what it does not take in `REFUSED`: that is
refused in one sentence when the agent is made.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from tests.agents.anything import ACTIONS, OBSERVATIONS, Anything, is_legal
from upslope import PPO, REINFORCE
from upslope.agents.agent import Agent
from upslope.agents.evaluation import run_episodes
from upslope.errors import ArgumentError
from upslope.policies.layout import leaves

SMALL = {"n_envs": 3, "n_steps": 8, "batch_size": 12, "n_epochs": 2, "segment_length": 16}
AGENTS: dict[type[Agent], dict] = {
    PPO: SMALL,
    REINFORCE: {"n_envs": 3, "n_steps": 5, "baseline": "value"},  # some episodes are cut
}
REFUSED: dict[tuple[type[Agent], tuple], str] = {}  # (agent, case): what is said
ALL = list(
    itertools.product(OBSERVATIONS, ACTIONS, (None, "info", "method"), ("ff", "lstm", "gru"))
)


def has_choices(action: str) -> bool:
    return "box" not in action


def kept(case: tuple) -> bool:
    """Images are slow: each once with every memory; the rest in full."""
    observation, action, masks, memory = case
    if " of " in action and (observation != "box" or memory == "gru"):
        return False
    if masks and not has_choices(action):
        return False
    return "image" not in observation or (action in ("discrete", "dict") and masks != "method")


CASES = [case for case in ALL if kept(case)]
# One case for each space, mask and memory runs always; all of them in `make test`.
FEW = {("nested", "dict", "info", "lstm"), ("multi_discrete", "tuple", "method", "gru")}
FEW |= {(o, "discrete", "info", "ff") for o in OBSERVATIONS} | {
    ("box", a, None, "ff") for a in ACTIONS
}
MARKED = [
    (kind, *case) if case in FEW else pytest.param(kind, *case, marks=pytest.mark.slow)
    for kind in AGENTS
    for case in CASES
    if kind is PPO or case in FEW  # the spaces are the same code for all: in full for one
]


def agent_of(factory, memory: str, kind: type[Agent] = PPO, **settings) -> Agent:
    policy = None if memory == "ff" else memory
    kwargs = {"net_arch": [8]} if memory == "ff" else {"net_arch": [8], "memory_size": 4}
    return kind(factory, policy=policy, policy_kwargs=kwargs, **{**AGENTS[kind], **settings})


def weights(agent: Agent) -> torch.Tensor:
    return agent.engine.flat.value.clone()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "observation", "action", "masks", "memory"), MARKED)
def test_trains_saves_loads_predicts_the_same_and_resumes(
    kind, observation, action, masks, memory, tmp_path
):
    factory = partial(Anything, observation, action, masks)
    floats = any(s.dtype.kind == "f" for _, s in leaves(OBSERVATIONS[observation]))
    settings = {"kind": kind, "normalize_observation": floats, "normalize_reward": True}
    refusal = REFUSED.get((kind, (observation, action, masks, memory)))
    if refusal is not None:
        with pytest.raises(ArgumentError, match=refusal):
            agent_of(factory, memory, **settings)
        return
    agent = agent_of(factory, memory, **settings)
    before = weights(agent)
    agent.learn(100)  # five rollouts of 24 steps: over the end of a segment
    assert agent.num_timesteps == 120 or (kind is not PPO and agent.num_timesteps >= 100)
    assert torch.isfinite(weights(agent)).all()
    assert not torch.equal(weights(agent), before)

    agent.save(tmp_path / "a")
    loaded = kind.load(tmp_path / "a", env=factory)
    assert torch.equal(weights(loaded), weights(agent))
    space, masked = OBSERVATIONS[observation], factory()
    masked.reset(seed=3)
    mask = masked.mask if masks else None
    state = loaded_state = None
    for deterministic in (True, False, True):
        seen = space.sample()
        one = {"deterministic": deterministic, "action_masks": mask}
        act, state = agent.predict(seen, state, **one)
        same, loaded_state = loaded.predict(seen, loaded_state, **one)
        assert repr(act) == repr(same)
        assert ACTIONS[action].contains(act)
        assert is_legal(ACTIONS[action], mask, act)
        assert (state is None) == (memory == "ff")
    played = run_episodes(agent, factory, 5, n_envs=2, seed=1)
    assert (played.returns == played.lengths).all()

    agent.learn(72, reset_num_timesteps=False)
    loaded.learn(72, reset_num_timesteps=False)
    assert torch.equal(weights(loaded), weights(agent))  # bit for bit
    assert not torch.equal(weights(agent), before)


def test_every_kind_of_space_is_among_the_cases():
    found = {type(s).__name__ for o in OBSERVATIONS.values() for _, s in leaves(o)}
    assert found == {"Box", "Discrete", "MultiDiscrete", "MultiBinary"}
    assert len(CASES) > 280
    assert set(CASES) >= FEW


@pytest.mark.parametrize("memory", ["lstm", "gru"])
def test_memory_is_forgotten_where_an_episode_starts(memory):
    agent = agent_of(partial(Anything, "box", "discrete"), memory)
    seen = np.ones((2, 3), np.float32)
    _, state = agent.predict(seen)
    _, later = agent.predict(seen, state, episode_start=[True, False])
    assert np.array_equal(later[0], state[0])
    assert not np.array_equal(later[1], state[1])
