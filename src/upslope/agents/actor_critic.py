"""Actor-critic: the policy is improved by what a critic, learned beside it, expects.

    delta_t = r_t + gamma v(s_{t+1}) - v(s_t)            v(s_{t+1}) = 0 where it terminated
    A_t     = sum_k (gamma lambda)^k delta_{t+k}         to the episode's end or the last of n steps
    G_t     = A_t + v(s_t)
    L       = -E_t[A_t ln pi(a_t|s_t)] + c_v E_t[(v(s_t) - G_t)^2] - c_e E_t[H(pi(.|s_t))]

with E_t the mean over the T steps of N environments that a step of Adam is taken on, each used
once; H is the entropy in nats, and L is minimised. lambda = 0 is the one-step actor-critic; lambda
= 1 the n-step advantage, A2C; between them is GAE.

    update="all_actions", for Discrete actions, q(s,a) = v(s) + A(s,a) - E_{b~pi}[A(s,b)]:
    L       = -E_t[sum_a q(s_t,a) pi(a|s_t)]
              + c_v E_t[(v(s_t) - G_t)^2 + (q(s_t,a_t) - G_t)^2] - c_e E_t[H(pi(.|s_t))]

    setting="average", for tasks without ends, Rbar the average reward:
    delta_t = r_t - Rbar + v(s_{t+1}) - v(s_t),   Rbar <- Rbar + alpha_R E_t[delta_t]

`traces=True` learns after every step, with eligibility traces: see `traces`. The sampled gradient
is unbiased where v is the policy's; discount_state=True multiplies A_t in the policy's term by
gamma^k, k steps after the episode began, as the gradient of the discounted return does.

Sutton and Barto 2018, sections 13.5, 13.6 and (all actions) 13.3; Mnih et al. 2016,
arXiv:1602.01783, algorithm S3; Schulman et al. 2016, arXiv:1506.02438, equation 16.
Departures from them: environments step together, none is asynchronous (A2C); Adam, of epsilon 1e-5,
in place of RMSprop; gamma^k is left out by default, as deep agents do; an episode that is cut off
counts v of the state it was cut in; weights start orthogonal, the policy's last layer small.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from upslope.agents.agent import Agent
from upslope.agents.config import AgentConfig
from upslope.agents.schedules import Schedule, value_at
from upslope.agents.traces import Traces, check_endless
from upslope.engine.twins import twin
from upslope.errors import ArgumentError, ConfigError
from upslope.losses.policy import policy_gradient_loss
from upslope.losses.value import value_loss
from upslope.policies.actor_critic import ActorCritic as Policy
from upslope.policies.make import make_policy
from upslope.rollout.buffer import Batch, Rollout
from upslope.rollout.native_returns import gae
from upslope.rollout.statistics import explained_variance, standardized, step_quality
from upslope.rollout.values import evaluate_values
from upslope.seeding import generator


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(AgentConfig):
    """The settings of actor-critic. Defaults without a source were chosen here."""

    n_steps: int = 5
    """Steps of each environment per update, T (Mnih et al. 2016: 5); more see further ahead and
    update less often. With traces, which learn at every step, only how often is told and saved."""
    learning_rate: Schedule = 7e-4
    """Adam's step size (Mnih et al. 2016: 7e-4, of RMSprop), or "linear(7e-4)" to take it to 0;
    with traces alpha_th of a plain step. Larger learns faster, then breaks."""
    gae_lambda: float = 1.0
    """lambda of the advantage (Mnih et al. 2016: 1); 0 is the one-step error, with less variance
    and all of the critic's bias."""
    update: str = "sampled"
    """sampled: ln pi of the action taken, times its advantage; all_actions: the sum over actions of
    q times pi, which has no variance from the choice of action, but the bias of q."""
    setting: str = "discounted"
    """discounted, also of episodes with gamma = 1; average: tasks without ends, by the average
    reward."""
    discount_state: bool = False
    """Weigh the policy's step k of an episode by gamma^k, as the gradient of the discounted return
    does; False, as deep agents have it, learns late steps too, along no objective's gradient."""
    ent_coef: float = 0.0
    """c_e, the weight of the entropy (Mnih et al. 2016: .01); larger explores longer."""
    vf_coef: float = 0.5
    """c_v, the weight of the critic's loss; larger favours it where gradients are clipped."""
    normalize_advantage: bool = False
    """Standardise the advantages of an update: the step then does not depend on rewards' scale."""
    average_learning_rate: float = 0.01
    """alpha_R, with setting="average": the step of Rbar; larger follows faster, with more noise."""
    traces: bool = False
    """Learn after every step with eligibility traces, by plain steps; see upslope.agents.traces."""
    critic_learning_rate: Schedule = 1e-2
    """alpha_w, with traces: the critic's step size; larger learns faster, then diverges."""
    actor_trace: float = 0.9
    """lambda_th, with traces: how much of the actor's trace is left a step later, beside gamma."""
    critic_trace: float = 0.9
    """lambda_w, with traces: the same of the critic's; 0 is the one-step error, 1 Monte Carlo."""


