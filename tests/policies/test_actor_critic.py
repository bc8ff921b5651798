"""Actor-critics: the MLP policy, a module of one's own, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from upslope.errors import ArgumentError
from upslope.policies.custom import CustomActorCritic
from upslope.policies.make import make_policy

OBSERVATION = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(4)
BOX = spaces.Box(-1, 1, (2,), np.float32)


def made(policy=None, observation=OBSERVATION, action=DISCRETE, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return make_policy(policy, observation, action, generator=generator, **kwargs)


class Shared(nn.Module):
    """One trunk, two heads."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.trunk, self.outputs = nn.Linear(3, outputs + 1), outputs

    def forward(self, observation):
        found = self.trunk(observation)
        return found[:, : self.outputs], found[:, self.outputs]


@pytest.mark.parametrize("action", [DISCRETE, BOX], ids=["Discrete", "Box"])
@pytest.mark.parametrize("own", [False, True])
def test_forward_is_its_three_parts(action, own):
    outputs = 4 if action is DISCRETE else 2
    policy = made(Shared(outputs) if own else None, action=action)
    observation = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    distribution = policy.distribution(observation)
    drawn = distribution.sample(torch.Generator().manual_seed(2))
    log_prob, entropy, value = policy(
        SimpleNamespace(observation=observation, action=drawn, action_mask=None, sequences=None)
    )
    assert log_prob.shape == entropy.shape == value.shape == (10,)
    torch.testing.assert_close(log_prob, distribution.log_prob(drawn))
    torch.testing.assert_close(entropy, distribution.entropy())
    torch.testing.assert_close(value, policy.value(observation))


def test_the_first_policy_is_nearly_uniform():
    policy = made()
    probabilities = policy.distribution(torch.randn(50, 3)).log_probs.exp()
    assert (probabilities - 0.25).abs().max() < 0.01


def test_policy_parameters_are_those_that_pi_depends_on():
    policy = made(action=BOX)
    chosen = {id(parameter) for parameter in policy.policy_parameters()}
    names = {name for name, p in policy.named_parameters() if id(p) in chosen}
    assert names == {
        "head.log_std",
        *(f"actor.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")),
    }
    policy.distribution(torch.randn(5, 3)).log_prob(torch.randn(5, 2)).sum().backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert touched == names
    own = made(Shared(4))
    assert len(own.policy_parameters()) == len(list(own.parameters()))


def test_policy_kwargs():
    policy = made(action=BOX, net_arch=[7], activation="relu", log_std_init=-1)
    assert policy.actor[0].out_features == 7
    assert isinstance(policy.critic[1], nn.ReLU)
    assert policy.head.log_std.tolist() == [-1, -1]
    linear = made(net_arch=())
    assert [type(layer) for layer in linear.actor] == [nn.Linear]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((), np.float32), ((2, 3), np.float32), ((4, 4), np.uint8)]
)
def test_box_observations_of_any_shape_and_type(shape, dtype):
    policy = made(observation=spaces.Box(0, 200, shape, dtype))
    observation = torch.from_numpy(np.full((5, *shape), 3, dtype))
    assert policy.distribution(observation).log_probs.shape == (5, 4)
    assert policy.value(observation).shape == (5,)
    flat = torch.full((5, int(np.prod(shape))), 3.0)
    assert torch.equal(policy.value(observation), policy.critic(flat)[:, 0])


# ---- refusals ------------------------------------------------------------------------------------
def test_another_name_is_refused():
    with pytest.raises(
        ArgumentError, match=r"policy='lstn' is not supported \(did you mean 'lstm'\?\): give one"
    ):
        made("lstn")


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"net_archs": [3]}, "does not fit"),
        ({"net_arch": 64}, "it takes a list of units such as"),
        ({"net_arch": {"pi": [3]}}, "it takes a list of units such as"),
        ({"net_arch": [-3]}, "layers take from 1 to 16,384 units"),
        ({"net_arch": [2**14 + 1]}, "layers take from 1 to 16,384 units"),
        ({"log_std_init": "x"}, "does not fit"),
    ],
)
def test_policy_kwargs_that_do_not_fit_are_refused(kwargs, why):
    with pytest.raises(ArgumentError, match=f"{next(iter(kwargs))}.*{why}"):
        made(action=BOX, **kwargs)


def test_policy_kwargs_of_another_policy_are_refused():
    with pytest.raises(ArgumentError, match=r"policy_kwargs=.*does not fit.*net_arch"):
        made(Shared(4), net_arch=[3])


class Returns(nn.Module):
    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, observation):
        return self.output


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(5, 4), "Tensor"),
        ((torch.zeros(5, 4),), "tuple"),
        ((torch.zeros(5, 3), torch.zeros(5)), r"shapes \[5, 3\] and \[5\]"),
        ((torch.zeros(5, 4), torch.zeros(5, 1)), r"shapes \[5, 4\] and \[5, 1\]"),
    ],
)
def test_a_module_that_returns_something_else_is_told_what_to_return(output, got):
    policy = CustomActorCritic(Returns(output), OBSERVATION, DISCRETE, generator=torch.Generator())
    wanted = r"a pair \(action parameters \[5, 4\], value \[5\]\)"
    for call in (policy.value, policy.distribution):
        with pytest.raises(
            ArgumentError, match=rf"policy= returned {got}, but must return {wanted}"
        ):
            call(torch.zeros(5, 3))


def test_a_space_without_a_form_is_refused_and_its_part_named():
    nested = spaces.Dict(a=OBSERVATION, b=spaces.Tuple([spaces.Text(5)]))
    with pytest.raises(ArgumentError, match=r"observation space\['b'\]\[0\] Text.* not supported"):
        made(observation=nested)
