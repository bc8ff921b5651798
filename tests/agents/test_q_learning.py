"""Q-learning: one update by hand, its variants, exact answers, masks, golden numbers."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import upslope as us
from upslope.agents.q_learning import move
from upslope.errors import ArgumentError
from upslope.seeding import generator


class Scripted(gymnasium.Env):
    """States 0, 1, 2 ... in turn, cut or ended as `ends` says; pays 1 + state + action."""

    observation_space = spaces.Discrete(8)
    action_space = spaces.Discrete(2)
    ends = {3: "cut", 6: "end"}  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        self.state = 0 if getattr(self, "state", 0) != 3 else 4
        return self.state, {}

    def step(self, action):
        reward, self.state = 1.0 + self.state + action, self.state + 1
        end = self.ends.get(self.state)
        return self.state, reward, end == "end", end == "cut", {}


# ---- one update ----------------------------------------------------------------------------------
def test_several_targets_of_one_value():
    q = torch.tensor([1.0, 2, 3])
    error = move(q, torch.tensor([2, 0, 2, 2]), torch.tensor([4.0, 5, 6, 8]), 0.5)
    assert error.tolist() == [1, 4, 3, 5]
    assert q.tolist() == pytest.approx([3, 2, 3 + (1 - 0.5**3) * 3])
    before = q.clone()
    assert len(move(q, torch.zeros(0, dtype=torch.long), torch.zeros(0), 0.5)) == 0
    assert torch.equal(q, before)


@pytest.mark.parametrize("target", ["q_learning", "sarsa", "expected_sarsa"])
@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("segment_length", [10_000, 5])
def test_updates_are_those_of_the_page(target, n_steps, segment_length):
    """One environment, step by step in plain Python; over cuts, ends and segments."""
    steps, alpha, gamma, epsilon = 40, 0.5, 0.9, 0.4
    agent = us.QLearning(
        Scripted, seed=3, n_envs=1, n_steps=n_steps, target=target, gamma=gamma, epsilon=epsilon,
        learning_rate=alpha, initial_value=1.0, segment_length=segment_length,
    )  # fmt: skip
    taken: list[dict] = []
    inner = agent.update

    def noting(rollout):
        after = rollout.next_observation()
        for t in range(n_steps):
            names = ("observation", "action", "reward", "terminated", "truncated", "valid")
            row = {name: getattr(rollout, name)[t, 0] for name in names}
            taken.append(row | {"after": after[t, 0], "segment": agent.collector.segment})
        return inner(rollout)

    agent.update = noting
    agent.learn(steps)
    q = np.ones((8, 2))

    def mean_value(state):
        return (1 - epsilon) * q[state].max() + epsilon * q[state].mean()

    def learn(row, following):
        cell = int(row["observation"]), int(row["action"])
        y = row["reward"] + (0 if row["terminated"] else gamma * following)
        q[cell] += alpha * (y - q[cell])

    waiting = None
    order = list(range(steps))
    if target != "sarsa":  # rollout by rollout, each from its last step to its first
        order = [first + t for first in range(0, steps, n_steps) for t in reversed(range(n_steps))]
    for k in order:
        row = taken[k]
        if not row["valid"]:
            continue
        if waiting is not None:
            learn(waiting, q[int(row["observation"]), int(row["action"])])
            waiting = None
        last = k + 1 == len(taken) or taken[k + 1]["segment"] != row["segment"]
        over = row["terminated"] or row["truncated"] or (last and segment_length == 5)
        after = int(row["after"])
        if target == "q_learning":
            learn(row, q[after].max())
        elif target == "expected_sarsa" or over:
            learn(row, mean_value(after))
        else:
            waiting = row
    found = agent.table.values[0].numpy()
    assert found == pytest.approx(q, abs=1e-4)
    assert abs(found - 1).max() > 1
    assert {bool(row["truncated"]) for row in taken} == {True, False}


def test_double_moves_one_table_towards_what_the_other_says():
    agent = us.QLearning(Scripted, n_envs=1, double=True, epsilon=1.0, learning_rate=0.5, gamma=0.9)
    for iteration in range(12):
        before = agent.table.values.clone()
        agent.learn(1, reset_num_timesteps=False)
        rollout = agent.collector.rollout
        if not rollout.valid[0, 0]:
            continue
        s, a = int(rollout.observation[0, 0]), int(rollout.action[0, 0])
        after = int(rollout.next_observation()[0, 0])
        coins = generator(0, "which table", iteration)
        k = int(torch.randint(2, (1, 1), generator=coins))
        best = before[k, after].argmax()
        y = float(rollout.reward[0, 0])
        if not rollout.terminated[0, 0]:
            y += 0.9 * float(before[1 - k, after, best])
        expected = before.clone()
        expected[k, s, a] += 0.5 * (y - expected[k, s, a])
        torch.testing.assert_close(agent.table.values, expected)


# ---- exact answers -------------------------------------------------------------------------------
def greedy(agent: us.QLearning) -> torch.Tensor:
    q = agent.table.values.mean(0)
    return torch.nn.functional.one_hot(q.argmax(1), q.shape[1]).double()


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_what_is_certain_is_learned_exactly(double):
    """No chance in it and alpha 1: every value is exact once it was tried often enough."""
    env = gymnasium.make("FrozenLake-v1", is_slippery=False)
    best = us.exact.value_iteration(us.exact.from_gymnasium(env, gamma=0.9))
    agent = us.QLearning(
        "FrozenLake-v1", env_kwargs={"is_slippery": False}, n_envs=64, gamma=0.9, epsilon=1.0,
        learning_rate=1.0, double=double,
    ).learn(40_000)  # fmt: skip
    holes = best.q.abs().sum(1) == 0
    found = agent.table.values.mean(0).double()
    assert (found - best.q).abs()[~holes].max() < 1e-6
    assert us.evaluate_policy(agent, "FrozenLake-v1", 5, env_kwargs={"is_slippery": False})[0] == 1


@pytest.mark.slow
def test_frozen_lake_with_chance():
    """Targets deviate by at most 1/2; where alpha is a, values do by sqrt(a / 2) of that.

    A value forgets 1 / alpha visits, so the last ones count, made with an alpha of .01 or less.
    """
    mdp = us.exact.from_gymnasium("FrozenLake-v1", gamma=0.9)
    best = us.exact.value_iteration(mdp)
    agent = us.QLearning(
        "FrozenLake-v1", n_envs=64, gamma=0.9, epsilon=1.0, learning_rate="linear(0.2)"
    ).learn(150_000)
    found = agent.table.values[0].double()
    assert (found - best.q).abs().max() < 4.5 * (0.01 / 2) ** 0.5 / 2
    assert us.exact.solve(mdp, greedy(agent)).objective > 0.9 * best.objective


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CliffWalking-v1", "Taxi-v4"])
def test_recipes_find_the_optimal_return_exactly(env):
    recipe = us.QLearning.from_recipe(env, seed=0)
    recipe.learn(us.recipes.find("q_learning", env).total_timesteps)
    mdp = us.exact.from_gymnasium(env, gamma=1 - 1e-9)  # from some states of Taxi nobody arrives
    best, found = us.exact.value_iteration(mdp), us.exact.solve(mdp, greedy(recipe))
    assert found.objective == pytest.approx(float(best.objective), abs=1e-6)


@pytest.mark.slow
def test_sarsa_keeps_away_from_the_cliff():
    """Sutton and Barto 2018, example 6.6: it earns more while it explores, and less without."""
    settings = {"n_envs": 16, "gamma": 1.0, "epsilon": 0.1, "learning_rate": 0.3, "seed": 0}
    found = {
        target: us.QLearning("CliffWalking-v1", target=target, **settings).learn(40_000)
        for target in ("q_learning", "sarsa")
    }
    online = {
        name: agent.collector.episodes.summary()["episode_return"] for name, agent in found.items()
    }
    assert online["sarsa"] > online["q_learning"]
    assert us.evaluate_policy(found["q_learning"], "CliffWalking-v1", 1)[0] == -13
    assert us.evaluate_policy(found["sarsa"], "CliffWalking-v1", 1)[0] <= -15


# ---- masks, settings -----------------------------------------------------------------------------
class Forbidden(gymnasium.Env):
    """One step pays 1, and is followed by the end; action 1 is never legal and would pay 100."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.state = 0
        return 0, {"action_mask": np.array([1, 0], np.int8)}

    def step(self, action):
        assert action == 0
        self.state += 1
        mask = {"action_mask": np.array([1, 0], np.int8)}
        return 1, 1.0, self.state == 3, self.state == 2, mask


