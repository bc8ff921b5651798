"""Proximal policy optimisation, clipped surrogate.

    rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)
    L     = -E_t[min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t)]
            + c_v E_t[(v(s_t) - G_t)^2] - c_e E_t[H(pi(.|s_t))]

with A_t the generalised advantage estimate, G_t = A_t + v_old(s_t) the value's target, E_t the mean
over the steps of a minibatch, and H the entropy in nats. L is minimised.

Schulman et al. 2017, arXiv:1707.06347, equations 7 and 9, algorithm 1.
Departures from the paper: advantages are standardised in each minibatch; the gradient is clipped
to a norm; Adam's epsilon is 1e-5; weights start orthogonal, the policy's last layer small; epochs
may end early at `target_kl`; an episode that is cut off counts v of the state it was cut in. Huang
et al. 2022, "The 37 implementation details of proximal policy optimization", discuss most of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from upslope.agents.agent import Agent
from upslope.agents.config import AgentConfig
from upslope.agents.schedules import Schedule, value_at
from upslope.engine.twins import twin
from upslope.losses.policy import clipped_surrogate
from upslope.losses.value import value_loss
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Batch, Rollout
from upslope.rollout.native_returns import gae
from upslope.rollout.statistics import explained_variance, means_of, standardized, step_quality
from upslope.rollout.values import evaluate_values
from upslope.seeding import derive


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AgentConfig):
    """The settings of PPO. Defaults without a source are those of the paper's table 3 or 5."""

    batch_size: int = 256
    """Steps in a minibatch (table 5: 32 x 8); larger is less noisy and takes fewer steps."""
    n_epochs: int = 4
    """Passes over a rollout (table 5: 3); more reuse data further from the policy that drew it."""
    gae_lambda: float = 0.95
    """Trace of the advantage; 0 is the one-step error, 1 the whole return, with more variance."""
    clip_range: Schedule = 0.2
    """eps of the surrogate (table 1), or a schedule; larger lets an update move the policy more."""
    clip_range_vf: Schedule | None = None
    """How far an update may move a value, in units of reward; None, the default, does not clip."""
    ent_coef: float = 0.0
    """c_e, the weight of the entropy (section 6.1: 0); larger explores longer."""
    vf_coef: float = 0.5
    """c_v, the weight of the value loss; larger favours the critic where gradients are clipped."""
    target_kl: float | None = None
    """Nats; no further epoch once KL(pi_old || pi) passes 1.5 times this; None runs them all."""
    normalize_advantage: bool = True
    """Standardise advantages in each minibatch: the step then does not depend on rewards' scale."""
    recompute_advantage: bool = False
    """Estimate advantages anew in each epoch (Andrychowicz et al. 2021, section 3.5); slower."""


@twin("clipped")
def ppo_loss(
    policy: ActorCritic,
    batch: Batch,
    *,
    clip_range: float,
    clip_range_vf: float | None,
    vf_coef: float,
    ent_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L of a minibatch, a scalar, and what to log of it."""
    log_prob, entropy, value = policy(batch)
    log_ratio = log_prob - batch.log_prob
    policy_loss = clipped_surrogate(log_ratio, batch.advantage, clip_range, clip_range).mean()
    old_value = None if clip_range_vf is None else batch.value
    critic_loss = value_loss(value, batch.target, old_value, clip_range_vf)
    entropy_mean = entropy.mean()
    loss = policy_loss + vf_coef * critic_loss - ent_coef * entropy_mean
    with torch.no_grad():
        ratio = log_ratio.exp()
        metrics = {
            "policy_loss": policy_loss.detach(),
            "value_loss": critic_loss.detach(),
            "entropy": entropy_mean.detach(),
            "approx_kl": (ratio - 1 - log_ratio).mean(),
            "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        }
    return loss, metrics


class PPO(Agent[PPOConfig]):
    """Proximal policy optimisation: `us.PPO("CartPole-v1", n_envs=64, seed=0).learn(100_000)`.

    Takes an environment id, a factory of environments, or a `gymnasium.vector.VectorEnv`, and as
    keyword arguments the fields of `PPOConfig`. Raises ArgumentError for what it cannot take.
    """

    config_class = PPOConfig
    needs_values = takes_tensors = True

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve the policy on one rollout; returns the means of what was logged."""
        config, remaining = self.config, self.progress_remaining
        learning_rate = value_at(config.learning_rate, remaining)
        clip_vf = config.clip_range_vf
        loss = partial(
            ppo_loss,
            clip_range=value_at(config.clip_range, remaining),
            clip_range_vf=None if clip_vf is None else value_at(clip_vf, remaining),
            vf_coef=config.vf_coef,
            ent_coef=config.ent_coef,
        )
        history: list[dict[str, Tensor]] = []
        most = self.engine.most_chunks
        signal_to_noise = float("nan")
        for epoch in range(config.n_epochs):
            if epoch == 0 or config.recompute_advantage:
                batch = self.estimate_advantage(rollout)
                advantage = batch.advantage
            shuffle = derive(config.seed, "minibatches", self.iteration, epoch)
            minibatches = rollout.minibatches(config.batch_size, shuffle)
            if config.normalize_advantage:
                batch.advantage = standardized(advantage, minibatches)
            chunks = rollout.chunks(minibatches[0], most) if epoch == 0 else None
            metrics = self.engine.epoch(loss, batch, minibatches, learning_rate, chunks)
            if chunks is not None:
                signal_to_noise = step_quality(self.engine.chunk_gradients, chunks)
            history.append(metrics)
            if config.target_kl is not None and metrics["approx_kl"][-1] > 1.5 * config.target_kl:
                break
        return means_of(history) | {
            "learning_rate": learning_rate,
            "epochs": epoch + 1,
            "explained_variance": explained_variance(rollout),
            "signal_to_noise": signal_to_noise,
        }

    def estimate_advantage(self, rollout: Rollout) -> Batch:
        """Fill in A_t by generalised advantage estimation, and G_t = A_t + v(s_t)."""
        evaluate_values(self.policy, rollout, self.engine.value)
        rollout.advantage = gae(
            torch.from_numpy(rollout.reward),
            rollout.value,
            rollout.next_value,
            torch.from_numpy(rollout.terminated),
            torch.from_numpy(rollout.truncated),
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        torch.add(rollout.advantage, rollout.value, out=rollout.target)
        return rollout.flat(self.device)
