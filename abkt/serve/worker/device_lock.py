"""A lock with which workers take turns on a shared device. Each phase then takes as long as it would take alone, so it can be measured.

Without the lock the device would time-slice, and each measurement would depend on the other workers' load. The lock is not fair: the
worker that releases it may get it again. Others then wait longer, but waiting is not part of a phase.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path


class DeviceLock(AbstractContextManager["DeviceLock"]):
    """A lock on a file: one process holds it at a time. The file is created. Not reentrant.

    finish: called before the lock is released, for example to wait for enqueued work. The end of a process releases its lock.
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
