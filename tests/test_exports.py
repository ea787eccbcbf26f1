"""Every package with lazy exports has what its `__all__` names, and importing the package loads no torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pkgutil import walk_packages

import pytest

import abkt

ENGINES = {"abkt.connect.vllm": "vllm"}  # packages whose exports need another project
PACKAGES = [m.name for m in walk_packages(abkt.__path__, "abkt.") if m.ispkg and hasattr(import_module(m.name), "__getattr__")]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists(package: str) -> None:
    module = import_module(package)
    if package in ENGINES:
        pytest.importorskip(ENGINES[package], reason=f"{package} exports a subclass of it")
    for name in module.__all__:
        assert getattr(getattr(module, name), "__name__", name) == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_loads_no_torch(package: str) -> None:
    code = f"import sys, {package}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
