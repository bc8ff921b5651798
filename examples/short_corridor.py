"""Can REINFORCE learn a policy that must be stochastic?

Three states in a row look the same to the agent, and in the second one left and right are swapped.
Every step costs 1. Always left or always right never arrives; the best policy goes right with
probability 2 - sqrt(2) = 0.59 and needs 11.66 steps on average. After each episode, for every step

    delta = G_t - w        w += alpha_w delta        theta += alpha delta grad ln pi(a_t|theta)

with the return G_t = r_t + r_t+1 + ...; w = 0 throughout (alpha_w = 0) is REINFORCE without a
baseline. The picture shows the mean return of 100 runs: on the left figure 13.1 of Sutton and Barto
(2018), three step sizes, on the right figure 13.2, what a baseline does; dashed is the exact
optimum. A few runs lock into a policy that never ends; they are counted, and left out of the curve.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import upslope as us

PICTURE = Path("short_corridor.png")
CORRIDOR = us.exact.short_corridor()
LONGEST_EPISODE = 10_000
SETTINGS = {  # alpha, alpha_w
    "REINFORCE, α = 2⁻¹²": (2**-12, 0.0),
    "REINFORCE, α = 2⁻¹³": (2**-13, 0.0),
    "REINFORCE, α = 2⁻¹⁴": (2**-14, 0.0),
    "with baseline, α = 2⁻⁹, α_w = 2⁻⁶": (2**-9, 2**-6),
}
FIGURES = {"Figure 13.1": (0, 1, 2), "Figure 13.2": (1, 3)}  # which settings
COLORS = ("#e8743b", "#2a78c2", "#7a8790", "#2f9e62")


def episode(p_right: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the actions of one episode of each of N runs, [T, N]: 0 left, 1 right, -1 if over."""
    following = CORRIDOR.transition.argmax(2).numpy()  # all moves are certain
    ends = CORRIDOR.ending.bool().numpy()
    state, over = np.zeros(len(p_right), dtype=int), np.zeros(len(p_right), dtype=bool)
    actions = []
    while not over.all() and len(actions) < LONGEST_EPISODE:
        action = (generator.random(len(p_right)) < p_right).astype(int)
        actions.append(np.where(over, -1, action))
        over = over | ends[state, action]
        state = following[state, action]
    return np.stack(actions)


def learn(
    alpha: np.ndarray, alpha_w: np.ndarray, episodes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the return of each episode of each run [episodes, N], and which runs locked [N]."""
    generator = np.random.default_rng(seed)
    theta = np.log([[0.95], [0.05]]).repeat(len(alpha), 1)  # of left and right, [2, N]
    w, locked = np.zeros(len(alpha)), np.zeros(len(alpha), dtype=bool)
    returns = np.full((episodes, len(alpha)), np.nan)
    for e in range(episodes):
        run = np.flatnonzero(~locked)
        action = episode(softmax(theta[:, run])[1], generator)
        taken = action >= 0
        locked[run] = taken.all(0) & (len(action) == LONGEST_EPISODE)
        reward = -torch.from_numpy(taken).double()
        nothing_cut = torch.zeros_like(reward).bool()
        to_go = us.returns.reward_to_go(reward, nothing_cut, gamma=1.0).numpy()
        returns[e, run] = to_go[0]
        now, w_now = theta[:, run], w[run]
        for a, g, here in zip(action, to_go, taken, strict=True):  # here: the episode goes on
            now, w_now = update(now, w_now, a, g, here * alpha[run], here * alpha_w[run])
        theta[:, run], w[run] = now, w_now
    return returns, locked


def update(
    theta: np.ndarray,
    w: np.ndarray,
    action: np.ndarray,
    to_go: np.ndarray,
    alpha: np.ndarray,
    alpha_w: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return theta [2, N] and w [N] after one step of one episode."""
    score = (action == [[0], [1]]) - softmax(theta)  # grad ln pi(a|theta)
    delta = to_go - w
    return theta + alpha * delta * score, w + alpha_w * delta


def softmax(theta: np.ndarray) -> np.ndarray:
    weight = np.exp(theta - theta.max(0))
    return weight / weight.sum(0)


def experiment(runs: int, episodes: int, seed: int = 0) -> dict[str, tuple[np.ndarray, float]]:
    """Return the curves [episodes, runs that did not lock] and locked share of each setting."""
    alpha, alpha_w = np.array(list(SETTINGS.values())).T.repeat(runs, 1)
    returns, locked = (
        np.split(x, len(SETTINGS), -1) for x in learn(alpha, alpha_w, episodes, seed)
    )
    each = zip(SETTINGS, returns, locked, strict=True)
    return {name: (r[:, ~stuck], stuck.mean()) for name, r, stuck in each}


def draw(curves: dict[str, tuple[np.ndarray, float]], best: float, picture: Path) -> None:
    names = list(curves)
    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    for axes, (title, chosen) in zip(
        figure.subplots(1, 2, sharey=True), FIGURES.items(), strict=True
    ):
        for i in chosen:
            axes.plot(curves[names[i]][0].mean(1), color=COLORS[i], lw=0.9, label=names[i])
        axes.axhline(best, color="#22303c", ls="--", lw=1, label=f"optimum, {best:.2f}")
        axes.set(title=title, xlabel="episode", ylim=(-90, -8))
        axes.legend(frameon=False, loc="lower right", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("return (−1 per step), mean of the runs")
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 runs of 120 episodes")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    curves = experiment(*((5, 120) if options.quick else (100, 1000)))
    p = torch.tensor([[2**0.5 - 1, 2 - 2**0.5]], dtype=torch.float64).repeat(3, 1)
    best = us.exact.solve(CORRIDOR, p).objective.item()
    for name, (returns, share) in curves.items():
        last, around_100 = returns[-100:].mean(), returns[90:110].mean()
        print(f"{name:34} last 100 episodes {last:7.2f}, around 100 {around_100:7.2f}, "
              f"{share:.1%} locked")  # fmt: skip
    print(f"{'optimum':34} {best:.4f}")
    draw(curves, best, options.picture)


if __name__ == "__main__":
    main()
