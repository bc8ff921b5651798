"""One array for an element of any Gymnasium space, however nested.

    Dict(image=Box(84, 84, 3), goal=Discrete(5))   ->   [N, 21169],   columns 0, then 1 to 21168

A space of one part (Box, Discrete, MultiDiscrete, MultiBinary) keeps its arrays as they are. The
parts of Dict and Tuple, of any depth, lie side by side in the columns of one array [N, D], in the
space's own order. So buffers, normalisers and checkpoints know arrays only, and a policy sees the
parts again through `unpack`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from upslope.errors import ArgumentError

SUPPORTED = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Part(NamedTuple):
    """One part of a space, and the columns [start, start + size) it has in the packed array."""

    path: tuple[Any, ...]
    space: gymnasium.Space[Any]
    start: int
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one element of this part."""
        return self.space.shape or ()

    @property
    def columns(self) -> slice:
        """The columns of this part."""
        return slice(self.start, self.start + self.size)

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The least and greatest value where whole numbers are counted; None for a Box."""
        space = self.space
        if isinstance(space, spaces.Discrete):
            return np.asarray(space.start), np.asarray(space.start + space.n - 1)
        if isinstance(space, spaces.MultiDiscrete):
            return space.start, space.start + space.nvec - 1
        return None if isinstance(space, spaces.Box) else (np.asarray(0), np.asarray(1))

    def named(self) -> str:
        """Return " ['a'][0]" where the part lies within the space, "" for a space of one part."""
        return " " + "".join(f"[{key!r}]" for key in self.path) if self.path else ""


class Layout:
    """Where each part of a space is in one array. `what` names the space in errors.

    Raises ArgumentError naming the part of which Upslope has no form.
    """

    def __init__(self, space: gymnasium.Space[Any], what: str = "observation") -> None:
        self.space, self.what = space, what
        self.parts: list[Part] = []
        for path, leaf in leaves(space):
            start = self.size
            if not isinstance(leaf, SUPPORTED) or math.prod(leaf.shape or ()) == 0:
                where = "".join(f"[{key!r}]" for key in path)
                reason = "holds no number" if isinstance(leaf, SUPPORTED) else "is not supported"
                raise ArgumentError(
                    f"{what} space{where} {leaf} {reason}: Box, Discrete, MultiDiscrete, "
                    "MultiBinary, and Dict and Tuple of them are"
                )
            self.parts.append(Part(path, leaf, start, math.prod(leaf.shape or ())))
        if not self.parts:
            raise ArgumentError(f"{what} space {space} is not supported: it has no parts")
        self.nested = isinstance(space, spaces.Dict | spaces.Tuple)
        first = self.parts[0]
        self.shape = (self.size,) if self.nested else first.shape
        """The shape of one packed element."""
        self.dtype: np.dtype[Any] = np.result_type(*[np.dtype(p.space.dtype) for p in self.parts])

    @property
    def size(self) -> int:
        """How many numbers an element has."""
        return sum(part.size for part in self.parts)

    def values(self, element: Any) -> Iterator[tuple[Part, Any]]:
        """Yield each part with its value in `element`, or in a batch that is nested like it.

        Raises KeyError, IndexError or TypeError where the element is not nested like the space.
        """
        for part in self.parts:
            value = element
            for key in part.path:
                value = value[key]
            yield part, value

    def pack(self, values: list[np.ndarray]) -> np.ndarray:
        """Return the parts' arrays, each [N, ...] in the order of `parts`, as one."""
        if not self.nested:
            return values[0]
        rows = [value.reshape(len(value), -1) for value in values]
        return np.concatenate(rows, axis=1, dtype=self.dtype, casting="unsafe")

    def unpack(self, packed: Any) -> Any:
        """Return what a packed array or tensor [N, ...] holds, nested as the space is."""
        if not self.nested:
            return packed
        return self.nest([packed[:, p.columns].reshape(-1, *p.shape) for p in self.parts])

    def nest(self, values: Sequence[Any]) -> Any:
        """Return one value for each part, in the order of `parts`, nested as the space is."""
        following = iter(values)

        def nested(space: gymnasium.Space[Any]) -> Any:
            if isinstance(space, spaces.Dict):
                return {key: nested(inner) for key, inner in space.spaces.items()}
            if isinstance(space, spaces.Tuple):
                return tuple(nested(inner) for inner in space.spaces)
            return next(following)

        return nested(self.space)

    def accept(self, given: Any) -> tuple[np.ndarray, bool]:
        """Return elements given by a user, packed [N, ...], and whether it was one element only.

        Raises ArgumentError for what is neither one element nor a batch, is not finite, or is no
        whole number that the space has.
        """
        try:
            found = [(part, _array(value)) for part, value in self.values(given)]
        except (KeyError, IndexError, TypeError) as error:
            raise ArgumentError(
                f"{self.what} is not nested like {self.space}: {type(error).__name__} {error}"
            ) from None
        single = all(value.shape == part.shape for part, value in found)
        rows = {value.shape[0] for _, value in found if value.ndim} if not single else {1}
        for part, value in found:
            if not single and (value.shape[1:] != part.shape or len(rows) != 1 or not value.ndim):
                raise ArgumentError(
                    f"{self.what}{part.named()} has shape {value.shape}; predict takes "
                    f"{part.shape} or {('N', *part.shape)}"
                )
            if value.dtype.kind not in "fiub":
                raise ArgumentError(
                    f"{self.what}{part.named()} has type {value.dtype}; predict takes numbers"
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ArgumentError(
                    f"{self.what}{part.named()} has NaN or inf; predict takes finite numbers"
                )
            if part.limits is not None:
                low, high = part.limits
                wrong = (value < low) | (value > high) | (value != np.floor(value))
                if wrong.any():
                    raise ArgumentError(
                        f"{self.what}{part.named()} is {value[wrong][0]}, outside {part.space}"
                    )
        return self.pack([value[None] if single else value for _, value in found]), single


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def leaves(
    space: gymnasium.Space[Any], path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], gymnasium.Space[Any]]]:
    """Yield the parts of a space that are not Dict or Tuple, each with the keys that lead to it."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from leaves(inner, (*path, index))
    else:
        yield path, space
