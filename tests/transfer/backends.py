"""The transports that the conformance suite and the fault suite run over. To add a transport, add one line here."""

from abkt.transfer.transports.nixl import Nixl
from abkt.transfer.transports.shm import Shm
from abkt.transfer.transports.tcp import Tcp
from abkt.transfer.transports.unix import Unix
from tests.transfer.standin_cuda import StandinCudaIpc, StandinCudaIpcFromDevice

BACKENDS = {  # Name: class, and the address to listen at, given a folder. A class that raises ValueError is skipped with that reason.
    "tcp": (Tcp, lambda path: "127.0.0.1:0"),
    "unix": (Unix, lambda path: str(path / "socket")),
    "shm": (Shm, lambda path: str(path / "socket")),
    "nixl": (Nixl, lambda path: str(path / "socket")),
    "cuda_ipc": (StandinCudaIpc, lambda path: str(path / "socket")),
    "cuda_ipc_device": (StandinCudaIpcFromDevice, lambda path: str(path / "socket")),
}
BARE = list(BACKENDS)  # without a key
