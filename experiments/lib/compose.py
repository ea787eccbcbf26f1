"""A verb's configuration from conf/ and the command line. Hydra's long errors become one line that names the possible values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from experiments.lib import usage
from experiments.lib.paths import CONFIG_DIR, conf_dir, data_path

HYDRA_VERSION = "1.3"  # version of Hydra whose defaults apply
SEARCH_PATH = "hydra.searchpath"
ANY = "any verb"
# verb -> old key -> new key: keys that were renamed in this release. A key under ANY matches the end of a key: form matches bitrate.form.
# An entry is used only where the old key no longer exists.
RENAMED: dict[str, dict[str, str]] = {
    "replay": {"carrier": "transport_name"},
    "adaptation": {"asked": "target", "behind": "refine"},
    ANY: {
        "form": "coder",
        "behind_distortion": "refine_distortion",
        "bears_int4": "int4_allowed",
        "line_bytes_per_s": "line_rate_bytes_per_s",
        "vote_s": "sample_s",
        "bitrate.capacity": "bitrate.link",
        "kappa_s": "tpot_penalty_s",
        "balance_s": "balance_threshold_s",
        "routing.share": "routing.cache_threshold",
        "roles.busy": "roles.min_load",
        "roles.enter": "roles.enter_ratio",
        "roles.leave": "roles.leave_ratio",
        "roles.patience": "roles.lend_periods",
        "roles.horizon_s": "roles.payback_s",
        "roles.soft": "roles.lend_cycles",
        "roles.hard": "roles.move_nodes",
        "admission.slack": "admission.slo_factor",
        "admission.patience_s": "admission.max_wait_s",
    },
}


@dataclass(frozen=True, slots=True)
class Composed:
    """A resolved configuration. config: its plain values. choices: group -> choice, such as bitrate -> embedded."""

    config: dict[str, Any]
    choices: dict[str, str]


def compose(verb: str, overrides: Sequence[str] = ()) -> Composed:
    """The configuration of a verb. Raises ValueError, one line, where an override cannot be read or names an unknown key."""
    groups = usage.groups(verb)
    for override in map(parse, overrides):
        if override is not None and override.key_or_group in groups and isinstance(override.value(), list):
            raise ValueError(f"{override.input_line} gives several choices; give one")
    try:
        config = _compose(verb, overrides)
        return plain(config, config.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(explain(verb, overrides, error)) from None


def unresolved(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """As compose, but interpolations stay unresolved, so that more keys can be set. Raises ValueError, one line."""
    try:
        return _without_hydra(_compose(verb, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(verb, overrides, error)) from None


def plain(config: DictConfig, chosen: Mapping[str, Any]) -> Composed:
    """Resolve a configuration. chosen: Hydra's record of the choices. Raises ValueError where a required value is missing."""
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
    """On a command line inf is written as in YAML too: Hydra would read .inf as a text."""
    register_resolvers()
    overrides = [f"{text.removesuffix('.inf')}inf" if text.endswith("=.inf") else text for text in overrides]
    with _outside_of_jobs(), initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION):
        try:
            return hydra_compose(verb.replace("-", "_"), list(overrides), return_hydra_config=True)
        except MarkedYAMLError as error:  # of a folder of the user
            mark = error.problem_mark
            raise ValueError(f"{f'{mark.name}, line {mark.line + 1}' if mark else 'a YAML'} cannot be read: {error.problem}") from None


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hydra does not compose while one of its own jobs runs (a sweep under -m). This hides that job from it meanwhile."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def register_resolvers() -> None:
    """Register the functions that conf/ may use: ${bytes_per_s:gbps}, ${capacity:network} for a network's schedule as a policy's field,
    ${data:NAME} for a file that comes with abkt, and ${times:a,b} for a product."""
    OmegaConf.register_new_resolver("bytes_per_s", _bytes_per_s, replace=True)
    OmegaConf.register_new_resolver("capacity", _capacity, replace=True)
    OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("data", lambda name: str(data_path(name)), replace=True)


def _bytes_per_s(gbps: Any) -> Any:
    """A value that is not a number is passed on, because the verb's configuration class reports it with its key."""
    return gbps * 1e9 / 8 if isinstance(gbps, (int, float)) else gbps


def _capacity(network: DictConfig) -> dict[str, Any]:
    """The network's schedule as abkt.policy.build takes it; empty for a network that the verb's configuration class will refuse."""
    from pydantic import TypeAdapter, ValidationError

    from experiments.lib.network import Network

    try:
        capacity = TypeAdapter(Network).validate_python(OmegaConf.to_container(network, resolve=True)).capacity()
    except ValidationError:
        return {}
    starts_s, bytes_per_s = list(capacity.starts_s), list(capacity.bytes_per_s)
    return {"_target_": "abkt.capacity.Capacity", "starts_s": starts_s, "bytes_per_s": bytes_per_s, "period_s": capacity.period_s}


