"""Two engines with the connector, connected over loopback."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.connect.engine import Engine
from tests.connect.stub import connector_class

Make = Callable[..., Engine]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes engines, and checks at the end that they left no thread behind."""
    connector_class()
    logging.getLogger("vllm").propagate = True  # vLLM's own setting hides its lines from caplog
    before, engines = set(threading.enumerate()), []

    def one(*arguments: Any, **settings: Any) -> Engine:
        engines.append(Engine(*arguments, **settings))
        return engines[-1]

    yield one
    for engine in engines:
        engine.close()
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()]
    assert not left, f"threads were left: {left}"
