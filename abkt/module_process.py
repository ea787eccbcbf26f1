"""How one of abkt's own processes is started: a module of the package that runs now, whatever files lie in the current folder.

`python -m` puts the current folder first on the path, so a user's `yaml.py` there would be imported instead of the library. `-P` leaves it
out; the folder that holds abkt is put on PYTHONPATH instead, so that a checkout that is not installed works too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of abkt with this Python."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(**more: str) -> dict[str, str]:
    """This process's environment for such a command, and `more`."""
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **more}
