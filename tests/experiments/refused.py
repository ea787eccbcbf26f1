"""Bad input on the command line, for the tests of all verbs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

import pytest

from experiments.cli import dispatch


def refused(arguments: Sequence[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in an empty folder: it must exit with 2, report one line and leave nothing. Returns the line."""
    with chdir(folder):
        code = dispatch(list(arguments))
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("abkt: ")
    assert error.count("\n") == 1
    assert not list(folder.iterdir())
    return error
