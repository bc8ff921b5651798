"""The optional packages: found, or named with the command that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from upslope.errors import RunError


def need(package: str) -> ModuleType:
    """Import and return an optional package; raises RunError saying how to install it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.split(".")[0]:
            raise
        raise RunError(
            f"language models need the package {error.name!r}: pip install 'upslope[language]'"
        ) from None
