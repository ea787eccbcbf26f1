"""A request on its way through the cluster, with one part for each stage that works on it.

A stage writes its own part and reads the others. When the request has ended, sim.records makes its record from the times (`_s`, simulated
seconds, NaN before they are known) and the sums (busy seconds, bytes, USD) that the parts hold.

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
    """The prompt, written by the prompt side of its node (sim.node.prompts).

    computed_tokens: prompt tokens that need no more work. has_memory: KV memory is taken for it. blocks: blocks it holds on this node
    beside its cached prefix; prefix: hashes of the prefix blocks that it uses there. queued_s: what the prefill queue still counts for it,
    including queued_encode_s for the codec. token_s: its first token is known.
    """

    computed_tokens: int = 0
    has_memory: bool = False
    blocks: int = 0
    prefix: tuple[int, ...] = ()
    cached_tokens: int = 0
    queued_s: float = 0.0
    queued_encode_s: float = 0.0
    start_s: float = math.nan
    token_s: float = math.nan
    busy_s: float = 0.0
    encode_busy_s: float = 0.0


@dataclass(slots=True, eq=False, repr=False)
class ReservationStage:
    """Memory on the node that decodes, written by its reservations (sim.node.reservations).

    active: the request counts there. blocks: promised, or taken once `reserved` holds; due_blocks: those of them that count as due because
    the prompt is computed. prefix: hashes of that node's prefix blocks that the request uses. held_tokens: prompt tokens that were there
    before anything was sent, with mean distortion held_distortion; they are not sent.
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
    """The transfer of its KV, written by the pair of nodes and what sends for it (sim.transfer).

    decision, view: the bitrate policy's first decision and what it was made on; expected_bytes: its wire bytes on the expected curve.
    in_backlog: those bytes count on the pair and on both NICs. ready_s: all KV is encoded. arrived: all promised KV is on the decode node,
    since arrived_s. expand_s: time to expand what arrived last. pipeline: of its layer groups, if there are several. refinement: what is
    sent behind the start of decoding.
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
    """Its decoding, written by the decode side of the node (sim.node.decoding).

    start_s: its KV is usable. token_s: its first decoded token. order: its place in the order of joining the batch, 0 while it is in no
    batch. first_iteration, share_s, worked_s: the batch's counts when it joined.
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
    """One attempt to serve a request: a request that a node's death has cost begins again as another job.

    index: of the request, in order of arrival. retries: earlier attempts. pair: where it is prefilled and decoded; None where one node,
    `node`, does both and nothing is sent. prompt_tokens: to prefill; decode_iterations: of the batch, after the token that prefill gives.
    (A preempted request begins again with a longer prompt.) aborted: it was given up, and whatever holds it next releases it.
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
    prompt: PromptStage = field(init=False)
    reservation: ReservationStage = field(init=False)
    transfer: TransferStage = field(init=False)
    decoding: DecodeStage = field(init=False)
    distortion_start: float = 0.0
    distortion_final: float = 0.0
    distortion_token_weighted: float = 0.0
    extrapolated: bool = False
    aborted: bool = False
    finish_s: float = math.nan
    outcome: str = "completed"
    reason: str = ""

    def __post_init__(self) -> None:
        self.prompt_tokens = self.request.isl
        self.decode_iterations = self.request.osl - 1
        self.prompt, self.reservation = PromptStage(), ReservationStage()
        self.transfer, self.decoding = TransferStage(), DecodeStage()

    @property
    def sent_tokens(self) -> int:
        """Prompt tokens whose KV is sent: at least one, since a prompt is never held whole."""
        return max(1, self.request.isl - self.reservation.held_tokens)

    def set_distortion(self, distortion: float) -> None:
        """The KV that it decodes on, from the first token to the last."""
        self.distortion_start = self.distortion_final = self.distortion_token_weighted = distortion
