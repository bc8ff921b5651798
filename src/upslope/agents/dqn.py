"""Deep Q-learning: action-values of a network, learned from a replay buffer.

    R_t = r_t + gamma r_{t+1} + ... + gamma^{h-1} r_{t+h-1}
    y_t = R_t + D q_target(s_{t+h}, argmax_a q_c(s_{t+h}, a))
    L   = E[huber(q(s_t, a_t) - y_t)]

with q_c = q_target (deep Q-learning) or q itself (double), D = gamma^h or 0 where the episode
terminated, h = n or fewer where it ended sooner, and the mean over transitions drawn uniformly from
the last `buffer_size`. q_target is q as it was some steps ago. Actions are epsilon-greedy in q.

Mnih et al. 2015, "Human-level control through deep reinforcement learning", algorithm 1; van
Hasselt et al. 2016, arXiv:1509.06461, equation 4 (double); Hessel et al. 2018, arXiv:1710.02298,
section "multi-step learning".
Departures from the papers: Adam instead of RMSProp; the gradient is clipped to a norm; an episode
that is cut off counts q of the state it was cut in; n steps are not corrected for exploration.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from upslope.agents.agent import Agent
from upslope.agents.config import AgentConfig
from upslope.agents.experience import make_collector
from upslope.agents.schedules import value_at
from upslope.engine.flat import FlatParameters
from upslope.engine.twins import twin
from upslope.losses.bellman import double_q_target, q_target, td_loss
from upslope.policies.action_values import ActionValues, make_action_values
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.make import Environment
from upslope.rollout.replay import Replay, Transitions
from upslope.rollout.statistics import means_of
from upslope.seeding import generator


@dataclass(frozen=True, kw_only=True)
class DQNConfig(AgentConfig):
    """The settings of DQN, named as in Stable-Baselines3, whose defaults are those without a
    source; its updates are one for every 4 steps of one environment, as in Mnih et al. 2015.
    """

    n_steps: int = 1
    """Rewards summed before the value of what follows, n; larger carries them back faster, with
    more variance, and with a bias where actions were explored."""
    learning_rate: float | str = 1e-4
    """Adam's step size, or "linear(1e-4)" to take it to 0; larger learns faster, then breaks."""
    buffer_size: int = 100_000
    """Transitions remembered (Mnih et al. 2015: 1,000,000); more forgets less and takes memory."""
    learning_starts: int = 100
    """Environment steps of random actions before the first update; more begins from wider data."""
    batch_size: int = 32
    """Transitions in an update; larger is less noisy and takes longer."""
    train_freq: int = 1
    """Steps of each environment between updates; more acts longer with the same values."""
    gradient_steps: int = 2
    """Updates after each `train_freq` steps of all environments; -1 for one for each transition;
    more learn more from each transition, and further from the policy that made it."""
    target_update_interval: int = 10_000
    """Environment steps (of all environments) after which q_target is renewed; fewer learn faster
    and less steadily."""
    tau: float = 1.0
    """How much of q goes into q_target when it is renewed (Polyak averaging): 1 is all."""
    double: bool = False
    """Let q choose the action that q_target values (double DQN), which overestimates less."""
    huber: bool = True
    """Clip the error's gradient to [-1, 1] (Mnih et al. 2015, Methods); False squares it."""
    exploration_fraction: float = 0.1
    """Share of the steps over which epsilon falls; larger explores longer."""
    exploration_initial_eps: float = 1.0
    """Epsilon at the beginning: the share of actions that are random."""
    exploration_final_eps: float = 0.05
    """Epsilon once it has fallen; larger goes on exploring, and learns of a worse policy."""
    max_grad_norm: float | None = 10.0
    """Longest gradient that is taken whole, as a 2-norm; None never clips; smaller is steadier."""


