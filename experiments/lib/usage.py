"""`abkt --help` and `abkt VERB --help`, read from the comments of conf/ itself, so that they cannot grow apart.

No YAML library and no Hydra here: help must answer at once. A verb's file begins with a comment: one paragraph, then `Example:` lines.
"""

from __future__ import annotations

import re
from pathlib import Path

from experiments.lib.paths import conf_dir

KEY = re.compile(r"^(?P<indent> *)(?P<key>[a-z_]\w*):\s*(?P<value>[^#]*?)\s*(?:#\s*(?P<comment>.*))?$")
DEFAULT = re.compile(r"^  - (?P<group>[a-z][\w@.]*): (?P<choice>\S+)")
BASE = re.compile(r"^  - (?P<verb>[a-z]\w*)$")  # a verb whose groups and keys this one has as well


def overview(verbs: tuple[str, ...]) -> str:
    lines = [
        "usage: abkt VERB [group=choice] [key=value] …",
        "",
        "Which KV-transfer policy should this cluster use, and can that answer be trusted?",
        "",
    ]
    lines += [f"  {verb:12} {paragraph(verb)[0].split('. ')[0].rstrip('.')}" for verb in verbs]
    return "\n".join([*lines, "", "abkt VERB --help lists its groups and keys. -m runs every combination of group=a,b key=1,2."])


def describe(verb: str) -> str:
    """One paragraph, the groups with their choices, the verb's keys and those of its groups that carry a comment, examples."""
    text, examples = paragraph(verb)
    lines = [f"usage: abkt {verb} [group=choice] [key=value] …", "", text]
    chosen = groups(verb)
    if chosen:
        lines += ["", "Groups (default): choices"]
        lines += [f"  {group} ({choice}): {' '.join(choices(group))}" for group, choice in chosen.items()]
    shown = {key: (value, comment) for name in (*_bases(verb), verb) for key, value, comment in keys(_file(name))}
    for group, choice in chosen.items():
        of_group = [] if "@" in group or choice == "null" else keys(conf_dir() / group / f"{choice}.yaml")
        for key, value, comment in of_group:
            own, said = shown.get(f"{group}.{key}", (value, ""))  # the verb's own value wins
            if comment:
                shown[f"{group}.{key}"] = own, said or comment
    lines += ["", "Keys = default", *(f"  {key}={value}  {comment}".rstrip() for key, (value, comment) in shown.items())]
    if chosen:
        lines += ["", f"All keys of the groups: {conf_dir()}"]
    return "\n".join([*lines, "", *(f"Example: {example}" for example in examples)])


def paragraph(verb: str) -> tuple[str, list[str]]:
    """(what the verb does, its examples), from the comment that its file begins with."""
    comment = [line[1:].strip() for line in _head(_file(verb))]
    examples = [line.removeprefix("Example: ") for line in comment if line.startswith("Example: ")]
    return " ".join(line for line in comment if not line.startswith("Example: ")), examples


def groups(verb: str) -> dict[str, str]:
    """The verb's groups and their default choices, in the order of its defaults list; one that lies elsewhere is `group@place`."""
    found: dict[str, str] = {}
    for name in (*_bases(verb), verb):
        matches = (DEFAULT.match(line) for line in _file(name).read_text().splitlines())
        found |= {m["group"]: m["choice"] for m in matches if m}
    return found


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group.partition("@")[0]).glob("*.yaml"))


def keys(path: Path) -> list[tuple[str, str, str]]:
    """(key, default, comment) of each value, nested ones by their dotted path."""
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
