"""A request on its way through the cluster: where it goes, and the moments and sums its record is made of.

Not modelled: a request that its client changes under way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abkt.policy.view import Decision, TransferView
from abkt.records import RequestRecord
from sim.workload.requests import Request

if TYPE_CHECKING:
    from sim.node.prefill import PromptSide
    from sim.transfer.pair import NodePair
    from sim.transfer.pipeline import Pipeline
    from sim.transfer.refinement import Refinement


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """pair: None where one node does all of it, and nothing is sent. tokens: the prompt, which gives one token; left: iterations after
    it. (A preempted request begins again with a longer prompt.) prefilled: tokens of the prompt that need no more work.

    promised_s: what the prefill queue still counts for it, encode_s of it for the codec. reserved: its prompt has its memory. pinned:
    hashes of the prefix that it uses on the node of its prompt, and prefill_blocks what it has there beside them; decode_blocks: on the
    node that decodes. order: in which it joined the batch, 0 while it is in none. share_s, worked_s: those of the batch when it joined.
    promised: it counts on the node that decodes. chosen: its bytes count on the NICs of its pair.
    node: where all of it is, if pair is None. arrived: its KV is on the decode node. gone: it was given up; whoever meets it lets it go.
    """

    request: Request
    record: RequestRecord
    pair: NodePair | None = None
    tokens: int = field(init=False)
    left: int = field(init=False)
    prefilled: int = 0
    reserved: bool = False
    promised_s: float = field(init=False)
    encode_s: float = field(init=False)
    pinned: tuple[int, ...] = ()
    prefill_blocks: int = 0
    decode_blocks: int = 0
    held_tokens: int = 0  # of the prompt, on the decode node before anything was sent; they are not sent
    held_distortion: float = 0.0  # of those
    decode_pinned: tuple[int, ...] = ()
    prefill_start_s: float = math.nan
    encode_start_s: float = field(init=False)
    decision: Decision = field(init=False)
    view: TransferView = field(init=False)  # that the decision was made on
    expected_bytes: float = field(init=False)
    wire_start_s: float = math.nan
    reserved_s: float = math.nan  # memory to decode
    expand_s: float = field(init=False)  # of what arrived last
    expand_start_s: float = field(init=False)
    decode_start_s: float = math.nan
    first_iteration: int = field(init=False)  # of the batch, before which it had none of its tokens from there
    pipeline: Pipeline | None = None  # of its layer groups, where there are several
    refinement: Refinement | None = None  # what follows its transfer behind the start
    order: int = 0
    share_s: float = field(init=False)
    worked_s: float = field(init=False)
    due_blocks: int = 0  # what it counts for among those that decode
    promised: bool = False
    chosen: bool = False
    node: PromptSide | None = None
    arrived: bool = False
    gone: bool = False

    def __post_init__(self) -> None:
        self.tokens = self.request.isl
        self.left = self.request.osl - 1

    @property
    def sent_tokens(self) -> int:
        """Of the prompt, those that travel; one at least, for a prompt is never held whole."""
        return max(1, self.request.isl - self.held_tokens)
