"""The transports by name. A transport's module is imported when it is made, so naming one loads neither its library nor torch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from abkt.transfer.transport import Transport

# name -> "module:class". A new transport is one file with one class, and one line here.
TRANSPORTS: dict[str, str] = {
    "tcp": "abkt.transfer.transports.tcp:Tcp",
    "unix": "abkt.transfer.transports.unix:Unix",
    "shm": "abkt.transfer.transports.shm:Shm",
    "nixl": "abkt.transfer.transports.nixl:Nixl",
    "cuda_ipc": "abkt.transfer.transports.cuda.cuda_ipc:CudaIpc",
}


def make_transport(name: str) -> Transport:
    """A new transport. Raises ValueError, one line, for an unknown name, or if its library or device is missing."""
    if name not in TRANSPORTS:
        raise ValueError(f"transport is {name!r}; it must be one of {', '.join(TRANSPORTS)}")
    module, _, transport = TRANSPORTS[name].partition(":")
    made: Transport = getattr(import_module(module), transport)()
    return made


def listening_address(transport: str, host: str, folder: str | Path, name: str) -> str:
    """An address for a node to listen at: a free port of `host` for TCP, else the path of a Unix socket NAME.sock in `folder`."""
    return f"{host}:0" if transport == "tcp" else str(Path(folder) / f"{name}.sock")


def check_transport(name: str, pacing: str = "userspace") -> None:
    """Raises ValueError, one line, if `make_transport` would, or if the transport cannot be paced this way."""
    if name in TRANSPORTS and name != "tcp" and pacing != "userspace":
        raise ValueError(f"transport {name} does not go with pacing={pacing}, which is TCP's; give pacing=userspace")
    make_transport(name)
