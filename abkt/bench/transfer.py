"""The cost of a transfer between two processes of this machine: compared with bare sockets, and by the number of pieces of memory.

`raw_tcp_over_bare`: goodput of 256 MiB through Sender and Receiver over loopback TCP, over that of the same bytes by bare sendmsg and
recvmsg_into, measured alternately. It may be above 1, because the bare loop wakes up for each segment, and the receiver only for as much
as it reads at once. The layout rows send KV of FlowKV's lengths in three layouts: `layer` (one piece per block, layer and kind), `block`
(one piece per block) and `contiguous` (one piece). `calls` counts the calls of the transport, which gathers pieces; `pieces` is the number
of calls of a transport that does not gather. `alpha`, `beta`: latency = alpha * pieces + beta * bytes, by least squares of relative errors
over all lengths and layouts of a transport.

`python -m abkt.bench transfer out=DIR` writes transfer.json, for the transports whose library is installed. With device=cuda there are only
layout rows, for CUDA IPC from a GPU's memory to memory of the same GPU.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abkt.bench.arguments import BenchArguments
from abkt.bench.bare import BareSender
from abkt.bench.rows import BenchRow
from abkt.bench.transfer_peer import LAYOUT, ON_DEVICE, PeerProcess, TouchedMemory, available
from abkt.profile.fingerprint import cpu_name
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.send.outgoing import Outgoing, Sent
from abkt.transfer.send.sender import Sender
from abkt.transfer.transports.registry import make_transport
from abkt.transfer.transports.tcp import TcpConnection

RAW_BYTES = 256 << 20
LEAST_REPEATS = 5
LENGTHS = (500, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000)  # of FlowKV (arXiv 2504.03775), table 3
ROWS_OF_A_LENGTH = 9  # of each transport
LAYERS = 4  # unless layers= is given: 160 MiB at the longest, which fits beside other work
WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class PieceLayout:
    """How one sequence lies in memory. piece_bytes: the size of each piece, except the last."""

    name: str
    piece_bytes: int


class TransferCourse:
    """Makes transfers to one peer over one transport, one after another."""

    def __init__(self, kind: str, address: str) -> None:
        self._sender = Sender(make_transport(kind), address, Hello("bench-sender", LAYOUT))
        self._count = 0

    def send(self, memory: TouchedMemory, size: int, piece_bytes: int) -> tuple[float, Sent]:
        """Seconds from the submission to the acknowledgement of the last byte."""
        source = memory.source(size, piece_bytes)
        offer = Offer(self._count, "raw", 1, (size,), more={"piece_bytes": piece_bytes})
        self._count += 1
        begun_s = time.perf_counter()
        sent = self._sender.submit(Outgoing(offer.request_id, offer, source)).result(WAIT_S)
        taken_s = time.perf_counter() - begun_s
        if sent.error:
            raise ValueError(f"transfer bench: {sent.error}")
        return taken_s, sent

    def close(self) -> None:
        self._sender.close()


def rows(arguments: BenchArguments, about: dict[str, str]) -> Iterator[BenchRow]:
    """All rows, as they are measured. Raises ValueError if a transfer fails."""
    repeats = max(arguments.repeats, LEAST_REPEATS)
    if arguments.device == "cuda":
        for kind in ON_DEVICE:
            yield from layout_rows(kind, arguments, repeats)
        return
    yield from raw_rows(repeats)
    for kind in available():
        yield from layout_rows(kind, arguments, repeats)


def total_work(arguments: BenchArguments) -> float:
    """The work of all rows, in the unit of `work`; for a progress bar."""
    kinds = len(ON_DEVICE) if arguments.device == "cuda" else len(available())
    return (kinds * ROWS_OF_A_LENGTH + (arguments.device != "cuda")) * sum(LENGTHS)


def work(row: BenchRow) -> float:
    """The tokens of the row's sequence: rows of long ones take longer. The bare socket counts as one row of each length."""
    size = row.name.rpartition("/")[2]
    return float(size) if size.isdigit() else sum(LENGTHS) / 2 * (row.name.startswith("raw_tcp"))


def raw_rows(repeats: int, size_bytes: int = RAW_BYTES) -> Iterator[BenchRow]:
    memory = touched(2 * size_bytes)
    taken: dict[str, list[float]] = {"ours": [], "bare": []}
    frame_bytes = TcpConnection.frame_bytes
    with PeerProcess("tcp", "127.0.0.1:0", size_bytes, 0) as peer, PeerProcess("bare", "", size_bytes, frame_bytes) as bare_peer:
        course, bare = TransferCourse("tcp", peer.address), BareSender(bare_peer.address, frame_bytes)
        try:
            for round_number in range(repeats + 1):
                ours_s = course.send(TouchedMemory(memory), size_bytes, size_bytes)[0]
                begun_s = time.perf_counter()
                bare.send(memory[:size_bytes])
                bare_s = time.perf_counter() - begun_s
                if round_number:  # the first round is not counted
                    taken["ours"].append(ours_s)
                    taken["bare"].append(bare_s)
        finally:
            course.close()
            bare.close()
    ours, plain = (size_bytes / statistics.median(taken[name]) / 1e9 for name in ("ours", "bare"))
    yield BenchRow("raw_tcp_gbps", ours, "GB/s of payload", plain)
    ratios = [bare_s / ours_s for ours_s, bare_s in zip(taken["ours"], taken["bare"], strict=True)]
    yield BenchRow("raw_tcp_over_bare", statistics.median(ratios), "of bare", 1.0)


