"""CUDA IPC for the tests: on a GPU if torch has one, else over a stand-in for the CUDA driver, whose device memory is host memory."""

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from abkt.transfer.transports.cuda.cuda_ipc import CudaIpc
from abkt.transfer.transports.cuda.driver import Driver, driver_of

SOURCE = Path(__file__).with_name("standin_cuda.c")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADER_BYTES = 64


@functools.cache
def driver():
    """The GPU's driver or the stand-in. Raises ValueError with the reason if neither can be had."""
    return driver_of(0) if DEVICE == "cuda" else Driver(library=str(standin()))


@functools.cache
def standin():
    """Compile the stand-in; returns the path of the library."""
    triton, compiler = module_of("triton"), shutil.which("gcc")
    if not triton or not compiler:
        raise ValueError("without a GPU the tests use a stand-in for its driver, which needs gcc, and cuda.h from the Triton package")
    folder = Path(tempfile.mkdtemp(prefix="abkt-standin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    header = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{header}", "-o", str(folder / "cuda.so"), str(SOURCE)]
    subprocess.run(command, check=True)
    return folder / "cuda.so"


def module_of(name):
    try:
        return __import__(name)
    except ImportError:
        return None


class StandinCudaIpc(CudaIpc):
    """CUDA IPC over the GPU's driver or the stand-in."""

    def __init__(self):
        super().__init__(driver())


def live():
    """Number of allocations, mappings and streams of the stand-in in this process."""
    return ctypes.CDLL(str(standin())).standin_live()


def tensor(data):
    made = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(DEVICE)
    if DEVICE == "cuda":
        torch.cuda.synchronize()  # the copies of a transfer wait only for their own stream
    return made


class StandinCudaIpcFromDevice:
    """CUDA IPC whose sides send everything longer than a header from device memory."""

    def __init__(self):
        self._transport = StandinCudaIpc()

    def connect(self, *where, **how):
        return SendsFromDevice(self._transport.connect(*where, **how))

    def listen(self, *where, **how):
        listener = self._transport.listen(*where, **how)
        accept = listener.accept

        def accepted(timeout_s):
            connection = accept(timeout_s)
            return connection and SendsFromDevice(connection)

        listener.accept = accepted
        return listener


class SendsFromDevice:
    def __init__(self, connection):
        self._connection = connection

    def send(self, buffers, on_wait):
        return self._connection.send([tensor(each) if len(each) > HEADER_BYTES else each for each in buffers], on_wait)

    def __getattr__(self, name):
        return getattr(self._connection, name)
