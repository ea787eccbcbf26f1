"""Workers that share one device take turns with it, so that a phase takes as long as it would take alone and can be measured.

Without the lock the device would slice its time between them, and each measurement would depend on what the other workers do. The lock is
not fair: the worker that releases it may get it again. That makes others wait longer, but waiting is not part of a phase.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path


class DeviceLock(AbstractContextManager["DeviceLock"]):
    """A lock that one process holds at a time, of all that name the same file; the file is created. Not reentrant.

    finish: called before the lock is released, for example to wait for enqueued work. A process that ends releases the lock.
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
