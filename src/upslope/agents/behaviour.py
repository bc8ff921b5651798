"""Learning off-policy: what acts instead of the policy, and how much its episodes are worth.

    a_t ~ b(.|s_t)      w_n = pi(tau_n) / b(tau_n)      ESS = (sum_n w_n)^2 / sum_n w_n^2

b must be positive wherever pi is: what b never does has no weight that could make up for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from upslope.agents.agent import Agent
from upslope.errors import ArgumentError
from upslope.gradient.importance import importance_report
from upslope.policies.actor_critic import ActorCritic

Behaviour = Any
"""An agent, its `policy`, or `behaviour(observation [N, ...], generator) -> action, ln b(a|s)`."""

Act = Callable[[Tensor, torch.Generator, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]

COLLAPSED = (
    "the behaviour's episodes say next to nothing about the policy: their effective sample size is "
    "below 2, or 5 % of them, so that one or two decide the gradient, or their mean weight is far "
    "below the 1 that it is in expectation, so that what the policy does is not among them; the "
    "behaviour must be positive wherever the policy is, and not far from it, and "
    "importance='per_decision' or shorter episodes lose less (effective_sample_size and mean_ratio "
    "are logged)"
)


def acting(behaviour: Behaviour, agent: Agent[Any]) -> Act:
    """Return what acts in the form of `ActorCritic.act`, held still.

    `behaviour` is an agent; a policy, such as `other.policy`; or a function of the observations
    [N, ...], as the agent's own policy sees them, and a generator, which returns actions and their
    log-probabilities [N], in nats. Actions are those of `policy.head`: Discrete ones count from 0.
    A function does not see action masks.

    Raises ArgumentError for anything else, for other spaces, a policy with memory, or one that sees
    observations scaled otherwise than the agent.
    """
    if isinstance(behaviour, Agent):
        scales = behaviour.collector.observation_normalizer, agent.collector.observation_normalizer
        ours, theirs = agent.stream, behaviour.stream
        if theirs.observation_space != ours.observation_space:
            raise ArgumentError(
                f"behaviour={type(behaviour).__name__} on {theirs.observation_space}: it takes an "
                f"agent on {ours.observation_space}"
            )
        if scales != (None, None):
            raise ArgumentError(
                "behaviour=, and the agent itself, take observations as they are: "
                "normalize_observation=False"
            )
        behaviour = behaviour.policy
    if isinstance(behaviour, ActorCritic):
        return _policy(behaviour, agent)
    if not callable(behaviour):
        raise ArgumentError(
            f"behaviour={behaviour!r}: it takes an agent, a policy, or a function of observations "
            "and a generator that returns actions and their log-probabilities"
        )
    return _function(behaviour, agent.policy.head.shape)


def _policy(policy: ActorCritic, agent: Agent[Any]) -> Act:
    if policy.memory_size:
        raise ArgumentError("behaviour= takes a policy without memory")
    if policy.head.space != agent.policy.head.space:
        raise ArgumentError(
            f"behaviour= takes a policy for {agent.policy.head.space}, got {policy.head.space}"
        )
    if policy is agent.policy:
        raise ArgumentError("behaviour= takes another policy than the one that learns")

    def act(
        observation: Tensor, generator: torch.Generator, memory: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        distribution = policy.distribution(observation, mask)
        action = distribution.sample(generator)
        return action, distribution.log_prob(action), memory

    return act


def _function(behaviour: Callable[..., Any], shape: tuple[int, ...]) -> Act:
    def act(
        observation: Tensor, generator: torch.Generator, memory: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = behaviour(observation, generator)
        rows = len(observation)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise ArgumentError(
                f"behaviour= returned {type(found).__name__}, and must return a pair: actions and "
                "their log-probabilities"
            )
        action, log_prob = map(torch.as_tensor, found)
        if action.shape != (rows, *shape) or log_prob.shape != (rows,):
            raise ArgumentError(
                f"behaviour= returned shapes {list(action.shape)} and {list(log_prob.shape)}, and "
                f"must return {[rows, *shape]} and {[rows]}"
            )
        if not log_prob.isfinite().all():
            raise ArgumentError(
                "behaviour= returned a log-probability that is not finite, of an action it took"
            )
        return action, log_prob.float(), memory

    return act


def worth(log_prob: Tensor, reference: Tensor) -> dict[str, float]:
    """Return what to log of the weights of N episodes, from ln pi and ln b of each whole one, [N].

    Warns where they have collapsed: an effective sample size below 2, or below N / 20, or a mean
    below 1/2 that is 4.5 standard errors from the 1 that it is in expectation.
    """
    report, n = importance_report(log_prob, reference), len(log_prob)
    ratio = (log_prob - reference).exp()
    few = report.effective_sample_size < max(2, n / 20)
    if n > 2 and (few or float(ratio.mean()) < min(0.5, 1 - 4.5 * float(ratio.std()) / n**0.5)):
        warnings.warn(COLLAPSED, stacklevel=2)
    return {
        "effective_sample_size": report.effective_sample_size,
        "largest_share": report.largest_share,
        "mean_ratio": float(ratio.mean()),
    }
