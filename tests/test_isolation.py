"""What one test does to the process does not reach the next one."""

from __future__ import annotations

import logging
import logging.config

import pytest

from tests import logging_state


def test_logging_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    """A configuration that disables existing loggers, as Python's default is, and a level that hides warnings."""
    log = logging.getLogger("abkt.serve.worker.decode")
    with logging_state.kept():
        logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL", "handlers": []}})
        logging.disable(logging.ERROR)
        log.warning("hidden")
    log.warning("seen")
    assert [record.getMessage() for record in caplog.records] == ["seen"]
