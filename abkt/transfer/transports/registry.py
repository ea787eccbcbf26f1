"""All transports, by name: one file with one class each. Making one raises ValueError, one line, where its library or device is missing."""

from __future__ import annotations

from pathlib import Path

from abkt.transfer.transport import Transport
from abkt.transfer.transports.cuda.cuda_ipc import CudaIpc
from abkt.transfer.transports.nixl import Nixl
from abkt.transfer.transports.shm import Shm
from abkt.transfer.transports.tcp import Tcp
from abkt.transfer.transports.unix import Unix

TRANSPORTS: dict[str, type[Transport]] = {
    "tcp": Tcp,
    "unix": Unix,
    "shm": Shm,
    "nixl": Nixl,
    "cuda_ipc": CudaIpc,
}


def listening_address(transport: str, host: str, folder: str | Path, name: str) -> str:
    """Of whoever is called so; folder: for those that need a path."""
    return f"{host}:0" if transport == "tcp" else str(Path(folder) / f"{name}.sock")


def check_transport(name: str, pacing: str = "userspace") -> None:
    """Raises ValueError, one line, for an unknown name, a library or device that is missing, or a pacing that only TCP has."""
    if name not in TRANSPORTS:
        raise ValueError(f"transport is {name!r}; it must be one of {', '.join(TRANSPORTS)}")
    if name != "tcp" and pacing != "userspace":
        raise ValueError(f"transport {name} does not go with pacing={pacing}, which is TCP's; give pacing=userspace")
    TRANSPORTS[name]()
