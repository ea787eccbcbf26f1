"""The simulator's costs, compared with servers that others have measured: TTFT, TPOT and throughput of colocated continuous batching under
a closed loop, and of prefill-decode servers.

The costs of a pass are sums of fitted kernels (`abkt fit-hardware`). Two overheads of each engine and version are fitted to the TPOT of
servers on H100, and conf/overheads ships them: seconds of a pass, and of each request in it. TTFT has no fitted parameter.
experiments/published/closed_loop.py steps each server with the simulator's own costs and rules. Where memory is short, sim itself is run,
which preempts. `sampled` rows are run through sim too, and the table below has the difference.

The measured tables have no throughput. It follows from TTFT, TPOT and the number of clients by Little's law: clients x answer / (TTFT +
(answer - 1) TPOT) tokens/s, for measured and predicted figures alike.

Errors are relative to what was measured. "As it ships" takes every number from conf/: on H100 the overheads were fitted to these very rows,
on other GPUs nothing was. "Engine held out" takes one overhead from the rows of the other engines on H100, as for an engine that nobody has
measured: seconds of a pass, and each release counts alike. "Model held out" takes the engine's own, without the rows of that model, or that
one overhead if the engine has no other model. What is held out is the overheads: the rules of the loop are the same in all splits, and were
chosen on all rows of H100.

The loop: each client sends 10 requests, the first of all clients at once, and the next 2.5 ms after an answer. vLLM and TensorRT-LLM
compute prompts beside decode steps, whole ones, up to 2,048 tokens with the steps', and plan a pass while the one before it runs, so that a
prompt waits for the pass under way and for the one after. SGLang 0.5 stops decoding for up to 8,192 tokens of prompts. Rows without a
version have the lengths of InferenceMAX, whose client draws 80 to 100 % of a length. TensorRT-LLM 1.0's rows of Llama-3.1-8B have one
request fewer in the engine than clients: in all but two of them one client waits for a whole answer. This is seen in these rows alone;
without it the mean error of TTFT, as it ships, is 4 points larger.

How the formulas were chosen: on H100 rows alone, in about 12 forms of the costs and 60 of the clients. Costs: tables of one engine or of
each; overhead by pass, layer, request, and a factor; experts fitted to skewed or balanced rows; skew of routing 1 to 1,000 (30 was best for
the three mixtures together, and is the default); KV of TensorRT-LLM in 16 or 8 bits; launches of tables that timed the host. Clients: 4 to
20 requests each; answers of equal length, or 5 to 20 % apart; 0 to 100 ms between an answer and the next prompt, counted as TTFT or not;
1,024 to 8,192 prompt tokens in a pass, or one prompt; passes planned ahead or not; one slot fewer than clients; a least time of passes
with prompts. Four ways to pool the other engines' overheads gave 8.0 to 9.6 % of TPOT with engines held out, and the best is taken. So
figures on H100 are those of a development set. Rows of other GPUs were not read.

Not modelled: speculative decoding of these servers, a front end that limits the rate, prompts in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import least_squares

from experiments.published.closed_loop import CLIENT_S, REQUESTS, Latency, Overheads, closed_loop
from experiments.published.misses import is_short_of_memory
from experiments.published.rows import Row, overheads_of, server_of
from experiments.published.simulated import simulate

BASE, STEP = Overheads(1e-3, 1e-5, 0.0), (5e-4, 1e-5)  # where TPOT is taken as linear in the overheads
FITTED_ON = "h100_sxm"


@dataclass(frozen=True, slots=True)
class Predicted:
    """Rows, and the TTFT and TPOT of each: [ttft, tpot] in seconds, at the overheads given."""

    rows: tuple[Row, ...]
    seconds: np.ndarray

    @property
    def measured(self) -> np.ndarray:
        return np.array([(row.ttft_s, row.tpot_s) for row in self.rows])

    @property
    def errors(self) -> np.ndarray:
        return self.seconds / self.measured - 1

    @property
    def tokens_per_s(self) -> np.ndarray:
        return self._throughput(self.seconds)

    @property
    def throughput_errors(self) -> np.ndarray:
        return self.tokens_per_s / self._throughput(self.measured) - 1

    def _throughput(self, seconds: np.ndarray) -> np.ndarray:
        """Tokens/s by Little's law, because the measured tables have none: each client gets an answer per TTFT + (answer - 1) TPOT."""
        clients, answers = (np.array([getattr(row, name) for row in self.rows], dtype=float) for name in ("clients", "osl"))
        return clients * answers / (seconds[:, 0] + (answers - 1) * seconds[:, 1])

    def where(self, mask: np.ndarray) -> Predicted:
        return Predicted(tuple(row for row, kept in zip(self.rows, mask, strict=True) if kept), self.seconds[mask])


