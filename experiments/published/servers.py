"""The simulator's costs, compared with servers that others have measured: TTFT and TPOT of colocated continuous batching under a closed
loop, and of prefill-decode servers.

The costs of a pass are sums of fitted kernels (`abkt fit-hardware`). Three overheads of each engine and version are fitted to servers on
H100, and conf/overheads ships them: seconds of a pass, of each request in it, and of the front end before a client has its first token.
experiments/published/closed_loop.py steps the server; sim gives the same within a few per cent (tests).

Errors are relative to what was measured. "As it ships" takes every number from conf/: on H100 the overheads were fitted to these very rows,
on other GPUs nothing was. "Engine held out" takes one set of overheads from the rows of the other engines on H100, as for an engine that
nobody has measured; "model held out" takes the engine's own, without the rows of that model, or those of the other engines if the engine
has no other model. The first-token overhead is the least mean error's, in steps of 5 ms.

How the formulas were chosen: on H100 rows alone, in about 12 forms of the costs and 30 of the clients. Costs: tables of one engine or of
each; overhead by pass, layer, request, and a factor; experts fitted to skewed or balanced rows; skew of routing 1 to 1,000 (30 was best for
the three mixtures together, and is the default); KV of TensorRT-LLM in 16 or 8 bits; launches of tables that timed the host. Clients: 4 to
20 requests each; answers of equal length, or 5 to 20 % apart; 0 to 100 ms between an answer and the next prompt; 2,048, 4,096 or 8,192
prompt tokens in a pass, or one prompt. So figures on H100 are those of a development set. Rows of other GPUs were not read.

Where it misses, by group of the second table:

* vLLM without a version, Llama-3.1-70B, TTFT: two thirds too late. A prompt is met within a tenth of its pass at few clients, so prompts
  wait for others less than clients of equal answers do; the same clients with answers that vary by 20 % come within 40 %.
* TensorRT-LLM, Llama-3.1-8B, TTFT: the measured one falls as clients are added, and rises with the answer (550 ms for 8 clients and 512
  tokens, 144 ms for 16 and 128): about one client of each row waits for another's whole answer. On 4 and 8 GPUs with 64 clients and more,
  throughput stops at about 9,000 tokens/s whatever the GPUs, so the front end limits it.
* SGLang 0.5.8, TTFT: eight times that of 0.5.1 on more GPUs.
* MiniMax-M2.5: 3 ms of a pass (50 us of a layer) are missing; its attention normalises over all heads, which costs further collectives, and
  its FP8 activations are scaled at run time.
* TensorRT-LLM 1.3, gpt-oss-120b: two rows of 160 and 192 clients at four times the batch of the row; not understood.
* Attention data parallelism: two rows, which differ from those without by more than 5 %, and cannot have run on four times the GPUs.

Not modelled: speculative decoding of these servers, preemption, a front end that limits the rate, lengths that vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import least_squares

from experiments.published.closed_loop import CLIENT_S, REQUESTS, Latency, Overheads, closed_loop
from experiments.published.rows import Row, overheads_of, server_of

BASE, STEP = Overheads(1e-3, 1e-5, 0.0), (5e-4, 1e-5)  # where TPOT is taken as linear in the overheads
FIRST_S = np.arange(0.0, 0.3, 0.005)
SLOS_S = (0.010, 0.015, 0.020, 0.030, 0.050)
MARGIN = 0.10  # of a pick: its predicted TPOT lies at least this much below the SLO
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
        return Predicted(self.rows, seconds + np.array([overheads.first_token_s, 0.0]))

    def where(self, mask: np.ndarray) -> Response:
        rows = tuple(row for row, kept in zip(self.rows, mask, strict=True) if kept)
        return Response(rows, self.base[mask], self.by_pass[mask], self.by_request[mask])

    def fit(self) -> Overheads:
        """The overheads of least relative error: of a pass and of a request by TPOT, robustly, then of the first token by TTFT."""
        measured = np.array([(row.ttft_s, row.tpot_s) for row in self.rows])

        def misses(x: np.ndarray) -> np.ndarray:
            return self.at(Overheads(x[0] * 1e-3, x[1] * 1e-5, 0.0)).seconds[:, 1] / measured[:, 1] - 1

        milli, ten_micro = least_squares(misses, (1.0, 1.0), bounds=(0, 100), loss="soft_l1", f_scale=0.05).x
        found = Overheads(milli * 1e-3, ten_micro * 1e-5, 0.0)
        early = self.at(found).seconds[:, 0]
        first_s = min(FIRST_S, key=lambda first: float(np.abs((early + first) / measured[:, 0] - 1).mean()))
        return Overheads(found.pass_s, found.request_s, float(first_s))


def predict(row: Row, overheads: Overheads) -> Latency:
    """TTFT, TPOT and throughput of a row's server."""
    return _disaggregated(row, overheads) if row.disaggregated else closed_loop(server_of(row), row.isl, row.osl, row.clients, overheads)


