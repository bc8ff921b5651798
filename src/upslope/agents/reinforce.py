"""REINFORCE: the policy gradient from whole episodes, the weight of each step chosen by name.

    grad J = E_tau[ sum_t w_t grad ln pi(a_t|s_t) ]
    L      = -1/N sum_n sum_t [w_t ln pi(a_t|s_t) + c_e H(pi(.|s_t))] + c_v E_t[(v(s_t) - G_t)^2]

    weight="return"         w_t = G_0 - b          the whole return, R(tau)
    weight="reward_to_go"   w_t = G_t - b_t        times gamma^t where discount_state
    baseline                b = 0; the mean of G over the episodes; over the others; v(s_t)

over N episodes, one of each environment, all begun and ended under pi (`EpisodeCollector` says why
that has no length bias). The sum over the steps of an episode is not divided by their number: that
is what makes it the gradient of J. E_t is the mean over all steps, G_t = r_t + gamma G_t+1 the
return from t, H the entropy in nats. L is minimised, by one step of Adam for each N episodes.

Unbiased: baseline None, "leave_one_out" and "value", with weight="return" (then J is discounted as
it stands) or discount_state=True (or gamma = 1). Biased, and how: "mean" has the own return in it,
(N-1)/N of the gradient with weight="return"; discount_state=False leaves gamma^t out and weighs the
later states of a discounted problem like the first; normalize_advantage divides by a deviation of
the same episodes. An episode that is cut, by a time limit or by n_steps, goes on with gamma v(s_L)
where baseline="value" gives a v (with the bias of v); without one nobody knows what would have
followed, and it counts as 0: then J is the return up to the cut.

With `behaviour=` the actions are another policy's, and the weights are corrected for it:

    importance="ordinary"          rho_0:L w_t              rho_0:t = prod_k<=t pi_k / b_k
    importance="self_normalized"   rho_0:L w_t N / sum_n rho_0:L       bias of order 1/N
    importance="per_decision"      reward r_k gets rho_0:k, not the ratios of later steps

Williams 1992, "Simple statistical gradient-following algorithms"; Sutton and Barto 2018, sections
13.3 and 13.4; Kool et al. 2019 (leave_one_out); Precup et al. 2000 (per decision).
Departures: Adam in place of a plain step; gamma^t is left out by default, as deep agents do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.agents.agent import Agent, Environment
from upslope.agents.behaviour import Behaviour, acting, worth
from upslope.agents.config import AgentConfig
from upslope.agents.experience import make_collector
from upslope.agents.schedules import Schedule, value_at
from upslope.engine.twins import twin
from upslope.errors import ArgumentError, ConfigError
from upslope.gradient import quality
from upslope.gradient.importance import self_normalized_ratio
from upslope.gradient.surrogate import likelihood_ratio
from upslope.gradient.trajectory import trajectory_surrogate
from upslope.losses.policy import policy_gradient_loss
from upslope.losses.value import value_loss
from upslope.policies.actor_critic import ActorCritic
from upslope.returns import mean_baseline, reward_to_go, vtrace
from upslope.rollout.buffer import Batch, Chunks, Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.episodes import EpisodeCollector
from upslope.rollout.statistics import explained_variance, standardized
from upslope.rollout.values import evaluate_values


@dataclass(frozen=True, kw_only=True)
class REINFORCEConfig(AgentConfig):
    """The settings of REINFORCE."""

    n_envs: int = 8
    """N: environments, and episodes of each update; more are less noisy and update less often."""
    n_steps: int = 1000
    """The most steps of an episode: it is cut there; as many as the task's own limit cut none."""
    learning_rate: Schedule = 1e-3
    """Adam's step size, or "linear(1e-3)" to take it to 0; larger learns faster, then breaks."""
    max_grad_norm: float | None = None
    """Longest gradient that is taken whole; None never clips, for the sum over an episode is long
    in itself."""
    weight: str = "reward_to_go"
    """What ln pi is multiplied by: reward_to_go, what followed (Sutton and Barto 13.3), or return,
    the whole, with more variance (Williams 1992)."""
    baseline: str | None = None
    """What is subtracted from it: None; mean of the episodes; leave_one_out, of the others; value,
    a critic. Better ones leave less noise."""
    discount_state: bool = False
    """Weigh step t by gamma^t, as the gradient of the discounted return does; False, as deep agents
    have it, learns late steps as well, along no objective's gradient."""
    importance: str | None = None
    """How actions of a behaviour= are weighted: ordinary, the ratio of the whole episode;
    self_normalized, over the sum of the ratios; per_decision, of what came before each reward."""
    normalize_advantage: bool = False
    """Centre the weights and divide by their deviation, over all steps of an update."""
    ent_coef: float = 0.0
    """c_e, in units of reward for each nat and step; larger explores longer."""
    vf_coef: float = 0.5
    """c_v; matters only where the critic shares parameters with the policy."""


