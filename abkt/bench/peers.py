"""Other projects' 4-bit KV quantisers on a CPU, beside our codec in the same run and in one thread: how many times longer they take.

All code the same values, those between the verbatim edges of a sequence. Peers get them gathered in one contiguous tensor, and return one.
Our codec reads and writes scattered blocks, and measures the errors of all passes, so the comparison favours the peers. peer_codecs.py has
them.

Rows: `peer_<name>_encode`, `_decode` (ns/token, beside ours at 4 bits); `_nmse` (squared error over the squared deviation from the
channels' means); `_bits` (bits per value on the wire, scales and zeros included); and `_over_ours`, the peer's time for encode and decode
over ours. Our time is that at 4 bits or, if the peer's error is smaller, at the least depth at which our error is not larger; the unit
names this depth. The smallest of these ratios is `over_fastest_peer`, beside `over_fastest_peer_bits`, our bits and those of that peer. A
peer that is not installed, or fails, is named in the facts of the run.
"""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from abkt.bench.arguments import BenchArguments
from abkt.bench.case import BenchCase
from abkt.bench.peer_codecs import PEERS, PeerCodec
from abkt.bench.rows import BenchRow
from abkt.bench.timing import medians
from abkt.codec.cells import Cells
from abkt.codec.fixed.backend import Arrived

DEPTHS = (4, 6, 8)
FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class PeerResult:
    """Error, bits per value and time of a peer, or of our codec at one depth. seconds: the time to encode and decode all tokens."""

    nmse: float
    bits: float
    seconds: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class PeerMatch:
    """A peer compared with our codec at `depth` bits. ratio: the peer's time over ours. Both are 0 if no depth has as small an error."""

    depth: int
    ratio: float


def match(peer: PeerResult, ours: Mapping[int, PeerResult]) -> PeerMatch:
    depth = depth_for(peer.nmse, ours)
    return PeerMatch(depth, sum(peer.seconds) / sum(ours[depth].seconds) if depth else 0.0)


def depth_for(nmse: float, ours: Mapping[int, PeerResult]) -> int:
    """The least depth of our codec at which its error is not larger, or 0."""
    return next((depth for depth in sorted(ours) if ours[depth].nmse <= nmse), 0)


def rows(case: BenchCase, arguments: BenchArguments, facts: dict[str, str]) -> Iterator[BenchRow]:
    """Rows of every installed peer, and the summary; the version of each, or why it is missing, is added to `facts`.

    The caller limits torch to one thread. A case on a GPU, or without tokens between its edges, gives no rows.
    """
    cells = case.cells(DEPTHS[0])
    if case.pool.data.device.type != "cpu" or not cells.count:
        return
    with quiet():
        peers, ours = measured(case, arguments.repeats, facts)
    tokens, at_4 = cells.coded_blocks * case.layout.block_tokens, ours[DEPTHS[0]]
    for name, peer in peers.items():
        for verb, seconds, yardstick in zip(("encode", "decode"), peer.seconds, at_4.seconds, strict=True):
            yield BenchRow(f"peer_{name}_{verb}", seconds / tokens * 1e9, "ns/token", yardstick / tokens * 1e9)
        yield BenchRow(f"peer_{name}_nmse", peer.nmse, "of the deviation", at_4.nmse)
        yield BenchRow(f"peer_{name}_bits", peer.bits, "bits per value", at_4.bits)
    yield from compared(peers, ours)


def compared(peers: Mapping[str, PeerResult], ours: Mapping[int, PeerResult]) -> Iterator[BenchRow]:
    """Each peer's time over ours, and the smallest of these ratios."""
    matches = {name: match(peer, ours) for name, peer in peers.items()}
    for name, found in matches.items():
        yield BenchRow(f"peer_{name}_over_ours", found.ratio, _unit(found), 1.0)
    if matches:
        name = min(matches, key=lambda name: matches[name].ratio)
        found = matches[name]
        yield BenchRow("over_fastest_peer", found.ratio, f"{_unit(found)} ({name})", 1.0)
        yield BenchRow("over_fastest_peer_bits", ours[found.depth or max(ours)].bits, "bits per value", peers[name].bits)


