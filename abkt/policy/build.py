"""A policy from its configuration: {"_target_": "package.module.Class", field: value, …}, nested policies alike.

The same mapping builds it in the model and in a worker process. It comes from the user's own configuration, never from a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

NUMBERS = {int, float, "int", "float"}  # the annotations of a number, evaluated or not


def build(config: Mapping[str, Any]) -> Any:
    """Raises ValueError, one line, for an unknown class, a missing or unknown field, or a value that the class refuses."""
    target = str(config.get("_target_", ""))
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"policy class {target!r} cannot be found; _target_ is package.module.Class") from None
    fields = {
        key: build(value) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in config.items()
        if key != "_target_"
    }
    for name, value in fields.items():
        if isinstance(value, str) and getattr(kind, "__annotations__", {}).get(name) in NUMBERS:
            raise ValueError(f"policy {target}: {name} is {value!r}; a number is needed")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"policy {target}: {error}") from None