@twin("plain")
def reinforce_loss(
    policy: ActorCritic, batch: Batch, *, vf_coef: float, ent_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L, a mean over rows whose advantage is w_t M / N, and what to log of it."""
    log_prob, entropy, value = policy(batch)
    policy_loss = policy_gradient_loss(log_prob, batch.advantage)
    critic_loss = value_loss(value, batch.target)
    entropy_mean = entropy.mean()
    loss = policy_loss + vf_coef * critic_loss - ent_coef * entropy_mean
    return loss, {
        "policy_loss": policy_loss.detach(),
        "value_loss": critic_loss.detach(),
        "entropy": entropy_mean.detach(),
    }


class REINFORCE(Agent[REINFORCEConfig]):
    """REINFORCE: `us.REINFORCE("CartPole-v1", baseline="value", seed=0).learn(100_000)`.

    Takes an environment id, a factory of environments, or a `gymnasium.vector.VectorEnv`, and as
    keyword arguments the fields of `REINFORCEConfig`. Raises ArgumentError for what it cannot take.
    """

    config_class = REINFORCEConfig

    def __init__(
        self, env: Environment, *misplaced: Any, behaviour: Behaviour | None = None, **given: Any
    ) -> None:
        if behaviour is not None:
            whole = given.get("weight") == "return"
            given.setdefault("importance", "ordinary" if whole else "per_decision")
        super().__init__(env, *misplaced, **given)
        _check(self.config)
        self.behaviour = behaviour

    @property
    def behaviour(self) -> Behaviour | None:
        """What acts instead of the policy; to be set again after loading, for no file holds it."""
        return self._behaviour

    @behaviour.setter
    def behaviour(self, given: Behaviour | None) -> None:
        if given is not None and self.config.importance is None:
            raise ConfigError("importance=None: behaviour= takes an agent with importance weights")
        self._behaviour = given
        self.collector.behaviour = None if given is None else acting(given, self)

    def iterate(self) -> dict[str, float]:
        """Collect one episode of each environment and update on them; returns the metrics."""
        if self.config.importance is not None and self._behaviour is None:
            raise ArgumentError(
                f"importance={self.config.importance!r} takes a behaviour: give behaviour=, or set "
                "agent.behaviour after loading"
            )
        return super().iterate()

    def make_collector(self) -> Collector:
        """Return what collects whole episodes."""
        steps = self.config.n_steps
        return make_collector(self.config, self.stream, self.policy, steps, EpisodeCollector)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Take one step along the gradient that N episodes give; returns what to log."""
        config, steps = self.config, rollout.n_valid
        learning_rate = value_at(config.learning_rate, self.progress_remaining)
        index = torch.from_numpy(np.flatnonzero(rollout.valid.ravel()))
        length = steps / rollout.n_envs  # M / N, which makes a mean over rows one over episodes
        weight, found = self.weigh(rollout)
        weight = weight.flatten()
        if config.normalize_advantage:
            weight = standardized(weight, [index])
        rollout.advantage.copy_((weight * length).view_as(rollout.advantage))
        learns_value = config.baseline == "value"
        loss = partial(
            reinforce_loss,
            vf_coef=config.vf_coef if learns_value else 0.0,
            ent_coef=config.ent_coef * length,
        )
        chunks = rollout.chunks(index, self.engine.most_chunks)
        metrics = self.engine.step(loss, rollout.flat(self.device), index, learning_rate, chunks)
        found |= {name: float(value) for name, value in metrics.items()}
        if learns_value:
            found["explained_variance"] = explained_variance(rollout)
        if chunks is not None:
            found["signal_to_noise"] = by_episode(self.engine.chunk_gradients, chunks, rollout)
        return found | {"learning_rate": learning_rate}

    def weigh(self, rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Return w_t [T, N], what each ln pi is multiplied by, and what to log of the weights.

        Fills in the critic's target.
        """
        config = self.config
        if config.baseline == "value":
            evaluate_values(self.policy, rollout, self.engine.value)
        ended = torch.from_numpy(rollout.terminated | rollout.truncated)
        reward = torch.from_numpy(rollout.reward)
        target = reward_to_go(reward, ended, config.gamma, rollout.next_value)
        rollout.target.copy_(target)
        if config.importance is not None:
            return self.corrected(rollout, target)
        return self.placed(target - self.compared_with(rollout, target)), {}

    def compared_with(self, rollout: Rollout, target: Tensor) -> Tensor:
        """Return the baseline b_t [T, N] of returns G_t."""
        baseline = self.config.baseline
        if baseline is None:
            return torch.zeros_like(target)
        if baseline == "value":
            return rollout.value
        valid = torch.from_numpy(rollout.valid)
        return mean_baseline(target, valid, leave_one_out=baseline == "leave_one_out")

    def placed(self, advantage: Tensor) -> Tensor:
        """Return w_t of G_t - b_t: its first row at every step, or each where it is, by gamma^t."""
        config = self.config
        if config.weight == "return":
            return advantage[:1].expand_as(advantage)
        if not config.discount_state:
            return advantage
        return advantage * (config.gamma ** torch.arange(len(advantage)))[:, None]

    def corrected(self, rollout: Rollout, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the weights for actions that the behaviour took; the critic learns by V-trace."""
        config = self.config
        arrays = rollout.reward, rollout.terminated, rollout.truncated, rollout.valid
        reward, terminated, truncated, valid = map(torch.from_numpy, arrays)
        with torch.no_grad():
            taken = self.policy(rollout.flat(self.device))[0].cpu().view_as(reward)
        log_prob = taken.double().masked_fill(~valid, 0.0)
        reference = rollout.log_prob.double().masked_fill(~valid, 0.0)
        trace = partial(vtrace, (log_prob - reference).float(), reward, gamma=config.gamma)
        if config.baseline == "value":
            found = trace(rollout.value, rollout.next_value, terminated, truncated)
            rollout.target.copy_(found.target)
        whole, held = log_prob.sum(0), reference.sum(0)  # of whole episodes, [N]
        if config.importance != "per_decision":
            own = config.importance == "ordinary"
            ratio = likelihood_ratio(whole, held) if own else self_normalized_ratio(whole, held)
            weight = ratio * self.placed(target - self.compared_with(rollout, target))
            return weight.float(), worth(whole, held)
        none, after = torch.zeros_like(reward), rollout.next_value.masked_fill(~truncated, 0.0)
        paid = reward + config.gamma * after  # what follows a cut is worth v
        to_go = trace(none, none, terminated, truncated, clip_rho=math.inf, clip_c=math.inf).target
        surrogate = trajectory_surrogate(
            log_prob.requires_grad_(),
            paid.double(),
            config.gamma,
            self.compared_with(rollout, to_go).double(),  # to_go: sum of gamma^k-t rho_t:k r_k
            discount_state=config.discount_state,
            reference=reference,
            mask=valid,
        )
        (weight,) = torch.autograd.grad(surrogate.sum(), log_prob)
        return weight.float(), worth(whole.detach(), held)


def by_episode(gradients: Tensor, chunks: Chunks, rollout: Rollout) -> float:
    """Return the signal-to-noise of the step, a power ratio, with an episode as a sample.

    A chunk's gradient is the mean over its rows; that of an episode is the sum over its steps.
    """
    groups = len(chunks.sizes)
    episodes = torch.bincount(torch.arange(rollout.n_envs) % groups, minlength=groups)
    mean_length = rollout.n_valid / rollout.n_envs
    scale = chunks.sizes / episodes / mean_length
    return quality(gradients * scale.to(gradients)[:, None], episodes).signal_to_noise


def _check(config: REINFORCEConfig) -> None:
    """Raise ConfigError for settings that do not fit together."""
    if config.baseline in ("mean", "leave_one_out") and config.n_envs < 2:
        raise ConfigError(
            f"n_envs={config.n_envs}: baseline={config.baseline!r} takes at least 2 environments, "
            "which play the episodes that it compares"
        )
    if config.importance == "per_decision" and config.weight == "return":
        raise ConfigError(
            "importance='per_decision' takes weight='reward_to_go': the whole return has the ratio "
            "of the whole episode, importance='ordinary'"
        )
    if config.importance is not None and config.normalize_advantage:
        raise ConfigError(
            "normalize_advantage=True takes actions of the policy itself: centring weights of a "
            "behaviour's actions changes their expectation"
        )
    if config.segment_length != AgentConfig.segment_length:
        raise ConfigError(
            f"segment_length={config.segment_length}: REINFORCE makes its environments anew for "
            "every update, leave it out"
        )