@twin("temporal")
def dqn_loss(
    policy: ActionValues, batch: Transitions, *, double: bool, huber: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L of a minibatch, a scalar, and what to log of it."""
    value = policy.q(batch.observation).gather(1, batch.action.unsqueeze(1)).squeeze(1)
    assert batch.next_q is not None
    end = batch.reward, batch.discount
    with torch.no_grad():
        if double:
            chooser = policy.q(batch.next_observation)
            target = double_q_target(*end, chooser, batch.next_q, batch.next_legal)
        else:
            target = q_target(*end, batch.next_q, batch.next_legal)
    loss = td_loss(value, target, huber=huber)
    error = (value.detach() - target).abs().mean()
    return loss, {"value_loss": loss.detach(), "td_error": error, "q": value.detach().mean()}


class DQN(Agent[DQNConfig]):
    """Deep Q-learning: `us.DQN("CartPole-v1", seed=0).learn(100_000)`.

    Takes an environment id, a factory of environments, or a `gymnasium.vector.VectorEnv`, with
    Discrete actions, and as keyword arguments the fields of `DQNConfig`. `policy=` is "mlp", "cnn",
    or a module that returns action-values [B, A]. Raises ArgumentError for what it cannot take.
    """

    config_class = DQNConfig
    policy: ActionValues

    def __init__(self, env: Environment, *misplaced: Any, **settings: Any) -> None:
        super().__init__(env, *misplaced, **settings)
        self.target = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_flat = FlatParameters(self.target, self.target.policy_parameters())
        config = self.config
        self.loss = partial(dqn_loss, double=config.double, huber=config.huber)

    def iterate(self) -> dict[str, float]:
        """Explore for `train_freq` steps, then update."""
        self.policy.epsilon.fill_(self.epsilon)
        return super().iterate()

    @property
    def epsilon(self) -> float:
        """The share of actions that are to be random now."""
        config = self.config
        if self.num_timesteps < config.learning_starts:
            return 1.0
        passed = (1 - self.progress_remaining) / max(config.exploration_fraction, 1e-12)
        first, last = config.exploration_initial_eps, config.exploration_final_eps
        return first + min(passed, 1.0) * (last - first)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Take the gradient steps that follow a rollout; returns the means of what was logged."""
        config = self.config
        replay, steps = self.replay, self.num_timesteps + rollout.n_valid
        logged = {"epsilon": self.policy.epsilon.item(), "replayed": float(len(replay))}
        if steps < config.learning_starts:
            return logged
        interval = config.target_update_interval
        if steps // interval > self.num_timesteps // interval:
            self.renew_target()
        updates = rollout.n_valid if config.gradient_steps < 0 else config.gradient_steps
        draws = generator(config.seed, "replay", self.iteration)
        learning_rate = value_at(config.learning_rate, self.progress_remaining)
        rows = updates * config.batch_size
        batch = replay.sample(rows, draws, gamma=config.gamma, n=config.n_steps).to(self.device)
        batch.next_q = self.engine.q(batch.next_observation, self.target_flat)
        minibatches = torch.arange(rows).split(config.batch_size)
        metrics = self.engine.epoch(self.loss, batch, minibatches, learning_rate)
        return logged | means_of([metrics])

    def renew_target(self) -> None:
        """Move q_target towards q: target + tau (q - target)."""
        self.target_flat.value.lerp_(self.engine.flat.value, self.config.tau)

    # -- set-up --------------------------------------------------------------------------------

    def make_policy(
        self, policy: str | nn.Module | None, *spaces: gymnasium.Space[Any]
    ) -> ActorCritic:
        """Return the untrained network of action-values."""
        draws, kwargs = generator(self.config.seed, "weights"), self.config.policy_kwargs
        return make_action_values("DQN", policy, *spaces, generator=draws, **kwargs)

    def make_collector(self) -> Collector:
        """Return a collector of `train_freq` steps at a time, which keeps the last of them."""
        config, actions = self.config, self.policy.head.size
        collector = make_collector(config, self.stream, self.policy, config.train_freq)
        collector.replay = Replay(config.buffer_size, collector.rollout, actions)
        return collector

    @property
    def replay(self) -> Replay:
        """The transitions that are learned from."""
        assert self.collector.replay is not None
        return self.collector.replay

    def own_tensors(self) -> dict[str, Tensor]:
        """Return q_target's parameters."""
        flat = self.target_flat
        return {f"target/{name}": part for name, part in flat.named(flat.value).items()}
