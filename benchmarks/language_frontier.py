"""DPO, IPO, GRPO and RLOO where the optimum is known: reward against divergence, exactly.

The language model has 15 completions (`upslope.audit.completions`), so every expectation below is a
sum of 15 terms. Its reward is known, and what maximises E[r] - β KL(π || π_ref) is

    π*_β ∝ π_ref exp(r / β),

which, for all β, is the frontier: no policy has more reward at the same divergence. DPO and IPO see
preferences drawn from the reward (Bradley and Terry) between completions of π_ref; GRPO and RLOO
sample groups from π and see rewards. All four call the losses of `upslope.losses`.

    python benchmarks/language_frontier.py             a table and a picture, in under a minute
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import upslope as us
from upslope.audit import completions as tiny
from upslope.losses.group import penalized_reward
from upslope.seeding import generator

BETAS = (0.1, 0.2, 0.5, 1.0, 2.0)
SHOWN = 0.5  # the β of the left picture
PAIRS, GROUPS, SIZE = 20_000, 32, 8
STEPS, RATE = 600, 0.05
COLORS = {"DPO": "#2a78c2", "IPO": "#7b4fb5", "GRPO": "#e8743b", "RLOO": "#2e9e6b"}

REWARD = torch.tensor([float(sum(y)) / 2 for y in tiny.COMPLETIONS], dtype=torch.float64)
REFERENCE = tiny.log_prob(tiny.THETA)
TOKENS = tiny.token_log_prob(tiny.THETA)
LENGTH = tiny.MASK.sum(1)


def optimum(beta: float) -> Tensor:
    """Return ln π*_β of each completion."""
    return (REFERENCE + REWARD / beta).log_softmax(0)


def divergence(policy: Tensor, other: Tensor) -> float:
    """Return KL(π || other) in nats, exactly."""
    return max(0.0, float(policy.exp() @ (policy - other)))


def preferences(seed: int) -> Tensor:
    """Return how often each completion was preferred to each, [15, 15], of PAIRS pairs of π_ref.

    P(w > l) = σ(r_w - r_l), Bradley and Terry 1952.
    """
    draws = generator(seed, "preferences")
    y = torch.multinomial(REFERENCE.exp(), 2 * PAIRS, replacement=True, generator=draws).view(2, -1)
    a, b = y[:, y[0] != y[1]]
    first = torch.rand(len(a), generator=draws) < torch.sigmoid(REWARD[a] - REWARD[b])
    pair = a.where(first, b) * tiny.COUNT + b.where(first, a)
    return torch.bincount(pair, minlength=tiny.COUNT**2)


def offline(loss_type: str, beta: float, seed: int) -> Callable[[Tensor, int], Tensor]:
    share = preferences(seed).double() / preferences(seed).sum()
    each = torch.arange(tiny.COUNT)
    chosen, rejected = each.repeat_interleave(tiny.COUNT), each.repeat(tiny.COUNT)

    def loss(theta: Tensor, step: int) -> Tensor:
        policy = tiny.log_prob(theta)
        losses = us.losses.dpo_loss(
            policy[chosen],
            policy[rejected],
            REFERENCE[chosen],
            REFERENCE[rejected],
            beta=beta,
            loss_type=loss_type,
            chosen_length=LENGTH[chosen],
            rejected_length=LENGTH[rejected],
        )
        return share @ losses

    return loss


def online(loss_type: str, beta: float, seed: int) -> Callable[[Tensor, int], Tensor]:
    in_reward = loss_type == "rloo"

    def loss(theta: Tensor, step: int) -> Tensor:
        draws = generator(seed, "completions", step)
        policy = tiny.log_prob(theta).detach().exp()
        y = torch.multinomial(policy, GROUPS * SIZE, replacement=True, generator=draws)
        tokens, mask = tiny.token_log_prob(theta)[y], tiny.MASK[y]
        reward = REWARD[y]
        if in_reward:
            reward = penalized_reward(reward, tokens.detach(), TOKENS[y], mask, beta)
        advantage = us.returns.group_advantage(
            reward,
            SIZE,
            scale="none" if in_reward else "group",
            baseline="leave_one_out" if in_reward else "mean",
        )
        return us.losses.grpo_loss(
            tokens,
            tokens.detach(),
            advantage,
            mask,
            loss_type=loss_type,
            beta=0.0 if in_reward else beta,
            reference_log_prob=None if in_reward else TOKENS[y],
        )

    return loss


METHODS: dict[str, Callable[[float, int], Callable[[Tensor, int], Tensor]]] = {
    "DPO": lambda beta, seed: offline("sigmoid", beta, seed),
    "IPO": lambda beta, seed: offline("ipo", beta, seed),
    "GRPO": lambda beta, seed: online("dapo", beta, seed),
    "RLOO": lambda beta, seed: online("rloo", beta, seed),
}


def run(method: str, beta: float, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Return reward and divergences of a policy trained from π_ref, and its way to π*."""
    theta = tiny.THETA.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=RATE)
    loss, best = METHODS[method](beta, seed), optimum(beta)
    curve = []
    for step in range(steps):
        curve.append(divergence(tiny.log_prob(theta).detach(), best))
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        adam.zero_grad()
        loss(theta, step).backward()
        adam.step()
    policy = tiny.log_prob(theta).detach()
    return {
        "method": method,
        "beta": beta,
        "reward": float(policy.exp() @ REWARD),
        "kl": divergence(policy, REFERENCE),
        "to_optimum": divergence(policy, best),
        "curve": curve,
    }


