"""How KV is carried between two nodes: how many calls it takes, what limits its rate besides the links, and who asks whom.

A raw transfer moves pieces of memory that are adjacent on both sides, one call each:

    block_contiguous  a run of adjacent blocks is one piece (FlowKV's layout): there are 1 + fragmentation (blocks - 1) of them
    block_wise        each block is one
    layer_wise        each block of each layer is one for K and one for V (the usual layout)

times the layer groups, for a group is a pool of its own. With tensor parallelism p on the prefill and d on the decode side,
p + d - gcd(p, d) pairs of ranks share heads, and each has its calls; where p and d differ, a rank's peer needs some heads of a block alone,
which lie apart in each layer, K and V, whatever the layout. What is coded leaves in frames from a buffer, at least one for each group and
pair of ranks. Ranks work side by side, so the calls that take time are those of one prefill rank.

A queue that holds `depth` calls lets depth x bytes per call leave in one round trip, no more.

Source: FlowKV (arXiv 2504.03775), section 3: calls by layout, 2 x layers x blocks against 1; DESIGN, section 4.
Not modelled: KV heads that several ranks hold copies of, ranks that do not finish together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from abkt.spec import ModelSpec

FRAME_BYTES = 1 << 20  # one call of the transport each


@dataclass(frozen=True, slots=True)
class TransportModel:
    """layout, fragmentation, prefill_tp, decode_tp, depth: see above; depth 0 is no limit. pull: the decode side fetches, so it must be
    told and ask, a round trip more. layer_groups, staging: see pipeline.py. frame_loss: share of frames that are lost; they are sent
    again retry_s after the last of the others, each drawn at random from `seed` and the request. timeout_s: without a byte, after which a
    transfer is offered again, backoff_s later, at most `retries` times.
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
        if min(self.prefill_tp, self.decode_tp, self.layer_groups, self.staging) < 1 or min(self.depth, self.retries) < 0:
            raise ValueError("transport: prefill_tp, decode_tp, layer_groups and staging must be at least 1, depth and retries not below 0")
        if not (0 <= self.fragmentation <= 1 and 0 <= self.frame_loss < 1):
            raise ValueError("transport: fragmentation must be in [0, 1], frame_loss in [0, 1)")
        if not (self.retry_s >= 0 and self.timeout_s > 0 and self.backoff_s >= 0):
            raise ValueError("transport: timeout_s must be above 0, retry_s and backoff_s not below 0")
        object.__setattr__(self, "pairs_of_ranks", self.prefill_tp + self.decode_tp - math.gcd(self.prefill_tp, self.decode_tp))

    def coded_calls(self, wire_bytes: float) -> int:
        """Of a whole coded transfer, by all ranks."""
        frames, least = math.ceil(wire_bytes / FRAME_BYTES), self.layer_groups * self.pairs_of_ranks
        return frames if frames > least else least

    def raw_calls(self, blocks: int, model: ModelSpec) -> int:
        """Of a whole raw transfer of so many blocks."""
        if self.layout == "layer_wise" or self.prefill_tp != self.decode_tp:
            return blocks * model.layers * model.kv_kinds * self.pairs_of_ranks
        runs = blocks if self.layout == "block_wise" else 1 + round(self.fragmentation * (blocks - 1))
        return runs * self.layer_groups * self.pairs_of_ranks

    def in_turn(self, calls: int) -> int:
        """Of so many calls, those of one prefill rank, one after another."""
        return calls if self.prefill_tp == 1 else -(-calls // self.prefill_tp)

    def limit_bytes_per_s(self, byte_s: float, wire_bytes: float, calls: int, delay_s: float) -> float:
        """What the transport itself lets pass. byte_s: seconds a byte takes one rank."""
        limit = self.prefill_tp / byte_s if byte_s > 0 else math.inf
        if self.depth and delay_s > 0:
            limit = min(limit, self.prefill_tp * self.depth * wire_bytes / calls / (2 * delay_s))
        return limit
