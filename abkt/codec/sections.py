"""Where things lie on the wire behind the head of a stream: the metadata, then band after band.

A section is the CRC-32 of each of its slots (uint32, padded to 16 bytes), then the slots, pass by pass and cell by cell. Section 0 holds
the metadata of every cell that is coded, section i band i - 1. A cut is the end of a section. Slots of no bytes are not listed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from abkt.codec.cells import aligned
from abkt.codec.fixed.backend import EXACT
from abkt.codec.order import NEVER, Bands


@dataclass(frozen=True, slots=True)
class Sections:
    """order: [n] slots that are sent, as indices into [passes + 1, cells] flattened, in wire order. of: [n] the section of each.
    starts: [n] byte of each on the wire. tables: [sections] byte where each section, and so its table of checksums, begins.
    ends: where each section ends, which is where a cut may be."""

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


def sections(slots: np.ndarray, bands: Bands, forms: np.ndarray, start: int) -> Sections:
    """The sections of a stream whose head is `start` bytes. slots: [passes + 1, cells] int64, bytes of each."""
    of = np.concatenate((np.where(forms == EXACT, NEVER, 0).astype(np.uint8)[None], bands.of + np.uint8(1) * (bands.of != NEVER)))
    flat = np.where(slots > 0, of, NEVER).reshape(-1)
    order = np.argsort(flat, kind="stable")[: int((flat != NEVER).sum())]
    section = flat[order].astype(np.int64)
    sizes = slots.reshape(-1)[order]
    count = bands.count + 1
    tables = -(-4 * np.bincount(section, minlength=count) // 16) * 16
    whole = tables + np.bincount(section, weights=sizes, minlength=count).astype(np.int64)
    ends = start + whole.cumsum()
    inside = sizes.cumsum() - sizes  # bytes of slots before this one, in all sections
    before = tables.cumsum()[section]  # bytes of tables before it, its own section's too
    return Sections(order, section, start + inside + before, ends - whole, tuple(ends.tolist()))
