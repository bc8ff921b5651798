"""Write TOML: numbers, text, switches, lists and tables of these. (Python only reads it.)"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from upslope.errors import ConfigError


def dumps(table: Mapping[str, Any], prefix: str = "") -> str:
    """Return a table as TOML; entries that are None are left out. Raises ConfigError for others."""
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and v is not None}
    lines = [f"{_key(name)} = {_value(name, value)}" for name, value in plain.items()]
    for name, value in table.items():
        if isinstance(value, Mapping):
            path = f"{prefix}{_key(name)}"
            lines += ["", f"[{path}]", *dumps(value, f"{path}.").split("\n")[:-1]]
    return "".join(f"{line}\n" for line in lines)


def _key(name: str) -> str:
    plain = name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    return name if plain else _text(name, name)


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))  # also inf and nan are TOML
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(name, item) for item in value) + "]"
    if isinstance(value, Mapping):  # in a list
        return "{" + ", ".join(f"{_key(n)} = {_value(n, item)}" for n, item in value.items()) + "}"
    raise ConfigError(f"{name}={value!r} cannot be written to a configuration file")


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name}={text!r} holds what is no character of Unicode") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
