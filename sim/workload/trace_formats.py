"""One reader for each published trace format: rows of a table, or JSON objects, as TraceRow.

Sources: Mooncake (FAST'25); Qwen-Bailian's anonymised traces (ATC'25); Azure LLM inference traces 2023 and 2024; BurstGPT
(arXiv 2401.17644); processed traces of Vidur; token lengths of ShareGPT and arXiv summaries, as Vidur and etalon publish them; LongBench v1
(arXiv 2308.14508), where the output length is the limit of its task (config/dataset2maxlen.json, MIT).

Not modelled: the text of prompts and answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from abkt.ranges import short
from sim.workload.trace_files import Objects, Table, listed

MOST_TOKENS = 100_000_000  # a longer prompt or answer is an error of the file
LATEST = 1e15  # of a time, in the trace's unit


class TraceRow(NamedTuple):
    """number: of the row in its file. time: in the trace's unit. isl, osl: tokens; 0 only where the reader allows it."""

    number: int
    time: float
    isl: int
    osl: int
    hash_ids: tuple[int, ...] = ()


# The most output tokens of each LongBench v1 task.
LONGBENCH_OSL = {"narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "multifieldqa_zh": 64, "hotpotqa": 32, "2wikimqa": 32}
LONGBENCH_OSL |= {"musique": 32, "dureader": 128, "gov_report": 512, "qmsum": 512, "multi_news": 512, "vcsum": 512, "trec": 64}
LONGBENCH_OSL |= {"triviaqa": 32, "samsum": 128, "lsht": 64, "passage_count": 32, "passage_retrieval_en": 32, "passage_retrieval_zh": 32}
LONGBENCH_OSL |= {"lcc": 64, "repobench-p": 64}


@dataclass(frozen=True, slots=True)
class Format:
    """A trace format.

    Parameters
    ----------
    name : name in workload.format.
    names : columns, or keys of a JSON object, that identify it.
    read : (trace, names, least length) -> rows.
    kind : whether it is a table or JSON objects.
    unit : unit of its times, `s` or `ms`; empty: it has none, and every time is 0.
    hash_tokens : prompt tokens that each of its hashes stands for; 0: it has no hashes.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[Any, tuple[str, ...], int], Iterator[TraceRow]]
    kind: type[Table] | type[Objects] = Table
    unit: str = "s"
    hash_tokens: int = 0

    def fits(self, trace: Table | Objects) -> bool:
        return isinstance(trace, self.kind) and set(self.names) <= set(trace.names)


def recognised(trace: Table | Objects) -> Format:
    """The format whose columns or keys are all there; else the one with most of them, whose reader reports what is missing."""
    alike = [f for f in FORMATS if isinstance(trace, f.kind)]
    fitting = [f for f in alike if f.fits(trace)]
    if fitting:
        return fitting[0]
    if not trace.names:
        raise ValueError(f"trace {trace.path} is empty; it needs at least one request")
    if "conversations" in trace.names:
        raise ValueError(
            f"trace {trace.path} holds conversations as text; a trace needs their numbers of tokens, such as a table with the columns "
            "num_prefill_tokens and num_decode_tokens (workload=sharegpt)"
        )
    best = max(alike, key=lambda f: len(set(f.names) & set(trace.names)))
    if not set(best.names) & set(trace.names):
        kind, known = ("columns", alike) if isinstance(trace, Table) else ("keys", alike)
        needed = "; ".join(dict.fromkeys(", ".join(f.names) for f in known))
        raise trace.bad(1, f"the {kind} {listed(trace)} are no trace's; there must be {needed}")
    return best


def _timed(seconds: Callable[[Any], float], hint: str) -> Callable[[Table, tuple[str, ...], int], Iterator[TraceRow]]:
    """A reader of tables with the columns time, prompt tokens and output tokens. seconds: parses a time. hint: its format in words."""

    def read(table: Table, names: tuple[str, ...], least: int) -> Iterator[TraceRow]:
        at, prompt, output = table.columns(names)
        for line, row in table.rows:
            try:
                time_s = seconds(row[at])
                if not abs(time_s) < LATEST:
                    raise ValueError(time_s)
            except (ValueError, TypeError, OverflowError):
                raise table.bad(line, f"{names[0]} is {short(row[at])}; it must {hint}") from None
            isl, osl = (_length(table, line, names[i], row[place], least) for i, place in ((1, prompt), (2, output)))
            yield TraceRow(line, time_s, isl, osl)

    return read


def _azure(table: Table, names: tuple[str, ...], least: int) -> Iterator[TraceRow]:
    """Times count from the first row. Whole seconds and fractions stay apart: a float cannot hold a date with seven decimals."""
    start: datetime | None = None

    def seconds(value: object) -> float:
        nonlocal start
        moment, fraction_s = (value, 0.0) if isinstance(value, datetime) else _moment(str(value))
        start = start or moment
        return (moment - start).total_seconds() + fraction_s

    return _timed(seconds, "look like 2023-11-16 18:15:46.6805900")(table, names, least)


def _lengths(table: Table, names: tuple[str, ...], least: int) -> Iterator[TraceRow]:
    prompt, output = table.columns(names)
    for line, row in table.rows:
        isl, osl = (_length(table, line, names[i], row[place], least) for i, place in ((0, prompt), (1, output)))
        yield TraceRow(line, 0.0, isl, osl)


def _hashed(objects: Objects, names: tuple[str, ...], least: int) -> Iterator[TraceRow]:
    """Times and lengths, and the hashes of the prompt's prefix blocks where there are any."""
    for line, row in _with_keys(objects, names):
        time, ids = row[names[0]], row.get("hash_ids") or ()
        if isinstance(time, bool) or not isinstance(time, int | float) or not abs(time) < LATEST:
            raise objects.bad(line, f"{names[0]} is {short(time)}; it must be a number of seconds or milliseconds")
        if not isinstance(ids, list | tuple) or not all(type(i) is int for i in ids):
            raise objects.bad(line, f"hash_ids is {short(ids)}; it must be a list of whole numbers, or null")
        isl, osl = (_length(objects, line, name, row[name], least) for name in names[1:])
        yield TraceRow(line, time, isl, osl, tuple(ids))


def _longbench(objects: Objects, names: tuple[str, ...], least: int) -> Iterator[TraceRow]:
    """isl is the prompt's length as LongBench counts it: words, or characters of Chinese; isl_scale converts it to tokens."""
    for line, row in _with_keys(objects, names):
        task = row[names[1]]
        if not isinstance(task, str) or task not in LONGBENCH_OSL:
            raise objects.bad(line, f"dataset is {short(task)}; it must be one of {', '.join(LONGBENCH_OSL)}")
        yield TraceRow(line, 0.0, _length(objects, line, names[0], row[names[0]], least), LONGBENCH_OSL[task])


def _with_keys(objects: Objects, names: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in objects.rows:
        for name in names:
            if name not in row:
                raise objects.bad(line, f"{name} is missing")
        yield line, row


def _moment(text: str) -> tuple[datetime, float]:
    """Whole seconds, and the fraction by itself: Azure writes seven digits, a datetime holds six."""
    whole, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    if bool(dot) != bool(digits):
        raise ValueError(text)
    return datetime.fromisoformat(whole + rest[len(digits) :]), float(f"0.{digits or 0}")


def _length(trace: Table | Objects, line: int, name: str, value: object, least: int) -> int:
    """A length as a whole number; 512.0 is one too."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        length = int(value) if isinstance(value, str | int) and str(value).strip().lstrip("+-").isdecimal() else int(number)
    except (ValueError, OverflowError):
        number = math.nan
    if not number.is_integer():
        raise trace.bad(line, f"{name} is {short(value)}; a length must be a whole number")
    if length < least:
        hint = " (workload.skip_empty=true leaves such rows out)" if length == 0 else ""
        raise trace.bad(line, f"{name} is {length}; a length must be at least {least}{hint}")
    if length > MOST_TOKENS:
        raise trace.bad(line, f"{name} is {short(length)}; a length must be at most {MOST_TOKENS:,} tokens")
    return length


TIMED_KEYS = ("timestamp", "input_length", "output_length")
SECONDS = _timed(float, "be a number of seconds")
FORMATS = (
    Format("mooncake", TIMED_KEYS, _hashed, Objects, "ms", 512),
    Format("bailian", TIMED_KEYS, _hashed, Objects, "s", 16),
    Format("longbench", ("length", "dataset"), _longbench, Objects, ""),
    Format("azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    Format("burstgpt", ("Timestamp", "Request tokens", "Response tokens"), SECONDS),
    Format("records", ("arrival_s", "isl", "osl"), SECONDS),
    Format("vidur", ("arrived_at", "num_prefill_tokens", "num_decode_tokens"), SECONDS),
    Format("lengths", ("num_prefill_tokens", "num_decode_tokens"), _lengths, unit=""),
)
