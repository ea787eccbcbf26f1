"""Python's logging is one state for the whole process. A test that reconfigures it must not silence the tests after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """Put levels, handlers and switches of all loggers back at the end. Loggers that were made meanwhile are enabled."""
    root = logging.getLogger()
    before = {name: _state(logger) for name, logger in _loggers().items()}
    of_root, handlers, disabled_up_to = _state(root), list(root.handlers), logging.root.manager.disable
    try:
        yield
    finally:
        logging.disable(disabled_up_to)
        root.level, root.disabled, root.propagate = of_root
        root.handlers[:] = handlers
        for name, logger in _loggers().items():
            logger.level, logger.disabled, logger.propagate = before.get(name, (logger.level, False, logger.propagate))
        logging.root.manager._clear_cache()  # type: ignore[attr-defined]  # levels are cached


def _loggers() -> dict[str, logging.Logger]:
    return {name: logger for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}


def _state(logger: logging.Logger) -> tuple[int, bool, bool]:
    return logger.level, logger.disabled, logger.propagate
