"""Actor-critic against the exact gradient: unbiased with the policy's own values, or by how much.

The agent's own losses on its own rollouts, with a tabular policy, and a critic that is given the
exact values: their mean over many rollouts is within 4.5 standard errors of the policy gradient.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import upslope as us
from upslope.agents.actor_critic import actor_critic_loss, all_actions_loss
from upslope.envs.finite import FiniteVectorEnv
from upslope.seeding import generator

ROLLOUTS, ENVS = 150, 32
LOSSES = {"sampled": actor_critic_loss, "all_actions": all_actions_loss}


class Referee:
    """An agent on a finite problem whose critic knows, and the exact gradient of its policy."""

    def __init__(self, mdp: us.exact.FiniteMDP, n_steps: int, **settings) -> None:
        self.mdp, self.env = mdp, FiniteVectorEnv(mdp, ENVS)
        average = settings.get("setting") == "average"
        gamma = {} if average else {"gamma": mdp.gamma}
        linear = {"net_arch": []}
        self.agent = agent = us.ActorCritic(
            self.env, n_steps=n_steps, policy_kwargs=linear, **gamma, **settings
        )
        draw = torch.randn(2, mdp.n_states, generator=generator(0, "theta"))
        with torch.no_grad():
            agent.policy.actor[0].weight.copy_(draw)

        def probabilities(theta: torch.Tensor) -> torch.Tensor:
            return theta.T.softmax(1)

        theta = draw.double()
        kind = {"setting": "average"} if average else {}
        self.solution = us.exact.solve(mdp, probabilities(theta), **kind)
        self.exact = us.exact.policy_gradient(mdp, probabilities, theta, **kind)
        if average:
            agent.average_reward.fill_(float(self.solution.objective))
        with torch.no_grad():
            q = [*self.solution.q.T] if settings.get("update") == "all_actions" else []
            agent.policy.critic[0].weight.copy_(torch.stack([self.solution.v, *q]))
        self.collect(0)  # begins the only segment
        self.average_reward = agent.average_reward.clone()

    def collect(self, k: int, start: torch.Tensor | None = None):
        """Return a rollout that begins in `start` [S], by default where the problem begins."""
        chance = (self.mdp.start if start is None else start).expand(ENVS, -1)
        state = torch.multinomial(chance, 1, generator=generator(1, "start", k)).numpy()[:, 0]
        self.env._state[:] = state
        self.agent.stream.observation = self.agent.collector.observation = state.copy()
        return self.agent.collector.collect(self.agent.policy, generator(2, "act", k))

    def gradient(self, rollout, index: torch.Tensor) -> torch.Tensor:
        """Return minus the gradient of the policy's term, a mean over the rows of `index`."""
        agent = self.agent
        if hasattr(self, "average_reward"):
            agent.average_reward.copy_(self.average_reward)
        agent.discount.fill_(1)
        batch = agent.estimate_advantage(rollout)
        loss, _ = LOSSES[agent.config.update](agent.policy, batch[index], vf_coef=0.0, ent_coef=0.0)
        (found,) = torch.autograd.grad(-loss, agent.policy.actor[0].weight)
        return found.double()

    def windows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard error over rollouts from the on-policy distribution.

        It is the stationary one of episodes that follow each other, so that the mean over rows is
        the gradient divided by c, the mean length of an episode.
        """
        mu, every = self.solution.distribution, torch.arange(ENVS * self.agent.config.n_steps)
        scale = float(self.solution.scale)
        return summary([scale * self.gradient(self.collect(k, mu), every) for k in range(ROLLOUTS)])

    def episodes(self, rollouts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard error over whole episodes, the sum over their steps."""
        found = []
        for k in range(rollouts):
            rollout = self.collect(k)
            first = np.cumsum(rollout.terminated, 0) - rollout.terminated == 0
            assert rollout.terminated.any(0).all()
            index = torch.from_numpy(np.flatnonzero(first.ravel()))
            found.append(self.gradient(rollout, index) * len(index) / ENVS)
        return summary(found)


def summary(gradients: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.stack(gradients)
    return rows.mean(0), rows.std(0) / len(rows) ** 0.5


def z_scores(found: tuple[torch.Tensor, torch.Tensor], exact: torch.Tensor) -> torch.Tensor:
    mean, error = found
    return (mean - exact).abs() / (error + 1e-6 * exact.abs().max())  # float32, where exact


EPISODIC = us.exact.random_walk(5)
CONTINUING = us.exact.access_control_queue(servers=2, free_probability=0.2)
FORMS = {
    "one step": {"gae_lambda": 0.0},
    "gae": {"gae_lambda": 0.9},
    "n-step": {"gae_lambda": 1.0},
    "all actions": {"update": "all_actions"},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", ["episodic", "average"])
def test_with_exact_values_it_is_unbiased(setting, form):
    if setting == "episodic":
        referee = Referee(EPISODIC, 8, **FORMS[form])
    else:
        referee = Referee(CONTINUING, 8, setting="average", **FORMS[form])
    found = referee.windows()
    assert z_scores(found, referee.exact).max() < 4.5
    resolved = referee.exact.abs() > 10 * found[1]
    assert resolved.any()  # the gradient is seen, not only hidden in the noise


@pytest.mark.slow
def test_what_each_form_costs_in_noise():
    """Less of the future in the weight, less noise; none of the action's in all actions."""
    noise = {f: Referee(EPISODIC, 8, **FORMS[f]).windows()[1].square().sum() for f in FORMS}
    assert noise["all actions"] < noise["one step"] < noise["gae"] < noise["n-step"]


def direction(referee: Referee, visits: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return sum_s visits(s) sum_a q(s,a) grad pi(a|s), what an update goes along on average."""
    theta = referee.agent.policy.actor[0].weight.detach().double().requires_grad_()
    total = (visits[:, None] * q * theta.T.softmax(1)).sum()
    return torch.autograd.grad(total, theta)[0]


@pytest.mark.slow
def test_gamma_to_the_k_is_what_makes_it_the_discounted_gradient():
    """With it unbiased; without, states count as often as they are visited: 1.8 times as much."""
    mdp = us.exact.random_walk(3, gamma=0.8)
    weighted = Referee(mdp, 60, gae_lambda=0.9, discount_state=True)
    assert z_scores(weighted.episodes(50), weighted.exact).max() < 4.5
    plain = Referee(mdp, 60, gae_lambda=0.9)
    found = plain.episodes(50)
    assert z_scores(found, plain.exact).max() > 10
    policy = plain.agent.policy.actor[0].weight.detach().double().T.softmax(1)
    visits = us.exact.solve(us.exact.random_walk(3), policy).visitation
    biased = direction(plain, visits, plain.solution.q)
    assert z_scores(found, biased).max() < 4.5
    assert float(biased.norm() / plain.exact.norm()) == pytest.approx(1.83, abs=0.01)


@pytest.mark.slow
def test_a_wrong_critic_biases_the_one_step_error_and_not_the_whole_return():
    """v = 0: the one-step error then knows the next reward and nothing of what follows."""
    for gae_lambda in (0.0, 1.0):
        referee = Referee(EPISODIC, 100, gae_lambda=gae_lambda)
        with torch.no_grad():
            referee.agent.policy.critic[0].weight.zero_()
        found = referee.episodes(40)
        biased = direction(referee, referee.solution.visitation, EPISODIC.reward)
        expected = referee.exact if gae_lambda else biased
        assert z_scores(found, expected).max() < 4.5
    assert float((biased - referee.exact).norm() / referee.exact.norm()) > 0.5
