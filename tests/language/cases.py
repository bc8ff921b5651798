"""Trainers on tiny models, for tests."""

from __future__ import annotations

from typing import Any

import torch

import upslope as us
from tests.language import tiny

SUMS = [
    {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)}
    for a in range(4)
    for b in range(0, 30, 7)
]


def has_one(completions: list[str]) -> list[float]:
    return [float(c.count("1")) for c in completions]


def dpo(model: Any = None, reference_model: Any = None, **settings: Any) -> us.DPO:
    chosen: dict[str, Any] = {"train_dataset": SUMS, "tokenizer": tiny.tokenizer()}
    chosen |= {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "max_steps": 6}
    model = tiny.llama() if model is None else model
    return us.DPO(model, reference_model, **chosen | settings)


def grpo(model: Any = None, reward_funcs: Any = has_one, **settings: Any) -> us.GRPO:
    chosen: dict[str, Any] = {"train_dataset": SUMS, "tokenizer": tiny.tokenizer()}
    chosen |= {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_generations": 4}
    chosen |= {"max_completion_length": 6, "max_steps": 6}
    model = tiny.llama() if model is None else model
    return us.GRPO(model, reward_funcs, **chosen | settings)


def gradient(trainer: Any) -> dict[str, torch.Tensor]:
    """The gradient of the trainer's next update, the weights left as they are."""
    found: dict[str, torch.Tensor] = {}

    def instead(*args: Any) -> None:
        for name, p in trainer.optimization.parameters.items():
            assert p.grad is not None
            found[name] = p.grad.clone()

    trainer.optimization.adam.step = instead
    trainer.optimization.config = trainer.config.__class__(max_grad_norm=float("inf"))
    trainer.one_step()
    return found


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two gradients over the largest element: their rounding."""
    assert a.keys() == b.keys()
    largest = max(float(gradient.abs().max()) for gradient in b.values())
    return max(float((a[name] - b[name]).abs().max()) for name in b) / largest
