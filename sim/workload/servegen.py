"""Requests drawn from ServeGen's published clients, each with its own rate and burstiness per 600 s and its own lengths per 6 h.

The table of rates has a row (client, t, rate, pattern, p1) for each window of 600 s in which a client sent requests; gaps are Gamma or
Weibull with shape p1. The table of lengths has rows (client, window, field, q0 … q100): percentiles of input_tokens and output_tokens in
each window of 6 h. If a client's lengths are not published, each of its requests takes the lengths of another client, drawn in proportion
to the other clients' rates.

Source: ServeGen (arXiv 2505.09999), workload characterisation of Alibaba Cloud Model Studio.
Not modelled: correlation of prompt and output length (the published tables have them separately); conversations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from abkt.ranges import short
from sim.workload.requests import Request
from sim.workload.synthetic import gamma_gaps, weibull_gaps
from sim.workload.trace_files import Table, open_trace
from sim.workload.trace_formats import MOST_TOKENS

WINDOW_S, LENGTHS_S = 600, 21_600
MOST_PER_S = 1e6  # requests of one client
GAPS = {"Gamma": gamma_gaps, "Weibull": weibull_gaps}
FIELDS = ("input_tokens", "output_tokens")
PERCENTILES = tuple(f"q{i}" for i in range(101))


def read_servegen(
    lengths: Path, rates: Path, start_s: float = 0.0, duration_s: float = 3_600.0, share: float = 1.0, seed: int = 0
) -> tuple[list[Request], float]:
    """Requests of all clients in the windows of 600 s that begin within [start_s, start_s + duration_s), the first at 0 s.

    share: share of the requests to keep, so that a data centre's load fits a cluster. A window has as many requests as the trace counts,
    times share. Also returns the share of requests that have another client's lengths. Raises ValueError, one line, if a table is not
    ServeGen's or has no request in this time.
    """
    if not (0 <= start_s < math.inf and 0 < duration_s < math.inf and 0 < share <= 1):
        raise ValueError("ServeGen: start_s must not be negative, duration_s above 0, and share above 0 and at most 1")
    random = np.random.default_rng(seed)
    known = _lengths(lengths)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    windows = []
    table = _table(rates)
    at = table.columns(("client", "t", "rate", "pattern", "p1"))
    for line, row in table.rows:
        client, time_s, rate, shape = (
            _number(table, line, name, row[at[i]]) for i, name in ((0, "client"), (1, "t"), (2, "rate"), (4, "p1"))
        )
        pattern = str(row[at[3]])
        if not start_s <= time_s < start_s + duration_s:
            continue
        if pattern not in GAPS or not (0 < rate < MOST_PER_S and shape > 0):
            raise table.bad(line, f"pattern {short(pattern)}, rate {rate:g} and p1 {shape:g} are not a ServeGen window")
        windows.append((int(client), time_s, rate, pattern, shape))
    others = [(window[0], window[2]) for window in windows if window[0] in known]
    if windows and not others:
        raise ValueError(f"trace {lengths} has no lengths of any client that asks between {start_s:g} and {start_s + duration_s:g} s")
    borrowed = 0
    for client, time_s, rate, pattern, shape in windows:
        mean = rate * WINDOW_S * share
        count = int(mean) + int(random.random() < mean % 1)
        times_s = time_s + _within(GAPS[pattern](shape, count + 1, random), random)
        if client in known:
            quantiles = _lengths_at(known[client], time_s)
            isl, osl = (np.interp(random.random(count) * 100, np.arange(101), quantiles[field]) for field in FIELDS)
        else:
            isl, osl = _of_others(known, others, time_s, count, random)
            borrowed += count
        parts.append((times_s, isl, osl))
    if not sum(len(times_s) for times_s, _, _ in parts):
        raise ValueError(f"trace {rates} has no requests between {start_s:g} and {start_s + duration_s:g} s")
    times_s, isl, osl = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.argsort(times_s, kind="stable")
    times_s, isl, osl = times_s[order] - times_s[order[0]], np.maximum(1, np.rint(isl[order])), np.maximum(1, np.rint(osl[order]))
    requests = [Request(i, t, int(p), int(o)) for i, (t, p, o) in enumerate(zip(times_s.tolist(), isl.tolist(), osl.tolist()))]
    return requests, borrowed / len(requests)


def _within(gaps: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Times within one window, from all gaps but the last. The gaps are scaled to fill the window, because the trace gives the count."""
    total = gaps.sum()
    return np.cumsum(gaps)[:-1] / total * WINDOW_S if total > 0 else np.sort(random.random(len(gaps) - 1)) * WINDOW_S


Windows = Mapping[int, Mapping[str, np.ndarray]]  # start of the window -> field -> percentiles


def _lengths(path: Path) -> dict[int, Windows]:
    """client -> its windows that have both fields. A client without such a window is left out."""
    table = _table(path)
    client, window, field, *percentiles = table.columns(("client", "window", "field", *PERCENTILES))
    found: dict[int, dict[int, dict[str, np.ndarray]]] = {}
    for line, row in table.rows:
        values = np.array([_number(table, line, name, row[i]) for name, i in zip(PERCENTILES, percentiles)])
        if values.min() < 0 or values.max() > MOST_TOKENS:
            raise table.bad(line, f"its lengths are {values.min():g} to {values.max():g} tokens; 0 to {MOST_TOKENS:,} are possible")
        who, at = (int(_number(table, line, name, row[i])) for name, i in (("client", client), ("window", window)))
        found.setdefault(who, {}).setdefault(at, {})[str(row[field])] = values
    whole = {who: {at: fields for at, fields in windows.items() if set(FIELDS) <= set(fields)} for who, windows in found.items()}
    return {who: windows for who, windows in whole.items() if windows}


def _lengths_at(windows: Windows, time_s: float) -> Mapping[str, np.ndarray]:
    """The percentiles of the client's window that is nearest to that time."""
    return windows[min(windows, key=lambda start_s: abs(start_s + LENGTHS_S / 2 - time_s))]


def _of_others(
    known: Mapping[int, Windows], others: list[tuple[int, float]], time_s: float, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output lengths of `count` requests, each from one of the other clients. others: (client, its rate)."""
    rates = np.array([rate for _, rate in others])
    drawn = random.choice(len(others), count, p=rates / rates.sum())
    isl, osl = np.empty(count), np.empty(count)
    for index in np.unique(drawn):
        mine = drawn == index
        quantiles = _lengths_at(known[others[index][0]], time_s)
        for lengths, field in ((isl, FIELDS[0]), (osl, FIELDS[1])):
            lengths[mine] = np.interp(random.random(int(mine.sum())) * 100, np.arange(101), quantiles[field])
    return isl, osl


def _number(table: Table, line: int, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (ValueError, TypeError):
        number = math.nan
    if not math.isfinite(number):
        raise table.bad(line, f"{name} is {short(value)}; a number is needed")
    return number


def _table(path: Path) -> Table:
    table = open_trace(path)
    if not isinstance(table, Table):
        raise ValueError(f"trace {path} is not a table of ServeGen's rates or lengths")
    return table
