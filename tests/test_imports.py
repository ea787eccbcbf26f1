"""Which room may import which: read from the source, and checked in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room -> the rooms it imports, exactly. Rooms are the folders and files of abkt, and sim and experiments as a whole. Imports inside
# functions count; imports under TYPE_CHECKING do not. A failure prints the line to change.
ARROWS: dict[str, set[str]] = {
    "abkt.arguments": set(),
    "abkt.bench": {
        *("abkt.arguments", "abkt.codec", "abkt.kv", "abkt.module_process", "abkt.profile", "abkt.ranges", "abkt.spec", "abkt.transfer")
    },
    "abkt.capacity": {"abkt.ranges"},
    "abkt.compiled": set(),
    "abkt.compiler": {"abkt.compiled", "abkt.constructors"},
    "abkt.codec": {"abkt.kv", "abkt.lazy", "abkt.policy", "abkt.spec"},
    "abkt.connect": {"abkt.codec", "abkt.kv", "abkt.lazy", "abkt.policy", "abkt.ranges", "abkt.spec", "abkt.transfer"},
    "abkt.console": set(),
    "abkt.constructors": set(),
    "abkt.kv": {"abkt.lazy", "abkt.spec"},
    "abkt.lazy": set(),
    "abkt.measure": {
        *("abkt.arguments", "abkt.bench", "abkt.capacity", "abkt.codec", "abkt.kv"),
        *("abkt.lazy", "abkt.profile", "abkt.records", "abkt.serve", "abkt.spec"),
    },
    "abkt.module_process": set(),
    "abkt.net": {"abkt.capacity", "abkt.lazy", "abkt.module_process"},
    "abkt.policy": {"abkt.capacity", "abkt.lazy", "abkt.ranges"},
    "abkt.profile": {"abkt.lazy", "abkt.policy", "abkt.ranges", "abkt.spec"},
    "abkt.ranges": set(),
    "abkt.records": {"abkt.slo"},
    "abkt.slo": {"abkt.ranges"},
    "abkt.serve": {
        *("abkt.capacity", "abkt.codec", "abkt.kv", "abkt.lazy", "abkt.module_process", "abkt.net", "abkt.policy"),
        *("abkt.profile", "abkt.ranges", "abkt.records", "abkt.spec", "abkt.transfer"),
    },
    "abkt.spec": {"abkt.ranges"},
    "abkt.transfer": {"abkt.capacity", "abkt.lazy"},
    "sim": {"abkt.capacity", "abkt.lazy", "abkt.policy", "abkt.profile", "abkt.ranges", "abkt.records", "abkt.spec"},
    "experiments": {
        *("abkt.arguments", "abkt.bench", "abkt.capacity", "abkt.codec", "abkt.compiled", "abkt.connect", "abkt.console", "abkt.kv"),
        *("abkt.lazy", "abkt.measure"),
        *(
            "abkt.module_process",
            "abkt.net",
            "abkt.policy",
            "abkt.profile",
            "abkt.ranges",
            "abkt.records",
            "abkt.serve",
            "abkt.spec",
            "abkt.transfer",
            "sim",
        ),
    },
}
# Modules that must load without torch.
LIGHT = [
    *("sim", "sim.cluster", "sim.workload.traces", "abkt.records", "abkt.spec", "abkt.capacity", "abkt.policy", "abkt.policy.build"),
    *("abkt.policy.bitrate.embedded", "abkt.policy.bitrate.fixed", "abkt.policy.routing.load_aware", "abkt.profile"),
    *("abkt.profile.schema", "abkt.profile.expect", "abkt.profile.roofline", "abkt.measure", "abkt.measure.__main__"),
]
HEAVY = ("torch", "triton", "transformers", "hydra", "pandas")
ABOVE_ABKT = {"sim", "experiments", "hydra", "omegaconf", "simpy", "pandas", "pyarrow", "matplotlib", "rich"}
ABOVE_SIM = {"torch", "triton", "transformers", "experiments", "hydra", "omegaconf", "pandas"}
INSIDE_FUNCTIONS = {"transformers", "xxhash", "cryptography"}  # a bare GPU image lacks them
FACE = {"abkt/__init__.py": {"experiments"}}  # abkt's own functions, such as abkt.simulate, are imported when they are first used
SUBCLASSES = {"abkt/serve/engine/cache.py"}  # subclasses a class of transformers, so it imports it at the top


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at the top of the file or of a class) of each import that runs; those under TYPE_CHECKING are left out."""
    tree = ast.parse(path.read_text())
    inside: set[ast.AST] = set()
    typing: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside |= set(ast.walk(node))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            typing |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from ((f"{node.module}.{alias.name}", node not in inside) for alias in node.names)


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def room_of(module: str) -> str | None:
    """abkt.codec.stream.Stream -> abkt.codec; sim.node -> sim; None for what is in no room (abkt.__version__, other packages)."""
    parts = module.split(".")
    if parts[0] in ("sim", "experiments"):
        return parts[0]
    return f"abkt.{parts[1]}" if parts[0] == "abkt" and len(parts) > 1 and not parts[1].startswith("__") else None


