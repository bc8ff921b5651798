"""Why not just average f(x) grad p(x) over samples of p?

The gradient of an expectation is an integral, grad E[f] = int f(x) grad p(x) dx, and a mean over
samples x ~ p looks like the way to compute one. It is not this one: grad p is no density, and

    naive     1/n sum f(x_i) grad p(x_i)      ->  int p f grad p dx  =  1/2 grad int p^2 f dx
    score     1/n sum f(x_i) grad ln p(x_i)   ->  int p f grad ln p dx  =  grad E[f]

so the naive mean converges, with however many samples, to the gradient of something else. On the
left, for x ~ N(mu, 1), f = x^2 and mu = 1, where the truth is 2: both means and one standard error,
as n grows. On the right, where the naive estimator leads: a policy softmax(theta) over three
choices that pay 1, 2 and 5 follows one estimator or the other, 64 samples a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Categorical, Normal

import upslope as us

PICTURE = Path("naive_estimator.png")
PAYS = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
START = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
INK, BLUE, ORANGE = "#22303c", "#2a78c2", "#e8743b"


def naive(log_prob: Tensor, f: Tensor) -> Tensor:
    """Return what has the naive estimator's gradient: f(x) p(x; theta)."""
    return f * log_prob.exp()


def score(log_prob: Tensor, f: Tensor) -> Tensor:
    """Return what has the score estimator's gradient: the library's surrogate."""
    return us.gradient.surrogate(log_prob, f)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"naive": naive, "score": score}


def audit() -> dict[str, dict[str, us.gradient.BiasReport]]:
    """Return, for both problems and both estimators, the expected gradient beside the exact one."""
    mu = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    problems = {
        "N(1, 1), f = x²": (Normal(mu, torch.ones_like(mu)), torch.square),
        "softmax(0, 1, -1), f = 1, 2, 5": (
            Categorical(logits=START.clone().requires_grad_()),
            lambda x: PAYS[x],
        ),
    }
    return {
        problem: {
            name: us.gradient.check_unbiased(surrogate, distribution, f)
            for name, surrogate in ESTIMATORS.items()
        }
        for problem, (distribution, f) in problems.items()
    }


def gaussian_terms(n: int, surrogate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return each sample's own gradient in mu, [n], of E[x^2] under N(1, 1)."""
    mu = torch.ones(n, dtype=torch.float64, requires_grad=True)  # one copy for each sample
    normal = Normal(mu, 1.0)
    x = normal.sample()
    (terms,) = torch.autograd.grad(surrogate(normal.log_prob(x), x**2).sum(), mu)
    return terms


def ascend(surrogate: Callable[[Tensor, Tensor], Tensor], steps: int, n: int = 64) -> Tensor:
    """Return the exact E[f] before each of `steps` steps of sampled gradient ascent."""
    theta, path = START.clone().requires_grad_(), []
    for _ in range(steps):
        policy = Categorical(logits=theta)
        path.append((policy.probs * PAYS).sum().item())
        x = policy.sample((n,))
        (gradient,) = torch.autograd.grad(surrogate(policy.log_prob(x), PAYS[x]).mean(), theta)
        theta = (theta + 0.2 * gradient).detach().requires_grad_()
    return torch.tensor(path)


def draw(terms: dict[str, Tensor], paths: dict[str, Tensor], picture: Path) -> None:
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, term), color in zip(terms.items(), (ORANGE, BLUE), strict=True):
        n = torch.arange(1, len(term) + 1)
        mean = term.cumsum(0) / n
        error = (term.square().cumsum(0) / n - mean**2).clamp(min=0).div(n).sqrt()
        kept = torch.logspace(1, torch.log10(n[-1].double()), 200).long() - 1
        left.plot(n[kept], mean[kept], color=color, label=f"{name} estimator")
        low, high = (mean - error)[kept], (mean + error)[kept]
        left.fill_between(n[kept], low, high, color=color, alpha=0.25, lw=0)
    left.axhline(2, color=INK, ls="--", lw=1, label="truth, 2")
    left.set(xscale="log", xlabel="samples n", ylabel="estimate of d E[x²] / dμ", ylim=(-0.5, 4))
    for (name, path), color in zip(paths.items(), (ORANGE, BLUE), strict=True):
        right.plot(path, color=color, label=f"following the {name} estimator")
    right.axhline(5, color=INK, ls="--", lw=1, label="best choice, 5")
    right.set(xlabel="step", ylabel="E[f], exact", ylim=(1, 5.3))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples and steps")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    torch.manual_seed(0)
    for problem, reports in audit().items():
        for name, report in reports.items():
            expected = [round(x, 4) for x in report.estimate.tolist()]
            exact = [round(x, 4) for x in report.exact.tolist()]
            print(f"{problem}: {name} expects {expected}, exact {exact}; {report}")
    samples, steps = (10_000, 50) if options.quick else (1_000_000, 300)
    terms = {name: gaussian_terms(samples, each) for name, each in ESTIMATORS.items()}
    paths = {name: ascend(each, steps) for name, each in ESTIMATORS.items()}
    for name in ESTIMATORS:
        mean, error = terms[name].mean(), terms[name].std() / samples**0.5
        print(f"{name}: {mean:.4f} ± {error:.4f} from {samples:,} samples, truth 2; "
              f"E[f] after {steps} steps of ascent {paths[name][-1]:.3f}, best 5")  # fmt: skip
    draw(terms, paths, options.picture)


if __name__ == "__main__":
    main()
