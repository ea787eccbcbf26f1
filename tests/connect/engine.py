"""An engine of a few lines that calls a connector as vLLM 0.32 does, and checks what vLLM asserts. Its KV is a function of the tokens.

One step: schedule (match, allocate, report), metadata pickled to the worker, the worker's calls in their order, and the update of the
scheduler from what the worker reports. Blocks are counted, so that none can leak.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, field
from enum import IntEnum, auto
from types import SimpleNamespace
from typing import Any

import torch

from tests.connect.stub import connector_class

LAYERS, HEADS, DIM, BLOCK = 2, 2, 32, 32
POISON = 7.0  # what free blocks hold


class Status(IntEnum):
    WAITING = auto()
    WAITING_FOR_REMOTE_KVS = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED_STOPPED = auto()
    FINISHED_LENGTH_CAPPED = auto()
    FINISHED_ABORTED = auto()
    FINISHED_ERROR = auto()

    @property
    def finished(self) -> bool:
        return self >= Status.FINISHED_STOPPED


@dataclass(eq=False)
class Request:
    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int = 1
    kv_transfer_params: dict[str, Any] | None = None
    status: Status = Status.WAITING
    blocks: list[int] = field(default_factory=list)
    local: int = 0
    computed: int = 0
    output: int = 0
    external: int = 0
    recomputed: int = 0
    params: dict[str, Any] | None = None
    block_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        full = len(self.prompt_token_ids) // BLOCK
        self.block_hashes = [repr(self.prompt_token_ids[: (i + 1) * BLOCK]).encode() for i in range(full)]

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)


class FullAttentionSpec:
    """By its name, the kind of KV cache that vLLM gives to usual attention."""


class CpuBackend:
    """Writes KV as vLLM's CPU backend with `vec` does: of each block and head first K, [dim, token], then V, [token, dim]."""

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        for at, slot in enumerate(slots.tolist()):
            block, place = divmod(slot, BLOCK)
            flat = cache[block].view(HEADS, -1)
            half = flat.shape[1] // 2
            flat[:, :half].view(HEADS, DIM, BLOCK)[:, :, place] = key[at]
            flat[:, half:].view(HEADS, BLOCK, DIM)[:, place] = value[at]


def kv_of(tokens: list[int]) -> torch.Tensor:
    """The KV of a prompt, [layers, kinds, tokens, heads, dim]: smooth along tokens, as real KV is."""
    ids = torch.tensor(tokens, dtype=torch.float32)
    place = torch.arange(LAYERS * 2 * HEADS * DIM, dtype=torch.float32).view(LAYERS, 2, 1, HEADS, DIM)
    prefix = torch.cumsum(ids, 0).view(1, 1, -1, 1, 1)
    return torch.sin(place * 0.7 + prefix * 0.01) + 0.3 * torch.cos(place * 1.3 + ids.view(1, 1, -1, 1, 1))


