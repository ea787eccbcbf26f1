"""A request on its way through the cluster, with one part for each stage that works on it.

A stage writes its own part and reads the others. When the request has ended, sim.records makes its record from these parts: from times
(`_s`, simulated seconds, NaN until they are known) and sums (busy seconds, bytes, USD).

Not modelled: a request that its client changes or cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abkt.policy.view import Decision, TransferView
from sim.workload.requests import Request

if TYPE_CHECKING:
    from sim.node.node import Node
    from sim.transfer.pair import NodePair
    from sim.transfer.pipeline import Pipeline
    from sim.transfer.refinement import Refinement


@dataclass(slots=True, eq=False, repr=False)
class PromptStage:
    """State of the prompt, written by the prompt side of its node (sim.node.prompts).

    computed_tokens: prompt tokens that need no more work. has_memory: KV memory is reserved for the prompt. blocks: blocks that it holds on
    this node besides its cached prefix; prefix: hashes of the prefix blocks that it uses there. queued_s: seconds of work that the prefill
    queue still counts for it, including queued_encode_s of encoding. token_s: time at which the first token is known. restored_tokens:
    tokens that are still to be copied from the host tier, whose highest distortion is restored_distortion. queued_at_s: time at which it
    came into the queue.
    """

    queued_at_s: float = 0.0
    computed_tokens: int = 0
    has_memory: bool = False
    blocks: int = 0
    prefix: tuple[int, ...] = ()
    cached_tokens: int = 0
    restored_tokens: int = 0
    restored_distortion: float = 0.0
    queued_s: float = 0.0
    queued_encode_s: float = 0.0
    start_s: float = math.nan
    token_s: float = math.nan
    busy_s: float = 0.0
    encode_busy_s: float = 0.0


@dataclass(slots=True, eq=False, repr=False)
class ReservationStage:
    """Memory on the decode node, written by the node's reservations (sim.node.reservations).

    active: the decode node counts the request as placed on it. blocks: promised blocks, or reserved ones once `reserved` is True;
    due_blocks: those of them that count as due because the prompt is computed. prefix: hashes of the decode node's prefix blocks that the
    request uses. held_tokens: prompt tokens whose KV the decode node already has, with mean distortion held_distortion; they are not sent.
    """

    active: bool = False
    reserved: bool = False
    reserved_s: float = math.nan
    blocks: int = 0
    due_blocks: int = 0
    prefix: tuple[int, ...] = ()
    held_tokens: int = 0
    held_distortion: float = 0.0


@dataclass(slots=True, eq=False, repr=False)
class TransferStage:
    """State of the KV transfer, written by the pair of nodes and its sender (sim.transfer).

    decision, view: the bitrate policy's first decision, and the view that it was made on; expected_bytes: wire bytes of that decision on
    the expected curve. in_backlog: these bytes count in the backlog of the pair and of both NICs. ready_s: time at which all KV is encoded.
    arrived: all promised KV is on the decode node, since arrived_s. expand_s: seconds to expand the KV that arrived last. pipeline: the
    request's layer groups, if there are several. refinement: the refinement that is sent after decoding has begun.
    """

    decision: Decision = field(init=False)
    view: TransferView = field(init=False)
    expected_bytes: float = 0.0
    in_backlog: bool = False
    ready_s: float = math.nan
    arrived: bool = False
    arrived_s: float = math.nan
    expand_s: float = 0.0
    busy_s: float = 0.0
    raw_bytes: int = 0
    wire_bytes: int = 0
    bits_per_value: float = math.nan
    pipeline: Pipeline | None = None
    refinement: Refinement | None = None


@dataclass(slots=True, eq=False, repr=False)
class DecodeStage:
    """State of decoding, written by the decode side of the node (sim.node.decoding).

    start_s: time at which the KV is usable. token_s: time of the first decoded token. order: position in the order of joining the batch, 0
    while the request is in no batch. first_iteration, share_s, worked_s: the batch's counters when the request joined.
    """

    start_s: float = math.nan
    token_s: float = math.nan
    order: int = 0
    first_iteration: int = 0
    share_s: float = 0.0
    worked_s: float = 0.0
    busy_s: float = 0.0
    expand_busy_s: float = 0.0
    preemptions: int = 0


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """One attempt to serve a request. A request that is lost with a dead node starts over as a new job.

    index: index of the request, in order of arrival. retries: number of earlier attempts. pair: the nodes that prefill and decode the
    request; None if a single node, `node`, does both and nothing is sent. prompt_tokens: tokens to prefill. decode_iterations: iterations
    that the request needs after the token that prefill gives. (A preempted request starts over with a longer prompt.) aborted: the job was
    aborted; the next stage that handles it releases it.
    """

    request: Request
    index: int
    retries: int = 0
    cost_usd: float = 0.0
    pair: NodePair | None = None
    node: Node | None = None
    prefill_node: str = ""
    decode_node: str = ""
    prompt_tokens: int = field(init=False)
    decode_iterations: int = field(init=False)
    prompt: PromptStage = field(init=False, default_factory=PromptStage)
    reservation: ReservationStage = field(init=False, default_factory=ReservationStage)
    transfer: TransferStage = field(init=False, default_factory=TransferStage)
    decoding: DecodeStage = field(init=False, default_factory=DecodeStage)
    distortion_start: float = 0.0
    distortion_final: float = 0.0
    distortion_token_weighted: float = 0.0
    extrapolated: bool = False
    aborted: bool = False
    finish_s: float = math.nan
    outcome: str = "completed"
    reason: str = ""

    def __post_init__(self) -> None:
        self.prompt_tokens, self.decode_iterations = self.request.isl, self.request.osl - 1

    @property
    def sent_tokens(self) -> int:
        """Number of prompt tokens whose KV is sent; at least one, because the last token is never taken from a cache."""
        return max(1, self.request.isl - self.reservation.held_tokens)

    def set_distortion(self, distortion: float) -> None:
        """Set the distortion of the KV for the whole decoding, from the first token to the last."""
        self.distortion_start = self.distortion_final = self.distortion_token_weighted = distortion
