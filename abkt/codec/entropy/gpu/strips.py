"""Inputs of the entropy coder's kernels other than KV: its static tables, and the statistics and plans of strips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.entropy import tables
from abkt.codec.entropy.gpu.pass_kernels import CLASS_BIAS, NARROW
from abkt.codec.entropy.oracle import MEASURED_UNTIL
from abkt.codec.entropy.plan import FINER, FINEST, MANTISSAS, PASSES
from abkt.codec.entropy.stats import Stats
from abkt.codec.entropy.wire import read_statistics, rotation_of_cells
from abkt.codec.rans.launch import entries_of


@dataclass(frozen=True, slots=True)
class EntropyTables:
    """The tables of entropy/tables.py on the device. coding, intervals, owner: as in RansTables, with the rows end to end (first those of
    64 entries, then those of 4). skew, points: uint8, 64 per row, with one more row for bins that are too fine. rules: see
    measure_cells."""

    coding: torch.Tensor
    intervals: torch.Tensor
    owner: torch.Tensor
    skew: torch.Tensor
    points: torch.Tensor
    rules: torch.Tensor

    @classmethod
    @cache
    def on(cls, device: torch.device) -> EntropyTables:
        wide, narrow = slice(tables.HALVES), (slice(tables.HALVES, None), slice(NARROW.value))
        entries = [np.append(of_rows[wide], of_rows[narrow]) for of_rows in entries_of(tables.SHARES)]
        owner = np.stack([np.repeat(np.arange(len(row), dtype=np.uint8), row) for row in tables.SHARES[: tables.HALVES]])
        skew = np.append(tables.SKEW, np.zeros(tables.WIDEST, np.uint8))
        points = np.append(tables.POINTS, np.full(tables.WIDEST, tables.POINT // 2, np.uint8))
        reach = np.append((tables.SHARES[: tables.HALVES, ::2] > 0).sum(1), tables.MOST)
        rules = np.concatenate((tables.OVER, [2**31 - 1], tables.HEAVY, reach)).astype(np.int32)
        return cls(*(torch.from_numpy(part).to(device) for part in (*entries, owner, skew, points, rules)))


@dataclass(frozen=True, slots=True)
class Strips:
    """Statistics and plans of strips of equal levels, on the device. numbers: int32 [strips], as in Cells. centres: float32 [strips, dim].
    rotates: uint8 [strips]. Per coefficient, [strips, dim << levels]: steps float32, kinds and starts int32 (plan.Plan), and deviations
    int32, in the finest bins, 0 for channels that do not count for the gain. Per pass, [strips, passes]: counts int32, the symbols of a
    row, and coded uint8. listed: int32 [strips, passes, dim << levels], for each symbol of a row its channel, whether the channel starts at
    this pass, and its class."""

    levels: int
    any_rotates: bool
    numbers: torch.Tensor
    centres: torch.Tensor
    rotates: torch.Tensor
    steps: torch.Tensor
    kinds: torch.Tensor
    starts: torch.Tensor
    deviations: torch.Tensor
    listed: torch.Tensor
    counts: torch.Tensor
    coded: torch.Tensor

    @classmethod
    def of(cls, numbers: Sequence[int], stats: Stats, device: torch.device) -> Strips:
        plan = stats.plan
        counted = plan.start <= MEASURED_UNTIL
        kind = np.where(counted, plan.kind, 0)
        deviation = np.where(counted, np.ldexp(np.array(MANTISSAS)[kind & 3], (kind >> 2) + FINEST), 0)
        active = plan.start[:, None] <= np.arange(1, PASSES + 1)[:, None]
        order = np.argsort(~active, axis=2, kind="stable")
        starts = np.take_along_axis(plan.start[:, None], order, 2) == np.arange(1, PASSES + 1)[:, None]
        classes = np.take_along_axis(plan.kind[:, None], order, 2) + 4 * np.array(FINER)[:, None] + CLASS_BIAS.value
        listed = order | starts << 16 | np.maximum(classes, 0) << 17
        arrays = (
            np.array(numbers, np.int32), stats.centre, stats.rotates.astype(np.uint8), plan.step, plan.kind, plan.start,
            deviation.astype(np.int32), listed.astype(np.int32), active.sum(2, dtype=np.int32), plan.coded.astype(np.uint8),
        )  # fmt: skip
        on_device = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
        return cls(stats.levels, bool(stats.rotates.any()), *on_device)


def strips_of(
    statistics: bytes, levels: np.ndarray, cells: Cells, dtype: torch.dtype, device: torch.device
) -> tuple[list[Strips], torch.Tensor | None]:
    """The strips that a stream's statistics (entropy/wire.py) describe, in groups of equal levels, and the angles by which their centres
    rotate, if any does. Raises ValueError for statistics that no encoder wrote."""
    if not cells.count:
        return [], None
    centre, scales, rotates, theta = read_statistics(statistics, cells, dtype, levels)
    groups = []
    for count in np.unique(levels).tolist():
        here = np.flatnonzero(levels == count).tolist()
        stats = Stats(centre[here], np.stack([scales[strip] for strip in here]), rotates[here], count)
        groups.append(Strips.of(here, stats, device))
    rotation = rotation_of_cells(cells, theta) if rotates.any() else None
    return groups, None if rotation is None else torch.from_numpy(rotation).to(device)
