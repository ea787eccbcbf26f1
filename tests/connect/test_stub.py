"""The stand-in for vLLM against vLLM itself, where it is installed: the same names, and methods that take the same arguments."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.connect import stub

ROOT = Path(__file__).parents[2]


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(name, one.kind) for name, one in inspect.signature(function).parameters.items()]


@pytest.mark.skipif(not stub.is_real(), reason="vLLM is not installed here; `make test-vllm` runs this")
def test_the_stand_in_and_the_connector_have_vllms_signatures() -> None:
    base = import_module(stub.BASE)
    real, ours = base.KVConnectorBase_V1, stub.connector_class()
    for kind in (real, stub.KVConnectorBase_V1):
        missing = [name for name in kind.__abstractmethods__ if name in ours.__abstractmethods__]
        assert not missing
    assert stub.KVConnectorBase_V1.__abstractmethods__ == real.__abstractmethods__
    for kind in (stub.KVConnectorBase_V1, ours):
        for name, function in vars(kind).items():
            if inspect.isfunction(function) and hasattr(real, name):
                assert parameters(function) == parameters(getattr(real, name)), f"{kind.__name__}.{name}"
    assert {each.name for each in base.KVConnectorRole} == {each.name for each in stub.KVConnectorRole}


def test_without_vllm_only_the_class_itself_fails_to_load() -> None:
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "import abkt.connect, abkt.connect.vllm, abkt.connect.vllm.worker, abkt.connect.vllm.scheduler, abkt.connect.proxy\n"
        "try:\n    abkt.connect.vllm.AbktConnector\nexcept ImportError:\n    print('refused')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout == "refused\n"