def arrows(root: Path) -> dict[str, dict[str, str]]:
    """Room -> imported room -> one file that imports it. Every room is there, also one that imports nothing."""
    found: dict[str, dict[str, str]] = {}
    for package in ("abkt", "sim", "experiments"):
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root)
            room = room_of(".".join(name.with_suffix("").parts))
            if room is None:
                continue
            into = found.setdefault(room, {})
            for module, _ in imports(path):
                target = room_of(module)
                if target is not None and target != room:
                    into.setdefault(target, f"{name} imports {module}")
    return found


def disagreements(declared: Mapping[str, set[str]], found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The lines to change in ARROWS, so that it says what the source does."""
    lines = [f'ARROWS lacks the room "{room}": add it' for room in sorted(found.keys() - declared.keys())]
    lines += [f'ARROWS has a room that does not exist: remove "{room}"' for room in sorted(declared.keys() - found.keys())]
    for room in sorted(declared.keys() & found.keys()):
        for target in sorted(found[room].keys() - declared[room]):
            lines.append(f'ARROWS["{room}"]: add "{target}", or drop the import ({found[room][target]})')
        for target in sorted(declared[room] - found[room].keys()):
            lines.append(f'ARROWS["{room}"]: remove "{target}", which nothing in it imports')
    return lines


def test_every_arrow_is_declared_and_every_declared_arrow_is_used() -> None:
    lines = disagreements(ARROWS, arrows(ROOT))
    assert not lines, "\n" + "\n".join(lines)


def test_the_arrows_point_down() -> None:
    """No room imports itself through others, so the rooms have an order."""
    left = {room: set(targets) for room, targets in ARROWS.items()}
    while free := [room for room, targets in left.items() if not targets & left.keys()]:
        for room in free:
            del left[room]
    assert not left, f"these rooms import one another in a circle: {left}"


def test_a_measurement_is_no_part_of_a_profile() -> None:
    assert not ARROWS["abkt.profile"] & {"abkt.serve", "abkt.bench", "abkt.measure"}


@pytest.mark.parametrize("module", LIGHT)
def test_loads_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {HEAVY} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout == "\n"


@pytest.mark.parametrize("path", files("abkt"), ids=names(files("abkt")))
def test_abkt_imports_nothing_above_it(path: Path) -> None:
    for module, at_top in imports(path):
        package = module.partition(".")[0]
        allowed = FACE.get(str(path.relative_to(ROOT)), set()) if not at_top else set()
        assert package not in ABOVE_ABKT - allowed, f"{path} imports {module}"
        subclasses = str(path.relative_to(ROOT)) in SUBCLASSES
        assert subclasses or not (at_top and package in INSIDE_FUNCTIONS), f"{path} imports {module} at its top; import it where it is used"


@pytest.mark.parametrize("path", files("sim"), ids=names(files("sim")))
def test_sim_imports_nothing_above_it(path: Path) -> None:
    for module, _ in imports(path):
        assert module.partition(".")[0] not in ABOVE_SIM, f"{path} imports {module}"
        assert not module.startswith("abkt.profile.fingerprint"), f"{path} imports {module}, which needs torch"


def test_imports_are_found_inside_functions_and_not_under_type_checking(tmp_path: Path) -> None:
    path = tmp_path / "hidden.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\ndef f():\n    import torch\nfrom abkt import kv\n"
    )
    assert list(imports(path)) == [("typing.TYPE_CHECKING", True), ("abkt.kv", True), ("torch", False)]


def tree(root: Path, sources: Mapping[str, str]) -> Path:
    for name, text in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("declared", "lines"),
    [
        ({"abkt.kv": {"abkt.spec"}, "abkt.spec": set()}, []),
        (
            {"abkt.kv": set(), "abkt.spec": set()},
            ['ARROWS["abkt.kv"]: add "abkt.spec", or drop the import (abkt/kv/pool.py imports abkt.spec.KVLayout)'],
        ),
        (
            {"abkt.kv": {"abkt.spec"}, "abkt.spec": {"abkt.kv"}},
            ['ARROWS["abkt.spec"]: remove "abkt.kv", which nothing in it imports'],
        ),
        ({"abkt.kv": {"abkt.spec"}}, ['ARROWS lacks the room "abkt.spec": add it']),
        ({"abkt.kv": {"abkt.spec"}, "abkt.spec": set(), "abkt.x": set()}, ['ARROWS has a room that does not exist: remove "abkt.x"']),
    ],
)
def test_a_failure_names_the_line_to_change(tmp_path: Path, declared: Mapping[str, set[str]], lines: Sequence[str]) -> None:
    sources = {
        "abkt/__init__.py": "",
        "abkt/kv/pool.py": "def f():\n    from abkt.spec import KVLayout\n",
        "abkt/kv/runs.py": "import abkt.kv.pool\n",
        "abkt/spec.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from abkt.kv import pool\n",
    }
    assert disagreements(declared, arrows(tree(tmp_path, sources))) == lines
