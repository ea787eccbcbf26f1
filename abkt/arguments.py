"""`key=value` arguments into a frozen dataclass, for commands that must run where there is no Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read(kind: type[T], arguments: Sequence[str]) -> T:
    """arguments: key=value, each a field of `kind`, whose default says its type: text, whole number, path, yes or no, or numbers with
    commas between. Raises ValueError, one line, for an argument that is unknown or has no such value, and what `kind` itself raises."""
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
            raise ValueError(f"{argument}: true or false is needed")
        return text == "true"
    try:
        if kind is int:
            return int(text)
        if kind is tuple:
            return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{argument}: a number, or numbers with commas between, is needed") from None
    return Path(text) if isinstance(kind, type) and issubclass(kind, Path) else text
