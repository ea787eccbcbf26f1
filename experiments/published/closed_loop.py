"""One server under a closed loop, stepped iteration by iteration: mean TTFT, TPOT and throughput of clients that each wait for their answer
before they ask again.

All clients send their first prompt at 0 s, and each sends its next one CLIENT_S after its last answer. A prompt reaches the engine
first_token_s after it was sent. An engine that mixes runs prompts beside decode steps; one that runs prompts first stops decoding while
prompts wait. Costs, passes and the order of work are those of sim, which experiments.published.simulated runs on the same requests. Memory
is taken for the prompt and half the answer when a prompt begins, the mean over a request's life.

Not modelled: preemption, prefix caches, prompts in chunks. sim has all of that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from sim.cost import Costs
from sim.specs import EngineSpec

REQUESTS = 10  # requests of each client, as the benchmark tools of the engines send them
CLIENT_S = 0.0025  # from an answer to the client's next prompt: an assumption


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
    """An instance without overheads. room: KV tokens that fit."""

    costs: Costs
    room: int
    engine: EngineSpec = EngineSpec()  # noqa: RUF009  # frozen
    shared: dict[tuple[int, tuple[int, ...]], float] = field(default_factory=dict, repr=False)

    def iteration_s(self, batch: int, context: float, prompts: Sequence[int], overheads: Overheads) -> float:
        """Seconds of a pass of `batch` requests with `context` tokens of KV in all, and of whole prompts, given by their tokens."""
        costs = self.costs
        seconds = overheads.pass_s + overheads.request_s * (batch + len(prompts))
        if prompts:
            key = batch, tuple(prompts)
            if key not in self.shared:
                self.shared[key] = sum(map(costs.prefill_s, prompts)) - costs.shared_s(batch, prompts)
            seconds += self.shared[key]
        return seconds + costs.iteration_s(batch, round(context)) if batch else seconds


def lengths(isl: int, osl: int, shortest: float, count: int) -> list[tuple[int, int]]:
    """(prompt tokens, answer tokens) of each request: uniform between `shortest` of the length and the length, or always that length."""
    if shortest == 1:
        return [(isl, osl)] * count
    draw = np.random.default_rng(0)
    prompts, answers = (draw.integers(math.ceil(shortest * most), most + 1, count) for most in (isl, osl))
    return [(int(prompt), int(answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def closed_loop(server: Server, requests: Sequence[tuple[int, int]], clients: int, overheads: Overheads) -> Latency:
    """`clients` clients that send the requests, given as (prompt tokens, answer tokens), in this order."""
    first, engine, ahead = overheads.first_token_s, server.engine, int(server.engine.planned_ahead)
    sent = min(clients, len(requests))
    waiting: deque[tuple[float, int]] = deque((first, i) for i in range(sent))  # (time at the engine, request)
    sent_s, first_s = dict.fromkeys(range(sent), 0.0), {}
    batch: list[tuple[int, int]] = []  # (iteration after which the request has its last token, request)
    now_s, iterations, context, used, done = first, 0, 0, 0.0, 0
    known_s = first  # a prompt that has come by then can be in the next pass
    ttft_s = tpot_s = 0.0
    while done < len(requests):
        size = len(batch)
        begun: list[int] = []
        left = engine.prefill_tokens - (0 if engine.prompts_first else size)
        while waiting and waiting[0][0] <= known_s and (not begun or left > 0):
            isl, osl = requests[waiting[0][1]]
            if (begun and isl > left) or size + len(begun) >= engine.max_batch or (used + isl + osl / 2 > server.room and (batch or begun)):
                break
            begun.append(waiting.popleft()[1])
            used += isl + osl / 2
            left -= isl
        if begun:
            began_s = now_s
            beside = 0 if engine.prompts_first else size
            now_s += server.iteration_s(beside, context if beside else 0, [requests[i][0] for i in begun], overheads)
            iterations += 1 if beside else 0
            context += beside
            for request in begun:
                ttft_s += now_s - sent_s[request]
                first_s[request] = now_s
            known_s = began_s if ahead else now_s
        elif size:
            steps, one_s = batch[0][0] - iterations, server.iteration_s(size, context, [], overheads)
            growth_s = server.iteration_s(size, context + size, [], overheads) - one_s
            if waiting and waiting[0][0] > known_s:
                steps = min(steps, max(1, _steps_until(waiting[0][0] - now_s, one_s, growth_s) + ahead))
            seconds = steps * (one_s + growth_s * (steps - 1) / 2)
            known_s = now_s + (seconds - one_s - growth_s * (steps - 1) if ahead else seconds)
            now_s, iterations, context = now_s + seconds, iterations + steps, context + steps * size
        else:
            now_s = known_s = max(now_s, waiting[0][0])
        while batch and batch[0][0] <= iterations:
            _, request = heappop(batch)
            isl, osl = requests[request]
            context, used, done = context - isl - osl, used - isl - osl / 2, done + 1
            tpot_s += (now_s - first_s[request]) / max(1, osl - 1)
            if sent < len(requests):
                sent_s[sent] = now_s + CLIENT_S
                waiting.append((now_s + CLIENT_S + first, sent))
                sent += 1
        for request in begun:
            isl, osl = requests[request]
            heappush(batch, (iterations + osl - 1, request))
            context += isl + 1
    answers = sum(osl for _, osl in requests)
    return Latency(ttft_s / done, tpot_s / done, answers / now_s)


def _steps_until(elapsed_s: float, one_s: float, growth_s: float) -> int:
    """The fewest iterations that take at least elapsed_s: the first takes one_s, and each further one growth_s more."""
    if elapsed_s <= 0:
        return 0
    linear = one_s - growth_s / 2
    return max(1, math.ceil(2 * elapsed_s / (linear + math.sqrt(linear * linear + 2 * growth_s * elapsed_s)) - 1e-12))
