"""How noisy is the gradient of a variational autoencoder with binary latents?

Eight bits z describe a digit of scikit-learn's, 8 x 8 black or white pixels x. Encoder q(z|x) and
decoder p(x|z) ascend the evidence lower bound of ln p(x),

    ELBO(x) = E_q(z|x)[ ln p(x|z) ] - KL(q(z|x) || Bernoulli(1/2)^8)

No gradient passes through a bit. The score estimator is tried without a baseline, with a learned
one b(x), and with the leave-one-out mean of the other samples. The reparameterised estimator
replaces the bits by relaxed ones between 0 and 1 (RelaxedBernoulli, temperature 1/2; Maddison et
al. 2017, arXiv:1611.00712), so that it ascends another objective: its noise is small and its
gradient biased. As 8 bits have 256 states the exact gradient is known: `enumerate`. All get 4
samples a step. The picture shows, on the left, the exact ELBO of held-out images while each
trains; on the right, at points along one path (that of the exact gradient), the variance of each
estimate of the encoder's gradient on 64 images, summed over weights, beside the squared length of
that gradient: an estimate above the dotted line is more noise than signal.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, RelaxedBernoulli, kl_divergence

import upslope as us

PICTURE = Path("bernoulli_vae.png")
BITS, SAMPLES, BATCH = 8, 4, 64
METHODS = {
    "score": "#e8743b",
    "score, learned baseline": "#b58900",
    "score, leave-one-out": "#2f9e62",
    "relaxed, pathwise": "#8e5bb5",
    "exact (enumerate)": "#22303c",
}
*SAMPLED, EXACT = METHODS


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, BITS))
        self.decoder = nn.Sequential(nn.Linear(BITS, 64), nn.Tanh(), nn.Linear(64, 64))
        self.baseline = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0))

    def elbo(self, x: Tensor, method: str) -> tuple[Tensor, Tensor]:
        """Return the estimate of each image's ELBO in nats, [B], and the loss of b(x)."""
        logits = self.encoder(x)
        q = Independent(Bernoulli(logits=logits), 1)
        prior = Independent(Bernoulli(logits=torch.zeros_like(logits)), 1)
        estimator, baseline = method.split(",")[0], None
        if method == "score, learned baseline":
            baseline = us.gradient.Learned(self.baseline, x)
        elif method == "score, leave-one-out":
            baseline = us.gradient.LeaveOneOut()
        elif method == "relaxed, pathwise":
            estimator = "pathwise"
        elif method == EXACT:
            estimator = "enumerate"
        relaxed = Independent(RelaxedBernoulli(torch.tensor(0.5), logits=logits), 1)

        def log_likelihood(z: Tensor) -> Tensor:
            """Return ln p(x|z) of n samples, [n, B]."""
            return Bernoulli(logits=self.decoder(z)).log_prob(x.expand(len(z), *x.shape)).sum(-1)

        likelihood = us.gradient.expectation(
            log_likelihood,
            relaxed if estimator == "pathwise" else q,
            SAMPLES,
            estimator=estimator,
            baseline=baseline,
        )
        regression = (self.baseline(x) - likelihood.detach()).square().mean()
        return likelihood - kl_divergence(q, prior), regression

    def encoder_gradient(self, x: Tensor, method: str) -> Tensor:
        """Return the gradient of the mean ELBO of a batch in all weights of the encoder, [P]."""
        weights = list(self.encoder.parameters())
        found = torch.autograd.grad(self.elbo(x, method)[0].mean(), weights)
        return torch.cat([g.reshape(-1) for g in found])


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Return black or white images, 1,437 to train on and 360 held out, [n, 64]."""
    images = torch.as_tensor(load_digits().data, dtype=torch.float32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return (images[order] >= 8).float().split([1437, 360])


def held_out_elbo(model: Autoencoder) -> float:
    """Return the exact ELBO in nats, the mean over the held-out images."""
    with torch.no_grad():
        return model.elbo(digits()[1], EXACT)[0].mean().item()


def noise(model: Autoencoder, draws: int = 64) -> dict[str, tuple[float, float, float]]:
    """Return each estimator's variance, squared bias and its error, and the exact |gradient|^2."""
    x = digits()[0][:BATCH]
    exact = model.encoder_gradient(x, EXACT)
    found = {EXACT: (0.0, 0.0, 0.0), "signal": (exact.square().sum().item(), 0.0, 0.0)}
    for method in SAMPLED:
        gradients = torch.stack([model.encoder_gradient(x, method) for _ in range(draws)])
        variance = us.gradient.quality(gradients, chunk_size=1).trace
        off = (gradients.mean(0) - exact).square().sum().item() - variance / draws  # no bias: 0
        centred = gradients - gradients.mean(0)
        error = (2**0.5 * (centred @ centred.T).norm() / draws**2).item()
        found[method] = (variance, off, error)
    return found


def train(method: str, steps: int, every: int, look: Callable[[Autoencoder], Any]) -> list[Any]:
    """Train with one estimator; return what `look` saw every so many steps."""
    torch.manual_seed(0)
    model, x, seen = Autoencoder(), digits()[0], []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps + 1):
        if step % every == 0:
            with torch.random.fork_rng():  # looking changes nothing
                seen.append(look(model))
        elbo, regression = model.elbo(x[torch.randint(len(x), (BATCH,))], method)
        optimizer.zero_grad()
        (regression - elbo.mean()).backward()
        optimizer.step()
    return seen


def draw(
    steps: list[int], elbo: dict[str, Sequence[float]], noises: Sequence[dict], picture: Path
) -> None:
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for method, color in METHODS.items():
        left.plot(steps, elbo[method], color=color, label=method)
    for method in SAMPLED:
        right.plot(steps, [n[method][0] for n in noises], color=METHODS[method], label=method)
    signal = [n["signal"][0] for n in noises]
    right.plot(steps, signal, ":", color="#22303c", label="|exact gradient|²")
    low = min(values[1] for values in elbo.values())  # after the first look
    left.set(xlabel="step", ylabel="ELBO of held-out images, nats", ylim=(low - 1, None))
    right.set(xlabel="step", ylabel="variance of the encoder's gradient, nats²", yscale="log")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 steps each")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    steps, every = (40, 20) if options.quick else (600, 60)
    elbo = {method: train(method, steps, every, held_out_elbo) for method in SAMPLED}
    both = train(EXACT, steps, every, lambda model: (held_out_elbo(model), noise(model)))
    elbo[EXACT], noises = zip(*both, strict=True)
    signal = noises[-1]["signal"][0]
    print(f"after {steps} steps; variance and squared bias are in units of |exact gradient|^2")
    for method in METHODS:
        variance, bias, error = (part / signal for part in noises[-1][method])
        print(f"{method:24} ELBO {elbo[method][-1]:.2f}, variance {variance:.3f}, "
              f"squared bias {bias:.3f} ± {error:.3f}")  # fmt: skip
    draw(list(range(0, steps + 1, every)), elbo, noises, options.picture)


if __name__ == "__main__":
    main()
