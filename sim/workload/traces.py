"""Published traces as requests. The format, one of sim.workload.trace_formats, is recognised by content.

A bad row stops the reading with its file and line: skipping it would make a different trace.

Not modelled: columns of a trace other than times, lengths and prefix hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random

from sim.workload import inference
from sim.workload.requests import Request
from sim.workload.trace_files import Objects, Table, open_trace
from sim.workload.trace_formats import FORMATS, TIMED_KEYS, Format, TraceRow, recognised

ArrivalTimes = Callable[[int], Sequence[float]]  # number of requests -> sorted times, the first at 0 s
UNITS = {"s": 1.0, "ms": 1000.0}  # per second


@dataclass(frozen=True, slots=True)
class TraceKind:
    """What a trace is, beside its requests.

    Parameters
    ----------
    format : name of one of FORMATS.
    unit : unit of its times, `s` or `ms`; empty: it has none.
    hash_tokens : prompt tokens that a hash stands for; 0: it has no hashes, or they do not tell.
    inferred : which of unit and hash_tokens are from the numbers alone.
    left_out : number of rows without tokens that were left out.
    """

    format: str
    unit: str
    hash_tokens: int
    inferred: tuple[str, ...] = ()
    left_out: int = 0

    def words(self) -> str:
        """Such as `mooncake, times in ms and hashes of 512 tokens, as its numbers show`."""
        said = {"unit": f"times in {self.unit}", "hash_tokens": f"hashes of {self.hash_tokens} tokens"}
        shown = " and ".join(said[name] for name in self.inferred)
        empty = f", {self.left_out:,} rows without tokens left out" if self.left_out else ""
        return self.format + (f", {shown}, as its numbers show" if shown else "") + empty


def read_trace(path: str | Path, format: str = "auto", seed: int = 0, arrivals: ArrivalTimes | None = None) -> list[Request]:
    """The requests of `load_trace`."""
    return load_trace(path, format, seed, arrivals)[0]


def load_trace(
    path: str | Path,
    format: str = "auto",
    seed: int = 0,
    arrivals: ArrivalTimes | None = None,
    unit: str = "auto",
    hash_tokens: int | None = None,
    skip_empty: bool = False,
) -> tuple[list[Request], TraceKind]:
    """The requests of a trace, and what kind of trace it is. Time counts from its first row.

    Parameters
    ----------
    path : the file: a table or JSON, plain, gzipped or Parquet.
    format : auto (by content) or the name of one of FORMATS.
    seed : of the spreading below.
    arrivals : times that replace the trace's own; formats without times need them.
    unit : s or ms; auto: the format's, or inferred where Mooncake's and Bailian's differ (sim.workload.inference).
    hash_tokens : prompt tokens that a hash stands for; None: as for the unit.
    skip_empty : leave out rows with a prompt or an answer of no token, and count them.

    Mooncake's timestamps come in steps (3 s in the published files), and many arrivals share a step. Requests that share a time are spread
    at random within the step, or within the resolution of the times if a tie is chance; the others keep their time. All keep their order.

    Raises
    ------
    ValueError : one line, with file and line where there is one, for a file that is not a trace in order of time, and for a unit that has
        to be given.
    """
    path = Path(path)
    trace = open_trace(path)
    reader = _reader(trace, format)
    rows = list(reader.read(trace, reader.names, 0 if skip_empty else 1))
    kept = [row for row in rows if row.isl and row.osl]
    if not kept:
        empty = f"; all of its {len(rows):,} rows are without tokens" if rows else ""
        raise ValueError(f"trace {path} is empty{empty}; it needs at least one request")
    found = replace(_kind(trace, reader, format, kept, unit, hash_tokens, timed=arrivals is None), left_out=len(rows) - len(kept))
    times_s: Sequence[float]
    if arrivals is not None:
        times_s = arrivals(len(kept))
    else:
        times_s = _own_times(trace, rows, kept, found)
        if reader.names == TIMED_KEYS:
            times_s = spread(times_s, seed)
    requests = [
        Request(i, float(time_s), row.isl, row.osl, row.hash_ids, found.hash_tokens if row.hash_ids else 0)
        for i, (time_s, row) in enumerate(zip(times_s, kept))
    ]
    return requests, found


def spread(times_s: Sequence[float], seed: int) -> list[float]:
    """Times that several requests share, spread uniformly within their width (inference.tie_widths). The others stay; the order stays."""
    widths_s = inference.tie_widths(times_s)
    random = Random(seed)
    return sorted(time_s + widths_s[time_s] * random.random() if time_s in widths_s else time_s for time_s in times_s)


def _reader(trace: Table | Objects, format: str) -> Format:
    known = {f.name: f for f in FORMATS}
    if format == "auto":
        return recognised(trace)
    if format not in known:
        raise ValueError(f"workload.format is {format!r}; it must be one of auto, {', '.join(known)}")
    if not isinstance(trace, known[format].kind):
        needed = "JSON objects are" if known[format].kind is Objects else "a table is"
        raise ValueError(f"trace {trace.path} is not of the format {format}: {needed} needed")
    return known[format]


def _kind(
    trace: Table | Objects, reader: Format, format: str, rows: Sequence[TraceRow], unit: str, hash_tokens: int | None, timed: bool
) -> TraceKind:
    """What the trace is: as given, as the format says, or as the numbers show where two formats have the same keys."""
    hashed = [row for row in rows if row.hash_ids]
    asked, inferred = reader.names == TIMED_KEYS and format == "auto", []
    if hash_tokens is not None:
        for row in hashed:
            if len(row.hash_ids) != (needed := -(-row.isl // hash_tokens)):
                raise trace.bad(
                    row.number, f"{len(row.hash_ids)} hash_ids for {row.isl:,} tokens; workload.hash_block={hash_tokens} needs {needed}"
                )
    elif asked:
        hash_tokens = inference.hash_tokens((row.isl, len(row.hash_ids)) for row in hashed) if hashed else 0
        inferred += ["hash_tokens"] if hash_tokens else []
    elif (hash_tokens := reader.hash_tokens) and any(len(row.hash_ids) != -(-row.isl // hash_tokens) for row in hashed):
        hash_tokens = 0  # they are not what the format says; whoever needs the hashes has to be told
    if unit == "auto" and asked:
        unit = inference.time_unit([row.time for row in rows], hash_tokens)
        if not unit and timed:
            raise ValueError(
                f"trace {trace.path}: its times may be seconds or milliseconds; give workload.time_unit=s or workload.time_unit=ms"
            )
        inferred = ["unit", *inferred] if unit else inferred
    elif unit == "auto":
        unit = reader.unit
    same = [f.name for f in FORMATS if f.names == reader.names and f.unit == unit and hash_tokens in (0, f.hash_tokens)]
    return TraceKind(same[0] if same else reader.name, unit, hash_tokens, tuple(inferred))


def _own_times(trace: Table | Objects, rows: Sequence[TraceRow], kept: Sequence[TraceRow], kind: TraceKind) -> list[float]:
    """The trace's own times in seconds, from its first row."""
    if not kind.unit:
        raise ValueError(f"trace {trace.path} has lengths but no times ({kind.format}); say how requests arrive: workload.rate_per_s=RATE")
    for before, row in pairwise(rows):
        if row.time < before.time:
            raise trace.bad(row.number, f"its time is before that of the {trace.place} above; a trace must be in order of time")
    return [(row.time - kept[0].time) / UNITS[kind.unit] for row in kept]
