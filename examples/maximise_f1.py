"""Can a classifier be trained on the metric itself, though F1 has no derivative?

Which of 1,797 digits, shrunk to 4 x 4 pixels, are an eight? One in ten is, and F1 = 2TP / (2TP +
FP + FN) counts what was found and what was right. A linear policy marks each image, or not:

    x_i ~ Bernoulli(sigmoid(w . image_i + b))        J = E[F1(x)]        w <- w + Adam(grad J)

F1 is a black box in NumPy here; the score estimator with a leave-one-out baseline needs its values
only. It is held against the usual surrogate loss, logistic regression by cross-entropy, with its
threshold of 1/2, and with the threshold that is best for F1 on the training images. The picture
shows F1 on held-out images of random splits (dots), its mean and 95 % interval, and how the
expected F1 grows in training. The interval allows for splits that share images (Nadeau and Bengio
2003, "Inference for the generalization error").
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from torch.distributions import Bernoulli, Independent

import upslope as us

PICTURE = Path("maximise_f1.png")
HELD_OUT = 1 / 3
INK, BLUE, ORANGE, GREEN = "#22303c", "#2a78c2", "#e8743b", "#2f9e62"
METHODS = {  # as rows of the picture
    "cross-entropy,\nthreshold 1/2": ORANGE,
    "cross-entropy,\ntuned threshold": GREEN,
    "expected F1,\nscore estimator": BLUE,
}


def f1(marked: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return F1 of each row of 0s and 1s, [n, images] against [images]."""
    return 2 * (marked * truth).sum(-1) / (marked.sum(-1) + truth.sum())


def maximise_f1(
    images: np.ndarray, truth: np.ndarray, steps: int, samples: int = 32
) -> tuple[torch.nn.Linear, list[float]]:
    """Return the policy that maximises E[F1] of the training images, and E[F1] at each step."""
    policy = torch.nn.Linear(images.shape[1], 1)
    torch.nn.init.zeros_(policy.weight)
    torch.nn.init.zeros_(policy.bias)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05, maximize=True)
    inputs, curve = torch.as_tensor(images, dtype=torch.float32), []
    for _ in range(steps):
        marks = Independent(Bernoulli(logits=policy(inputs)[:, 0]), 1)
        objective = us.gradient.expectation(
            lambda x: f1(x.numpy(), truth),
            marks,
            samples,
            estimator="score",
            baseline=us.gradient.LeaveOneOut(),
        )
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        curve.append(objective.item())
    return policy, curve


def compare(splits: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return held-out F1 [splits, methods], and E[F1] while training [splits, steps]."""
    images, digit = load_digits(return_X_y=True)
    small = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    truth = (digit == 8).astype(float)
    scores, curves = [], []
    splitter = StratifiedShuffleSplit(splits, test_size=HELD_OUT, random_state=0)
    for seed, (train, test) in enumerate(splitter.split(small, truth)):
        scaler = StandardScaler().fit(small[train])
        x, x_test = scaler.transform(small[train]), scaler.transform(small[test])
        regression = LogisticRegression().fit(x, truth[train])
        p, p_test = (regression.predict_proba(each)[:, 1] for each in (x, x_test))
        threshold = p[f1(p >= p[:, None], truth[train]).argmax()]
        torch.manual_seed(seed)
        policy, curve = maximise_f1(x, truth[train], steps)
        logits = policy(torch.as_tensor(x_test, dtype=torch.float32))[:, 0].detach().numpy()
        marked = (p_test > 0.5, p_test >= threshold, logits > 0)
        scores.append([f1_score(truth[test], each, zero_division=0.0) for each in marked])
        curves.append(curve)
    return np.array(scores), np.array(curves)


def interval(score: np.ndarray) -> float:
    """Return half of the 95 % interval of the mean over splits that share images."""
    share = 1 / len(score) + HELD_OUT / (1 - HELD_OUT)
    return float(student_t.ppf(0.975, len(score) - 1) * np.sqrt(share * score.var(ddof=1)))


def draw(scores: np.ndarray, curves: np.ndarray, picture: Path) -> None:
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, (score, color) in enumerate(zip(scores.T, METHODS.values(), strict=True)):
        left.plot(score, np.full(len(score), row) + 0.18, "o", color=color, ms=4, alpha=0.5, mew=0)
        left.errorbar(score.mean(), row, xerr=interval(score), fmt="D", color=color, capsize=4)
    left.set_yticks(range(len(METHODS)), METHODS)
    left.set(xlabel="F1 on held-out images", ylim=(-0.5, len(METHODS) - 0.4))
    left.invert_yaxis()
    right.plot(curves.T, color=BLUE, lw=0.6, alpha=0.3)
    right.plot(curves.mean(0), color=BLUE, lw=1.8, label="mean; thin: each split")
    right.set(xlabel="step of the score estimator", ylabel="E[F1] on training images")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 splits of 60 steps")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    scores, curves = compare(*((3, 60) if options.quick else (12, 300)))
    for name, score in zip(METHODS, scores.T, strict=True):
        print(f"{name.replace(chr(10), ' '):32} F1 {score.mean():.3f} ± {interval(score):.3f}")
    for row, name in enumerate(list(METHODS)[:2]):
        gain = scores[:, 2] - scores[:, row]
        print(f"score estimator over {name.replace(chr(10), ' ')}: "
              f"{gain.mean():+.3f} ± {interval(gain):.3f}")  # fmt: skip
    draw(scores, curves, options.picture)


if __name__ == "__main__":
    main()
