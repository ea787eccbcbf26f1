"""Reads `key=value` arguments into a dataclass, for commands that must run without Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read(kind: type[T], arguments: Sequence[str]) -> T:
    """An object of `kind` from its fields' defaults and the given arguments.

    Parameters
    ----------
    kind : a dataclass. A field's default gives its type: text, int, Path, bool (true or false) or a tuple of ints (1,2,3).
    arguments : key=value; the key is the name of a field.

    Raises
    ------
    ValueError : one line, for an unknown argument or a value of a wrong type; `kind` may raise its own.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind) if field.default is not MISSING}  # type: ignore[arg-type]
    given: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name not in defaults or not equals:
            raise ValueError(f"argument {argument} is unknown; there are {', '.join(f'{name}=' for name in defaults)}")
        given[name] = _value(argument, type(defaults[name]), text)
    return kind(**given)


def _value(argument: str, kind: type, text: str) -> object:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{argument}: it must be true or false")
        return text == "true"
    try:
        if kind is int:
            return int(text)
        if kind is tuple:
            return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{argument}: it must be a whole number, or whole numbers separated by commas") from None
    return Path(text) if isinstance(kind, type) and issubclass(kind, Path) else text
