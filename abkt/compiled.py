"""The simulator's hot modules, compiled to C by mypyc: the same source, the same records to the last bit, several times as fast.

`python -m abkt.compiler` builds them into the user's cache, and `make venv` does so where a C compiler is found. From then on the commands
that only simulate (SIMULATIONS) import the compiled modules in place of the Python ones. Real processes, and everything else, run as plain
Python. The build is found by a hash of the sources, so changed sources run as plain Python until they are built again.

ABKT_COMPILED in the environment: `0`, never use the build; `1`, use it in every process from `import abkt` on, and fail if there is none.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
GROUP = "abkt_compiled"
SWITCH = "ABKT_COMPILED"
PACKAGES = {
    "abkt": ("ranges", "records"),
    "abkt.policy": ("bandwidth", "price", "view"),
    "abkt.policy.bitrate": ("base", "break_even", "budget", "budgeted", "coders", "embedded", "fleet"),
    "abkt.policy.routing": ("base", "least_loaded", "load_aware", "min_ttft", "ranking"),
    "sim": ("admission", "agenda", "cluster", "cost", "invariants", "job", "nodes", "records", "timers"),
    "sim.network": ("flows", "nic"),
    "sim.node": ("batch", "decoding", "gpu", "memory", "node", "pace", "prefix", "prompts", "reservations"),
    "sim.workload": ("requests",),
    "sim.transfer": ("context", "pair", "pipeline", "refinement", "sender", "transfer"),
}
SIMULATIONS = ("simulate", "sweep", "capacity", "plan", "bench sim")
MODULES = tuple(f"{package}.{module}" for package, modules in PACKAGES.items() for module in modules)
FLAGS = "-O1 -g0 -ffp-contract=off -Wno-unused-function"  # no fused multiply-add, which would round differently from Python


class CompiledLoader(ExtensionFileLoader):
    """Loads a compiled module and those that it imports, and gives their dataclasses the `__slots__` that a dataclass which inherits from
    them looks for."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for name in MODULES:
            for kind in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
                if isinstance(kind, type) and kind.__module__ == name and "__dataclass_fields__" in vars(kind):
                    kind.__slots__ = tuple(vars(kind).get("__annotations__", ()))  # type: ignore[attr-defined]


class CompiledFinder:
    """Finds the compiled modules in the folder of a build."""

    def __init__(self, folder: Path) -> None:
        suffix = EXTENSION_SUFFIXES[0]
        self.files = {name: folder / f"{name.replace('.', '/')}{suffix}" for name in (*MODULES, f"{GROUP}__mypyc")}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        file = self.files.get(name)
        return None if file is None else spec_from_file_location(name, file, loader=CompiledLoader(name, str(file)))


def use_compiled() -> None:
    """Import the compiled modules from now on, if ABKT_COMPILED is 1. Raises ImportError, one line, if they are not built."""
    if os.environ.get(SWITCH) != "1":
        return
    found = folder()
    if not found.is_dir():
        raise ImportError("ABKT_COMPILED=1, and the simulator's modules are not compiled; run python -m abkt.compiler")
    sys.meta_path.insert(0, CompiledFinder(found))


def use_compiled_for(verb: str) -> None:
    """Before a verb is imported: use the build, here and in the processes that it starts, if the verb only simulates, the build exists, and
    none of the modules has been imported as Python."""
    if (
        verb in SIMULATIONS
        and SWITCH not in os.environ
        and sys.modules.keys().isdisjoint(MODULES)
        and cache().is_dir()
        and folder().is_dir()
    ):
        os.environ[SWITCH] = "1"
        use_compiled()


def in_use() -> bool:
    """Whether this process uses the compiled modules."""
    return any(isinstance(finder, CompiledFinder) for finder in sys.meta_path)


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "abkt" / "compiled"


def folder() -> Path:
    """Where the build of these sources for this Python is, or would be."""
    found = hashlib.sha256(f"{FLAGS} {sys.implementation.cache_tag} {EXTENSION_SUFFIXES[0]}".encode())
    for source in (ROOT / "abkt" / "constructors.py", *sources()):  # the first one rewrites the others
        found.update(source.read_bytes())
    return cache() / found.hexdigest()[:16]


def sources() -> list[Path]:
    return [ROOT / f"{name.replace('.', '/')}.py" for name in MODULES]