class Engine:
    """One engine. settings: the connector's."""

    def __init__(self, role: str = "kv_both", blocks: int = 64, policy: str = "recompute", name: str = "m", **settings: Any) -> None:
        self.policy, self.free, self.total = policy, list(range(1, blocks)), blocks - 1
        self.requests: dict[str, Request] = {}
        self.ended: dict[str, Request] = {}
        self.promoted: set[str] = set()
        self.failed: set[str] = set()
        self.preempted: set[str] = set()
        self.reports: list[tuple[str, str]] = []
        self.backend = CpuBackend()
        names = [f"model.layers.{i}.attn" for i in range(LAYERS)]
        self.caches = {each: torch.zeros(blocks, HEADS, BLOCK, 2 * DIM) for each in names}
        layers = {each: SimpleNamespace(impl=self.backend, isa="vec") for each in names}
        transfer = SimpleNamespace(
            kv_connector_extra_config={"deadline_s": 0.0, "link_mbit_s": 1.0, **settings},
            is_kv_producer=role != "kv_consumer",
            is_kv_consumer=role != "kv_producer",
        )
        config = SimpleNamespace(
            kv_transfer_config=transfer,
            cache_config=SimpleNamespace(block_size=BLOCK),
            compilation_config=SimpleNamespace(static_forward_context=layers),
            model_config=SimpleNamespace(model=name, hf_text_config=SimpleNamespace(to_dict=lambda: {"rope_theta": 1e4})),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
        )
        cache_config = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=FullAttentionSpec())], transfer_group_ids=(0,))
        kind = connector_class()
        roles = kind.__init__.__globals__["KVConnectorRole"]
        self.scheduler = kind(config, roles.SCHEDULER, cache_config)
        self.worker = kind(config, roles.WORKER, cache_config)
        self.worker.register_kv_caches(self.caches)
        self.scheduler.set_xfer_handshake_metadata_pp_aware({(0, 0): self.worker.get_handshake_metadata()})
        self.scheduler.bind_kv_cache_manager(SimpleNamespace(block_pool=SimpleNamespace(hash_block_size=BLOCK)))

        for cache in self.caches.values():
            cache.fill_(POISON)

    def check(self) -> None:
        """No request and no block is left, and nobody has written into a free block."""
        assert not self.requests, self.requests
        assert sorted(self.free) == list(range(1, self.total + 1))
        for cache in self.caches.values():
            assert bool((cache[1:] == POISON).all()), "a free block was written"

    def close(self) -> None:
        self.worker.shutdown()
        self.scheduler.shutdown()

    def add(self, request: Request, local: int = 0) -> Request:
        """A new request; local: its first tokens that the prefix cache holds, whole blocks."""
        request.local = local
        self.requests[request.request_id] = request
        return request

    def step(self) -> None:
        scheduled = self._schedule()
        meta = self.scheduler.build_connector_meta(
            SimpleNamespace(total_num_scheduled_tokens=scheduled, preempted_req_ids=self.preempted, finished_req_ids=set())
        )
        self.preempted = set()
        self.worker.bind_connector_metadata(pickle.loads(pickle.dumps(meta)))
        self.worker.start_load_kv(None)
        self.worker.wait_for_save()
        results = self.worker.get_transfer_results(set())
        bad = self.worker.get_block_ids_with_load_errors()
        self.worker.clear_connector_metadata()
        self._update(results, bad)

    def steps(self, until: Any, most_s: float = 60.0) -> None:
        until_s = time.monotonic() + most_s
        while time.monotonic() < until_s:
            if until():
                return
            self.step()
            time.sleep(0.0005)
        raise AssertionError(f"after {most_s:g} s: {[(r.request_id, r.status.name) for r in self.requests.values()]}")

    def abort(self, request_id: str) -> None:
        request = self.requests.get(request_id)
        if request is None or request.status.finished:
            return
        waits = request.status is Status.WAITING_FOR_REMOTE_KVS and request_id not in self.promoted
        self._finish(request, Status.FINISHED_ABORTED, delay=waits)

    def preempt(self, request_id: str) -> None:
        """Take a running request's blocks; it is computed again later."""
        request = self.requests.get(request_id)
        if request and request.status is Status.RUNNING:
            self._free(request)
            request.status, request.local, request.computed = Status.PREEMPTED, 0, 0
            self.preempted.add(request_id)

    def kv(self, request: Request, tokens: int | None = None) -> torch.Tensor:
        """What the blocks of a request hold, as kv_of."""
        count = request.num_prompt_tokens if tokens is None else tokens
        found = torch.zeros(LAYERS, 2, count, HEADS, DIM)
        for index, cache in enumerate(self.caches.values()):
            for token in range(count):
                flat = cache[request.blocks[token // BLOCK]].view(HEADS, -1)
                half = flat.shape[1] // 2
                found[index, 0, token] = flat[:, :half].view(HEADS, DIM, BLOCK)[:, :, token % BLOCK]
                found[index, 1, token] = flat[:, half:].view(HEADS, BLOCK, DIM)[:, token % BLOCK]
        return found

    def _schedule(self) -> int:
        scheduled = 0
        for request in list(self.requests.values()):
            if request.status is Status.WAITING_FOR_REMOTE_KVS and request.request_id in self.promoted:
                self.promoted.remove(request.request_id)
                if request.request_id in self.failed:
                    self.failed.remove(request.request_id)
                request.computed = min(request.computed, request.num_prompt_tokens - 1)
                request.recomputed = request.num_prompt_tokens - request.computed
                self._compute(request, request.computed)
                request.status = Status.RUNNING
                scheduled += 1
            elif request.status in (Status.WAITING, Status.PREEMPTED):
                first = self.scheduler.get_num_new_matched_tokens(request, request.local)
                assert first == self.scheduler.get_num_new_matched_tokens(request, request.local), "asking must change nothing"
                external, is_async = first
                needed = -(-request.num_prompt_tokens // BLOCK)
                if len(self.free) < needed:
                    continue
                request.blocks = [self.free.pop(0) for _ in range(needed)]
                if request.local:
                    self._compute(request, 0, request.local)
                self.scheduler.update_state_after_alloc(request, SimpleNamespace(get_block_ids=lambda r=request: (r.blocks,)), external)
                request.external = external
                if is_async:
                    request.status, request.computed = Status.WAITING_FOR_REMOTE_KVS, request.local + external
                else:
                    request.recomputed = request.num_prompt_tokens - request.local
                    self._compute(request, request.local)
                    request.status = Status.RUNNING
                    scheduled += request.recomputed
            elif request.status is Status.RUNNING:
                scheduled += 1
        return scheduled

    def _compute(self, request: Request, first: int, stop: int | None = None) -> None:
        """Write the KV of the prompt's tokens from first on."""
        kv = kv_of(request.prompt_token_ids)
        at = torch.arange(first, stop or request.num_prompt_tokens)
        slots = torch.tensor(request.blocks)[at // BLOCK] * BLOCK + at % BLOCK
        for index, cache in enumerate(self.caches.values()):
            self.backend.do_kv_cache_update(None, kv[index, 0, at], kv[index, 1, at], cache, slots)

    def _update(self, results: Any, bad: set[int]) -> None:
        waiting = [r for r in self.requests.values() if r.status is Status.WAITING_FOR_REMOTE_KVS]
        for request in waiting if bad else ():
            if hit := [i for i, block in enumerate(request.blocks) if block in bad]:
                request.computed = min(request.computed, hit[0] * BLOCK)
                self.failed.add(request.request_id)
        for request in [r for r in self.requests.values() if r.status is Status.RUNNING]:
            request.output += 1
            if request.output >= request.max_tokens:
                self._finish(request, Status.FINISHED_LENGTH_CAPPED)
        for request_id in results.finished_recving or ():
            assert request_id in self.requests, f"{request_id} was reported as received twice, or after its end"
            self.reports.append(("received", request_id))
            request = self.requests[request_id]
            if request.status is Status.WAITING_FOR_REMOTE_KVS:
                assert request_id not in self.promoted
                if request_id in self.failed and self.policy == "fail":
                    self.failed.remove(request_id)
                    self._finish(request, Status.FINISHED_ERROR)
                else:
                    self.promoted.add(request_id)
            else:
                assert request.status.finished
                self._drop(request)
        for request_id in results.finished_sending or ():
            assert request_id in self.requests, f"{request_id} was reported as sent twice"
            self.reports.append(("sent", request_id))
            assert self.requests[request_id].status.finished
            self._drop(self.requests[request_id])

    def _finish(self, request: Request, status: Status, delay: bool = False) -> None:
        request.status = status
        kept, request.params = self.scheduler.request_finished(request, list(request.blocks))
        self.promoted.discard(request.request_id)
        self.ended[request.request_id] = request
        if not (kept or delay):
            self._drop(request)

    def _drop(self, request: Request) -> None:
        self._free(request)
        del self.requests[request.request_id]

    def _free(self, request: Request) -> None:
        for block in request.blocks:
            for cache in self.caches.values():
                cache[block] = POISON
        self.free += request.blocks
        request.blocks = []
