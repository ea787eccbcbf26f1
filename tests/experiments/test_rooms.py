"""The folders of experiments: their exports, and that no verb imports another."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments.lib.paths import ROOT
from tests.experiments.test_cli import HEAVY

PACKAGES = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "experiments").rglob("__init__.py"))
MOST_FILES = 20


def verbs_imported(path: Path) -> list[str]:
    """The verbs that a file imports, at its top or inside a function."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [str(node.module) for node in nodes if str(node.module).startswith("experiments.verbs")]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "verbs").rglob("*.py")), ids=lambda path: path.stem)
def test_a_verb_imports_no_other_verb(path: Path) -> None:
    assert not verbs_imported(path)


SHARED = (
    "lib",
    "sweeps",
    "capacity",
    "planning",
    "study",
    "quality",
    "adaptation",
    "longbench",
    "models",
    "validation",
    "reproduction",
    "probe",
)


@pytest.mark.parametrize("folder", SHARED)
def test_what_verbs_share_imports_no_verb(folder: str) -> None:
    for path in (ROOT / "experiments" / folder).rglob("*.py"):
        assert not verbs_imported(path), path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_holds_and_has_what_it_exports(package: str) -> None:
    module = import_module(package)
    assert len((module.__doc__ or "").split()) > 8
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
    files = [path for path in Path(str(module.__file__)).parent.glob("*.py") if path.stem != "__init__"]
    assert len(files) <= MOST_FILES


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert set(loaded).isdisjoint(HEAVY)
