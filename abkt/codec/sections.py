"""Where slots lie on the wire after the head of a stream: the metadata first, then band after band.

A section is the CRC-32 of each of its slots (uint32, padded to 16 bytes), then the slots, pass by pass and cell by cell. Section 0 holds
the metadata of every coded cell, section i holds band i - 1. A stream may be cut at the end of each section. Slots of no bytes are left
out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from abkt.codec.cells import aligned
from abkt.codec.coder import OMITTED
from abkt.codec.order import NEVER, Bands


@dataclass(frozen=True, slots=True)
class Sections:
    """order: [n] slots that are sent, as indices into [passes + 1, cells] flattened, in wire order. of: [n] the section of each slot.
    starts: [n] the byte on the wire where each slot begins. tables: [sections] the byte where each section, and so its table of checksums,
    begins. ends: the byte where each section ends, which is where the stream may be cut."""

    order: np.ndarray
    of: np.ndarray
    starts: np.ndarray
    tables: np.ndarray
    ends: tuple[int, ...]

    def offsets(self, shape: tuple[int, ...]) -> np.ndarray:
        """Where each slot is on the wire, in `shape` = [passes + 1, cells]; 0 for slots that are not sent."""
        offsets = np.zeros(int(np.prod(shape)), dtype=np.int64)
        offsets[self.order] = self.starts
        return offsets.reshape(shape)

    def table_bytes(self, section: int) -> int:
        return aligned(4 * int((self.of == section).sum()))


def sections(sizes: np.ndarray, bands: Bands, classes: np.ndarray, start: int) -> Sections:
    """The sections of a stream whose head is `start` bytes. sizes: [passes + 1, cells] int64, bytes of each slot."""
    of = np.concatenate((np.where(classes >= OMITTED, NEVER, 0).astype(np.uint8)[None], bands.of + np.uint8(1) * (bands.of != NEVER)))
    flat = np.where(sizes > 0, of, NEVER).reshape(-1)
    order = np.argsort(flat, kind="stable")[: int((flat != NEVER).sum())]
    section = flat[order].astype(np.int64)
    sent = sizes.reshape(-1)[order]
    count = bands.count + 1
    tables = -(-4 * np.bincount(section, minlength=count) // 16) * 16
    whole = tables + np.bincount(section, weights=sent, minlength=count).astype(np.int64)
    ends = start + whole.cumsum()
    slots_before = sent.cumsum() - sent  # bytes of earlier slots, of all sections
    tables_before = tables.cumsum()[section]  # bytes of earlier tables, and of the section's own
    return Sections(order, section, start + slots_before + tables_before, ends - whole, tuple(ends.tolist()))
