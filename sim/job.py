"""A request on its way through the cluster, with one part for each stage that works on it.

A stage writes its own part and reads the others. When the request has ended, sim.records makes its record from these parts: from times
(`_s`, simulated seconds, NaN until they are known) and sums (busy seconds, bytes, USD).

Not modelled: a request that its client changes or cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abkt.policy.view import Decision, TransferView
from sim.workload.requests import Request

if TYPE_CHECKING:
    from sim.node.node import Node
    from sim.transfer.pair import NodePair
    from sim.transfer.pipeline import Pipeline
    from sim.transfer.refinement import Refinement


@dataclass(slots=True, eq=False, repr=False, init=False)
class PromptStage:
    """State of the prompt, written by the prompt side of its node (sim.node.prompts).

    computed_tokens: prompt tokens that need no more work. has_memory: KV memory is reserved for the prompt. blocks: blocks that it holds on
    this node besides its cached prefix; prefix: hashes of the prefix blocks that it uses there. queued_s: seconds of work that the prefill
    queue still counts for it, including queued_encode_s of encoding. token_s: time at which the first token is known. restored_tokens:
    tokens that are still to be copied from the host tier, whose highest distortion is restored_distortion. queued_at_s: time at which it
    came into the queue.
    """

    queued_at_s: float
    computed_tokens: int
    has_memory: bool
    blocks: int
    prefix: tuple[int, ...]
    cached_tokens: int
    restored_tokens: int
    restored_distortion: float
    queued_s: float
    queued_encode_s: float
    start_s: float
    token_s: float
    busy_s: float
    encode_busy_s: float

    def __init__(self) -> None:
        self.queued_at_s = 0.0
        self.computed_tokens = 0
        self.has_memory = False
        self.blocks = 0
        self.prefix = ()
        self.cached_tokens = 0
        self.restored_tokens = 0
        self.restored_distortion = 0.0
        self.queued_s = 0.0
        self.queued_encode_s = 0.0
        self.start_s = math.nan
        self.token_s = math.nan
        self.busy_s = 0.0
        self.encode_busy_s = 0.0


@dataclass(slots=True, eq=False, repr=False, init=False)
class ReservationStage:
    """Memory on the decode node, written by the node's reservations (sim.node.reservations).

    active: the decode node counts the request as placed on it. blocks: promised blocks, or reserved ones once `reserved` is True;
    due_blocks: those of them that count as due because the prompt is computed. prefix: hashes of the decode node's prefix blocks that the
    request uses. held_tokens: prompt tokens whose KV the decode node already has, with mean distortion held_distortion; they are not sent.
    """

    active: bool
    reserved: bool
    reserved_s: float
    blocks: int
    due_blocks: int
    prefix: tuple[int, ...]
    held_tokens: int
    held_distortion: float

    def __init__(self) -> None:
        self.active = False
        self.reserved = False
        self.reserved_s = math.nan
        self.blocks = 0
        self.due_blocks = 0
        self.prefix = ()
        self.held_tokens = 0
        self.held_distortion = 0.0


@dataclass(slots=True, eq=False, repr=False, init=False)
class TransferStage:
    """State of the KV transfer, written by the pair of nodes and its sender (sim.transfer).

    decision, view: the bitrate policy's first decision, and the view that it was made on; expected_bytes: wire bytes of that decision on
    the expected curve. in_backlog: these bytes count in the backlog of the pair and of both NICs. ready_s: time at which all KV is encoded.
    arrived: all promised KV is on the decode node, since arrived_s. expand_s: seconds to expand the KV that arrived last. pipeline: the
    request's layer groups, if there are several. refinement: the refinement that is sent after decoding has begun.
    """

    decision: Decision
    view: TransferView
    expected_bytes: float
    in_backlog: bool
    ready_s: float
    arrived: bool
    arrived_s: float
    expand_s: float
    busy_s: float
    raw_bytes: int
    wire_bytes: int
    bits_per_value: float
    pipeline: Pipeline | None
    refinement: Refinement | None

    def __init__(self) -> None:
        self.expected_bytes = 0.0
        self.in_backlog = False
        self.ready_s = math.nan
        self.arrived = False
        self.arrived_s = math.nan
        self.expand_s = 0.0
        self.busy_s = 0.0
        self.raw_bytes = 0
        self.wire_bytes = 0
        self.bits_per_value = math.nan
        self.pipeline = None
        self.refinement = None


@dataclass(slots=True, eq=False, repr=False, init=False)
class DecodeStage:
    """State of decoding, written by the decode side of the node (sim.node.decoding).

    start_s: time at which the KV is usable. token_s: time of the first decoded token. order: position in the order of joining the batch, 0
    while the request is in no batch. first_iteration, share_s, worked_s: the batch's counters when the request joined.
    """

    start_s: float
    token_s: float
    order: int
    first_iteration: int
    share_s: float
    worked_s: float
    busy_s: float
    expand_busy_s: float
    preemptions: int

    def __init__(self) -> None:
        self.start_s = math.nan
        self.token_s = math.nan
        self.order = 0
        self.first_iteration = 0
        self.share_s = 0.0
        self.worked_s = 0.0
        self.busy_s = 0.0
        self.expand_busy_s = 0.0
        self.preemptions = 0


@dataclass(slots=True, eq=False, repr=False, init=False)
class Job:
    """One attempt to serve a request. A request that is lost with a dead node starts over as a new job.

    index: index of the request, in order of arrival. retries: number of earlier attempts. pair: the nodes that prefill and decode the
    request; None if a single node, `node`, does both and nothing is sent. prompt_tokens: tokens to prefill. decode_iterations: iterations
    that the request needs after the token that prefill gives. (A preempted request starts over with a longer prompt.) aborted: the job was
    aborted; the next stage that handles it releases it.
    """

    request: Request
    index: int
    retries: int
    cost_usd: float
    pair: NodePair | None
    node: Node | None
    prefill_node: str
    decode_node: str
    prompt_tokens: int
    decode_iterations: int
    prompt: PromptStage
    reservation: ReservationStage
    transfer: TransferStage
    decoding: DecodeStage
    distortion_start: float
    distortion_final: float
    distortion_token_weighted: float
    extrapolated: bool
    aborted: bool
    finish_s: float
    outcome: str
    reason: str

    def __init__(self, request: Request, index: int, retries: int = 0, cost_usd: float = 0.0) -> None:
        self.request = request
        self.index = index
        self.retries = retries
        self.cost_usd = cost_usd
        self.pair = None
        self.node = None
        self.prefill_node = ""
        self.decode_node = ""
        self.distortion_start = 0.0
        self.distortion_final = 0.0
        self.distortion_token_weighted = 0.0
        self.extrapolated = False
        self.aborted = False
        self.finish_s = math.nan
        self.outcome = "completed"
        self.reason = ""
        self.prompt_tokens = request.isl
        self.decode_iterations = request.osl - 1
        self.prompt, self.reservation = PromptStage(), ReservationStage()
        self.transfer, self.decoding = TransferStage(), DecodeStage()

    @property
    def sent_tokens(self) -> int:
        """Number of prompt tokens whose KV is sent; at least one, because the last token is never taken from a cache."""
        return max(1, self.request.isl - self.reservation.held_tokens)

    def set_distortion(self, distortion: float) -> None:
        """Set the distortion of the KV for the whole decoding, from the first token to the last."""
        self.distortion_start = self.distortion_final = self.distortion_token_weighted = distortion
