"""One optimiser step from the gradients of micro-batches, and how good that gradient was.

    g = Σ_k ∇ L_k,      L = Σ_k L_k the loss of the whole update, however it is cut

    θ ← AdamW(θ, g min(1, max_norm / |g|)),      step size α λ(step), λ a schedule of transformers

With b_k samples in micro-batch k of B in all, G_k = g_k B / b_k is its mean gradient, and

    tr Σ ≈ 1/(K-1) (Σ b_k |G_k|² - B |g|²),    |G|² ≈ |g|² - tr Σ / B

and |G|² B / tr Σ is the signal-to-noise ratio,

as in `upslope.gradient.quality`, from norms alone: no gradient but the sum is kept.

Loshchilov and Hutter 2019, arXiv:1711.05101; McCandlish et al. 2018, arXiv:1812.06162.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.errors import ConfigError, NotFiniteError, suggest
from upslope.gradient.quality import signal_to_noise
from upslope.language.config import TrainingConfig
from upslope.language.requirements import need


class MicroBatch(NamedTuple):
    """A part of an update: how many independent samples it holds, and its part of the loss."""

    samples: int
    loss: Callable[[], Tensor]


class Optimization:
    """AdamW over named parameters, its schedule, and what is saved of them."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: TrainingConfig, total_steps: int
    ) -> None:
        self.parameters, self.config = dict(parameters), config
        self.schedule = schedule(config, total_steps)
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        others = [p for p in self.parameters.values() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": others, "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(float(config.adam_beta1), float(config.adam_beta2)),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for parameter in self.parameters.values():
            self.adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, micro_batches: Sequence[MicroBatch], step: int) -> dict[str, float]:
        """Take step number `step`, from 0; returns what is worth logging.

        Raises NotFiniteError, with nothing changed, when loss or gradient is not finite.
        """
        loss, squares = self.accumulate(micro_batches)
        parameters = list(self.parameters.values())
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.adam.zero_grad()
            raise NotFiniteError(
                f"step {step}: the loss is {loss:g} and the gradient's norm {norm:g}; the weights "
                "are those before this step"
            )
        rate = self.config.learning_rate * self.schedule(step)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad()
        return {
            "grad_norm": norm,
            "signal_to_noise": of_parts(squares, [m.samples for m in micro_batches], norm**2),
            "learning_rate": rate,
            "loss": loss,
        }

    def accumulate(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, list[float]]:
        """Leave the sum of the micro-batches' gradients in `.grad`; returns loss and all |g_k|²."""
        self.adam.zero_grad()  # whatever the model was given with
        parameters = list(self.parameters.values())
        loss, squares = 0.0, []
        sums: list[Tensor | None] = [None] * len(parameters)
        for micro in micro_batches:
            part = micro.loss()
            part.backward()
            loss += float(part.detach())
            found = [p.grad for p in parameters if p.grad is not None]
            if len(micro_batches) > 1:
                squares.append(float(torch.stack([g.float().square().sum() for g in found]).sum()))
                for k, p in enumerate(parameters):
                    before, p.grad, now = sums[k], None, p.grad
                    sums[k] = now if before is None else before if now is None else before.add_(now)
        for p, total in zip(parameters, sums, strict=True):
            if total is not None:
                p.grad = total
            elif p.grad is None:
                p.grad = torch.zeros_like(p)
        return loss, squares

    def state(self) -> dict[str, Tensor]:
        """Return weights and moments by name, live."""
        found: dict[str, Tensor] = {}
        for name, p in self.parameters.items():
            moments = self.adam.state[p]
            found[f"model/{name}"] = p.detach()
            found[f"adam_m/{name}"] = moments["exp_avg"]
            found[f"adam_v/{name}"] = moments["exp_avg_sq"]
        return found

    def set_steps(self, steps: int) -> None:
        """Say how many steps were taken, after a state was written into `state()`."""
        for p in self.parameters.values():
            self.adam.state[p]["step"].fill_(steps)


def schedule(config: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """Return λ(step), what the step size is multiplied by; raises ConfigError for another name."""
    optimization = need("transformers.optimization")
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    known = [kind.value for kind in optimization.TYPE_TO_SCHEDULER_FUNCTION]
    name = config.lr_scheduler_type
    try:
        found = optimization.get_scheduler(name, unused, config.warmup_steps, total_steps)
        function: Callable[[int], float] = found.lr_lambdas[0]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"lr_scheduler_type={name!r}: it takes a schedule of transformers that depends on the "
            f"step alone, such as linear, cosine or constant{suggest(name, known)}"
        ) from error
    return function


def of_parts(squares: Sequence[float], sizes: Sequence[int], square: float) -> float:
    """Return |G|² B / tr Σ of an update: from |g_k|² and b_k of its parts, and |g|².

    nan with fewer than two parts, or where the noise hides the signal.
    """
    if len(squares) < 2:  # of a single part none is kept
        return math.nan
    samples = sum(sizes)
    whole = [s * (samples / b) ** 2 for s, b in zip(squares, sizes, strict=True)]
    return signal_to_noise(whole, sizes, square)