def layout_rows(kind: str, arguments: BenchArguments, repeats: int) -> Iterator[BenchRow]:
    layers, block_tokens = arguments.layers or LAYERS, arguments.blocks[0]
    kind_bytes = block_tokens * arguments.kv_heads * arguments.head_dim * 2  # of one block, layer and kind, 16 bits per value
    block_bytes = 2 * layers * kind_bytes
    sizes = {tokens: -(-tokens // block_tokens) * block_bytes for tokens in LENGTHS}
    memory = TouchedMemory(touched(2 * max(sizes.values()), arguments.device))
    points: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        address = "127.0.0.1:0" if kind == "tcp" else str(Path(folder) / "socket")
        with PeerProcess(kind, address, max(sizes.values()), 0) as peer:
            course = TransferCourse(kind, peer.address)
            try:
                for tokens, size in sizes.items():
                    layouts = [PieceLayout("layer", kind_bytes), PieceLayout("block", block_bytes), PieceLayout("contiguous", size)]
                    taken: dict[str, list[tuple[float, Sent]]] = {layout.name: [] for layout in layouts}
                    for _ in range(repeats + 1):
                        for layout in layouts:
                            taken[layout.name].append(course.send(memory, size, layout.piece_bytes))
                    plain_s = statistics.median(seconds for seconds, _ in taken["contiguous"][1:])
                    for layout in layouts:
                        seconds = statistics.median(seconds for seconds, _ in taken[layout.name][1:])
                        pieces = -(-size // layout.piece_bytes)
                        name = f"{kind}/{layout.name}/{tokens}"
                        yield BenchRow(f"latency/{name}", seconds, "s", plain_s)
                        yield BenchRow(f"pieces/{name}", pieces, "pieces")
                        yield BenchRow(f"calls/{name}", statistics.median(sent.calls for _, sent in taken[layout.name][1:]), "calls")
                        points.append((pieces, size, seconds))
            finally:
                course.close()
    alpha, beta, middle, worst = fitted(points)
    yield BenchRow(f"alpha/{kind}", alpha, "s/piece")
    yield BenchRow(f"beta/{kind}", beta, "s/byte")
    yield BenchRow(f"fit_error_median/{kind}", middle, "of latency")
    yield BenchRow(f"fit_error_worst/{kind}", worst, "of latency")


def fitted(points: list[tuple[float, float, float]]) -> tuple[float, float, float, float]:
    """(alpha, beta, median and worst relative error) of the fit seconds = alpha * pieces + beta * bytes to (pieces, bytes, seconds)."""
    pieces, sizes, seconds = np.array(points, dtype=float).T
    scaled = np.stack([pieces / seconds, sizes / seconds], axis=1)
    alpha, beta = np.linalg.lstsq(scaled, np.ones(len(points)), rcond=None)[0]
    error = np.abs((alpha * pieces + beta * sizes) / seconds - 1)
    return float(alpha), float(beta), float(np.median(error)), float(error.max())


def touched(size_bytes: int, device: str = "cpu") -> Any:
    """Memory whose pages all exist, filled with random bytes: a memoryview, or a tensor on a GPU."""
    if device == "cuda":
        import torch

        there = torch.randint(0, 256, (size_bytes,), dtype=torch.uint8, device=device)
        torch.cuda.synchronize()
        return there
    memory = memoryview(bytearray(size_bytes))
    some = os.urandom(1 << 20)
    for start in range(0, size_bytes, len(some)):
        memory[start : start + len(some)] = some[: size_bytes - start]
    return memory


def facts(arguments: BenchArguments) -> dict[str, str]:
    """Facts about the machine and the run. Raises ValueError if the device is missing."""
    gpu = {"gpu": _gpu()} if arguments.device == "cuda" else {}
    shape = f"{arguments.layers or LAYERS} layers, {arguments.kv_heads} KV heads of {arguments.head_dim}, 2 bytes per value"
    return {
        **gpu,
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "shape": f"{shape}, blocks of {arguments.blocks[0]}",
        "repeats": str(max(arguments.repeats, LEAST_REPEATS)),
        "link": "memory" if gpu else "loopback",
    }


def _gpu() -> str:
    import torch

    for kind in ON_DEVICE:
        make_transport(kind)
    if not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; device=cpu measures sockets and shared memory")
    return torch.cuda.get_device_name()


def is_shown(row: BenchRow) -> bool:
    """Whether a row is shown in the table on the terminal."""
    return True
