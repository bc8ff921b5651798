"""Features: one-hots that know where counting starts, and images in either order of their axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from upslope.errors import ArgumentError
from upslope.policies.features import Features, has_images, is_image
from upslope.policies.layout import Layout
from upslope.policies.networks import NatureCnn

LAST = spaces.Box(0, 255, (40, 36, 3), np.uint8)
FIRST = spaces.Box(0, 255, (3, 40, 36), np.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features_of(space, *elements, images: bool = False):
    """The features of some elements of a space, as a list of rows."""
    layer = Features(space, images=images, generator=seeded())
    packed = np.concatenate([Layout(space).accept(element)[0] for element in elements])
    found = layer(torch.from_numpy(packed))
    assert found.shape == (len(elements), layer.size)
    assert found.dtype == torch.float32
    return found.tolist()


# ---- parts without parameters --------------------------------------------------------------------
def test_discrete_counts_from_its_start():
    space = spaces.Discrete(3, start=-1)
    assert features_of(space, -1, 0, 1) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_multi_discrete_counts_from_its_starts():
    space = spaces.MultiDiscrete([2, 3], start=[5, -1])
    assert features_of(space, [5, 1], [6, -1]) == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
    grid = spaces.MultiDiscrete(np.array([[2, 1], [1, 3]]), start=np.array([[0, 0], [9, 1]]))
    assert features_of(grid, [[1, 0], [9, 3]]) == [[0, 1, 1, 1, 0, 0, 1]]


def test_bits_and_numbers_are_themselves():
    assert features_of(spaces.MultiBinary((2, 2)), [[0, 1], [1, 1]]) == [[0, 1, 1, 1]]
    numbers = spaces.Box(-9, 9, (2, 2), np.float64)
    assert features_of(numbers, [[1, 2], [3, -4]]) == [[1, 2, 3, -4]]
    assert features_of(spaces.Box(-9, 9, (), np.float32), 2.5) == [[2.5]]


def test_parts_follow_one_another():
    space = spaces.Dict(
        [
            ("b", spaces.Discrete(2, start=1)),
            ("a", spaces.Tuple([spaces.Box(0, 9, (2,)), spaces.MultiDiscrete([2, 2])])),
            ("c", spaces.MultiBinary(1)),
        ]
    )
    element = {"b": 2, "a": (np.array([3, 4]), np.array([0, 1])), "c": [1]}
    assert features_of(space, element) == [[0, 1, 3, 4, 1, 0, 0, 1, 1]]


def test_without_images_there_are_no_parameters():
    assert list(Features(LAST, images=False, generator=seeded()).parameters()) == []


# ---- images --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("space", "answer"),
    [
        (LAST, True),
        (FIRST, True),
        (spaces.Box(0, 255, (36, 36, 1), np.uint8), True),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), True),
        (spaces.Box(0, 255, (35, 40, 3), np.uint8), False),
        (spaces.Box(0, 255, (3, 40, 35), np.uint8), False),
        (spaces.Box(0, 255, (40, 40), np.uint8), False),
        (spaces.Box(0, 1, (40, 40, 3), np.float32), False),
        (spaces.Discrete(3), False),
        (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), FIRST])), False),
    ],
)
def test_what_an_image_is(space, answer):
    assert is_image(space) == answer
    nested = spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), space]))
    assert has_images(nested) == (answer or isinstance(space, spaces.Dict))


def test_channels_may_come_first_or_last():
    layers = [NatureCnn(space.shape, seeded()) for space in (LAST, FIRST)]
    assert [layer.channels_last for layer in layers] == [True, False]
    image = torch.randint(256, (2, 40, 36, 3), generator=seeded(1), dtype=torch.uint8)
    last, first = layers[0](image), layers[1](image.permute(0, 3, 1, 2))
    assert last.shape == (2, 512)
    torch.testing.assert_close(last, first)
    assert (last > 0).any()


def test_bytes_are_divided_by_255():
    """White is 1: images of floats give the same as bytes."""
    floats = spaces.Box(0, 1, LAST.shape, np.float32)
    by_bytes = Features(LAST, images=True, generator=seeded())
    by_floats = Features(floats, images=True, generator=seeded())
    image = torch.randint(256, (2, 40, 36, 3), generator=seeded(1), dtype=torch.uint8)
    torch.testing.assert_close(by_bytes(image), by_floats(image / 255))


def test_the_network_is_the_nature_one():
    """84 x 84 x 4: 20 x 20, 9 x 9 and 7 x 7 positions, 1,684,128 parameters."""
    layer = NatureCnn((84, 84, 4), seeded())
    assert sum(parameter.numel() for parameter in layer.parameters()) == 1_684_128
    shapes = [tuple(p.shape) for name, p in layer.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136)]
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            rows = parameter.detach().flatten(1)
            square = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
            torch.testing.assert_close(square, 2 * torch.eye(len(square)), atol=1e-4, rtol=0)
        else:
            assert not parameter.any()


def test_images_beside_other_parts():
    space = spaces.Dict([("goal", spaces.Discrete(2)), ("eye", FIRST), ("rear", LAST)])
    layer = Features(space, images=True, generator=seeded())
    assert layer.size == 2 + 512 + 512
    assert set(layer.networks) == {"1", "2"}
    space.seed(0)
    element = space.sample() | {"goal": 1}
    packed, _ = Layout(space).accept(element)
    found = layer(torch.from_numpy(packed))
    assert found[0, :2].tolist() == [0, 1]
    for columns, name, part in ((slice(2, 514), "1", "eye"), (slice(514, None), "2", "rear")):
        alone = layer.networks[name](torch.from_numpy(element[part][None]))
        torch.testing.assert_close(found[:, columns], alone)


@pytest.mark.parametrize("shape", [(35, 36, 3), (3, 36, 35), (1, 8, 8)])
def test_images_that_are_too_small(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    with pytest.raises(ArgumentError, match=r"images of at least 36 x 36, got \d+ x \d+"):
        Features(space, images=True, generator=seeded())


def test_convolutions_take_an_image():
    space = spaces.Dict(a=spaces.Box(0, 1, (9,)), b=spaces.Discrete(2))
    with pytest.raises(ArgumentError, match="policy='cnn' takes observations with an image, got"):
        Features(space, images=True, generator=seeded())