def _unit(found: PeerMatch) -> str:
    return f"x ours at {found.depth} bits" if found.depth else "no depth of ours is as accurate"


def measured(case: BenchCase, repeats: int, facts: dict[str, str]) -> tuple[dict[str, PeerResult], dict[int, PeerResult]]:
    """Results of the peers, and of our codec by depth, all timed in the same interleaved rounds."""
    x = contiguous(case, case.pool.data)
    deviation = squared(x, x.float().mean(-2, keepdim=True))
    functions: dict[tuple[str | int, str], Callable[[], object]] = {}
    peers: dict[str, PeerResult] = {}
    for made in installed(facts):
        try:
            coded = made.encode(x)
            y = made.decode(coded)
            peers[made.name] = PeerResult(squared(x, y) / deviation, 8 * made.wire_bytes(coded) / x.numel())
        except FAILURES as error:
            facts[f"peer {made.name}"] += f", fails: {reason_of(error)}"
            continue
        functions[made.name, "encode"] = lambda made=made: made.encode(x)  # type: ignore[misc]
        functions[made.name, "decode"] = lambda made=made, coded=coded: made.decode(coded)  # type: ignore[misc]
    ours: dict[int, PeerResult] = {}
    for depth in DEPTHS if peers else DEPTHS[:1]:
        cells = case.cells(depth)
        coded = case.encode(cells)
        arrived = case.arrived(cells, coded)
        left = squared(x, contiguous(case, case.expand(cells, arrived)))
        ours[depth] = PeerResult(left / deviation, 8 * wire_bytes(cells, arrived, x.dtype) / x.numel())
        functions[depth, "encode"] = lambda cells=cells: case.encode(cells)  # type: ignore[misc]
        functions[depth, "decode"] = lambda cells=cells, arrived=arrived: case.expand(cells, arrived)  # type: ignore[misc]
        if all(depth_for(peer.nmse, ours) for peer in peers.values()):
            break
    taken = medians({f"{who} {verb}": function for (who, verb), function in functions.items()}, x.device, repeats)

    def timed(who: str | int, result: PeerResult) -> PeerResult:
        return PeerResult(result.nmse, result.bits, (taken[f"{who} encode"], taken[f"{who} decode"]))

    return {name: timed(name, peer) for name, peer in peers.items()}, {depth: timed(depth, one) for depth, one in ours.items()}


def installed(facts: dict[str, str]) -> Sequence[PeerCodec]:
    """The peers that can be made here."""
    made: list[PeerCodec] = []
    for kind in PEERS:
        key, distribution = f"peer {kind.name}", kind.distribution
        try:
            facts[key] = f"{distribution} {importlib.metadata.version(distribution)}"
        except importlib.metadata.PackageNotFoundError:
            facts[key] = f"{distribution} not installed"
            continue
        try:
            made.append(kind())
        except FAILURES as error:
            facts[key] += f", cannot be imported: {reason_of(error)}"
    return made


def reason_of(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def contiguous(case: BenchCase, data: torch.Tensor) -> torch.Tensor:
    """The coded tokens of a pool's tensor, [layers, kinds, heads, tokens, head_dim]."""
    return data[case.cells(DEPTHS[0]).coded_table(case.table)].permute(1, 2, 3, 0, 4, 5).flatten(3, 4).contiguous()


def squared(x: torch.Tensor, y: torch.Tensor) -> float:
    return sum(float((a.double() - b.double()).square().sum()) for a, b in zip(x.flatten(0, 2), y.flatten(0, 2), strict=True))


def wire_bytes(cells: Cells, arrived: Arrived, dtype: torch.dtype) -> int:
    """Bytes of everything that expand needs, except shapes: the slots, the centres in the pool's dtype, and a byte per cell for its
    class."""
    return cells.body_bytes + arrived.centres.size * dtype.itemsize + arrived.classes.nbytes


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of peers, about missing hardware and about each other."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
