"""Spec strings: the one door through which named options enter (`name:key=value,key=value`).

Knows: how to read a spec into a dataclass of a registry, and how to say what is wrong. Does not know: any option.
Imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, TypeVar

Option = TypeVar("Option")


def build(text: str, registry: Mapping[str, Callable[..., Option]], what: str) -> Option:
    """The option named by `text`, e.g. `window:frames=9,sink=3`; lists are joined by '+' (`levels=0.8+0.4`).

    Raises ValueError naming `what`, the bad word and the known ones, for an unknown name or key, a key that is missing
    or comes twice, and a value of the wrong kind (nan is none).
    """
    name, _, rest = text.partition(":")
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(sorted(registry))}")
    maker = registry[name]
    known = {field.name: field for field in fields(maker)} if is_dataclass(maker) else {}
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            listed = ", ".join(f"{field}=" for field in known) or "none"
            raise ValueError(f"{what} {name!r} has no option {part!r}; its options: {listed}")
        if key in values:
            raise ValueError(f"{what} {name!r} has {key}= twice; give it once")
        values[key] = _value(known[key], value, f"{what} {name!r}")
    try:
        return maker(**values)
    except TypeError as error:
        missing = [key for key in known if key not in values and f"'{key}'" in str(error)]
        if not missing:
            raise
        raise ValueError(f"{what} {name!r} needs {', '.join(f'{key}=' for key in missing)}") from error


def _value(field: Field[Any], text: str, owner: str) -> Any:
    """The text as the field's kind: float, int, str or tuple of float."""
    kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    try:
        if kind.startswith("tuple"):
            return tuple(_number(part) for part in text.split("+"))
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return _number(text)
    except ValueError as error:
        one = "a whole number" if kind.startswith("int") else "a number"
        wanted = "numbers joined by +" if kind.startswith("tuple") else one
        raise ValueError(f"{owner}: {field.name}={text!r} is not {wanted}") from error
    return text


def _number(text: str) -> float:
    """The number, which may be infinite. Raises ValueError for nan: every comparison with it is false."""
    found = float(text)
    if math.isnan(found):
        raise ValueError("nan")
    return found
