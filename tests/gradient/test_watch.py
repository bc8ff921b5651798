"""What f does to the sample: auto follows a path only where autograd has all of its derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import nn

from upslope.errors import ArgumentError
from upslope.gradient import expectation


def quietly(x):
    with torch.no_grad():
        y = 3 * x
    return x + y


def into_a_buffer(x):
    buffer = torch.zeros(10)
    buffer[:] = x
    return buffer + (buffer > 0)


BLACK = {  # partly: what else they do, autograd sees
    "tolist": lambda x: torch.tensor([3.0 * (v > 0.5) for v in x.tolist()]) - 0.1 * x,
    "item": lambda x: x + torch.tensor([v.item() for v in x]),
    "float": lambda x: x + torch.tensor([float(v) for v in x]),
    "int": lambda x: x + torch.tensor([int(v) for v in x]),
    "bool": lambda x: x + bool(x.sum()),
    "tensor": lambda x: x + torch.tensor([[v] for v in x])[:, 0],
    "no_grad": quietly,
    "inference": lambda x: x + torch.inference_mode()(lambda: x * 1)(),
    "data": lambda x: x + x.data,
    "detach": lambda x: x + x.detach(),
    "detach and floor": lambda x: x + x.detach().floor(),
    "numpy": lambda x: x + torch.from_numpy(x.detach().numpy()),
    "asarray": lambda x: x + torch.asarray(np.asarray(x.detach())),
    "inside of a module": lambda x: F.gumbel_softmax(torch.stack([x, -x], -1), hard=True)[:, 0],
}

JUMPY = {
    "sign": torch.sign,
    "round": torch.round,
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "remainder": lambda x: x % 1,
    "floor": lambda x: x + x // 1,
    "div": lambda x: x + torch.div(x, 1, rounding_mode="floor"),
    "heaviside": lambda x: x + torch.heaviside(x, torch.ones(())),
    "greater": lambda x: x + (x > 0.3),
    "product": lambda x: x * (x > 0.3),
    "where": lambda x: torch.where(x > 0, x + 1, x),
    "isclose": lambda x: x + x.isclose(torch.zeros(())),
    "not": lambda x: x + torch.logical_not(x),
    "or": lambda x: x + torch.logical_or(x, x),
    "int64": lambda x: x + x.to(torch.int64),
    "type": lambda x: x + x.type(torch.int64),
    "byte": lambda x: x + x.abs().byte(),
    "int()": lambda x: x + x.int(),
    "bool()": lambda x: x + x.bool(),
    "argmax": lambda x: x + x.argmax(),
    "argsort": lambda x: x + x.argsort(),
    "max": lambda x: x + x.max(-1).indices,
    "topk": lambda x: x + x.topk(2).indices.sum(),
    "sort": lambda x: x + x.sort().indices,
    "norm of order 0": lambda x: x + F.relu(x)[:, None].norm(p=0, dim=-1),
    "vector_norm": lambda x: x + torch.linalg.vector_norm(F.relu(x)[:, None], ord=0.0, dim=-1),
    "a list": lambda x: x + list(range(10))[x.max(0).indices],
    "searchsorted": lambda x: x + torch.searchsorted(torch.zeros(1), x),
    "bucketize": lambda x: x + torch.bucketize(x, torch.zeros(1)),
    "histc": lambda x: x + torch.histc(x)[0],
    "branch": lambda x: x + sum(v > 0 for v in x),
    "contains": lambda x: x + (0.5 in x),
    "buffer": into_a_buffer,
    "normal": lambda x: torch.normal(x, 1.0),
    "bernoulli": lambda x: x + torch.bernoulli(x.sigmoid()),
    "atan2": lambda x: torch.atan2(x, x - 1),
    "vmap": lambda x: x + torch.func.vmap(lambda v: 1.0 * (v > 0))(x),
    "nan_to_num": lambda x: (1 + x.sqrt()).nan_to_num(),
}

WEIGHT = torch.tensor([1.0, 2.0], requires_grad=True)
NET = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))

SEEN = {
    "power": lambda x: x**3,
    "network": lambda x: NET(torch.stack([x, x], -1))[:, 0],
    "clamp": lambda x: x.clamp(-1, 1) + F.relu(x) + (x - 1).abs(),
    "max": lambda x: torch.stack([x, -x], -1).max(-1).values,
    "sort": lambda x: x.sort().values,
    "softmax": lambda x: torch.stack([x, -x], -1).softmax(-1)[:, 0],
    "logsumexp": lambda x: torch.stack([x, -x], -1).logsumexp(-1),
    "norm": lambda x: torch.stack([x, x], -1).norm(dim=-1),
    "standard": lambda x: (x - x.mean()) / x.std(),
    "einsum": lambda x: torch.einsum("i,j->i", x, torch.ones(3)),
    "loss": lambda x: F.smooth_l1_loss(x, torch.zeros(10), reduction="none"),
    "in place": lambda x: (x * 1).add_(1).mul_(x),
    "rows": lambda x: torch.stack([2 * v for v in x]),
    "where, of no sample": lambda x: torch.where(torch.arange(10) > 4, x, -x),
    "a parameter, held": lambda x: x * WEIGHT.detach().sum() + WEIGHT[0].item(),
    "a parameter, compared": lambda x: x * (WEIGHT > 1).sum(),
    "dtype": lambda x: x.double().float(),
    "like": lambda x: x + torch.ones_like(x) + len(x) + x.shape[0],
    "printed": lambda x: x * len(f"{x[0]:.3f} {x}").bit_length(),
    "vmap": torch.func.vmap(lambda v: v**3),
}


def used(f) -> str:
    torch.manual_seed(0)
    normal = D.Normal(torch.tensor(0.3, requires_grad=True), 1.0)
    return expectation(f, normal, 10, standard_error=True).estimator


@pytest.mark.parametrize("name", BLACK | JUMPY)
def test_auto_takes_the_score_where_f_may_jump(name):
    assert used((BLACK | JUMPY)[name]) == "score"


@pytest.mark.parametrize("name", SEEN)
def test_auto_follows_what_autograd_sees(name):
    assert used(SEEN[name]) == "pathwise"


def test_auto_is_right_where_f_is_partly_a_black_box():
    """f = 3 [x > 1/2] - x/10 under N(μ, 1): 3 p(1/2; μ) - 1/10, where a path alone gives -1/10."""
    torch.manual_seed(0)
    mu = torch.tensor(0.5, requires_grad=True)
    found = expectation(BLACK["tolist"], D.Normal(mu, 1.0), 20_000, standard_error=True)
    slope = found.gradient(mu)
    assert abs(slope.value - (3 * 0.3989423 - 0.1)) < 4.5 * slope.standard_error < 0.1


@pytest.mark.parametrize("name", BLACK)
def test_pathwise_refuses_what_is_partly_a_black_box(name):
    normal = D.Normal(torch.tensor(0.3, requires_grad=True), 1.0)
    with pytest.raises(ArgumentError, match=r"partly a black box: .*; use 'score'"):
        expectation(BLACK[name], normal, 10, estimator="pathwise")


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x.detach()

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def test_pathwise_takes_a_choice_and_a_backward_of_its_own():
    """A piece of a continuous f may be chosen by a comparison; and a Function says its slope."""
    mu = torch.tensor(0.3, requires_grad=True)
    normal = D.Normal(mu, 1.0)

    def between(x):  # a table, and a line from each entry to the next
        i = x.detach().floor().long()
        return torch.arange(-50.0, 50.0)[i + 50] + (x - i)

    for f in (Twice.apply, between, lambda x: torch.where(x.detach() > 0, 2 * x, 2 * x)):
        value = expectation(f, normal, 10, estimator="pathwise")
        (slope,) = torch.autograd.grad(value, mu)
        assert slope.item() == pytest.approx(1 if f is between else 2)
        assert used(f) == "score"
