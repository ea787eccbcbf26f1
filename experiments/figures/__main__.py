"""`python -m experiments.figures [data=DIR] [out=DIR] [only=fig02]`: every figure from its stored tables, as PDF, SVG and PNG.

Beside each figure is a JSON file with its tables (SHA-256, the command and configuration that made them) and the versions that drew it. A
figure whose table is missing is reported, the others are drawn, and the exit code is 2.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from abkt import arguments
from experiments.figures import stored
from experiments.figures.stored import Stored
from experiments.figures.style import save, sheet
from experiments.lib.errors import exit_code
from experiments.lib.paths import ROOT
from experiments.lib.results import write_json

SCHEMA_VERSION = 1
PACKAGES = ("matplotlib", "numpy", "pandas", "pyarrow")


@dataclass(frozen=True)
class FigureArguments:
    """data: folder of the tables. out: folder of the figures. only: beginning of the names of the figures to draw."""

    data: Path = ROOT / "data" / "figures"
    out: Path = ROOT / "docs" / "figures"
    only: str = ""


def modules() -> list[ModuleType]:
    """The modules of all figures, in order of their numbers."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("fig[0-9]*.py"))
    return [import_module(f"experiments.figures.{name}") for name in names]


def name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def draw(module: ModuleType, data: Path, out: Path) -> Path:
    """Draw one figure and write its JSON file. Raises ValueError, one line, where one of its tables cannot be read."""
    tables = {name: stored.load(data, name) for name in module.INPUTS}
    with sheet():
        png = save(module.draw(tables), out, name_of(module))
    write_json(out / f"{name_of(module)}.json", sidecar(module, tables))
    return png


def sidecar(module: ModuleType, tables: Mapping[str, Stored]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "figure": name_of(module),
        "caption": " ".join((module.__doc__ or "").split()),
        "inputs": {name: {"sha256": table.sha256, **table.stamp} for name, table in tables.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def draw_all(request: FigureArguments) -> None:
    """Draw the figures. Raises ValueError at the end for those that could not be drawn, or at once if no figure has that name."""
    chosen = [module for module in modules() if name_of(module).startswith(request.only)]
    if not chosen:
        raise ValueError(f"only={request.only}: there is no such figure; the figures are {', '.join(map(name_of, modules()))}")
    missing = []
    for module in chosen:
        try:
            print(draw(module, request.data, request.out))
        except ValueError as error:
            print(f"abkt: {name_of(module)} is not drawn: {error}", file=sys.stderr)
            missing.append(name_of(module))
    if missing:
        raise ValueError(f"{len(missing)} of {len(chosen)} figures could not be drawn: {', '.join(missing)}")


def main(given: Sequence[str]) -> int:
    return exit_code(lambda: draw_all(arguments.read(FigureArguments, given)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
