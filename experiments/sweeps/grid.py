"""A grid: axes in Hydra's syntax (`network.gbps=1,10`, `seed=range(0,5)`), and the configuration of each of its points."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.lib import compose as composer
from experiments.lib import usage
from experiments.lib.simulation import SimulateConfig

OWN = ("out", "progress", "plot", "csv")  # keys of a simulation that do not affect its result


@dataclass(frozen=True, slots=True)
class Axis:
    """name: a group or a key. values: names of choices, or plain values."""

    name: str
    values: tuple[Any, ...]
    group: bool


@dataclass(frozen=True, slots=True)
class GridPoint:
    """place: axis -> value, as columns of the table. config: of the simulation, plain and resolved, without the keys of OWN."""

    place: dict[str, Any]
    config: dict[str, Any]


def is_axis(text: str) -> bool:
    """Whether an override gives several values. False for one that cannot be read; composing it reports why."""
    override = composer.parse(text)
    return override is not None and override.is_sweep_override()


def axes(verb: str, words: Sequence[str], overrides: Sequence[str] = ()) -> tuple[Axis, ...]:
    """The axes of overrides with several values; of two with the same name the last counts. overrides: of every point.

    Raises ValueError, one line, for an override that cannot be read or names an unknown key.
    """
    if wrong := composer.fault(verb, [*overrides, *words], multirun=True):
        raise ValueError(wrong)
    groups, found = usage.groups(verb), {}
    parser = OverridesParser.create()
    for word in words:
        override = parser.parse_override(word)
        group = override.key_or_group in groups
        if not override.is_sweep_override():
            values: list[Any] = [override.value()]
        elif group:
            values = list(override.sweep_string_iterator())
        else:
            values = list(override.sweep_iterator(transformer=Transformer.identity))
        found[override.key_or_group] = Axis(override.key_or_group, tuple(map(_plain, values)), group)
    return tuple(found.values())


def points(verb: str, overrides: Sequence[str], grid: Sequence[Axis]) -> Iterator[GridPoint]:
    """Every combination; the last axis changes fastest. Composing is slow, so it is done once for each combination of groups."""
    names = [field.name for field in fields(SimulateConfig) if field.name not in OWN]
    composed: dict[tuple[str, ...], DictConfig] = {}
    for values in itertools.product(*(axis.values for axis in grid)):
        place = dict(zip((axis.name for axis in grid), values, strict=True))
        chosen = tuple(f"{axis.name}={place[axis.name]}" for axis in grid if axis.group)
        if chosen not in composed:
            composed[chosen] = composer.unresolved(verb, [*overrides, *chosen])
        keys = {axis.name: place[axis.name] for axis in grid if not axis.group}
        yield GridPoint(place, _resolved(composed[chosen], keys, names, place))


def _resolved(config: DictConfig, keys: Mapping[str, Any], names: Sequence[str], place: Mapping[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, True)  # a key of one choice of a group may not exist in another
    try:
        for key, value in keys.items():
            OmegaConf.update(config, key, value)
        part = OmegaConf.masked_copy(config, list(names))
        part._set_parent(config)
        values = OmegaConf.to_container(part, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        where = ", ".join(f"{name}={value}" for name, value in place.items())
        raise ValueError(f"the point {where} cannot be configured: {composer.said(error)}") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _plain(value: Any) -> Any:
    """A value of Hydra's parser as a plain value: it has a class of its own for quoted strings."""
    return value.text if hasattr(value, "text") else value
