"""`abkt --help` and `abkt VERB --help`, read from the comments of conf/, so that help and configuration agree.

It uses no YAML library and no Hydra, so that help answers at once. A verb's YAML begins with a comment: a paragraph, then `Example:` lines.
A choice's YAML begins with a comment whose first sentence says what the choice does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from experiments.lib.paths import conf_dir

KEY = re.compile(r"^(?P<indent> *)(?P<key>[a-z_]\w*):\s*(?P<value>[^#]*?)\s*(?:#\s*(?P<comment>.*))?$")
DEFAULT = re.compile(r"^  - (?P<group>[a-z][\w@.]*): (?P<choice>\S+)")
BASE = re.compile(r"^  - (?P<verb>[a-z]\w*)$")  # a verb whose groups and keys this verb has too
PACKAGE = "# @package"  # an instruction to Hydra
WIDEST = 44  # most letters in the first column


def overview(verbs: Iterable[str]) -> str:
    """One line for each verb."""
    lines = [
        "usage: abkt VERB [group=choice] [key=value] …",
        "",
        "Which KV-transfer policy should this cluster use, and can that answer be trusted?",
        "",
    ]
    lines += [f"  {verb:12} {sentence(_head(_file(verb)))}" for verb in verbs]
    return "\n".join(
        [
            *lines,
            "",
            "abkt VERB --help lists the verb's groups with their choices, and its keys.",
            "out=DIR is the folder for results; overwrite=true replaces those of an earlier run. -m runs every combination of group=a,b.",
            "--config-dir DIR adds YAMLs of your own, such as DIR/bitrate/mine.yaml for bitrate=mine.",
        ]
    )


def describe(verb: str, config_dirs: Sequence[Path] = ()) -> str:
    """The help of a verb: what it does, a line for each choice of its groups, a line for each key, and examples.

    Parameters
    ----------
    verb : its name.
    config_dirs : folders with YAMLs of the user, whose choices are listed too.
    """
    text, examples = paragraph(verb)
    lines = [f"usage: abkt {verb} [group=choice] [key=value] …", "", *wrap(text, 120)]
    chosen = groups(verb)
    for folder in dict.fromkeys(group.partition("@")[0] for group in chosen):
        lines += ["", *_group_lines(folder, chosen, config_dirs)]
    shown = _key_lines(verb, chosen)
    return "\n".join([*lines, "", "Keys and their defaults:", *shown, "", *(f"Example: {example}" for example in examples)])


def _group_lines(folder: str, chosen: Mapping[str, str], config_dirs: Sequence[Path]) -> list[str]:
    """The heading of a group and a line for each choice. Places such as bitrate@bitrates.raw that share the choices share the lines."""
    places = {group: choice for group, choice in chosen.items() if group.partition("@")[0] == folder}
    if list(places) == [folder]:
        heading = f"{folder}, default {places[folder]}:"
    else:
        heading = f"{folder}, for {', '.join(f'{group} (default {choice})' for group, choice in places.items())}:"
    files = choice_files(folder, config_dirs)
    return [heading, *_columns([(f"{folder}={name}", sentence(_head(path))) for name, path in files.items()])]


def _key_lines(verb: str, chosen: Mapping[str, str]) -> list[str]:
    shown = {key: (value, comment) for name in (*_bases(verb), verb) for key, value, comment in keys(_file(name))}
    for group, choice in chosen.items():
        of_group = [] if "@" in group or choice == "null" else keys(conf_dir() / group / f"{choice}.yaml")
        for key, value, comment in of_group:
            own, said = shown.get(f"{group}.{key}", (value, ""))  # the verb's own value wins
            if comment:
                shown[f"{group}.{key}"] = own, said or comment
    return _columns([(f"{key}={value}", comment) for key, (value, comment) in shown.items()])


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns; a long entry of the first does not push the others aside."""
    width = min(WIDEST, max((len(name) for name, _ in rows), default=0))
    return [f"  {name:{width}}  {text}".rstrip() for name, text in rows]


def sentence(lines: Sequence[str]) -> str:
    """The first sentence of a comment, without its full stop."""
    words = " ".join(line.lstrip("# ") for line in lines if not line.startswith(PACKAGE))
    return words.split(". ")[0].rstrip(".")


def paragraph(verb: str) -> tuple[str, list[str]]:
    """(what the verb does, its examples), from the comment at the start of its YAML."""
    comment = [line[1:].strip() for line in _head(_file(verb))]
    examples = [line.removeprefix("Example: ") for line in comment if line.startswith("Example: ")]
    return " ".join(line for line in comment if not line.startswith("Example: ")), examples


def groups(verb: str) -> dict[str, str]:
    """The verb's groups and their default choices, in the order of its defaults list. A group at another place is `group@place`."""
    found: dict[str, str] = {}
    for name in (*_bases(verb), verb):
        matches = (DEFAULT.match(line) for line in _file(name).read_text().splitlines())
        found |= {m["group"]: m["choice"] for m in matches if m}
    return found


def choices(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """The names that `group=NAME` takes. config_dirs: folders with YAMLs of the user."""
    return list(choice_files(group, config_dirs))


def choice_files(group: str, config_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """Choice -> its YAML, by name. Where a folder of the user has a name of ABKT's, Hydra takes ABKT's."""
    folder = group.partition("@")[0]
    roots = [root / folder for root in (*config_dirs, conf_dir())]
    found = {path.relative_to(root).with_suffix("").as_posix(): path for root in roots for path in root.rglob("*.yaml")}
    return dict(sorted(found.items()))


def keys(path: Path) -> list[tuple[str, str, str]]:
    """(key, default, comment) of each value; the key of a nested value is its dotted path."""
    found: list[tuple[str, str, str]] = []
    parents: list[str] = []
    for line in path.read_text().splitlines():
        match = KEY.match(line)
        if not match or match["key"] in ("defaults", "hydra"):
            continue
        parents = [*parents[: len(match["indent"]) // 2], match["key"]]
        if match["value"] and match["key"] != "_target_":
            found.append((".".join(parents), match["value"], match["comment"] or ""))
    return found


def _bases(verb: str) -> list[str]:
    return [m["verb"] for line in _file(verb).read_text().splitlines() if (m := BASE.match(line))]


def _file(verb: str) -> Path:
    return conf_dir() / f"{verb.replace('-', '_')}.yaml"


def _head(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]