def best_reward(kl: float) -> float:
    """Return the reward of the frontier at a divergence, by bisection in ln β."""
    low, high = -6.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        more = divergence(optimum(torch.tensor(middle).exp().item()), REFERENCE) > kl
        low, high = (middle, high) if more else (low, middle)
    return float(optimum(torch.tensor(low).exp().item()).exp() @ REWARD)


def table(results: list[dict[str, Any]]) -> str:
    start = float(REFERENCE.exp() @ REWARD)
    lines = [
        f"reward of π_ref {start:.3f}, of the best completion {float(REWARD.max()):.3f}",
        "| method | β | E[r] | KL(π, π_ref) | E[r] of the frontier there "
        "| KL(π, π*), at the start | at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r['method']} | {r['beta']:g} | {r['reward']:.3f} | {r['kl']:.3f} "
            f"| {best_reward(r['kl']):.3f} | {r['curve'][0]:.3f} | {r['to_optimum']:.4f} |"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2)
    grid = [optimum(float(b)) for b in torch.logspace(-1.6, 1.5, 200)]
    kl = [divergence(policy, REFERENCE) for policy in grid]
    right.plot(kl, [float(p.exp() @ REWARD) for p in grid], color="#22303c", lw=1, label="frontier")
    for method, color in COLORS.items():
        mine = [r for r in results if r["method"] == method]
        right.plot(
            [r["kl"] for r in mine],
            [r["reward"] for r in mine],
            "o" if method in ("DPO", "GRPO") else "s",
            color=color,
            mfc="none",
            label=method,
        )
        for r in mine:
            if r["beta"] == SHOWN:
                left.plot(r["curve"], color=color, lw=1.2, label=method)
    left.set(
        yscale="log", xlabel="step", title=f"KL(π, π*) in nats, β = {SHOWN:g}", ylim=(1e-5, None)
    )
    right.set(xlabel="KL(π, π_ref) in nats", title="expected reward")
    for axes in (left, right):
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Reward against divergence, exactly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, help="where the table goes")
    parser.add_argument("--picture", type=Path, default=Path("language_frontier.png"))
    told = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    results = [run(method, beta, told.seed, told.steps) for method in METHODS for beta in BETAS]
    print(table(results))
    if told.results:
        told.results.write_text(table(results) + "\n")
    print(f"in {time.perf_counter() - start:.0f} s; picture: {draw(results, told.picture)}")


if __name__ == "__main__":
    main()