@dataclass(frozen=True, slots=True)
class Response:
    """[ttft, tpot] of each row at BASE, and how much they grow with a second of pass overhead and with one of request overhead."""

    rows: tuple[Row, ...]
    base: np.ndarray
    by_pass: np.ndarray
    by_request: np.ndarray

    def at(self, overheads: Overheads) -> Predicted:
        seconds = self.base + self.by_pass * (overheads.pass_s - BASE.pass_s) + self.by_request * (overheads.request_s - BASE.request_s)
        return Predicted(self.rows, seconds)

    def where(self, mask: np.ndarray) -> Response:
        rows = tuple(row for row, kept in zip(self.rows, mask, strict=True) if kept)
        return Response(rows, self.base[mask], self.by_pass[mask], self.by_request[mask])

    def fit(self, pooled: bool = False) -> Overheads:
        """The overheads of least relative error of TPOT, robustly. TTFT has no parameter of its own. pooled: for an engine that is not
        among the rows, seconds of a pass alone, and every release counts alike, whatever number of rows it has."""
        measured = np.array([row.tpot_s for row in self.rows])
        releases = [row.release for row in self.rows]
        weights = np.array([math.sqrt(len(releases) / releases.count(one) / len(set(releases))) if pooled else 1.0 for one in releases])

        def misses(x: np.ndarray) -> np.ndarray:
            return weights * (self.at(_overheads(x)).seconds[:, 1] / measured - 1)

        start = (1.0,) if pooled else (1.0, 1.0)
        return _overheads(least_squares(misses, start, bounds=(0, 100), loss="soft_l1", f_scale=0.05).x)


def _overheads(x: np.ndarray) -> Overheads:
    """From milliseconds of a pass and, if it is given, tens of microseconds of a request."""
    return Overheads(x[0] * 1e-3, x[1] * 1e-5 if len(x) > 1 else 0.0, 0.0)


def predict(row: Row, overheads: Overheads) -> Latency:
    """TTFT, TPOT and throughput of a row's server: stepped, or run through sim where memory is short and requests are preempted."""
    if row.disaggregated:
        return _disaggregated(row, overheads)
    if is_short_of_memory(row):
        return simulate(row, overheads)
    return closed_loop(server_of(row), row.requests, row.clients, overheads)


