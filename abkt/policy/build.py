"""A policy from its configuration: {"_target_": "package.module.Class", field: value, ...}. A field may itself be a policy.

The simulator and a worker process build a policy from the same mapping. The mapping comes from the user's own configuration, never from a
peer over the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from abkt.ranges import OutOfRange, short

PLAIN = {float: "a number is needed", int: "a whole number is needed", bool: "true or false is needed", str: "a text is needed"}
PLAIN_TYPES = (int, float, str, list, Mapping, type(None))
RENAMED_KEYS = {  # old field -> new field, for one release
    "form": "coder",
    "behind_distortion": "refine_distortion",
    "capacity": "link",
    "bears_int4": "int4_allowed",
    "line_bytes_per_s": "line_rate_bytes_per_s",
    "vote_s": "sample_s",
    "kappa_s": "tpot_penalty_s",
    "share": "cache_threshold",
    "balance_s": "balance_threshold_s",
    "busy": "min_load",
    "enter": "enter_ratio",
    "leave": "leave_ratio",
    "patience": "lend_periods",
    "horizon_s": "payback_s",
    "soft": "lend_cycles",
    "hard": "move_nodes",
    "slack": "slo_factor",
    "patience_s": "max_wait_s",
}


def build(config: Mapping[str, Any], protocol: type | None = None) -> Any:
    """The policy object. protocol: what it must have the methods of, such as BitratePolicy.

    Raises
    ------
    ValueError : one line, for a class that cannot be imported or lacks a method, a missing, unknown or renamed field, or a value that the
        class refuses.
    """
    target = str(config.get("_target_", ""))
    kind = _class_of(target)
    if lacking := [name for name in _methods(protocol) if not callable(getattr(kind, name, None))]:
        raise ValueError(f"policy class {target} has no {' and no '.join(lacking)}; {getattr(protocol, '__name__', '')} says what it needs")
    known = getattr(kind, "__dataclass_fields__", {})
    fields = {}
    for key, value in config.items():
        if key == "_target_":
            continue
        if key not in known and RENAMED_KEYS.get(key) in known:
            raise ValueError(f"policy {target}: {key} is now {RENAMED_KEYS[key]}")
        fields[key] = _checked(key, _annotation(kind, key), value)
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"policy {target}: {error}") from None


def maker(config: Mapping[str, Any]) -> Callable[[], Any]:
    """A function that builds the policy again and again. The configuration is checked once, here; raises ValueError as `build` does."""
    kind = type(build(config))
    nested = {key: maker(value) for key, value in config.items() if isinstance(value, Mapping) and "_target_" in value}
    plain = {key: value for key, value in config.items() if key not in nested and key != "_target_"}
    return lambda: kind(**plain, **{key: make() for key, make in nested.items()})


def _class_of(target: str) -> type:
    """The class that `package.module.Class` names. Raises ValueError, one line."""
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"policy class {target!r}: {module} cannot be imported: {error}") from None
        kind = None
    except (ImportError, SyntaxError, ValueError) as error:
        raise ValueError(f"policy class {target!r}: {module} cannot be imported: {error}") from None
    if not isinstance(kind, type):
        raise ValueError(f"policy class {target!r} cannot be found; _target_ is package.module.Class")
    return kind


def _methods(protocol: type | None) -> list[str]:
    return [name for name, value in vars(protocol or object).items() if callable(value) and not name.startswith("_")]


def _checked(key: str, annotation: Any, value: Any) -> Any:
    """The value of a field, built if it is a policy. Raises ValueError for a value that a field of this annotation cannot have."""
    if isinstance(value, Mapping) and "_target_" in value:
        try:
            return build(value)
        except OutOfRange as error:
            raise error.under(key) from None
    needed = PLAIN.get(annotation)
    if needed is not None:
        kinds = (int, float) if annotation is float else (annotation,)
        fits = isinstance(value, kinds) and (annotation is bool or not isinstance(value, bool))
    elif get_origin(annotation) is Literal:
        fits, needed = value in get_args(annotation), f"it must be {' or '.join(map(str, get_args(annotation)))}"
    else:  # a policy, which no plain value can stand for, or something that the class itself checks
        fits = not _is_policy(annotation) or not isinstance(value, PLAIN_TYPES)
        needed = "the fields of a policy are needed, with its class as _target_"
    if not fits:
        raise OutOfRange(f"{key} is {short(value)}; {needed}")
    return value


def _is_policy(annotation: Any) -> bool:
    """Whether it is the type of a policy or of a part of one: a dataclass, a protocol, or a variable that stands for one."""
    return isinstance(annotation, TypeVar) or hasattr(annotation, "__dataclass_fields__") or getattr(annotation, "_is_protocol", False)


@lru_cache
def _annotation(kind: type, key: str) -> Any:
    """The type of a field; None where it is not known."""
    try:
        return get_type_hints(kind).get(key)
    except (NameError, TypeError):  # a class whose annotations name what its module imports for a type checker alone
        return None
