"""The scheduler side: which request loads its KV from where, and which finished request's KV is kept for a decode server.

Requests and blocks are vLLM's; only the attributes that are used here are assumed, so nothing of vLLM is imported.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from abkt.connect.vllm.handshake import Handshake
from abkt.connect.vllm.metadata import Load, Send, StepWork
from abkt.connect.vllm.params import RemoteKV
from abkt.connect.vllm.settings import Settings

HANDED_OFF = ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED")  # a request that ended otherwise has no decode server to wait for
HASH_BYTES = 32

log = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own logger, which has the handler


class SchedulerSide:
    """The connector inside the scheduler. Used by one thread.

    Parameters
    ----------
    settings : the server's settings.
    block_tokens : tokens of a block.
    producer, consumer : whether this server hands KV off, and whether it takes KV.

    Attributes
    ----------
    workers : the workers' addresses and fingerprints, by TP rank; set once they are known.
    hash_tokens : tokens of one hash of the prefix cache.
    """

    def __init__(self, settings: Settings, block_tokens: int, producer: bool = True, consumer: bool = True) -> None:
        self.settings, self.block_tokens = settings, block_tokens
        self.producer, self.consumer = producer, consumer
        self.workers: tuple[Handshake, ...] = ()
        self.hash_tokens = block_tokens
        self._work = StepWork()
        self._loaded: set[str] = set()
        self._said: set[str] = set()

    def introduce(self, workers: Mapping[int, Handshake]) -> None:
        """The workers have started."""
        self.workers = tuple(workers[rank] for rank in sorted(workers))

    def matched_tokens(self, request: Any, computed_tokens: int) -> tuple[int, bool]:
        """(tokens that can be loaded, whether beside other steps). Changes nothing, so it may be asked again."""
        remote = self._remote(request)
        if remote is None:
            return 0, False
        missing = remote.tokens - computed_tokens
        return (missing, True) if missing > 0 else (0, False)

    def allocated(self, request: Any, block_ids: Sequence[int], external_tokens: int) -> None:
        """Blocks were allocated, of which external_tokens tokens are to be loaded. A request loads once."""
        remote = self._remote(request)
        if request.kv_transfer_params:
            request.kv_transfer_params["do_remote_prefill"] = False
        if remote is None:
            return
        if external_tokens <= 0:  # the prefix cache has all of it
            self._work.releases.append(remote)
            return
        first = remote.tokens - external_tokens
        used = range(first // self.block_tokens, -(-remote.tokens // self.block_tokens))
        private = remote.lossy and not self.settings.share_lossy
        if private:
            self._make_private(request, first)
        ids = tuple(block_ids[used.start : used.stop])
        self._work.loads[request.request_id] = Load(remote, ids, first, remote.tokens, private)
        self._loaded.add(request.request_id)

    def step(self, output: Any) -> StepWork:
        """The work of the step that the scheduler has just planned."""
        for request_id in getattr(output, "preempted_req_ids", None) or ():
            self._end(request_id)
        work, self._work = self._work, StepWork()
        work.idle = output.total_num_scheduled_tokens == 0
        if self.settings.trace and not work.idle:
            work.requests = scheduled(output)
        return work

    def finished(self, request: Any, block_ids: Sequence[int]) -> tuple[bool, dict[str, Any] | None]:
        """(whether the blocks are still needed, the params of the response). Called once for each request, however it ended."""
        self._end(request.request_id)
        params = request.kv_transfer_params
        if not params:
            return False, None
        if params.get("do_remote_prefill"):  # it ended before it had blocks
            if remote := self._remote(request):
                self._work.releases.append(remote)
            params["do_remote_prefill"] = False
            return False, None
        if not (params.get("do_remote_decode") and self.producer and block_ids and request.status.name in HANDED_OFF):
            return False, None
        if not self.workers:
            self._say("the workers have not said where they listen; KV is not handed off")
            return False, None
        tokens = request.num_prompt_tokens
        self._work.sends[request.request_id] = Send(tuple(block_ids[: -(-tokens // self.block_tokens)]), tokens)
        addresses = tuple(worker.address for worker in self.workers)
        return True, RemoteKV(request.request_id, addresses, self.workers[0].fingerprint, tokens, self.settings.lossy).params()

    def _end(self, request_id: str) -> None:
        if request_id in self._loaded:
            self._loaded.remove(request_id)
            self._work.ended.add(request_id)

    def _remote(self, request: Any) -> RemoteKV | None:
        """Where the request's KV lies; None if it has to be computed here. Why is logged once for each reason."""
        params = request.kv_transfer_params
        if not params:
            if self.consumer and not self.producer:
                self._say("a request came without kv_transfer_params; it is computed here (does the proxy pass them along?)")
            return None
        if not params.get("do_remote_prefill"):
            return None
        try:
            remote = RemoteKV.of(params)
            self._check(remote, request.num_prompt_tokens)
        except ValueError as error:
            self._say(f"KV is computed here: {error}")
            return None
        return remote

    def _check(self, remote: RemoteKV, tokens: int) -> None:
        if not self.consumer:
            raise ValueError("this server has kv_role kv_producer, which loads no KV")
        if remote.tokens != tokens and not (remote.prefix and remote.tokens < tokens):
            raise ValueError(f"the prefill server has a prompt of {remote.tokens} tokens, this server one of {tokens}")
        if self.workers and remote.fingerprint != self.workers[0].fingerprint:
            raise ValueError(f"the prefill server has {remote.fingerprint}; this server {self.workers[0].fingerprint}")
        if self.workers and len(remote.addresses) != len(self.workers):
            raise ValueError(f"the prefill server has {len(remote.addresses)} TP ranks, this server {len(self.workers)}")

    def _make_private(self, request: Any, first_token: int) -> None:
        """Give the request's blocks from first_token on hashes that no other request has, so that none can find lossy KV by them.

        The hashes of later blocks are computed from these, so they are private as well.
        """
        hashes = request.block_hashes
        for index in range(first_token // self.hash_tokens, len(hashes)):
            hashes[index] = secrets.token_bytes(HASH_BYTES)

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.warning(line)


def scheduled(output: Any) -> list[tuple[str, int, int]]:
    """(request, tokens computed before, tokens of this step) of vLLM's SchedulerOutput."""
    cached = output.scheduled_cached_reqs
    before = dict(zip(cached.req_ids, cached.num_computed_tokens))
    before |= {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    return [(request_id, before[request_id], count) for request_id, count in output.num_scheduled_tokens.items()]
