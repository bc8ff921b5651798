"""Shapes that are checked: one decorator that reads a function's annotations.

    @shaped
    def f(reward: Float[Tensor, "T N"], terminated: Bool[Tensor, "T N"]) -> Float[Tensor, " N"]: ...

Letters are bound anew in each call, in the order of the arguments: after `reward` of shape [16, 8],
T = 16 and N = 8, and any other shape is refused, also one that would broadcast. The letters mean
the same in the whole project:

    T steps   N environments   M = T N samples   A actions   S states   G group size   L tokens
    K chunks  P parameters     *shape any number of dimensions, the same wherever `*shape` stands

The check is always on and takes a few microseconds. Results are not checked; tests do that.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import AbstractArray
from torch import Tensor

from upslope.errors import ShapeError

P = ParamSpec("P")
R = TypeVar("R")

_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if type(d) is torch.dtype}
_NUMBERS = {int: numbers.Integral, float: numbers.Real}  # what an annotation admits: NumPy's too
_NAMES = {numbers.Integral: "a whole number", numbers.Real: "a number", type(None): "None"}
_ABSENT = object()


def shaped(function: Callable[P, R]) -> Callable[P, R]:
    """Check every tensor that `function` takes against its annotation, at every call.

    Understands `Float[Tensor, "T N"]`, also Bool, Int and jaxtyping's other kinds; names, numbers,
    `_` and one `*name` or `...` per shape; and unions: `... | None`, `int | Int[Tensor, " K"]`.

    A call raises ShapeError when a tensor has another shape or kind of number, or when an argument
    is no tensor where one is taken. Decoration raises TypeError for an annotation beyond the above.
    """
    expectations = _expectations(function)
    checks = tuple((e, e.position, e.name, e.key, e.dtypes) for e in expectations)  # read once

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = len(args)
        first: dict[str, torch.Size] = {}  # the first shape under each annotation
        bound: dict[str, Any] = {}  # the size of each letter
        for expected, position, name, key, dtypes in checks:
            value = args[position] if position < given else kwargs.get(name, _ABSENT)
            if isinstance(value, Tensor):
                if value.dtype not in dtypes:
                    raise expected.refuse_dtype(value)
                known = first.get(key)
                if known is None:
                    known = first[key] = value.shape
                    fits = expected.bind(known, bound)
                else:
                    fits = value.shape == known
                if not fits:
                    raise _refuse_shape(expectations, args, kwargs)
            elif value is not _ABSENT and not isinstance(value, expected.others):
                raise expected.refuse_type(value)
        return function(*args, **kwargs)

    return checked


@dataclass(frozen=True, slots=True)
class _Expectation:
    """What the annotation of one argument asks for."""

    function: str
    name: str
    position: int
    kind: str  # "a Float", "an Int", ...
    dims: tuple[str | int, ...]
    star: int | None  # where in `dims` any number of dimensions may stand
    key: str  # arguments with the same key have the same shape
    dtypes: frozenset[torch.dtype]
    others: tuple[type, ...]  # what the argument may be instead of a tensor

    def bind(self, shape: tuple[int, ...], bound: dict[str, Any]) -> bool:
        """Bind the letters of `dims` to the sizes in `shape`; False where they do not fit."""
        dims, star = self.dims, self.star
        if star is not None:
            end = len(shape) - (len(dims) - star - 1)
            name, middle = str(dims[star]), shape[star : max(end, star)]
            if end < star or (name != "..." and bound.setdefault(name, middle) != middle):
                return False
            dims, shape = dims[:star] + dims[star + 1 :], shape[:star] + shape[end:]
        if len(dims) != len(shape):
            return False
        for dim, size in zip(dims, shape, strict=True):
            if dim != "_" and size != (
                dim if isinstance(dim, int) else bound.setdefault(dim, size)
            ):
                return False
        return True

    def takes(self) -> str:
        return f"{self.function}: {self.name} takes {self.kind} tensor of shape " + (
            f"[{', '.join(str(dim) for dim in self.dims)}]"
        )

    def refuse_dtype(self, value: Tensor) -> ShapeError:
        dtype = str(value.dtype).removeprefix("torch.")
        return ShapeError(f"{self.takes()}, got one of dtype {dtype}")

    def refuse_type(self, value: object) -> ShapeError:
        others = [f" or {_NAMES.get(t, t.__name__)}" for t in self.others]
        kind = type(value)
        got = "None" if value is None else f"{kind.__module__}.{kind.__name__}"
        return ShapeError(f"{self.takes()}{''.join(others)}, got {got.removeprefix('builtins.')}")


def _refuse_shape(
    expectations: list[_Expectation], args: tuple, kwargs: dict[str, Any]
) -> ShapeError:
    """Name the first argument that does not fit, and the one that bound its letters before."""
    bound: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for e in expectations:
        value: Any = args[e.position] if e.position < len(args) else kwargs.get(e.name)
        if not isinstance(value, Tensor):
            continue
        before = dict(bound)
        if not e.bind(value.shape, bound):
            break
        for letter in bound.keys() - before.keys():
            sources[letter] = e.name
    letters = [d for d in e.dims if isinstance(d, str) and d in before]
    sizes = [f"{d} = {list(s) if isinstance(s := before[d], tuple) else s}" for d in letters]
    binders = ", ".join(dict.fromkeys(sources[d] for d in letters))
    given = f" with {' and '.join(sizes)} as in {binders}" if letters else ""
    return ShapeError(f"{e.takes()}{given}, got {list(value.shape)}")


# ---------------------------------------------------------------- at decoration
def _expectations(function: Callable) -> list[_Expectation]:
    """Read the annotations of `function`."""
    hints = typing.get_type_hints(function)
    found = []
    for index, parameter in enumerate(inspect.signature(function).parameters.values()):
        hint = hints.get(parameter.name)
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        members = typing.get_args(hint) if union else (hint,)
        arrays = [m for m in members if isinstance(m, type) and issubclass(m, AbstractArray)]
        if not arrays:
            continue
        where = f"{function.__qualname__}: the annotation of {parameter.name}"
        if len(arrays) > 1 or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{where} stands for several tensors, which @shaped does not read")
        array: Any = arrays[0]
        dims, star = _dimensions(array.dim_str, where)
        alike = "_" not in dims and "..." not in dims
        found.append(
            _Expectation(
                function=function.__name__,
                name=parameter.name,
                position=index,
                kind=_with_article(array.__name__.split("[")[0]),
                dims=dims,
                star=star,
                key=" ".join(map(str, dims)) if alike else f"only {parameter.name}",
                dtypes=_dtypes(array.dtypes),
                others=tuple(
                    _NUMBERS.get(m, typing.get_origin(m) or m) for m in members if m is not array
                ),
            )
        )
    return found


def _dimensions(text: str, where: str) -> tuple[tuple[str | int, ...], int | None]:
    """Return "T N" as ("T", "N"), and the index of the one variadic dimension, if there is one."""
    words = text.split()
    for word in words:
        if not (word == "..." or word.isdecimal() or word.removeprefix("*").isidentifier()):
            raise TypeError(f"{where} has the dimension {word!r}, which @shaped does not read")
    star = next((i for i, word in enumerate(words) if word == "..." or word[0] == "*"), None)
    return tuple(int(word) if word.isdecimal() else word for word in words), star


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIO' else 'a'} {noun}"


def _dtypes(names: object) -> frozenset[torch.dtype]:
    """Return torch's dtypes of jaxtyping's names; for `Shaped`, which names none, all of them."""
    if isinstance(names, tuple | list):
        return frozenset(_DTYPES[name] for name in names if name in _DTYPES)
    return frozenset(_DTYPES.values())
