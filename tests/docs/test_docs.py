"""What the documents say can be done: their commands compose, the files they name exist, every verb has its section."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from experiments.cli import VERBS
from experiments.lib import compose as composer
from experiments.lib import usage
from experiments.lib.paths import ROOT

DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FENCED = re.compile(r"```bash\n(.*?)```", re.S)
INLINE = re.compile(r"`(abkt [a-z][^`]*)`")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")
CODE = re.compile(r"`((?:abkt|sim|experiments|conf|tests|data|notebooks)/[\w/.-]+\.(?:py|yaml|json|md))`")
MADE_UP = ("half_the_time", "=NAME", "figNN", "…", "VERB")  # what stands for something of the reader's


def commands(path: Path) -> list[str]:
    text = path.read_text()
    fenced = [line.partition("  #")[0].strip() for block in FENCED.findall(text) for line in block.splitlines()]
    return [c for c in (*fenced, *INLINE.findall(text)) if c.startswith("abkt ")]


EVERY = [(path.name, command) for path in DOCUMENTS for command in commands(path)]


@pytest.mark.parametrize(("document", "command"), EVERY, ids=[f"{d}: {c}" for d, c in EVERY])
def test_each_command_is_one(document: str, command: str) -> None:
    verb, *arguments = shlex.split(command)[1:]
    if any(name in command for name in MADE_UP):
        return
    for name in verb.split(","):
        assert name in VERBS, document
    overrides = [a for a in arguments if "=" in a and not a.startswith(("hydra/", "+"))]
    if verb in ("bench", "train-probe") or "--help" in arguments:
        return
    assert composer.fault(verb, overrides, multirun=True) is None


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text()
    for target in LINK.findall(text):
        assert (path.parent / target).exists(), target
    for target in CODE.findall(text):
        assert (ROOT / target).exists() or any(name in target for name in MADE_UP), target


def test_each_verb_has_its_section() -> None:
    text = (ROOT / "docs" / "verbs.md").read_text()
    named = {name for heading in re.findall(r"^## (.+)$", text, re.M) for name in heading.split(", ")}
    assert named == set(VERBS)


def test_each_figure_is_shown() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    for path in (ROOT / "experiments" / "figures").glob("fig[0-9]*.py"):
        assert f"figures/{path.stem}.png" in text
        assert (ROOT / "docs" / "figures" / f"{path.stem}.png").exists()


@pytest.mark.parametrize("name", usage.choices("experiment"))
def test_each_experiment_says_what_it_asks(name: str) -> None:
    lines = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    assert lines[1].count(" ") >= 3
