"""The packages of `abkt.serve`: their public names are there, importing a package loads nothing heavy, and the engine stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import abkt.serve

PACKAGES = ("abkt.serve", "abkt.serve.engine", "abkt.serve.frontend", "abkt.serve.worker")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists(package: str) -> None:
    module = import_module(package)
    assert [getattr(module, name).__name__ for name in module.__all__] == list(module.__all__)
    with pytest.raises(AttributeError, match=r"has no attribute 'Nothing'"):
        _ = module.Nothing


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print(*(m for m in ('numpy', 'torch', 'transformers', 'starlette') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    ("package", "others"),
    [("engine", {"engine"}), ("worker", {"engine", "worker", "commands", "errors", "expect", "messages", "pacing", "reports"})],
)
def test_engine_and_workers_do_not_import_the_frontend(package: str, others: set[str]) -> None:
    for path in (Path(abkt.serve.__file__).parent / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("abkt.serve."):
                assert node.module.split(".")[2] in others, f"{path} imports {node.module}"