def _disaggregated(row: Row, overheads: Overheads) -> Latency:
    """Each prefill worker computes one prompt after another, each decode worker decodes its share of the requests.

    In a steady state the clients that wait, are in prefill and decode sum to all: throughput = clients / (TTFT + decoding). Prefill that is
    slower than that makes clients wait for it. In the first of REQUESTS rounds all prompts come at once. KV goes over in no time.
    """
    prefill, decode = server_of(row), server_of(row, decode=True)
    prompt_s = prefill.iteration_s(0, 0, [row.isl], overheads)
    places = max(1, int(decode.room // (row.isl + row.osl / 2))) * row.workers[1]
    decoding, rate, tpot_s = float(min(row.clients, places)), 0.0, 0.0
    for _ in range(50):  # a fixed point; TPOT grows with the requests that decode
        each = max(1.0, decoding / row.workers[1])
        tpot_s = decode.iteration_s(round(each), each * (row.isl + row.osl / 2), [], overheads)
        rate = min(row.clients / (prompt_s + overheads.first_token_s + CLIENT_S + row.osl * tpot_s), row.workers[0] / prompt_s)
        decoding = 0.5 * decoding + 0.5 * min(places, rate * row.osl * tpot_s)
    rate = min(rate, decoding / (row.osl * tpot_s))
    steady_s = max(prompt_s + overheads.first_token_s, row.clients / rate - row.osl * tpot_s - CLIENT_S)
    burst_s = prompt_s * max(1.0, (row.clients / row.workers[0] + 1) / 2) + overheads.first_token_s
    return Latency(steady_s + (burst_s - steady_s) / REQUESTS, tpot_s, rate * row.osl)


def fitting(rows: Iterable[Row]) -> tuple[list[Row], dict[str, int]]:
    """The rows whose model fits on their GPUs and has kernels, and the number of others, by reason."""
    kept: list[Row] = []
    left: dict[str, int] = {}
    for row in rows:
        try:
            server_of(row)
            if row.disaggregated:
                server_of(row, decode=True)
        except ValueError as error:
            left[str(error)] = left.get(str(error), 0) + 1
        else:
            kept.append(row)
    return kept, left


def shipped(rows: Sequence[Row], step: Callable[[], None] = lambda: None) -> Predicted:
    """The rows with the overheads that conf/ ships."""
    return Predicted(tuple(rows), _seconds(rows, overheads_of, step))


def response(rows: Sequence[Row], step: Callable[[], None] = lambda: None) -> Response:
    more_pass, more_request = Overheads(BASE.pass_s + STEP[0], BASE.request_s, 0.0), Overheads(BASE.pass_s, BASE.request_s + STEP[1], 0.0)
    base, passes, requests = (_seconds(rows, partial(_always, at), step) for at in (BASE, more_pass, more_request))
    return Response(tuple(rows), base, (passes - base) / STEP[0], (requests - base) / STEP[1])


def _nothing() -> None:
    pass


def _always(overheads: Overheads, _: Row) -> Overheads:
    return overheads


def _seconds(rows: Sequence[Row], overheads: Callable[[Row], Overheads], step: Callable[[], None]) -> np.ndarray:
    found = []
    for row in rows:
        one = predict(row, overheads(row))
        found.append((one.ttft_s, one.tpot_s))
        step()
    return np.array(found)


def held_out(measured: Response, of: Callable[[Row], str], engines: bool) -> tuple[Predicted, dict[str, Overheads]]:
    """Every row by overheads that were fitted without the rows of its value of `of`, on H100. engines: by the rows of all other engines;
    otherwise by those of its own engine and release, or of all if it has no others."""
    seconds, fits = np.full((len(measured.rows), 2), np.nan), {}
    values = np.array([of(row) for row in measured.rows])
    release, system = (np.array([getattr(row, name) for row in measured.rows]) for name in ("release", "system"))
    for value in np.unique(values):
        out = values == value
        for one in np.unique(release[out]):
            mine = out & (release == one)
            others = ~out & (system == FITTED_ON)
            known = not engines and bool((others & (release == one)).any())
            if known:
                others &= release == one
            if not others.any():
                raise ValueError(f"all rows of {FITTED_ON} have {value}; nothing is left to fit")
            fits[f"{value}, {one}"] = found = measured.where(others).fit(pooled=not known)
            # The clients' order jumps with the overheads, and TTFT with it: so the rows are stepped again, not taken as linear.
            seconds[mine] = _seconds(measured.where(mine).rows, partial(_always, found), _nothing)
    return Predicted(measured.rows, seconds), fits
