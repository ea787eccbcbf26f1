"""Memory of a GPU that one other process may map, from its allocation until nobody has it mapped any more.

A driver leaves open what happens if memory is freed that another process has still mapped. So whoever is lent some is given one end of a
pipe with it, which closes when it has let go of the memory, or is dead; only then is the memory freed.
"""

from __future__ import annotations

import logging
import os
import select
import threading

from abkt.transfer.transports.cuda.driver import Driver, DriverError

GRACE_S = 0.25  # that one who lends waits at the end for the other

log = logging.getLogger(__name__)


class ExportedMemory:
    """size bytes at `address`. handle: what another process opens it by. leash: the end of the pipe that is passed to it; then closed here.

    Raises DriverError.
    """

    def __init__(self, driver: Driver, size: int) -> None:
        self._driver = driver
        self.address = driver.allocate(size)
        try:
            self.handle = driver.export(self.address)
        except DriverError:
            driver.free(self.address)
            raise
        self._held, self.leash = os.pipe2(os.O_CLOEXEC)
        with _LOCK:
            _OWN[self.handle] = self.address

    def returned(self, timeout_s: float = 0.0) -> bool:
        """Whether nobody else has it mapped any more."""
        poll = select.poll()
        poll.register(self._held, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poll.poll(timeout_s * 1e3))

    def end(self) -> None:
        """This side needs it no more: freed now, or by a later call of `sweep`."""
        if self.returned(GRACE_S):
            self._free()
            return
        with _LOCK:
            _WAITING.append(self)

    def _free(self) -> None:
        with _LOCK:
            del _OWN[self.handle]
        os.close(self._held)
        try:
            self._driver.free(self.address)
        except DriverError as error:  # what broke the context took the memory with it
            log.warning("memory that was lent could not be freed: %s", error)


class ImportedMemory:
    """Another side's memory, mapped here. leash: as it came; held until the memory is let go.

    Raises DriverError, or ValueError, one line, if the memory is smaller: to write behind its end would be the end of this side.
    """

    def __init__(self, driver: Driver, handle: bytes, size: int, leash: int) -> None:
        self._driver = driver
        with _LOCK:
            own = _OWN.get(handle)
        self._mapped = own is None  # a driver maps no memory of its own process again
        self.address = driver.open(handle) if own is None else own
        self._leash = os.dup(leash)
        try:
            held = driver.size(self.address)
            if held < size:
                raise ValueError(f"lent {held} bytes of a GPU, not {size}")
        except (DriverError, ValueError):
            self.end()
            raise

    def end(self) -> None:
        try:
            if self._mapped:
                self._driver.close(self.address)
        except DriverError as error:
            log.warning("memory that was borrowed could not be let go: %s", error)
        finally:
            os.close(self._leash)


_OWN: dict[bytes, int] = {}  # where what this process lends lies
_WAITING: list[ExportedMemory] = []  # of connections that are closed here, but not on the other side
_LOCK = threading.Lock()


def sweep() -> None:
    """Free what has been given back by now."""
    with _LOCK:
        over = [lent for lent in _WAITING if lent.returned()]
        _WAITING[:] = [lent for lent in _WAITING if lent not in over]
    for lent in over:
        lent._free()
