"""What carries KV between two workers, by its name, and where a worker listens with it."""

from __future__ import annotations

from pathlib import Path

from abkt.transfer.cuda_ipc import CudaIpc
from abkt.transfer.nccl import Nccl
from abkt.transfer.nixl import Nixl
from abkt.transfer.shm import Shm
from abkt.transfer.tcp import Tcp
from abkt.transfer.transport import Transport
from abkt.transfer.unix import Unix

TRANSPORTS: dict[str, type[Transport]] = {
    "tcp": Tcp,
    "unix": Unix,
    "shm": Shm,
    "nixl": Nixl,
    "nccl": Nccl,
    "cuda_ipc": CudaIpc,
}


def check_transport(name: str, pacing: str = "userspace") -> None:
    """Raises ValueError, one line, for one that is none, that needs what is not here, or that the kernel cannot hold back."""
    if name not in TRANSPORTS:
        raise ValueError(f"carrier is {name!r}; it must be one of {', '.join(TRANSPORTS)}")
    if name != "tcp" and pacing != "userspace":
        raise ValueError(f"carrier {name} does not go with pacing={pacing}, which is TCP's; give pacing=userspace")
    TRANSPORTS[name]()


def listening_address(transport: str, host: str, folder: str, worker: str) -> str:
    """Of a worker; folder: for those that need a path."""
    return f"{host}:0" if transport == "tcp" else str(Path(folder) / f"{worker}.sock")
