"""The transport between two nodes: the number of calls of a transfer, its own rate limit, and which side starts it.

A raw transfer moves pieces of memory that are adjacent on both sides, with one call each:

    block_contiguous  a run of adjacent blocks is one piece (FlowKV's layout): 1 + fragmentation (blocks - 1) pieces
    block_wise        each block is one piece
    layer_wise        each block of each layer is one piece for K and one for V (the usual layout)

The number of pieces is multiplied by the number of layer groups, because each group has its own pool. With tensor parallelism p on the
prefill side and d on the decode side, p + d - gcd(p, d) pairs of ranks share heads, and each pair has its own calls. If p and d differ, the
peer of a rank needs only some heads of a block. These are not adjacent in any layout, so there is one piece per layer for each of K and V.
Coded KV is sent in frames from a buffer, at least one for each group and pair of ranks. Ranks work in parallel, so only the calls of one
prefill rank take time.

A queue of `depth` calls sends at most depth x bytes per call in one round trip.

Source: FlowKV (arXiv 2504.03775), section 3: calls by layout, 2 x layers x blocks against 1; docs/design.md, section "Where KV lives".
Not modelled: KV heads of which several ranks hold copies; ranks that do not finish together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from abkt.ranges import bound, check_seed
from abkt.spec import ModelSpec

FRAME_BYTES = 1 << 20  # bytes of a frame; each frame is one call of the transport


@dataclass(frozen=True, slots=True)
class TransportModel:
    """The settings of a transport.

    Parameters
    ----------
    layout : pieces of a raw transfer: block_contiguous, block_wise or layer_wise (see the module's docstring).
    fragmentation : share of a request's blocks that are not adjacent to the previous block, in [0, 1].
    prefill_tp, decode_tp : tensor-parallel ranks of each side.
    depth : calls that may be under way at once; 0: no limit.
    pull : the decode side fetches the KV. A notice and a request come first, which takes one more round trip.
    layer_groups : groups of layers that are sent one after another while the pass runs (sim.transfer.pipeline); 1: KV is sent whole.
    staging : groups that may be encoded and not yet sent.
    frame_loss : share of frames that are lost, in [0, 1); drawn at random for each frame, from `seed` and the request.
    retry_s : seconds after the last delivered frame at which lost frames are sent again.
    timeout_s : seconds without a byte after which a transfer is offered again; math.inf: never.
    retries, backoff_s : a transfer is offered again at most `retries` times, each time after backoff_s seconds.
    seed : seed of the losses.

    Raises
    ------
    ValueError : a value is out of range.
    """

    layout: Literal["block_contiguous", "block_wise", "layer_wise"] = "block_contiguous"
    fragmentation: float = 0.0
    prefill_tp: int = 1
    decode_tp: int = 1
    depth: int = 0
    pull: bool = False
    layer_groups: int = 1
    staging: int = 2
    frame_loss: float = 0.0
    retry_s: float = 0.0
    timeout_s: float = math.inf
    retries: int = 3
    backoff_s: float = 0.1
    seed: int = 0
    pairs_of_ranks: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.layout not in ("block_contiguous", "block_wise", "layer_wise"):
            raise ValueError(f"transport.layout is {self.layout}; it must be block_contiguous, block_wise or layer_wise")
        bound(self, "prefill_tp", "decode_tp", "layer_groups", "staging", least=1, most=100_000)
        bound(self, "depth", "retries", "retry_s", "backoff_s", least=0)
        bound(self, "fragmentation", least=0, most=1)
        bound(self, "frame_loss", least=0, below=1)
        bound(self, "timeout_s", above=0, infinite=True)
        check_seed(self)
        object.__setattr__(self, "pairs_of_ranks", self.prefill_tp + self.decode_tp - math.gcd(self.prefill_tp, self.decode_tp))

    def coded_calls(self, wire_bytes: float) -> int:
        """Number of calls of a whole coded transfer, over all ranks."""
        frames, least = math.ceil(wire_bytes / FRAME_BYTES), self.layer_groups * self.pairs_of_ranks
        return frames if frames > least else least

    def raw_calls(self, blocks: int, model: ModelSpec) -> int:
        """Number of calls of a whole raw transfer of this many blocks, over all ranks."""
        if self.layout == "layer_wise" or self.prefill_tp != self.decode_tp:
            return blocks * model.layers * model.kv_kinds * self.pairs_of_ranks
        runs = blocks if self.layout == "block_wise" else 1 + round(self.fragmentation * (blocks - 1))
        return runs * self.layer_groups * self.pairs_of_ranks

    def calls_per_rank(self, calls: int) -> int:
        """Number of these calls that one prefill rank makes, one after another."""
        return calls if self.prefill_tp == 1 else -(-calls // self.prefill_tp)

    def limit_bytes_per_s(self, byte_s: float, wire_bytes: float, calls: int, delay_s: float) -> float:
        """The rate that the transport itself allows, in bytes/s. byte_s: seconds that one rank takes for a byte."""
        limit = self.prefill_tp / byte_s if byte_s > 0 else math.inf
        if self.depth and delay_s > 0:
            limit = min(limit, self.prefill_tp * self.depth * wire_bytes / calls / (2 * delay_s))
        return limit
