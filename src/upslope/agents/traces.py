"""Actor-critic with eligibility traces, online: a reward teaches all the steps that led to it.

Episodic, after each step S, A -> R, S'; I is 1 at the start of an episode:

    delta <- R + gamma v(S') - v(S)                   v(S') = 0 where the episode terminated
    z_w   <- gamma lambda_w z_w + grad v(S)
    z_th  <- gamma lambda_th z_th + I grad ln pi(A|S)
    w     <- w + alpha_w delta z_w
    theta <- theta + alpha_th delta z_th
    I     <- gamma I

Continuing, with Rbar the average reward so far as it is known:

    delta <- R - Rbar + v(S') - v(S)
    Rbar  <- Rbar + alpha_R delta
    z_w   <- lambda_w z_w + grad v(S)
    z_th  <- lambda_th z_th + grad ln pi(A|S)         and w, theta as above

Symbols: lambda_w `critic_trace`, lambda_th `actor_trace`, alpha_w `critic_learning_rate`, alpha_th
`learning_rate`, alpha_R `average_learning_rate`. With both lambdas 0 the first is the one-step
actor-critic of page 332. Parameters that pi and v share are in both lines and get both steps.

N environments have traces, I and ends of their own, and their updates of one step are averaged:
theta <- theta + alpha_th mean_n delta_n z_n. N = 1 is the book's box.

Sutton and Barto 2018, sections 13.5 and 13.6, the boxes "Actor-Critic with Eligibility Traces".
Departures: I = 1 at all times unless `discount_state`, which follows no objective's gradient but
learns late states too; an episode that is cut counts v of the state it was cut in, and its traces
end there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from upslope.agents.schedules import value_at
from upslope.errors import EnvironmentFault, NotFiniteError

if TYPE_CHECKING:
    from upslope.agents.actor_critic import ActorCritic


def check_endless(terminated: np.ndarray) -> None:
    """Raise EnvironmentFault where an episode terminated [..., N]: average rewards know no end."""
    if terminated.any():
        raise EnvironmentFault(
            f"environment {int(np.argwhere(terminated)[0, -1])} ended an episode, and "
            "setting='average' takes a task without ends: upslope.envs.Continuing(env) goes on"
        )


class Traces:
    """The traces of an agent's N environments over its P parameters, and the steps along them."""

    def __init__(self, agent: ActorCritic) -> None:
        self.agent, self.flat, config = agent, agent.engine.flat, agent.config
        self.average = config.setting == "average"
        self.gamma = 1.0 if self.average else config.gamma
        shape = agent.stream.n_envs, self.flat.value.numel()
        self.actor = torch.zeros(shape, device=agent.device)
        """z_th [N, P]."""
        self.critic = torch.zeros(shape, device=agent.device)
        """z_w [N, P]."""
        self.alpha_actor = self.alpha_critic = 0.0
        self.errors: list[float] = []
        """The mean of delta^2 of each step of this rollout."""
        self.segment = -1  # that it is of

    def act(
        self,
        observation: Tensor,
        generator: torch.Generator,
        memory: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Learn from the step that led here, then draw the actions of the next one."""
        agent = self.agent
        if not self.errors or self.segment != agent.collector.segment:
            self._begin()
        else:
            self.learn(len(self.errors) - 1, observation)
        self.errors.append(math.nan)  # of the step that begins here
        return agent.engine.act(observation, generator, memory, mask)

    def finish(self) -> dict[str, float]:
        """Learn from the last step of a rollout; returns what to log of all of them."""
        rollout, agent = self.agent.collector.rollout, self.agent
        self.learn(rollout.n_steps - 1, torch.from_numpy(rollout.last_observation))
        found = {"td_error": float(np.nanmean(self.errors)), "learning_rate": self.alpha_actor}
        self.errors.clear()
        return found | ({"average_reward": float(agent.average_reward)} if self.average else {})

    def _begin(self) -> None:
        """Read the step sizes; in a new segment no episode goes on from before."""
        agent, config = self.agent, self.agent.config
        self.segment = agent.collector.segment
        self.errors.clear()  # those of a rollout that was broken off
        self.alpha_actor = value_at(config.learning_rate, agent.progress_remaining)
        self.alpha_critic = value_at(config.critic_learning_rate, agent.progress_remaining)
        if agent.collector.segment_steps == 0:
            self.actor.zero_()
            self.critic.zero_()
            agent.discount.fill_(1)

    def learn(self, t: int, after: Tensor) -> None:
        """Take the steps of the box for row t of the rollout; `after` [N, ...] is what follows it.

        Raises NotFiniteError, before anything is changed, where delta is not finite, and
        EnvironmentFault where an episode terminates though the average reward is what counts.
        """
        agent, flat, rollout = self.agent, self.flat, self.agent.collector.rollout
        valid = rollout.valid[t]
        if self.average:
            check_endless(rollout.terminated[t])
        with torch.inference_mode(False):
            value, log_prob = self._now(t)
            grad_value, grad_log_prob = self._gradients(value), self._gradients(log_prob)
        delta = self._error(t, value.detach(), after)
        count = max(1, int(valid.sum()))
        self.errors[t] = float(delta.square().sum()) / count
        if not math.isfinite(self.errors[t]):
            raise NotFiniteError(
                f"delta is not finite in step {t} of iteration {agent.iteration}: the step sizes "
                "are too large, or the values diverge; the weights were left as they were before it"
            )
        if self.average:
            agent.average_reward += agent.config.average_learning_rate * delta.sum() / count
        self.critic.mul_(self.gamma * agent.config.critic_trace).add_(grad_value)
        weight = agent.discount.unsqueeze(1).to(agent.device)
        self.actor.mul_(self.gamma * agent.config.actor_trace).addcmul_(grad_log_prob, weight)
        flat.value.add_(delta @ self.critic, alpha=self.alpha_critic / count)
        flat.value.add_(delta @ self.actor, alpha=self.alpha_actor / count)
        begins = torch.from_numpy(rollout.terminated[t] | rollout.truncated[t] | ~valid)
        agent.pass_step(begins)
        self.critic[begins] = 0
        self.actor[begins] = 0

    def _now(self, t: int) -> tuple[Tensor, Tensor]:
        """Return v(S) and ln pi(A|S), [N], to be differentiated."""
        agent, rollout = self.agent, self.agent.collector.rollout
        observation = torch.from_numpy(rollout.observation[t]).to(agent.device)
        action = torch.from_numpy(rollout.action[t]).to(agent.device)
        masks = rollout.action_mask
        mask = None if masks is None else torch.from_numpy(masks[t]).to(agent.device)
        with torch.enable_grad():
            distribution, value = agent.policy.both(observation, mask, None)
            return value, distribution.log_prob(action)

    def _error(self, t: int, value: Tensor, after: Tensor) -> Tensor:
        """Return delta [N]; 0 where the environment was only reset."""
        agent, rollout = self.agent, self.agent.collector.rollout
        after = after.clone()
        for step, environments, observation in rollout.cut[-1:]:
            if step == t:
                after[torch.from_numpy(environments)] = torch.from_numpy(observation)
        with torch.no_grad():
            next_value = agent.policy.value(after.to(agent.device)).cpu()
        next_value[torch.from_numpy(rollout.terminated[t])] = 0
        reward = torch.from_numpy(rollout.reward[t]) - agent.average_reward
        delta = reward + self.gamma * next_value - value.cpu()
        return (delta * torch.from_numpy(rollout.valid[t])).to(agent.device)

    def _gradients(self, output: Tensor) -> Tensor:
        """Return the gradient of each of `output` [N] in all parameters, [N, P]."""
        count, parameters = len(output), self.flat.parameters
        if count == 1:
            found = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        else:
            each = torch.eye(count, device=output.device)
            found = torch.autograd.grad(
                output,
                parameters,
                each,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
        pieces = zip(found, parameters, strict=True)
        return torch.cat(
            [
                p.new_zeros(count, p.numel()) if g is None else g.reshape(count, -1)
                for g, p in pieces
            ],
            dim=1,
        )
