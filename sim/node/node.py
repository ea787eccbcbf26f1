"""A node: prompts and decoding on one GPU, in iterations. There is one event per change of its work, not one per token.

An iteration gives each request of the batch a token, and may also compute prompts or chunks of them. Decoding comes first. Prompts get the
rest of the token budget, in order of arrival; with a budget of 0, one whole prompt runs at a time. The iteration lasts as long as the
batch's iteration and the prompts' own passes together, but with only one overhead, the larger of the two. Prefill nodes, decode nodes and
nodes for both run the same code; they differ only in the work that they are given.

The end of an iteration has these steps, in this order: complete requests leave; computed prompts are encoded one after another on the same
GPU and go to the sender, or join the batch if they are decoded here; other work runs (expanding a refinement or a group of layers); KV that
has fully arrived is expanded, as far as the batch has places, and joins the batch. Work that arrives meanwhile waits for the next end.

Not modelled: CUDA streams that overlap codec and passes; attention that is less efficient in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from sim.cost import Costs
from sim.job import Job
from sim.node.batch import Batch
from sim.node.decoding import DecodeSide
from sim.node.gpu import Gpu
from sim.node.memory import KvMemory
from sim.node.pace import Pace
from sim.node.prompts import PromptSide
from sim.node.reservations import KvReservations
from sim.specs import EngineSpec
from sim.timers import Process, Timers


class Node:
    """One instance of the cluster: a prompt side, a decode side and their reservations over one GPU.

    Parameters
    ----------
    clock : simulated time.
    name : name of the node in records.
    costs, pace : costs of its work in seconds; nodes with the same profile share them.
    memory : its KV memory.
    usd_per_hour : price of the whole instance.
    engine : batching and memory settings of its engine.
    done : called with each request that ends here.
    kind : number of its kind; nodes with the same costs and the same memory size have the same number.

    Attributes
    ----------
    gpu : the running iteration, and the work that waits for the next one.
    prompts, decoding, reservations : prefill side, decode side, and reservations of decode memory.
    number : its place among the cluster's nodes.
    role : kind of work that it is given now: prefill | decode | both, "dead", or "" while it changes its role (sim.roles).
    prefill_weight, decode_weight : its speed relative to the fastest node of the cluster.
    rankings : the `changed` set of each ranking that the node is in.

    Routing, roles and admission policies read a node as abkt.policy.routing.base.PrefillLoad and DecodeLoad.
    """

    gpu_class: ClassVar[type[Gpu]] = Gpu
    batch_class: ClassVar[type[Batch]] = Batch
    decoding_class: ClassVar[type[DecodeSide]] = DecodeSide
    prompts_class: ClassVar[type[PromptSide]] = PromptSide

    def __init__(
        self,
        clock: Timers,
        name: str,
        costs: Costs,
        pace: Pace,
        memory: KvMemory,
        usd_per_hour: float,
        engine: EngineSpec,
        done: Callable[[Job], None],
        kind: int = 0,
    ) -> None:
        self.name, self.kind = name, kind
        self.costs, self.memory = costs, memory
        self.role = ""
        self.number = 0
        self.rebuilding = False
        self.prefill_weight = self.decode_weight = 1.0
        self.rankings: list[set[Any]] = []
        self.memory_freed: Callable[[], None] = _nothing  # called when memory is freed without a request's end
        self.drained: Callable[[Node], None] | None = None  # called when a node without a role has nothing left to do
        self.gpu = self.gpu_class(clock, costs, pace, memory, engine, usd_per_hour / 3600, self.batch_class(pace))
        self.reservations = KvReservations(self.gpu, self.load_changed, self._reservation_closed)
        self.decoding = self.decoding_class(self.gpu, self.reservations, self.load_changed, done, self._recompute)
        self.prompts = self.prompts_class(self.gpu, self.reservations, self.decoding, self.load_changed, done, self._prompt_released)
        clock.process(self.run())

    # -- its load, as policies read it -------------------------------------------------------------------------------------------

    @property
    def queued_s(self) -> float:
        return self.prompts.queued_s

    @property
    def free_s(self) -> float:
        """Time at which its prompts would be done if they never had to wait for memory."""
        return self.prompts.busy_until_s + self.prompts.queue_s

    @property
    def active(self) -> int:
        return self.reservations.active

    @property
    def kv_used(self) -> float:
        return self.reservations.kv_used

    @property
    def kv_due(self) -> float:
        return self.reservations.kv_due

    @property
    def tpot_s(self) -> float:
        return self.decoding.tpot_s

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        return self.prompts.prefill_s(isl, cached)

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        return self.reservations.cached_tokens(hash_ids)

    def wait_s(self, isl: int) -> float:
        """Expected seconds until memory and a place in the batch are free and the prompts that are already here are done."""
        wait_s = self.decoding.wait_s(isl)
        return wait_s + self.prompts.queued_s if self.prompts.waiting or self.gpu.chunk else wait_s

    def load_changed(self) -> None:
        for changed in self.rankings:
            changed.add(self)

    # -- what it has to do -------------------------------------------------------------------------------------------------------

    def at_rest(self) -> bool:
        prompts, decoding = self.prompts, self.decoding
        return not (self.reservations.active or prompts.waiting or self.gpu.chunk or prompts.computed or decoding.waiting)

    def check_drained(self) -> None:
        """Call `drained` if the node has no role and nothing left to do."""
        if not self.role and self.memory.used == 0 and self.drained is not None and self.at_rest():
            self.drained(self)

    def run(self) -> Process:
        gpu, prompts, decoding = self.gpu, self.prompts, self.decoding
        clock, wake, batch = gpu.clock, gpu.wake, gpu.batch
        while True:
            yield wake
            self.end_iterations()
            decoding.release_finished()
            while prompts.computed:
                job = prompts.computed.popleft()
                gpu.state = "coding"
                encoded_s = prompts.encode(job)
                if encoded_s > clock.now:
                    yield wake.at(encoded_s)
                prompts.finish(job)
            while gpu.other_work:
                gpu.state = "coding"
                work, gpu.other_work = gpu.other_work, []
                yield wake.after(sum(seconds for seconds, _ in work))
                for _, then in work:
                    then()
            if batch.full:
                decoding.make_room()
            if decoding.waiting and (admitted := decoding.admit()):
                gpu.state = "coding"
                yield wake.at(decoding.expand(admitted))
                decoding.join(admitted)
            if decoding.leaving:
                decoding.remove_aborted()
            self.plan()

    def end_iterations(self) -> None:
        """End the leap: its iterations are done, and so is the chunk that ran with the last one."""
        gpu, leap = self.gpu, self.gpu.leap
        own_s = gpu.batch.leap_s(leap)
        seconds = own_s + gpu.chunk_s
        gpu.planned_s = gpu.start_s + gpu.batch.leap_s(leap - 1) if leap > 1 else gpu.start_s
        if leap:
            self.decoding.advance(leap, own_s, seconds)
            gpu.leap = 0
        if gpu.chunk:
            self.prompts.end_chunk(seconds)

    def plan(self) -> None:
        """Begin the next leap. It is a single iteration if prompts are computed with it, or if other work or KV waits for its end."""
        gpu, prompts, decoding = self.gpu, self.prompts, self.decoding
        batch = gpu.batch
        gpu.start_s = gpu.clock.now
        batch.measure()
        gpu.leap = batch.reach() if batch.heap else 0
        if prompts.waiting:
            if not batch.heap:
                gpu.planned_s = gpu.clock.now  # nothing runs
            prompts.fill_chunk()
        if gpu.chunk:
            gpu.leap = 0 if gpu.engine.prompts_first else min(gpu.leap, 1)
            prompts.begin_chunk()
        elif not batch.heap:
            gpu.state = "idle"
            return
        elif gpu.other_work or prompts.wait_for_plan() or (decoding.waiting and decoding.places() > 0):
            gpu.leap = 1
        gpu.state = "iterating"
        gpu.wake.at(gpu.start_s + (batch.leap_s(gpu.leap) + gpu.chunk_s))

    # -- what its sides report ---------------------------------------------------------------------------------------------------

    def _recompute(self, job: Job) -> None:
        job.node = self
        self.prompts.enqueue(job, first=True)

    def _reservation_closed(self, job: Job) -> None:
        if job.aborted:
            self.memory_freed()
        if not self.role:
            self.check_drained()

    def _prompt_released(self) -> None:
        if self.role != "prefill":
            self.memory_freed()
            if not self.role:
                self.check_drained()


def _nothing() -> None:
    pass
