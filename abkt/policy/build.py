"""A policy from its configuration: {"_target_": "package.module.Class", field: value, ...}. A field may itself be a policy.

The simulator and a worker process build a policy from the same mapping. The mapping comes from the user's own configuration, never from a
peer over the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

NUMBERS = {int, float, "int", "float"}  # annotations of a number, as types and as strings
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


def build(config: Mapping[str, Any]) -> Any:
    """The policy object.

    Raises
    ------
    ValueError : one line, for an unknown class, a missing, unknown or renamed field, or a value that the class refuses.
    """
    target = str(config.get("_target_", ""))
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"policy class {target!r} cannot be found; _target_ is package.module.Class") from None
    known = getattr(kind, "__dataclass_fields__", {})
    fields = {}
    for key, value in config.items():
        if key == "_target_":
            continue
        if key not in known and RENAMED_KEYS.get(key) in known:
            raise ValueError(f"policy {target}: {key} is now {RENAMED_KEYS[key]}")
        if isinstance(value, str) and key in known and known[key].type in NUMBERS:
            raise ValueError(f"policy {target}: {key} is {value!r}; a number is needed")
        fields[key] = build(value) if isinstance(value, Mapping) and "_target_" in value else value
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"policy {target}: {error}") from None
