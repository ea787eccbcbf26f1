"""One server under a closed loop, stepped iteration by iteration: mean TTFT, TPOT and throughput of clients that each wait for their answer
before they ask again.

All clients send their first prompt at 0 s, each sends REQUESTS in all, and a next prompt arrives CLIENT_S after the last answer. An engine
that mixes runs prompts beside decode steps, in each iteration as many tokens as the longest prompt and the batch have; one that runs
prompts first stops decoding while prompts wait, and computes up to PROMPT_TOKENS of them together. Memory is taken for the prompt and half
the answer when a prompt begins, the mean over a request's life.

Not modelled: preemption, prefix caches, answers of unequal length. sim runs the same server with all of that; a test compares the two.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from abkt.profile.model_costs import ModelCosts

PROMPT_TOKENS = 8192  # prompt tokens in one iteration of an engine that runs prompts first
REQUESTS = 10  # requests of each client, as the benchmark tools of the engines send them
CLIENT_S = 0.005  # from an answer to the arrival of the client's next prompt: HTTP, tokeniser and event loop; an assumption


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds besides kernels: of each pass, of each request in it, and of the front end before a client has its first token."""

    pass_s: float
    request_s: float
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Means over all requests."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Server:
    """An instance. room: KV tokens that fit. prompts_first: decoding stops while prompts wait."""

    costs: ModelCosts
    room: int
    prompts_first: bool = False
    passes: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)

    def iteration_s(self, batch: int, context: float, chunks: list[tuple[int, int]], overheads: Overheads) -> float:
        """Seconds of a pass. chunks: (prompt tokens, tokens before them) of each prompt in it."""
        costs, tokens = self.costs, sum(count for count, _ in chunks)
        ranks = costs.parallel.attention_data_parallel
        seconds = overheads.pass_s + overheads.request_s * (batch + len(chunks)) + self._shared_s(batch + tokens, batch + len(chunks))
        if batch:
            seconds += costs.model.layers * costs.attention_s(batch / ranks, context / ranks, 0, 0)
        if tokens:
            pairs = sum(count * (before + count / 2) for count, before in chunks)
            seconds += costs.model.layers * costs.attention_s(0, 0, tokens / ranks, pairs / tokens - tokens / 2)
        return seconds

    def _shared_s(self, tokens: int, rows: int) -> float:
        seconds = self.passes.get((tokens, rows))
        if seconds is None:
            seconds = self.passes[tokens, rows] = self.costs.pass_s(tokens) + self.costs.head_s(rows)
        return seconds


def closed_loop(server: Server, isl: int, osl: int, clients: int, overheads: Overheads, requests: int = REQUESTS) -> Latency:
    """`clients` clients that each send `requests` prompts of isl tokens and get osl tokens."""
    total, needed = clients * requests, isl + osl / 2
    budget = PROMPT_TOKENS if server.prompts_first else isl + clients
    waiting: deque[tuple[float, int]] = deque((0.0, i) for i in range(clients))
    arrived_s, first_s = dict.fromkeys(range(clients), 0.0), {}
    batch: list[tuple[int, int]] = []  # (iteration after which the request has its last token, request)
    now_s, iterations, context, used, started, done, sent = 0.0, 0, 0, 0.0, None, 0, clients
    ttft_s = tpot_s = 0.0
    while done < total:
        size, chunks = len(batch), []
        complete: list[int] = []
        left = budget - (0 if server.prompts_first else size)
        while left > 0:
            if started is None:
                if not waiting or waiting[0][0] > now_s or (used + needed > server.room and (batch or complete)):
                    break
                started = (waiting.popleft()[1], 0)
                used += needed
            request, before = started
            count = min(left, isl - before)
            chunks.append((count, before))
            left -= count
            started = None if before + count == isl else (request, before + count)
            if started is None:
                complete.append(request)
        if chunks:
            beside = 0 if server.prompts_first else size
            now_s += server.iteration_s(beside, context if beside else 0, chunks, overheads)
            iterations += 1 if beside else 0
            context += beside
            for request in complete:
                ttft_s += now_s - arrived_s[request] + overheads.first_token_s
                first_s[request] = now_s
        elif size:
            steps, one_s = batch[0][0] - iterations, server.iteration_s(size, context, [], overheads)
            if waiting and waiting[0][0] > now_s:
                steps = min(steps, max(1, math.ceil((waiting[0][0] - now_s) / one_s)))
            last_s = server.iteration_s(size, context + (steps - 1) * size, [], overheads)
            now_s, iterations, context = now_s + steps * (one_s + last_s) / 2, iterations + steps, context + steps * size
        else:
            now_s = max(now_s, waiting[0][0])
        while batch and batch[0][0] <= iterations:
            _, request = heappop(batch)
            context, used, done = context - isl - osl, used - needed, done + 1
            tpot_s += (now_s - first_s[request]) / (osl - 1) if osl > 1 else 0.0
            if sent < total:
                arrived_s[sent] = now_s + CLIENT_S
                waiting.append((now_s + CLIENT_S, sent))
                sent += 1
        for request in complete:
            heappush(batch, (iterations + osl - 1, request))
            context += isl + 1
    return Latency(ttft_s / total, tpot_s / total, total * osl / now_s)
