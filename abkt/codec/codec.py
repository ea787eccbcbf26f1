"""The codec: KV of a sequence to an embedded stream, and any prefix of the stream that ends at a cut back to KV."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from abkt.codec import edges
from abkt.codec.calibration import Calibration
from abkt.codec.cells import BITS, Cells
from abkt.codec.coder import OMITTED, VERBATIM, Coder, StreamPrefix
from abkt.codec.entropy.coder import EntropyCoder
from abkt.codec.fixed import compiled
from abkt.codec.fixed.backend import Backend
from abkt.codec.fixed.coder import FixedCoder
from abkt.codec.fixed.oracle import OracleBackend
from abkt.codec.header import DTYPES, ORDERS, StreamHeader, read_header
from abkt.codec.klt.basis import refusal
from abkt.codec.klt.coder import KltCoder, tile_tokens
from abkt.codec.omitted import omitted, without_omitted
from abkt.codec.stream import Stream, StreamParts, assemble, slot_sums
from abkt.kv.pool import Pool
from abkt.policy.view import CoderName, Order
from abkt.spec import KVLayout

BackendName = Literal["auto", "oracle", "compiled", "triton"]


@dataclass(frozen=True, slots=True)
class Expanded:
    """The result of `Codec.expand`: the cut up to which it wrote, the number of tokens, the distortion that the encoder measured at this
    cut (weighted relative squared error; with coder klt, and with a calibration that has divergence laws, the predicted divergence of the
    answers, in nats a token), and the number of cells
    that travelled verbatim."""

    cut: int
    tokens: int
    distortion: float
    verbatim_cells: int


class Codec:
    """Codes the KV of sequences in a pool as embedded streams, and expands prefixes of them.

    Parameters
    ----------
    layout : layout of the pools on both sides; only their numbers of blocks may differ.
    backend : implementation of the fixed coder. auto takes Triton for a pool on a GPU, else compiled code where g++ and head_dim allow it,
        else the torch oracle. All write the same bytes.
    tile_tokens : tokens of a tile, a multiple of layout.block_tokens. A cell is one tile of one (layer, K or V, head).
    rope_theta : base of the model's rotary embedding, from which the entropy coder predicts K. Without it streams are larger, but no less
        accurate.
    calibration : says which heads the entropy coder codes as differences of neighbouring tokens; without it this is decided for each
        sequence.
    cut_windows : leave out cells that lie before the window of their layer, so that no later token sees them (layout.model.layer_windows).
        Their places in the pool that a stream is expanded into keep what they hold.

    Raises
    ------
    ValueError : for a dtype that cannot be coded, a tile that is not a whole number of blocks, or a calibration of another model.

    Examples
    --------
    >>> stream = codec.encode(pool, table, tokens=4096)  # doctest: +SKIP
    >>> codec.expand(stream.prefix(stream.curve.cut_reaching(0.01)), other_pool, other_table)  # doctest: +SKIP
    """

    def __init__(
        self,
        layout: KVLayout,
        backend: BackendName = "auto",
        tile_tokens: int = 128,
        rope_theta: float | None = None,
        calibration: Calibration | None = None,
        cut_windows: bool = False,
    ) -> None:
        if layout.model.dtype not in DTYPES:
            raise ValueError(f"model {layout.model.name}: KV of {layout.model.dtype} cannot be coded; {', '.join(DTYPES)} can")
        self.layout = layout
        self.tile_tokens = tile_tokens
        self.backend = backend
        self.rope_theta = rope_theta
        self.calibration = calibration
        self.cut_windows = cut_windows
        if calibration:
            calibration.check(layout)
        self._loaded: dict[str, Backend] = {}
        self._klt = KltCoder(calibration.basis if calibration else None)
        self._coders: dict[CoderName, Coder] = {
            "fixed": FixedCoder(self.backend_on),
            "entropy": EntropyCoder(rope_theta, calibration.levels if calibration else None),
            "klt": self._klt,
        }
        Cells(layout, 1, tile_tokens, 8)  # raises for a tile that is not a whole number of blocks

    def describe(self, device: str | torch.device = "cpu") -> str:
        """The backend that codes a pool on `device`, in words."""
        return self.backend_on(torch.device(device)).describe()

    def layer_ends(self) -> tuple[int, ...]:
        """The numbers of layers, rising, after which a sequence may be divided into streams of their own: with a klt basis, where no layers
        are transformed together (`Basis.ends`)."""
        basis = self.calibration.basis if self.calibration else None
        return basis.ends() if basis else tuple(range(1, self.layout.model.layers + 1))

    def cells(self, tokens: int, depth_bits: int = 8, coder: CoderName = "fixed") -> Cells:
        """How a sequence of `tokens` tokens is divided."""
        if coder == "klt":
            return Cells(self.layout, tokens, tile_tokens(self.layout.block_tokens), depth_bits, edges=False)
        return Cells(self.layout, tokens, self.tile_tokens, depth_bits)

    def encode(
        self,
        pool: Pool,
        table: Sequence[int],
        tokens: int,
        depth_bits: int = 8,
        order: Order = "slope",
        weights: torch.Tensor | None = None,
        coder: CoderName | Literal["auto"] = "fixed",
        importance: torch.Tensor | None = None,
        of_raw: float = 1.0,
    ) -> Stream:
        """Code the first `tokens` tokens of a sequence.

        Parameters
        ----------
        pool, table : the pool, and the block table of the sequence, in the order of its tokens.
        tokens : how many tokens are coded, at least 1.
        depth_bits : 1, 2, 3, 4, 6 or 8, the bits per value up to which the stream can be refined.
        order : slope sends first what removes most distortion per byte; uniform sends the first pass of all cells, then the second.
        weights : how much the squared error of each cell matters, [layers, kinds, heads, tiles] (`Cells.shape`). Only ratios matter; None
            weighs all cells equally.
        coder : fixed packs bits; entropy needs fewer bytes for the same error, but takes far longer, and a pool on the CPU; klt needs a
            calibration with a basis, and far fewer bytes for the same divergence of the model's answers. auto takes the one of entropy
            and klt that was better at `of_raw` on the calibration's held-out prompts (`Calibration.coder_at`), entropy without a basis.
        importance : for coder klt, how much each token matters to the last queries, [layers, 2, kv_heads, tokens]
            (`Importance.tokens`). None: all tokens matter alike.
        of_raw : for coder auto, the share of the raw bytes at which the stream will be cut. Both weights and importance may be given then;
            the chosen coder uses its own.

        Returns
        -------
        The stream. It holds a copy of the coded KV, so the pool may change afterwards.

        Raises
        ------
        ValueError : for a pool of another layout, a table that does not hold the tokens, an unknown depth, order or coder, for weights or
            importance that do not fit, and for coder klt without a basis of this model.
        """
        blocks = self._check(pool, table, tokens)
        if order not in ORDERS:
            raise ValueError(f"order {order} is unknown; one of {', '.join(ORDERS)} is possible")
        if coder == "auto":
            coder = self.calibration.coder_at(of_raw) if self.calibration else "entropy"
            weights, importance = (None, importance) if coder == "klt" else (weights, None)
        if coder not in self._coders:
            raise ValueError(f"coder {coder} is unknown; one of {', '.join((*self._coders, 'auto'))} is possible")
        if coder == "klt" and (why := refusal(self.layout.model)):
            raise ValueError(why)
        if importance is not None and coder != "klt":
            raise ValueError(f"coder {coder} takes no importance of tokens; give it weights of cells")
        cells = self.cells(tokens, depth_bits, coder)
        by: Coder = self._klt.weighed(importance) if coder == "klt" else self._coders[coder]
        coded = by.encode(pool.data, cells.coded_table(blocks), cells)
        if self.cut_windows:
            coded = without_omitted(coded, omitted(cells), pool.data, cells.coded_table(blocks), cells)
        at_edges = edges.edges(pool, blocks, cells, coded.statistics)
        verbatim = edges.verbatim_cells(pool, blocks, cells, coded.cells.verbatim)
        sums = slot_sums(coded, self.backend_on(pool.data.device))
        law = self.calibration.laws.get(coder) if self.calibration else None
        return assemble(StreamParts(cells, coder, coded, at_edges, verbatim, sums, law), order, weights)

    def expand(self, data: bytes | bytearray | memoryview, pool: Pool, table: Sequence[int]) -> Expanded:
        """Write what a prefix of a stream holds into a pool.

        Parameters
        ----------
        data : the first bytes of a stream, up to the end of a cut.
        pool, table : where the sequence goes; the blocks of the table may lie anywhere in the pool.

        Returns
        -------
        What was written.

        Raises
        ------
        ValueError : if the prefix does not end at a cut, is damaged (the message names the section or cell), of another version or for
            another layout, or if the table does not hold it. The pool is not changed then.
        """
        view = memoryview(data).cast("B")
        header = read_header(view, self.layout)
        cells, ends = header.cells, header.ends
        blocks = self._check(pool, table, cells.tokens)
        cut = _cut_at(len(view), ends)
        wire = np.frombuffer(view, dtype=np.uint8)
        _verify(header, cut, wire, self.backend_on(pool.data.device))
        if cells.count:
            offsets, present = header.sections.offsets(header.sizes.shape), (header.bands.of < cut).sum(0).astype(np.int8)
            statistics = bytes(wire[header.statistics_at : header.verbatim_at])
            skipped = np.maximum(header.classes, np.uint8(VERBATIM) * (header.classes == OMITTED))  # a coder writes neither of them
            prefix = StreamPrefix(wire, offsets, header.sizes, present, skipped, header.levels, statistics)
            self._coders[header.coder].expand(prefix, pool.data, cells.coded_table(blocks), cells)
        edges.put_edges(wire, header, pool, blocks)
        edges.put_verbatim_cells(wire, header, pool, blocks)
        return Expanded(cut, cells.tokens, header.distortion[cut], len(header.verbatim))

    def _check(self, pool: Pool, table: Sequence[int], tokens: int) -> list[int]:
        if pool.layout.shape[1:] != self.layout.shape[1:] or pool.layout.model.dtype != self.layout.model.dtype:
            theirs, ours = pool.layout, self.layout
            raise ValueError(
                f"pool {theirs.shape} of {theirs.model.dtype} does not fit this codec's {ours.shape} of {ours.model.dtype}; "
                "only the number of blocks may differ"
            )
        return pool.check_table(table, tokens)

    def backend_on(self, device: torch.device) -> Backend:
        """The backend that codes a pool on `device`."""
        if device.type not in self._loaded:
            self._loaded[device.type] = self._load(device)
        return self._loaded[device.type]

    def _load(self, device: torch.device) -> Backend:
        if self.backend == "triton" or (self.backend == "auto" and device.type == "cuda"):
            from abkt.codec.fixed.launch import TritonBackend

            return TritonBackend()
        if self.backend == "oracle":
            return OracleBackend()
        return compiled.for_layout(self.layout, required=self.backend == "compiled") or OracleBackend()


def _cut_at(size: int, ends: tuple[int, ...]) -> int:
    if size in ends:
        return ends.index(size)
    if size > ends[-1]:
        raise ValueError(f"stream of {ends[-1]} bytes is followed by {size - ends[-1]} that do not belong to it")
    cut = next(i for i, end in enumerate(ends) if end > size)
    where = f"band {cut - 1}" if cut else "its edges or metadata"
    raise ValueError(f"stream is cut inside {where}: {size} bytes, and the next cut is at {ends[cut]}")


def _verify(header: StreamHeader, cut: int, wire: np.ndarray, backend: Backend) -> None:
    view, at, cells = wire.data, header.sections, header.cells
    for name, start, end, expected in (
        ("verbatim edges and statistics", header.edges_at, header.verbatim_at, header.edges_crc),
        ("verbatim cells", header.verbatim_at, header.head_bytes, header.verbatim_crc),
    ):
        if zlib.crc32(view[start:end]) != expected:
            raise ValueError(f"stream is damaged in its {name}: their checksum does not match")
    here = at.of <= cut
    order, of = at.order[here], at.of[here]
    tables = []
    for section, start in enumerate(at.tables[: cut + 1]):
        table, used = wire[int(start) :][: at.table_bytes(section)], 4 * int((of == section).sum())
        if table[used:].any():
            raise ValueError(f"stream is damaged: only zeros may follow the checksums of section {section}")
        tables.append(table[:used])
    expected_sums = np.concatenate(tables).view("<u4")
    wrong = np.flatnonzero(backend.checksums(wire, at.starts[here], header.sizes.reshape(-1)[order]) != expected_sums)
    if len(wrong):
        index, cell = divmod(int(order[wrong[0]]), cells.count)
        part = "metadata" if index == 0 else f"bits {8 - BITS[index - 1] - 1} to {8 - BITS[index]}"
        raise ValueError(f"stream is damaged in {cells.name(cell)}, {part}: the checksum does not match")