@twin("plain")
def actor_critic_loss(
    policy: Policy, batch: Batch, *, vf_coef: float, ent_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L of a batch, a scalar, and what to log of it."""
    log_prob, entropy, value = policy(batch)
    policy_loss = policy_gradient_loss(log_prob, batch.advantage)
    critic_loss = value_loss(value, batch.target)
    entropy_mean = entropy.mean()
    loss = policy_loss + vf_coef * critic_loss - ent_coef * entropy_mean
    return loss, _metrics(policy_loss, critic_loss, entropy_mean)


def all_actions_loss(
    policy: Any, batch: Batch, *, vf_coef: float, ent_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L of update="all_actions", a scalar, and what to log of it."""
    distribution, value, q = policy.all_actions(batch)  # of a NetworkActorCritic
    policy_loss = -(q.detach() * distribution.log_probs.exp()).sum(-1).mean()
    taken = q.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    critic_loss = value_loss(value, batch.target) + value_loss(taken, batch.target)
    entropy_mean = distribution.entropy().mean()
    loss = policy_loss + vf_coef * critic_loss - ent_coef * entropy_mean
    return loss, _metrics(policy_loss, critic_loss, entropy_mean)


def _metrics(policy_loss: Tensor, critic_loss: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    found = {"policy_loss": policy_loss, "value_loss": critic_loss, "entropy": entropy}
    return {name: value.detach() for name, value in found.items()}


class ActorCritic(Agent[ActorCriticConfig]):
    """Actor-critic: `us.ActorCritic("CartPole-v1", n_envs=16, seed=0).learn(100_000)`.

    Takes an environment id, a factory of environments, or a `gymnasium.vector.VectorEnv`, and as
    keyword arguments the fields of `ActorCriticConfig`. Raises ArgumentError for what it cannot
    take.
    """

    config_class = ActorCriticConfig
    needs_values = takes_tensors = True
    of_environments = ("discount", "actor_trace", "critic_trace")

    def __init__(self, env: Any, *misplaced: Any, **given: Any) -> None:
        super().__init__(env, *misplaced, **given)
        self.discount = torch.ones(self.stream.n_envs)
        """I = gamma^k [N] of the state that each environment is in; 1 without discount_state."""
        self.average_reward = torch.zeros(())
        """Rbar, in units of reward a step."""
        self.traces: Traces | None = None
        if self.config.traces:
            if self.stream.device is not None:
                raise ArgumentError("traces=True takes environments that return arrays")
            self.traces = Traces(self)
            self.act = self.traces.act

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Take one step on a rollout, unless traces took one after each of its steps."""
        if self.traces is not None:
            return self.traces.finish()
        config = self.config
        loss = partial(
            actor_critic_loss if config.update == "sampled" else all_actions_loss,
            vf_coef=config.vf_coef,
            ent_coef=config.ent_coef,
        )
        batch = self.estimate_advantage(rollout)
        index = torch.from_numpy(np.flatnonzero(rollout.valid.ravel()))
        if config.normalize_advantage:
            batch.advantage = standardized(batch.advantage, [index])
        chunks = rollout.chunks(index, self.engine.most_chunks)
        rate = value_at(config.learning_rate, self.progress_remaining)
        metrics = self.engine.step(loss, batch, index, rate, chunks)
        found = {name: float(value) for name, value in metrics.items()}
        found |= {"learning_rate": rate, "explained_variance": explained_variance(rollout)}
        if chunks is not None:
            found["signal_to_noise"] = step_quality(self.engine.chunk_gradients, chunks)
        if config.setting == "average":
            found["average_reward"] = float(self.average_reward)
        return found

    def estimate_advantage(self, rollout: Rollout) -> Batch:
        """Fill in A_t and G_t = A_t + v(s_t); moves Rbar where the average reward counts."""
        config, average = self.config, self.config.setting == "average"
        evaluate_values(self.policy, rollout, self.engine.value)
        if average:
            check_endless(rollout.terminated)
        advantage = partial(
            gae,
            torch.from_numpy(rollout.reward) - self.average_reward,
            rollout.value,
            rollout.next_value,
            torch.from_numpy(rollout.terminated),
            torch.from_numpy(rollout.truncated),
            gamma=1.0 if average else config.gamma,
        )
        rollout.advantage = advantage(gae_lambda=config.gae_lambda)
        torch.add(rollout.advantage, rollout.value, out=rollout.target)
        if config.discount_state:
            rollout.advantage *= self.state_discount(rollout)
        if average:
            delta = advantage(gae_lambda=0.0)[torch.from_numpy(rollout.valid)]
            self.average_reward += config.average_learning_rate * delta.mean()
        return rollout.flat(self.device)

    def state_discount(self, rollout: Rollout) -> Tensor:
        """Return gamma^k [T, N], k steps after the episode began, and go on to the next rollout."""
        if self.collector.segment_steps == rollout.n_steps:  # episodes began with it
            self.discount.fill_(1)
        begins = torch.from_numpy(rollout.terminated | rollout.truncated | ~rollout.valid)
        rows = []
        for row in begins:
            rows.append(self.discount.clone())
            self.pass_step(row)
        return torch.stack(rows)

    def pass_step(self, begins: Tensor) -> None:
        """Go on to the next step's gamma^k; where an episode `begins` [N] it is 1."""
        if self.config.discount_state:
            self.discount.mul_(self.config.gamma).masked_fill_(begins, 1)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return gamma^k of each environment, the average reward, and the traces."""
        own = {"discount": self.discount, "average_reward": self.average_reward}
        if self.traces is not None:
            own |= {"actor_trace": self.traces.actor, "critic_trace": self.traces.critic}
        return own

    def make_policy(self, policy: str | nn.Module | None, *spaces: gymnasium.Space[Any]) -> Policy:
        """Return the untrained policy, with a critic of q(s,.) where all actions are weighed."""
        check(self.config, policy, spaces[1])
        draws, kwargs = generator(self.config.seed, "weights"), dict(self.config.policy_kwargs)
        if self.config.update == "all_actions":
            kwargs["action_values"] = True
        return make_policy(policy, *spaces, generator=draws, **kwargs)


NOT_WITH = {
    "traces=True, which takes plain steps": (
        *("gae_lambda", "update", "ent_coef", "vf_coef", "max_grad_norm", "normalize_advantage"),
    ),
    "traces=False": ("critic_learning_rate", "actor_trace", "critic_trace"),
    "setting='average', which does not discount": ("gamma", "discount_state", "normalize_reward"),
    "setting='discounted'": ("average_learning_rate",),
    "update='all_actions', where q is the weight": ("normalize_advantage", "discount_state"),
}


def check(
    config: ActorCriticConfig, policy: str | nn.Module | None, action: gymnasium.Space[Any]
) -> None:
    """Raise ConfigError or ArgumentError, one sentence, for settings that do not fit together."""
    chosen = {f"{name}={getattr(config, name)!r}" for name in ("traces", "setting", "update")}
    for case, names in NOT_WITH.items():
        if case.split(",")[0] not in chosen:
            continue
        for field in fields(config):
            value = getattr(config, field.name)
            if field.name in names and value != field.default:
                raise ConfigError(f"{field.name}={value!r} has no meaning with {case}")
    if config.traces and policy in ("lstm", "gru"):
        raise ArgumentError(f"policy={policy!r}: traces=True takes a policy without memory")
    if config.traces and config.engine not in ("auto", "torch"):
        raise ArgumentError(
            f"engine={config.engine!r} does not apply: traces take plain steps, by torch"
        )
    if config.update != "all_actions":
        return
    if not isinstance(action, gymnasium.spaces.Discrete):
        raise ArgumentError(f"update='all_actions' takes Discrete actions, got {action}")
    if isinstance(policy, nn.Module):
        raise ArgumentError("update='all_actions' needs q(s,.), and a module of one's own has none")
