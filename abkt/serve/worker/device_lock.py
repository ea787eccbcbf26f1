"""Workers that share one device take turns with it, so that a phase takes what it would take alone, and can be measured.

Without, their work would be time-sliced, and what one of them measures would depend on what the other one is at.
Not fair: who lets go may be the next one again. That delays the others, which is waiting and no part of a phase.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path


class DeviceLock(AbstractContextManager["DeviceLock"]):
    """Held by one process at a time of those that name the same file, which is made; a process must not take it twice at once.

    finish: called before it is let go, such as waiting for what was enqueued. A process that ends lets go.
    """

    def __init__(self, path: Path, finish: Callable[[], object] = lambda: None) -> None:
        self._path = path
        self._finish = finish

    def __enter__(self) -> DeviceLock:
        self._file = self._path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._finish()
        finally:
            self._file.close()