@pytest.mark.slow
@pytest.mark.parametrize("target", ["q_learning", "sarsa", "expected_sarsa"])
def test_illegal_actions_are_never_taken_nor_believed(target):
    agent = us.QLearning(
        Forbidden, n_envs=4, target=target, initial_value=50.0, gamma=0.5, learning_rate=0.5
    ).learn(400)
    assert agent.table.values[0, :, 0].tolist() == pytest.approx([2, 2], abs=1e-3)
    assert agent.table.values[0, :, 1].tolist() == [50, 50]


@pytest.mark.parametrize(
    ("env", "settings", "words"),
    [
        ("CartPole-v1", {}, "give bins="),
        ("Pendulum-v1", {"bins": 4}, "QLearning takes a Discrete action space"),
        ("CliffWalking-v1", {"policy": "mlp"}, "takes no policy"),
        ("CliffWalking-v1", {"target": "sarsa", "double": True}, "double=True takes"),
        ("CliffWalking-v1", {"target": "sarsi"}, "target='sarsi'"),
        ("CliffWalking-v1", {"epsilon": 1.5}, "epsilon=1.5.*from 0 to 1"),
        ("CliffWalking-v1", {"engine": "native"}, "not differentiated"),
        ("CliffWalking-v1", {"max_grad_norm": 1.0}, "no gradient"),
        ("CliffWalking-v1", {"learning_rate": 2.0}, "learning_rate=2.0.*from 0 to 1"),
        ("CliffWalking-v1", {"buffer_size": 10}, "no setting 'buffer_size'"),
    ],
)
def test_what_it_does_not_take_is_refused(env, settings, words):
    with pytest.raises(ArgumentError, match=words):
        us.QLearning(env, **settings)


