"""The transports: TCP, TCP paced by the kernel, Unix sockets, shared memory, NIXL over UCX, and CUDA IPC (in `cuda`), one file each.

`make_transport("tcp")` makes one by name; see registry.py for the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.transfer.transports.kernel_paced import KernelPaced
    from abkt.transfer.transports.registry import TRANSPORTS, check_transport, listening_address, make_transport
    from abkt.transfer.transports.tcp import Tcp

__all__ = ["TRANSPORTS", "KernelPaced", "Tcp", "check_transport", "listening_address", "make_transport"]
__getattr__ = exporter(
    __name__,
    {
        "KernelPaced": "kernel_paced",
        "TRANSPORTS": "registry",
        "Tcp": "tcp",
        "check_transport": "registry",
        "listening_address": "registry",
        "make_transport": "registry",
    },
)