def explain(verb: str, overrides: Sequence[str], error: Exception, multirun: bool = False) -> str:
    """One line that says why Hydra could not compose."""
    return fault(verb, overrides, multirun) or said(error)


def fault(verb: str, overrides: Sequence[str], multirun: bool = False) -> str | None:
    """One line: what is wrong with the first faulty override, and which values are possible; None if all overrides are right."""
    groups, config_dirs = usage.groups(verb), search_path(overrides)
    chosen: list[str] = [text for text in overrides if text.startswith(SEARCH_PATH)]
    keys: list[tuple[str, str]] = []
    for text in overrides:
        override = parse(text)
        if override is None:
            return f"cannot read {text!r}: write group=choice or key=value, and put quotes around a value with special characters"
        if override.is_sweep_override() and not multirun:
            return f"{text!r} gives several values; add -m to run each of them"
        if override.is_sweep_override() and not any(True for _ in override.sweep_iterator()):
            return f"{text!r} gives no value, so there is nothing to run"
        name, added = override.key_or_group, override.is_add() or override.is_force_add()
        place = f"{name}@{override.package}" if override.package else name
        is_group = any((root / name).is_dir() for root in (conf_dir(), *config_dirs))  # one that a chosen file of another group brings in
        if place in groups or (is_group and (added or override.package)):
            values, choices = _values(override), usage.choices(name, config_dirs)
            for value in values:
                if value not in choices:
                    return f"{place}={value} is not known{_near(value, choices)}; {name} is one of {', '.join(choices)}"
            chosen.append(f"{'+' if added else ''}{place}={values[0]}")
        elif not (added or name.startswith("hydra")):
            keys.append((name, "VALUE" if override.is_delete() else override.get_value_string()))
    try:
        known = _known(verb, chosen) if config_dirs else _known_of_conf(verb, tuple(chosen))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return said(error)
    wrong = ((key, value, _unknown(key.split("."), known)) for key, value in keys)
    return next((renamed(verb, key, value) or unknown for key, value, unknown in wrong if unknown), None)


def _known(verb: str, chosen: Sequence[str]) -> dict[Any, Any]:
    """The keys that exist with these choices of groups, and their defaults."""
    known = OmegaConf.to_container(_without_hydra(_compose(verb, chosen)))
    assert isinstance(known, dict)
    return known


_known_of_conf = lru_cache(_known)  # conf/ does not change while a process runs; a folder of the user may


def check_once(overrides: Sequence[str]) -> None:
    """Raises ValueError, one line, where a group or key is given twice: only the last one would count."""
    given: dict[str, str] = {}
    for text in overrides:
        override = parse(text)
        if override is None or text.startswith(SEARCH_PATH):
            continue
        name = f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group
        if name in given:
            raise ValueError(f"{name} is given twice, as {given[name]} and {text}; give it once")
        given[name] = text


def renamed(verb: str, key: str, value: str) -> str | None:
    """One line that names the new key; None for a key that was not renamed."""
    for old, new in (RENAMED.get(verb, {}) | RENAMED[ANY]).items():
        if key == old or (old in RENAMED[ANY] and key.endswith(f".{old}")):
            now = key.removesuffix(old) + new
            return f"{key} is now {now}: give {now}={value}"
    return None


def search_path(overrides: Sequence[str]) -> list[Path]:
    """The folders with YAMLs of the user that the overrides add to Hydra's search path."""
    found: list[Path] = []
    for text in overrides:
        if text.startswith(f"{SEARCH_PATH}=") and (override := parse(text)) is not None:
            values = override.value()
            found += [Path(str(value).removeprefix("file://")) for value in (values if isinstance(values, list) else [values])]
    return found


def config_dir_overrides(config_dirs: Sequence[Path]) -> list[str]:
    """The override that adds folders to Hydra's search path; none for no folders."""
    return [f"{SEARCH_PATH}=[{','.join(quoted(f'file://{folder}') for folder in config_dirs)}]"] if config_dirs else []


def given_arguments(overrides: Sequence[str]) -> list[str]:
    """Overrides as the user gave them: --config-dir in place of Hydra's search path."""
    found: list[str] = []
    for text in overrides:
        found += [word for folder in search_path([text]) for word in (CONFIG_DIR, str(folder))] or [text]
    return found


def quoted(text: str) -> str:
    """Text as a quoted value of an override. In Hydra's syntax a backslash escapes a quote, and itself only before a quote."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'


def parse(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _values(override: Override) -> list[str]:
    return [str(value) for value in (override.sweep_string_iterator() if override.is_sweep_override() else [override.value()])]


def _unknown(path: list[str], known: Mapping[Any, Any]) -> str | None:
    """The message for a key that does not exist, with the keys that exist there and the most similar one; None if the key exists."""
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
    """The message of an OmegaConf error without the lines about its own types."""
    return " ".join(str(error).partition("\n    full_key")[0].split())


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, 1)
    return f" (did you mean {near[0]}?)" if near else ""
