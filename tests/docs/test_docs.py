"""What the documents promise: their commands compose, their links, files and modules exist, the example of the README decides."""

from __future__ import annotations

import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from abkt.policy.build import build
from abkt.policy.view import Curve, GoodputSample, TransferView
from experiments.cli import VERBS
from experiments.lib import compose as composer
from experiments.lib import usage
from experiments.lib.paths import ROOT
from experiments.lib.verb import MODEL_KEY, model_overrides

DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FENCE = re.compile(r"```.*?```", re.S)
FENCED = re.compile(r"```bash\n(.*?)```", re.S)
INLINE = re.compile(r"`(abkt [a-z][^`]*)`")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)
CODE = re.compile(r"`([^`\n]+)`")
PLACE = re.compile(r"(?:abkt|sim|experiments|conf|tests|data|docs|notebooks)/[\w/.*-]*")
MODULE = re.compile(r"(?:abkt|sim|experiments)(?:\.\w+)+")
MADE_UP = ("half_the_time", "=NAME", "figNN", "…", "VERB")  # what stands for something of the reader's


def commands(path: Path) -> list[str]:
    text = path.read_text()
    fenced = [line.partition("  #")[0].strip() for block in FENCED.findall(text) for line in block.replace("\\\n", "").splitlines()]
    return [c for c in (*fenced, *INLINE.findall(text)) if c.startswith("abkt ")]


EVERY = [(path.name, command) for path in DOCUMENTS for command in commands(path)]


@lru_cache
def takes_a_model(verb: str) -> bool:
    return MODEL_KEY in composer.unresolved(verb)


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
    if takes_a_model(verb):
        overrides, _ = model_overrides(overrides, verb)
    assert composer.fault(verb, overrides, multirun=True) is None


def anchors(path: Path) -> set[str]:
    """The headings of a document as GitHub links to them."""
    headings = HEADING.findall(FENCE.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spans(path: Path) -> list[str]:
    """What stands in backticks within a paragraph."""
    return CODE.findall(FENCE.sub("", path.read_text()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_exist(path: Path) -> None:
    for target, anchor in LINK.findall(FENCE.sub("", path.read_text())):
        place = path.parent / target if target else path
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_named_files_and_folders_exist(path: Path) -> None:
    for text in spans(path):
        if PLACE.fullmatch(text) and not any(name in text for name in MADE_UP):
            assert any(ROOT.glob(text)), text


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_named_modules_exist(path: Path) -> None:
    """`abkt.kv.runs`, and `abkt.codec.Codec`: what follows the module stands in its source."""
    for text in spans(path):
        if MODULE.fullmatch(text):
            file, rest = module_of(text)
            assert not rest or re.search(rf"\b{re.escape(rest[0])}\b", file.read_text()), text


def module_of(name: str) -> tuple[Path, list[str]]:
    """The file of the longest part of a dotted name that is a module or a package, and the rest of the name."""
    parts, place = name.split("."), ROOT
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").is_file():
        return place / f"{parts[0]}.py", parts[1:]
    return place / "__init__.py", parts


def test_what_does_not_exist_is_found() -> None:
    assert module_of("abkt.kv.runs") == (ROOT / "abkt" / "kv" / "runs.py", [])
    assert module_of("abkt.codec.Codec") == (ROOT / "abkt" / "codec" / "__init__.py", ["Codec"])
    assert module_of("abkt.kv.nowhere")[1] == ["nowhere"]
    assert LINK.findall("[a](b.md#c-d) [e](#f) [g](https://h)") == [("b.md", "c-d"), ("", "f")]
    assert {"two-commands", "what-is-not-claimed"} <= anchors(ROOT / "README.md")


def python_of_the_readme() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_first_example_of_the_readme_runs() -> None:
    names: dict[str, Any] = {}
    exec(python_of_the_readme()[0], names)
    assert len(names["run"].requests) == len(names["raw"].requests) == 200


def test_the_example_of_the_readme_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in python_of_the_readme() if "class HalfTheTime" in block)
    module = ModuleType("my_policy")
    monkeypatch.setitem(sys.modules, "my_policy", module)
    exec(code, module.__dict__)
    policy = build({"_target_": "my_policy.HalfTheTime", "bytes_per_s": 1.0})
    policy.observe(0.0, GoodputSample(wire_bytes=100.0, duration_s=1.0))
    assert policy.estimate_bytes_per_s(0.0) == 100.0
    curve = Curve(bytes=(10.0, 40.0, 90.0), distortion=(1.0, 0.1, 0.01), bits=(0.0, 2.0, 4.0))
    view = TransferView(raw_bytes=200, deadline_s=1.0, slope=curve, uniform=curve)
    assert policy.decide(0.0, view).cut == 1  # half of 100 bytes
    assert policy.decide(0.8, view).cut == 0


def test_the_readme_is_short_and_links_to_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert not [path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in text]


def test_each_verb_has_its_section() -> None:
    text = (ROOT / "docs" / "verbs.md").read_text()
    named = {name for heading in re.findall(r"^## (.+)$", text, re.M) for name in heading.split(", ")}
    assert named - {"From Python"} == set(VERBS)


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
