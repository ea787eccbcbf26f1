"""Which files of the simulator may import which, and what they use of SimPy."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from experiments.lib.paths import ROOT
from tests.test_imports import imports

FILES = sorted(path for path in (ROOT / "sim").rglob("*.py") if path.name != "__init__.py")
# What a folder may import of sim at run time, besides itself.
BELOW = {
    "workload": {"timers"},
    "network": {"timers"},
    "node": {"timers", "cost", "job", "specs"},
    "transfer": {"timers", "job", "network", "records"},
}


def of_sim(path: Path) -> set[str]:
    """Modules of sim that a file imports at run time."""
    found = set()
    for module, _ in imports(path):
        if module.startswith("sim."):
            parent = module.rpartition(".")[0]
            found.add(parent if (ROOT / f"{parent.replace('.', '/')}.py").exists() else module)
    return found


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_no_module_imports_itself_through_others() -> None:
    graph = {name(path): of_sim(path) for path in FILES}
    assert sum(map(len, graph.values())) > 50
    while graph:
        leaves = [module for module, below in graph.items() if not below & graph.keys()]
        assert leaves, f"these modules import each other in a circle: {sorted(graph)}"
        for module in leaves:
            del graph[module]


@pytest.mark.parametrize("folder", BELOW)
def test_folders_import_only_what_lies_below_them(folder: str) -> None:
    for path in (ROOT / "sim" / folder).glob("*.py"):
        for module in of_sim(path):
            assert module.split(".")[1] in {folder, *BELOW[folder]}, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_simpys_public_names_are_used(path: Path) -> None:
    """No file uses a private attribute of another object; `self._x` and `cls._x` are its own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            assert isinstance(node.value, ast.Name), f"{path}:{node.lineno} uses {node.attr}"
            assert node.value.id in ("self", "cls"), f"{path}:{node.lineno} uses {node.attr}"
            assert node.attr not in ("_now", "_queue", "_eid", "_ok", "_value", "_defused", "_active_proc"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_file_says_what_is_not_modelled(path: Path) -> None:
    assert "\nNot modelled: " in (ast.get_docstring(ast.parse(path.read_text())) or "")
