"""The pool that holds KV in blocks, the allocator of its blocks, and copies of raw blocks. For workers, the codec and the benches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.kv.pool import Pool
    from abkt.kv.runs import BlockRun, aligned_runs
    from abkt.kv.segments import Segments

__all__ = ["BlockRun", "Pool", "Segments", "aligned_runs"]
__getattr__ = exporter(__name__, {"BlockRun": "runs", "Pool": "pool", "Segments": "segments", "aligned_runs": "runs"})
