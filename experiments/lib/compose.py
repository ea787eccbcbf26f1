"""A verb's configuration from conf/ and the command line. Hydra's errors, of several lines, become one with what is possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.lib import usage
from experiments.lib.paths import conf_dir, data_path

HYDRA_VERSION = "1.3"  # whose defaults hold


@dataclass(frozen=True, slots=True)
class Composed:
    """config: plain values, everything resolved. choices: group -> choice, such as bitrate -> embedded."""

    config: dict[str, Any]
    choices: dict[str, str]


def compose(verb: str, overrides: Sequence[str] = ()) -> Composed:
    """Raises ValueError, one line, where an override cannot be read or names what the verb does not have."""
    try:
        config = _compose(verb, overrides)
        return plain(config, config.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(verb, overrides, error)) from None


def unresolved(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The same with its interpolations open, for one who sets more keys in it. Raises ValueError, one line."""
    try:
        return _without_hydra(_compose(verb, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(verb, overrides, error)) from None


def plain(config: DictConfig, chosen: Mapping[str, Any]) -> Composed:
    """chosen: Hydra's own book of choices. Raises ValueError where a value that only the user can give is missing."""
    register_resolvers()  # a launcher may have sent the configuration to another process
    values = _without_hydra(config)
    missing = sorted(OmegaConf.missing_keys(values))
    if missing:
        raise ValueError(f"{missing[0]} must be given: {missing[0]}=VALUE")
    resolved = OmegaConf.to_container(values, resolve=True)
    assert isinstance(resolved, dict)
    choices = {group: choice for group, choice in chosen.items() if "/" not in group and choice is not None}
    return Composed({str(key): value for key, value in resolved.items()}, choices)


def _compose(verb: str, overrides: Sequence[str]) -> DictConfig:
    register_resolvers()
    with _outside_of_jobs(), initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION):
        return hydra_compose(verb.replace("-", "_"), list(overrides), return_hydra_config=True)


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hydra composes nothing while one of its own jobs runs (a sweep under -m), unless it is made to forget that job meanwhile."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def register_resolvers() -> None:
    """What conf/ may say beyond YAML: ${bytes_per_s:gbps}, ${capacity:network} for a network's schedule as a policy's field,
    ${data:NAME} for a file that comes with abkt, and ${times:a,b} for a product."""
    OmegaConf.register_new_resolver("bytes_per_s", _bytes_per_s, replace=True)
    OmegaConf.register_new_resolver("capacity", _capacity, replace=True)
    OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("data", lambda name: str(data_path(name)), replace=True)


def _bytes_per_s(gbps: Any) -> Any:
    """What is no number stays as it is: the verb's own configuration class refuses it by name."""
    return gbps * 1e9 / 8 if isinstance(gbps, (int, float)) else gbps


def _capacity(network: DictConfig) -> dict[str, Any]:
    """The network's schedule in the form that abkt.policy.build takes; nothing of one that the verb's own class will refuse by name."""
    from pydantic import TypeAdapter, ValidationError

    from experiments.lib.network import Network

    try:
        capacity = TypeAdapter(Network).validate_python(OmegaConf.to_container(network, resolve=True)).capacity()
    except ValidationError:
        return {}
    starts_s, bytes_per_s = list(capacity.starts_s), list(capacity.bytes_per_s)
    return {"_target_": "abkt.capacity.Capacity", "starts_s": starts_s, "bytes_per_s": bytes_per_s, "period_s": capacity.period_s}


def explain(verb: str, overrides: Sequence[str], error: Exception, multirun: bool = False) -> str:
    """One line for what Hydra could not compose."""
    return fault(verb, overrides, multirun) or said(error)


def fault(verb: str, overrides: Sequence[str], multirun: bool = False) -> str | None:
    """The first override at fault, and what is possible in its place; None if all can be read and name what the verb has."""
    groups = usage.groups(verb)
    chosen: list[str] = []
    keys: list[str] = []
    for text in overrides:
        override = parse(text)
        if override is None:
            return f"cannot read {text!r}: write group=choice or key=value, and put quotes around a value with special characters"
        if override.is_sweep_override() and not multirun:
            return f"{text!r} gives several values; add -m to run each of them"
        name, added = override.key_or_group, override.is_add() or override.is_force_add()
        place = f"{name}@{override.package}" if override.package else name
        if place in groups or (added and (conf_dir() / name).is_dir()):
            values, choices = _values(override), usage.choices(name)
            for value in values:
                if value not in choices:
                    return f"{place}={value} is not known{_near(value, choices)}; {name} is one of {', '.join(choices)}"
            chosen.append(f"{'+' if added else ''}{place}={values[0]}")
        elif not (added or name.startswith("hydra")):
            keys.append(name)
    try:
        config = _compose(verb, chosen)
    except (HydraException, OmegaConfBaseException) as error:
        return said(error)
    known = OmegaConf.to_container(_without_hydra(config))
    assert isinstance(known, dict)
    return next((unknown for key in keys if (unknown := _unknown(key.split("."), known))), None)


def parse(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _values(override: Override) -> list[str]:
    return [str(value) for value in (override.sweep_string_iterator() if override.is_sweep_override() else [override.value()])]


def _unknown(path: list[str], known: Mapping[Any, Any]) -> str | None:
    """What to say of a key that is not there; None if it is. Lists its neighbours, closest names first where there are any."""
    node: Any = known
    for depth, name in enumerate(path):
        if not isinstance(node, Mapping):
            return f"{'.'.join(path[:depth])} is a single value; {'.'.join(path)} does not exist"
        names = [str(key) for key in node]
        if name not in names:
            place = f"{'.'.join(path[:depth])} has" if depth else "there are"
            return f"no group or key {'.'.join(path)}{_near(name, names)}; {place} {', '.join(sorted(names))}"
        node = node[name]
    return None


def said(error: Exception) -> str:
    """What OmegaConf says ends with lines about its own types."""
    return " ".join(str(error).partition("\n    full_key")[0].split())


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, 1)
    return f" (did you mean {near[0]}?)" if near else ""
