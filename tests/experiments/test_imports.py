"""Who may know whom (DESIGN, section 3): read from the source, and tried in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.lib.paths import ROOT

LIGHT = [
    "sim.cluster",
    "sim.workload.traces",
    "abkt.records",
    "abkt.spec",
    "abkt.capacity",
    "abkt.policy.build",
    "abkt.policy.bitrate.embedded",
    "abkt.policy.bitrate.fixed",
    "abkt.policy.routing.load_aware",
    "abkt.profile.schema",
    "abkt.profile.expect",
    "abkt.profile.roofline",
]
EDGE = {"sim", "experiments", "hydra", "omegaconf", "simpy", "pandas", "pyarrow", "matplotlib", "rich"}
NEEDED_ELSEWHERE = {"transformers", "xxhash", "cryptography"}  # only inside functions
DERIVED = {"abkt/serve/engine/cache.py"}  # but for what is nothing but a class of theirs
# What a room of abkt may import of abkt, besides itself: the arrows of the map, all pointing down.
BELOW = {
    "spec": set(),
    "capacity": set(),
    "net": {"capacity"},
    "records": set(),
    "kv": {"spec"},
    "policy": {"spec", "capacity", "records", "profile"},
    "codec": {"kv", "spec", "policy"},
    "transfer": {"codec", "kv", "spec", "capacity", "policy", "records"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at the top of the file or of a class) of each import that runs; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text())
    lazy: set[ast.AST] = set()
    typing: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            lazy |= set(ast.walk(node))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            typing |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from ((f"{node.module}.{alias.name}", node not in lazy) for alias in node.names)


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("module", LIGHT)
def test_loads_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in ('torch', 'triton', 'transformers', 'hydra', 'pandas') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout == "\n"


@pytest.mark.parametrize("path", files("abkt"), ids=names(files("abkt")))
def test_abkt_knows_nothing_above_it(path: Path) -> None:
    for module, at_top in imports(path):
        package = module.partition(".")[0]
        assert package not in EDGE, f"{path} imports {module}"
        derived = str(path.relative_to(ROOT)) in DERIVED
        assert derived or not (at_top and package in NEEDED_ELSEWHERE), f"{path} imports {module} at its top; import it where it is used"


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "abkt").parts[0].removesuffix(".py")


ROOMED = [path for path in files("abkt") if room_of(path) in BELOW]


@pytest.mark.parametrize("path", ROOMED, ids=names(ROOMED))
def test_arrows_inside_abkt_point_down(path: Path) -> None:
    room = room_of(path)
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "abkt" and parts[1] not in (room, "__version__"):
            assert parts[1] in BELOW[room], f"{path} imports {module}"


@pytest.mark.parametrize("path", files("sim"), ids=names(files("sim")))
def test_sim_knows_only_the_light_rooms(path: Path) -> None:
    for module, _ in imports(path):
        parts = module.split(".")
        assert parts[0] not in ("torch", "triton", "experiments", "hydra", "pandas")
        if parts[0] == "abkt":
            assert parts[1] in ("policy", "records", "spec", "capacity", "profile"), f"{path} imports {module}"
            assert parts[1] != "profile" or parts[2] in ("schema", "expect", "roofline"), f"{path} imports {module}"


def test_imports_are_found_where_they_hide(tmp_path: Path) -> None:
    path = tmp_path / "hidden.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\ndef f():\n    import torch\nfrom abkt import kv\n"
    )
    assert list(imports(path)) == [("typing.TYPE_CHECKING", True), ("abkt.kv", True), ("torch", False)]
