"""Q-learning: a table of action-values, moved after every step of many environments.

    q(s_t, a_t) <- q(s_t, a_t) + alpha (y_t - q(s_t, a_t))
    y_t = r_t + gamma max_a q(s_{t+1}, a)                          target="q_learning"
    y_t = r_t + gamma q(s_{t+1}, a_{t+1})                          target="sarsa"
    y_t = r_t + gamma sum_a pi(a|s_{t+1}) q(s_{t+1}, a)            target="expected_sarsa"
    y_t = r_t + gamma q_2(s_{t+1}, argmax_a q_1(s_{t+1}, a))       double=True, moves q_1

y_t = r_t where the episode terminated. Where it was truncated what follows counts: s_{t+1} is the
state it was cut in, and SARSA, which takes no action there, has its mean over pi instead. pi is
epsilon-greedy; with two tables, in their mean. Which of the two is moved is drawn for each step.

Where k environments take the same action in the same state in one step, with targets of mean y,

    q(s, a) <- q(s, a) + (1 - (1 - alpha)^k) (y - q(s, a))

which is what k updates towards y would do one after the other; the order of environments is then
of no account, and k = 1 is the update above.

Watkins and Dayan 1992, "Q-learning"; Sutton and Barto 2018, sections 6.4 (SARSA), 6.5, 6.6
(expected SARSA) and 6.7 (double); van Hasselt 2010, "Double Q-learning", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from torch import Tensor, nn

from upslope.agents.agent import Agent
from upslope.agents.config import AgentConfig
from upslope.agents.schedules import Schedule, check_schedule, value_at
from upslope.engine.table import TableEngine
from upslope.engine.torch_engine import TorchEngine
from upslope.errors import ArgumentError, ConfigError
from upslope.losses.bellman import double_q_target, expected_sarsa_target, q_target
from upslope.policies.action_table import ActionTable, make_action_table
from upslope.policies.action_values import ActionValues, EpsilonGreedy
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Rollout
from upslope.rollout.make import Environment
from upslope.seeding import generator


@dataclass(frozen=True, kw_only=True)
class QLearningConfig(AgentConfig):
    """The settings of Q-learning."""

    n_steps: int = 1
    """Steps of each environment between updates. With more, actions follow the table later; they
    are learned from the last to the first (SARSA's in turn), so that a reward reaches them all."""
    learning_rate: Schedule = 0.1
    """alpha, or "linear(0.5)" to take it to 0; larger forgets faster, 1 suits what is certain."""
    epsilon: Schedule = "linear(1, 0.05)"
    """The share of actions drawn from all legal ones; larger explores more."""
    target: str = "q_learning"
    """q_learning, sarsa or expected_sarsa: the value of the greedy policy, or of the one that
    explores."""
    double: bool = False
    """Keep two tables, one choosing what the other values: no bias from the noise's maximum."""
    initial_value: float = 0.0
    """What every action is worth at first; above what it can be worth, every one is tried."""
    bins: int | tuple[int, ...] | None = None
    """Cells for each number of a Box, or one number for all; more see finer and learn slower."""
    bounds: Annotated[Any, tyro.conf.Suppress] = None
    """(low, high) between which the bins of each number lie; None for the space's own."""
    edges: Annotated[Any, tyro.conf.Suppress] = None
    """Ascending edges between the cells of each number, instead of bins and bounds."""
    features: Annotated[Any, tyro.conf.Suppress] = None
    """Rows of weights: bins, bounds or edges are then about these sums of an observation."""
    max_grad_norm: None = None
    """A table has no gradient."""

    def __post_init__(self) -> None:
        """Take a list of bins, as TOML has it, for the tuple that the command's options know."""
        if isinstance(self.bins, list):
            object.__setattr__(self, "bins", tuple(self.bins))


class Step(NamedTuple):
    """One step of N environments, as rows of a table; every field [N], or [T, N] for T steps."""

    state: Tensor
    action: Tensor
    reward: Tensor
    after: Tensor
    """s_{t+1}, the true one."""
    legal: Tensor
    """[N, A] bool, in s_{t+1}."""
    discount: Tensor
    """gamma, 0 where it terminated."""
    ended: Tensor
    """bool: no action was taken in s_{t+1}."""
    valid: Tensor
    table: Tensor
    """Which of the tables is moved."""


def move(q: Tensor, cell: Tensor, target: Tensor, alpha: float) -> Tensor:
    """Move the values at the places `cell` [M] of a flat table towards `target` [M], in place.

    Several targets of one value count as the page says. Returns y - q as it was, [M].
    """
    error = target - q[cell]
    places, which, k = torch.unique(cell, return_inverse=True, return_counts=True)
    mean = torch.zeros_like(k, dtype=error.dtype).index_add_(0, which, error) / k
    q[places] += (1 - (1 - alpha) ** k) * mean
    return error


class QLearning(Agent[QLearningConfig]):
    """Tabular Q-learning: `us.QLearning("Taxi-v3", n_envs=16, seed=0).learn(1_000_000)`.

    Takes an environment id, a factory of environments, or a `gymnasium.vector.VectorEnv`, with
    Discrete actions, and as keyword arguments the fields of `QLearningConfig`; `bins=` or `edges=`
    where observations are of a Box. Raises ArgumentError for what it cannot take.
    """

    config_class = QLearningConfig
    of_environments = ("waiting",)
    policy: ActionValues

    def __init__(self, env: Environment, *misplaced: Any, **settings: Any) -> None:
        super().__init__(env, *misplaced, **settings)
        n, device = self.stream.n_envs, self.device
        self.waiting = {
            "cell": torch.zeros(n, dtype=torch.int64, device=device),
            "reward": torch.zeros(n, device=device),
            "held": torch.zeros(n, dtype=torch.bool, device=device),
            "segment": torch.tensor(-1),
        }
        """SARSA's steps whose next action is not known yet, and the segment they are of."""

    def iterate(self) -> dict[str, float]:
        """Act for `n_steps` steps, then update."""
        self.policy.epsilon.fill_(value_at(self.config.epsilon, self.progress_remaining))
        return super().iterate()

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Move the table, one step after the other; returns what is worth logging."""
        alpha = value_at(self.config.learning_rate, self.progress_remaining)
        learn = self.sarsa if self.config.target == "sarsa" else self.q_learning
        error = torch.cat([learn(step, alpha) for step in self.steps(rollout)])
        return {
            "td_error": float(error.abs().mean()) if len(error) else float("nan"),
            "learning_rate": alpha,
            "epsilon": self.policy.epsilon.item(),
        }

    def q_learning(self, step: Step, alpha: float) -> Tensor:
        """Move q(s_t, a_t) towards y_t of Q-learning, double Q-learning or expected SARSA."""
        end, following = (step.reward, step.discount), self.table.of(step.table, step.after)
        if self.config.double:
            other = self.table.of(1 - step.table, step.after)
            target = double_q_target(*end, following, other, step.legal)
        elif self.config.target == "q_learning":
            target = q_target(*end, following, step.legal)
        else:
            target = self.expected_sarsa(step)
        return move(
            self.table.values.view(-1), self.cell(step)[step.valid], target[step.valid], alpha
        )

    def sarsa(self, step: Step, alpha: float) -> Tensor:
        """Move what waited for a_t, then what ends here; the rest waits for a_{t+1}."""
        q, waiting, cell = self.table.values.view(-1), self.waiting, self.cell(step)
        held, ends = waiting["held"], step.valid & step.ended
        target = waiting["reward"] + self.config.gamma * q[cell]
        errors = move(q, waiting["cell"][held], target[held], alpha)
        last = move(q, cell[ends], self.expected_sarsa(step)[ends], alpha)
        held.copy_(step.valid & ~step.ended)
        waiting["reward"].copy_(step.reward)
        waiting["cell"].copy_(cell)
        return torch.cat([errors, last])

    def expected_sarsa(self, step: Step) -> Tensor:
        """Return y_t with the mean over the actions of s_{t+1}, [N]."""
        following = self.table.of(step.table, step.after)
        policy = EpsilonGreedy(following, self.policy.epsilon.item(), step.legal)
        return expected_sarsa_target(step.reward, step.discount, following, policy.probabilities)

    def cell(self, step: Step) -> Tensor:
        """Return where the values q(s_t, a_t) are in the flat table, [N]."""
        _, states, actions = self.table.values.shape
        return (step.table * states + step.state) * actions + step.action

    # -- from a rollout to steps ---------------------------------------------------------------

    def steps(self, rollout: Rollout) -> Iterator[Step]:
        """Yield the steps of a rollout as rows of the table: the last first, but for SARSA."""
        shape = (rollout.n_steps, rollout.n_envs)
        legal = rollout.next_mask()
        state, after = self.rows(rollout)
        ended = rollout.terminated | rollout.truncated
        if self.collector.segment_is_over():
            ended[-1] = True  # what comes next is in other environments
        if self.waiting["segment"] != self.collector.segment:
            self.waiting["held"].zero_()
            self.waiting["segment"].fill_(self.collector.segment)
        table = torch.zeros(shape, dtype=torch.int64)
        if self.config.double:
            coins = generator(self.config.seed, "which table", self.iteration)
            table = torch.randint(2, shape, generator=coins)
        whole = Step(
            state=state,
            action=torch.from_numpy(rollout.action),
            reward=torch.from_numpy(rollout.reward),
            after=after,
            legal=torch.ones(*shape, self.policy.head.size, dtype=torch.bool)
            if legal is None
            else torch.from_numpy(legal),
            discount=float(self.config.gamma) * ~torch.from_numpy(rollout.terminated),
            ended=torch.from_numpy(ended),
            valid=torch.from_numpy(rollout.valid),
            table=table,
        )
        order = range(rollout.n_steps)
        for t in order if self.config.target == "sarsa" else reversed(order):
            yield Step(*(field[t].to(self.device) for field in whole))

    def rows(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return the rows of the table of s_t and of the true s_{t+1}, each [T, N]."""

        def row(observation: np.ndarray) -> Tensor:
            return self.table.grid(torch.from_numpy(observation).to(self.device))

        state = row(rollout.observation.reshape(-1, *rollout.observation.shape[2:]))
        state = state.view(rollout.n_steps, rollout.n_envs)
        after = torch.cat([state[1:], row(rollout.last_observation)[None]])
        for t, environments, observation in rollout.cut:
            after[t, torch.from_numpy(environments)] = row(observation)
        return state, after

    # -- set-up --------------------------------------------------------------------------------

    @property
    def table(self) -> ActionTable:
        """The table."""
        assert isinstance(self.policy.network, ActionTable)
        return self.policy.network

    def make_policy(
        self, policy: str | nn.Module | None, *spaces: gymnasium.Space[Any]
    ) -> ActorCritic:
        """Return the table with its initial values."""
        config = self.config
        if config.double and config.target != "q_learning":
            raise ConfigError(f"double=True takes target='q_learning', got {config.target!r}")
        if config.policy_kwargs or policy is not None:
            raise ConfigError("QLearning has a table: it takes no policy and no policy_kwargs")
        if config.max_grad_norm is not None:
            raise ConfigError("max_grad_norm: a table has no gradient, leave it out")
        check_schedule("learning_rate", config.learning_rate, 1.0)
        return make_action_table(
            "QLearning",
            *spaces,
            tables=1 + config.double,
            initial=config.initial_value,
            **{name: getattr(config, name) for name in ("bins", "bounds", "edges", "features")},
        )

    def make_engine(self) -> TorchEngine:
        """Return what says which tensors are saved; a table takes no optimisation steps."""
        if (name := self.config.engine) not in ("auto", "torch"):
            raise ArgumentError(f"engine={name!r} does not apply: a table is not differentiated")
        return TableEngine(self.policy)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return SARSA's waiting steps."""
        if self.config.target != "sarsa":
            return {}
        return {f"waiting/{name}": tensor for name, tensor in self.waiting.items()}