# ---- golden numbers ------------------------------------------------------------------------------
GOLDEN = {
    "q_learning": {"sum": -7.0326566, "square": 20.491353},
    "sarsa": {"sum": -7.6648788, "square": 14.602363},
    "expected_sarsa": {"sum": -9.0724784, "square": 23.194212},
    "double": {"sum": -8.7728035, "square": 14.141246},
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_numbers(kind):
    """After three updates of 32 steps of eight birds, in cells of their height and speed."""
    settings = {"double": True} if kind == "double" else {"target": kind}
    agent = us.QLearning(
        "upslope/FlappyBird-v0", seed=0, n_envs=8, n_steps=32, bins=[1] * 9 + [8, 4, 1], **settings
    ).learn(3 * 8 * 32)
    assert agent.iteration == 3
    q = agent.table.values.double()
    found = {"sum": q.sum().item(), "square": q.square().sum().item()}
    assert found == {name: pytest.approx(x, rel=1e-5) for name, x in GOLDEN[kind].items()}


@pytest.mark.parametrize("target", ["q_learning", "sarsa", "expected_sarsa"])
@pytest.mark.parametrize("gamma", [0, 1])
def test_a_whole_number_is_a_discount_too(target, gamma):
    tables = [
        us.QLearning(Scripted, target=target, gamma=g, n_envs=2).learn(40).table.values
        for g in (gamma, float(gamma))
    ]
    assert torch.equal(*tables)