def _disaggregated(row: Row, overheads: Overheads) -> Latency:
    """Each prefill worker computes one prompt after another, each decode worker decodes its share of the requests.

    In a steady state the clients that wait, are in prefill and decode sum to all: throughput = clients / (TTFT + decoding). Prefill that is
    slower than that makes clients wait for it. In the first of REQUESTS rounds all prompts come at once. KV goes over in no time.
    """
    prefill, decode = server_of(row), server_of(row, decode=True)
    prompt_s = prefill.iteration_s(0, 0, [(row.isl, 0)], overheads)
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
            if not engines and (others & (release == one)).any():
                others &= release == one
            if not others.any():
                raise ValueError(f"all rows of {FITTED_ON} have {value}; nothing is left to fit")
            fits[f"{value}, {one}"] = found = measured.where(others).fit()
            # The clients' order jumps with the overheads, and TTFT with it: so the rows are stepped again, not taken as linear.
            seconds[mine] = _seconds(measured.where(mine).rows, partial(_always, found), _nothing)
    return Predicted(measured.rows, seconds), fits


def missed_picks(predicted: Predicted, margin: float) -> tuple[int, int, float]:
    """(picks that miss their TPOT SLO, picks, throughput of the picks over that of the best measured ones).

    For each system, engine, model, types, isl, osl and SLO: the GPUs and clients with the most clients per GPU whose predicted TPOT lies
    `margin` below the SLO. Groups in which nothing keeps the SLO, or everything, are left out.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(predicted.rows):
        key = (row.system, row.engine, row.version, row.model, row.types, row.isl, row.osl, row.disaggregated)
        groups.setdefault(key, []).append(i)
    missed = picks = 0
    shares: list[float] = []
    for members in groups.values():
        for slo_s in SLOS_S:
            good = [i for i in members if predicted.rows[i].tpot_s <= slo_s]
            chosen = [i for i in members if predicted.seconds[i, 1] * (1 + margin) <= slo_s]
            if not chosen or not good or len(good) == len(members):
                continue
            load = {i: predicted.rows[i].clients / (predicted.rows[i].gpus * max(1, sum(predicted.rows[i].workers))) for i in members}
            pick = max(chosen, key=lambda i: (load[i] / predicted.seconds[i, 1], i))
            best = max(load[i] / predicted.rows[i].tpot_s for i in good)
            picks += 1
            missed += predicted.rows[pick].tpot_s > slo_s
            shares.append(load[pick] / predicted.rows[pick].tpot_s / best)
    return missed, picks, float(np.mean(shares)) if shares else float("nan")


# -- the tables ------------------------------------------------------------------------------------------------------------------


def as_markdown(ships: Predicted, measured: Response | None, left: dict[str, int]) -> str:
    """The tables: errors as conf/ ships, by split, by group, of picks, and the rows left out. measured: the responses; None: as it ships
    only, where no row of FITTED_ON is there to fit."""
    views = {"as it ships": ships}
    lines = []
    if measured is not None:
        views["engine held out"], fits = held_out(measured, lambda row: row.engine, engines=True)
        views["model held out"], _ = held_out(measured, lambda row: row.model, engines=False)
        lines += ["| engine held out: overheads from the others | of a pass | of a request | first token |", "|---|---|---|---|"]
        for name, found in fits.items():
            lines.append(
                f"| {name.split(', ')[1]} | {found.pass_s * 1e3:.2f} ms | {found.request_s * 1e6:.0f} µs "
                f"| {found.first_token_s * 1e3:.0f} ms |"
            )
        lines.append("")
    lines += ["| rows | split | TPOT | bias | TTFT | bias | TTFT, median row |", "|---|---|---|---|---|---|---|"]
    for system in sorted({row.system for row in ships.rows}):
        for name, view in views.items():
            one = view.where(np.array([row.system == system for row in view.rows]))
            lines.append(f"| {system}: {len(one.rows)} | {name} | {_errors(one)} |")
    lines += [
        "",
        "| system, engine, model, weights | rows | TPOT | bias | TTFT | bias | TTFT, median row |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = sorted({_group(row) for row in ships.rows})
    for group in groups:
        one = ships.where(np.array([_group(row) == group for row in ships.rows]))
        lines.append(f"| {group} | {len(one.rows)} | {_errors(one)} |")
    lines += ["", "| picks at a TPOT SLO | margin | miss | throughput of the best |", "|---|---|---|---|"]
    for name, view in views.items():
        for margin in (0.0, MARGIN):
            missed, picks, share = missed_picks(view, margin)
            if picks:
                lines.append(f"| {name} | {margin:.0%} | {missed} of {picks} ({missed / picks:.1%}) | {share:.0%} |")
    if left:
        lines += ["", "| rows left out | number |", "|---|---|", *(f"| {reason} | {number} |" for reason, number in sorted(left.items()))]
    return "\n".join(lines)


def _errors(one: Predicted) -> str:
    errors = one.errors
    (ttft, tpot), (late, slow) = np.abs(errors).mean(axis=0), errors.mean(axis=0)
    return f"{tpot:.1%} | {slow:+.1%} | {ttft:.1%} | {late:+.1%} | {np.median(np.abs(errors[:, 0])):.1%}"


def _group(row: Row) -> str:
    pd = ", PD" if row.disaggregated else ""
    dp = f", attention DP {row.attention_data_parallel}" if row.attention_data_parallel > 1 else ""
    return f"{row.system}, {row.engine} {row.version or '(no version)'}, {row.model}, {row.types or 'bfloat16'}{dp}{pd}"
