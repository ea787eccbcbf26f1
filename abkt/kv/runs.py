"""Runs: blocks that are adjacent on both sides of a transfer, so that each run is one call and one copy.

Source: FlowKV (arXiv 2504.03775), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockRun:
    """`blocks` adjacent blocks from block `source` of one pool to block `destination` of another."""

    source: int
    destination: int
    blocks: int


def aligned_runs(source: Sequence[int], destination: Sequence[int]) -> list[BlockRun]:
    """The fewest runs that move the blocks of one table to those of another.

    Parameters
    ----------
    source, destination : block tables of equal length; block source[i] goes to destination[i].

    Returns
    -------
    Runs in table order. A run ends where the next block is not adjacent on either side.

    Raises
    ------
    ValueError : if the tables differ in length.

    Source: FlowKV (arXiv 2504.03775), section 3.3.
    """
    if len(source) != len(destination):
        raise ValueError(f"tables of {len(source)} and {len(destination)} blocks cannot be aligned; they must have equal length")
    runs: list[BlockRun] = []
    start = 0
    for i in range(1, len(source) + 1):
        if i < len(source) and source[i] == source[i - 1] + 1 and destination[i] == destination[i - 1] + 1:
            continue
        runs.append(BlockRun(source[start], destination[start], i - start))
        start = i
    return runs if source else []
