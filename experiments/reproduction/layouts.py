"""The layout table: moving the raw KV of one prompt between the pools of two processes, by how a pool lies in memory.

layer-wise: [layer, K|V, block, …] and scattered blocks, one call for each block of each layer's K and V (vLLM's layout). block-wise:
[block, layer, K|V, …] and scattered blocks, one call for each block. block-contiguous: the same with adjacent blocks, one call for a run
(FlowKV). A call is one `send` of a connection of abkt.transfer, from the pool into the peer's pool (GPU pools over cuda_ipc). The latency
ends when the peer reports that the last byte is in its pool. Frames, checksums and credits are left out, because they are the same for
every layout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkt.spec import KVLayout, ModelSpec

if TYPE_CHECKING:
    import torch

    from abkt.transfer.transport import Connection, Transport

LAYOUTS = ("layer-wise", "block-wise", "block-contiguous")
TRANSPORTS = ("shm", "unix", "tcp", "cuda_ipc")
SILENCE_S = 60.0
ORDER_SEED = 0


@dataclass(frozen=True, slots=True)
class LayoutRow:
    """seconds: the least of the repeats, because slower ones were disturbed."""

    layout: str
    transport: str
    tokens: int
    calls: int
    bytes: int
    seconds: float
    source: str = "measured"


def measure(model: ModelSpec, lengths: Sequence[int], transports: Sequence[str], repeats: int, folder: Path,
            step: Callable[[str], None]) -> Iterator[LayoutRow]:  # fmt: skip
    """Measure every layout over every transport. folder: for sockets.

    Raises ValueError for a transport that is not in TRANSPORTS, or that needs a GPU where there is none.
    """
    if unknown := [name for name in transports if name not in TRANSPORTS]:
        raise ValueError(f"transport {unknown[0]} is unknown; there are {', '.join(TRANSPORTS)}")
    for name in transports:
        _transport(name)
    layout = KVLayout(model, blocks=max(KVLayout(model, 1).blocks_for(tokens) for tokens in lengths))
    for name in transports:
        for kind in LAYOUTS:
            step(f"{name}, {kind}")
            with _Peer(name, kind, layout, folder) as peer:
                data, pieces = pool_bytes(kind, layout, _device(name))
                for tokens in lengths:
                    parts = [data[start : start + size] for start, size in pieces(blocks_of(kind, layout, tokens))]
                    least_s = min(peer.send(tokens, parts) for _ in range(repeats + 1))  # the first one warms up
                    yield LayoutRow(kind, name, tokens, len(parts), sum(part.nbytes for part in parts), least_s)


def blocks_of(kind: str, layout: KVLayout, tokens: int) -> list[int]:
    """The block table of a prompt: adjacent blocks for block-contiguous, else blocks at random places, as in a long-used pool."""
    import numpy as np

    count = layout.blocks_for(tokens)
    if kind == "block-contiguous":
        return list(range(count))
    order = np.random.default_rng(ORDER_SEED).permutation(layout.blocks)[:count].tolist()
    return [int(block) for block in order]


def pool_bytes(kind: str, layout: KVLayout, device: str = "cpu") -> tuple[Any, Callable[[Sequence[int]], list[tuple[int, int]]]]:
    """(the pool's memory, block table -> pieces of it as (start, bytes)). The memory is a tensor on a GPU, else a memoryview."""
    from abkt.kv.layer_major import LayerMajorPool
    from abkt.kv.pool import Pool

    pool = LayerMajorPool(layout, device) if kind == "layer-wise" else Pool(layout, device)
    return _bytes(pool.data), pool.pieces


def _bytes(data: torch.Tensor) -> Any:
    import torch

    data.view(torch.uint8).fill_(1)  # write to every page, so that none is missing when the transfer is timed
    flat = data.view(torch.uint8).reshape(-1)
    if data.device.type == "cpu":
        return memoryview(flat.numpy())  # type: ignore[arg-type]
    torch.cuda.synchronize(data.device)
    return flat


def _transport(name: str) -> Transport:
    import torch

    from abkt.transfer.transports.registry import make_transport

    made = make_transport(name)
    if _device(name) == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"transport {name}: this machine has no GPU that PyTorch can use")
    return made


def _device(name: str) -> str:
    return "cuda" if name == "cuda_ipc" else "cpu"


def _address(name: str, folder: Path) -> str:
    return "127.0.0.1:0" if name == "tcp" else str(folder / f"{name}.sock")


class _Peer:
    """The receiving process: it fills the pieces of its own pool in the same order and confirms with one byte."""

    def __init__(self, name: str, kind: str, layout: KVLayout, folder: Path) -> None:
        self._ours, theirs = get_context("spawn").Pipe()
        arguments = (name, kind, layout, folder, theirs)
        self._process = get_context("spawn").Process(target=_receive, args=arguments, daemon=True)
        self._name = name
        self._connection: Connection | None = None

    def __enter__(self) -> _Peer:
        self._process.start()
        self._connection = _transport(self._name).connect(self._ours.recv(), SILENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.send(0)
        assert self._connection is not None
        self._connection.close()
        self._process.join(10.0)

    def send(self, tokens: int, parts: Sequence[Any]) -> float:
        """Seconds from the first byte until the peer has confirmed the last."""
        assert self._connection is not None
        self._ours.send(tokens)
        self._ours.recv()  # the peer is ready
        started_s = time.perf_counter()
        for part in parts:
            self._connection.send([part], _nothing)
        self._connection.receive([memoryview(bytearray(1))], _nothing)
        return time.perf_counter() - started_s


def _receive(name: str, kind: str, layout: KVLayout, folder: Path, pipe: Pipe) -> None:
    listener = _transport(name).listen(_address(name, folder), SILENCE_S)
    pipe.send(listener.address)
    connection = None
    while connection is None:
        connection = listener.accept(SILENCE_S)
    data, pieces = pool_bytes(kind, layout, _device(name))
    while tokens := pipe.recv():
        parts = [data[start : start + size] for start, size in pieces(blocks_of(kind, layout, tokens))]
        pipe.send(True)
        for part in parts:
            connection.receive([part], _nothing)
        connection.send([b"\1"], _nothing)
    connection.close()
    listener.close()


def _nothing() -> None: ...
