"""GPU memory that is exported to one other process, from its allocation until that process has unmapped it.

CUDA does not define what happens if memory is freed while another process still has it mapped. So the importing process is given one end
of a pipe together with the memory. It closes that end when it has unmapped the memory, and the kernel closes it if the process dies. Only
then is the memory freed.
"""

from __future__ import annotations

import logging
import os
import select
import threading

from abkt.transfer.transports.cuda.driver import Driver, DriverError

GRACE_S = 0.25  # how long closing waits for the importing process

log = logging.getLogger(__name__)


class ExportedMemory:
    """An allocation of this process for another one to map. Raises DriverError.

    Attributes
    ----------
    address : int
        Where it lies on the GPU.
    handle : bytes
        The IPC handle by which the other process opens it.
    release_fd : int
        The end of the pipe that is passed to the other process. The caller closes it here afterwards.
    """

    def __init__(self, driver: Driver, size: int) -> None:
        self._driver = driver
        self.address = driver.allocate(size)
        try:
            self.handle = driver.export_handle(self.address)
        except DriverError:
            driver.free(self.address)
            raise
        self._released_fd, self.release_fd = os.pipe2(os.O_CLOEXEC)
        with _LOCK:
            _EXPORTED[self.handle] = self.address

    def released(self, timeout_s: float = 0.0) -> bool:
        """Whether no other process has it mapped any more."""
        poll = select.poll()
        poll.register(self._released_fd, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poll.poll(timeout_s * 1e3))

    def close(self) -> None:
        """End this process's use of the memory. It is freed now or, if it is still mapped, by a later call of `free_released`."""
        if self.released(GRACE_S):
            self.free()
            return
        with _LOCK:
            _UNRELEASED.append(self)

    def free(self) -> None:
        with _LOCK:
            del _EXPORTED[self.handle]
        os.close(self._released_fd)
        try:
            self._driver.free(self.address)
        except DriverError as error:  # an error that destroyed the CUDA context has freed the memory as well
            log.warning("exported GPU memory could not be freed: %s", error)


class ImportedMemory:
    """Memory that another process has exported, mapped here. release_fd: as received; a copy is held until `close`.

    Raises DriverError, or ValueError, one line, if the memory is smaller than `size`: writing past its end would crash this process.
    """

    def __init__(self, driver: Driver, handle: bytes, size: int, release_fd: int) -> None:
        self._driver = driver
        with _LOCK:
            own = _EXPORTED.get(handle)
        self._mapped = own is None  # CUDA does not open a handle in the process that exported it
        self.address = driver.open_handle(handle) if own is None else own
        self._release_fd = os.dup(release_fd)
        try:
            held = driver.bytes_from(self.address)
            if held < size:
                raise ValueError(f"exported {held} bytes of GPU memory, not {size}")
        except (DriverError, ValueError):
            self.close()
            raise

    def close(self) -> None:
        try:
            if self._mapped:
                self._driver.close_handle(self.address)
        except DriverError as error:
            log.warning("imported GPU memory could not be unmapped: %s", error)
        finally:
            os.close(self._release_fd)


_EXPORTED: dict[bytes, int] = {}  # addresses of the memory that this process exports, by handle
_UNRELEASED: list[ExportedMemory] = []  # closed in this process, and still mapped in another one
_LOCK = threading.Lock()


def free_released() -> None:
    """Free the closed memory that other processes have released meanwhile."""
    with _LOCK:
        released = [memory for memory in _UNRELEASED if memory.released()]
        _UNRELEASED[:] = [memory for memory in _UNRELEASED if memory not in released]
    for memory in released:
        memory.free()
