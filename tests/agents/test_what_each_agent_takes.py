"""What each agent takes: one table, which `docs/ppo.md` shows, and every cell of it is tried.

"yes" trains one iteration and acts within the action space. "no" is refused when the agent is made,
in one sentence that names the argument, or the space it got, and the agent or its form.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import Space, spaces

import upslope as us
from tests.agents.anything import ACTIONS, OBSERVATIONS, Anything
from upslope.agents.agent import Agent
from upslope.agents.table import ALGORITHMS
from upslope.errors import ArgumentError
from upslope.policies.layout import leaves

TAKES = """
| | QLearning | DQN | REINFORCE | ActorCritic | all actions | traces | PPO |
|---|---|---|---|---|---|---|---|
| numbers (Box observations) | yes | yes | yes | yes | yes | yes | yes |
| images | no | yes | yes | yes | yes | yes | yes |
| Dict observations | yes | yes | yes | yes | yes | yes | yes |
| Tuple observations | yes | yes | yes | yes | yes | yes | yes |
| action masks | yes | yes | yes | yes | yes | yes | yes |
| memory (`policy="lstm"`, `"gru"`) | no | no | yes | yes | yes | no | yes |
| MultiDiscrete actions | no | no | yes | yes | no | yes | yes |
| continuous actions (Box) | no | no | yes | yes | no | yes | yes |
| hybrid actions (Dict) | no | no | yes | yes | no | yes | yes |
"""
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "QLearning": ("q_learning", {"n_steps": 4}),
    "DQN": ("dqn", {"learning_starts": 1, "batch_size": 4, "buffer_size": 64}),
    "REINFORCE": ("reinforce", {"n_steps": 7}),
    "ActorCritic": ("actor_critic", {"n_steps": 8}),
    "all actions": ("actor_critic", {"n_steps": 8, "update": "all_actions"}),
    "traces": ("actor_critic", {"n_steps": 8, "traces": True}),
    "PPO": ("ppo", {"n_steps": 8, "batch_size": 8, "n_epochs": 1}),
}
PLAIN = {"observation": OBSERVATIONS["box"], "action": ACTIONS["discrete"]}
CASES: dict[str, dict[str, Any]] = {
    "numbers (Box observations)": {},
    "images": {"observation": OBSERVATIONS["image"]},
    "Dict observations": {
        "observation": spaces.Dict(place=spaces.Box(-1, 1, (2,)), goal=spaces.Discrete(3))
    },
    "Tuple observations": {
        "observation": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(0, 1, (1,))])
    },
    "action masks": {"masks": "info"},
    'memory (`policy="lstm"`, `"gru"`)': {"policy": ("lstm", "gru")},
    "MultiDiscrete actions": {"action": ACTIONS["multi_discrete"]},
    "continuous actions (Box)": {"action": ACTIONS["box"]},
    "hybrid actions (Dict)": {"action": ACTIONS["dict"]},
}
LISTED = "takes a Discrete action space, .* got {space}"
REFUSED = {  # by agent: what is said about an image, a memory and an action space
    "QLearning": (
        "a table of .* is too large: .* fewer bins",
        "QLearning has .* no policy",
        LISTED,
    ),
    "DQN": ("", "policy='{policy}': DQN takes .* no memory", LISTED),
    "all actions": ("", "", "update='all_actions' takes Discrete actions, got {space}"),
    "traces": ("", "policy='{policy}': traces=True takes a policy without memory", ""),
}


class Spaces(Anything):
    """`Anything` over the spaces given."""

    def __init__(self, observation: Space, action: Space, masks: str | None = None) -> None:
        self.observation_space, self.action_space = copy.deepcopy(observation), action
        self.masks = masks


def table() -> dict[tuple[str, str], str]:
    """Return what `TAKES` says of each agent and case."""
    lines = [line.strip("| ").split(" | ") for line in TAKES.replace("| |", "|").split("\n")[1:-1]]
    agents, _, *rows = lines
    return {(a, row[0]): one for row in rows for a, one in zip(agents, row[1:], strict=True)}


def agent_of(name: str, case: str, policy: str | None = None) -> Agent:
    chosen = PLAIN | {key: part for key, part in CASES[case].items() if key != "policy"}
    algorithm, settings = AGENTS[name]
    real = any(isinstance(space, spaces.Box) for _, space in leaves(chosen["observation"]))
    bins = {"bins": 3} if name == "QLearning" and real else {}
    factory = partial(Spaces, **chosen)
    return ALGORITHMS[algorithm](factory, policy=policy, n_envs=2, seed=0, **settings, **bins)


def refusal(name: str, case: str, policy: str | None) -> str:
    about = 0 if case == "images" else 1 if policy else 2
    space = type(CASES[case].get("action")).__name__
    return REFUSED[name][about].format(space=space, policy=policy)


@pytest.mark.parametrize(("name", "case"), table())
def test_each_cell(name, case):
    for policy in CASES[case].get("policy", (None,)):
        if table()[name, case] == "no":
            with pytest.raises(ArgumentError, match=refusal(name, case, policy)) as raised:
                agent_of(name, case, policy)
            assert "\n" not in str(raised.value)
            continue
        agent = agent_of(name, case, policy)
        before = copy.deepcopy(agent.policy.state_dict())
        agent.learn(1)  # an illegal action raises
        after = agent.policy.state_dict()
        assert agent.iteration == 1
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        assert any(not torch.equal(after[key], before[key]) for key in before)
        seen = agent.stream.observation_space.sample()
        assert agent.stream.action_space.contains(agent.predict(seen)[0])


def test_the_table_is_whole_and_the_page_shows_it():
    said = table()
    assert {AGENTS[name][0] for name, _ in said} == set(ALGORITHMS)
    assert set(said) == {(name, case) for name in AGENTS for case in CASES}
    assert set(said.values()) == {"yes", "no"}
    assert TAKES in (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()


class Seen(gymnasium.Env):
    """Shows a sample of its space, for ever."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


def test_truth_values_are_observations(tmp_path):
    space = spaces.Box(0, 1, (3,), dtype=bool)
    agent = us.PPO(partial(Seen, space), n_envs=2, n_steps=8, batch_size=16).learn(32)
    assert agent.predict(np.ones(3, bool))[0] in (0, 1)
    agent.save(tmp_path / "agent")
    us.load(tmp_path / "agent", env=partial(Seen, space)).learn(16)


def test_choices_that_float32_would_round_are_refused():
    def make(start: int):
        far = spaces.Discrete(3, start=start)
        return partial(Seen, spaces.Dict(y=far, b=spaces.Box(-1, 1, (2,))))

    with pytest.raises(ArgumentError, match=r"observation \['y'\] Discrete.*up to 2\*\*24"):
        us.PPO(make(2**30), n_envs=1)
    us.PPO(make(2**24 - 2), n_envs=1)
