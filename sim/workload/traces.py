"""Published traces as requests. The format, one of sim.workload.trace_formats, is recognised by content.

A bad row stops the reading with its file and line: skipping it would make a different trace.

Not modelled: columns of a trace other than times, lengths and prefix hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median

from sim.workload.requests import Request
from sim.workload.trace_files import Lines, Table, bad_line, open_trace
from sim.workload.trace_formats import FORMATS, Format

ArrivalTimes = Callable[[int], Sequence[float]]  # number of requests -> sorted times, the first at 0 s


def read_trace(path: str | Path, format: str = "auto", seed: int = 0, arrivals: ArrivalTimes | None = None) -> list[Request]:
    """Requests of a trace; time counts from its first row. format: auto (by content) or the name of one of FORMATS.

    arrivals: times that replace the trace's own; formats without times need them. Mooncake's timestamps come in steps (3 s in the published
    files), and many arrivals share a step. They are spread at random within the step, by `seed`, and keep their order. Raises ValueError,
    with file and line, for a file that is not a trace in order of time.
    """
    path = Path(path)
    trace = open_trace(path)
    known = {f.name: f for f in FORMATS}
    if format != "auto" and format not in known:
        raise ValueError(f"trace format {format!r} is not one of auto, {', '.join(known)}")
    reader = known[format] if format != "auto" else _recognised(trace)
    if not isinstance(trace, reader.kind):
        raise ValueError(
            f"trace {path} is not of the format {reader.name}: {'JSON lines' if reader.kind is Lines else 'a table'} is needed"
        )
    rows = list(reader.read(trace, reader.names))
    if not rows:
        raise ValueError(f"trace {path} is empty; it needs at least one request")
    times_s: Sequence[float]
    if arrivals is not None:
        times_s = arrivals(len(rows))
    elif not reader.timed:
        raise ValueError(f"trace {path} has lengths but no times ({reader.name}); say how requests arrive: workload.rate_per_s=RATE")
    else:
        for (_, before_s, *_), (line, now_s, *_) in pairwise(rows):
            if now_s < before_s:
                raise bad_line(path, line, "its time is before that of the line above; a trace must be in order of time")
        times_s = [row[1] - rows[0][1] for row in rows]
        if reader.name == "mooncake":
            times_s = spread(times_s, seed)
    return [Request(i, float(time_s), isl, osl, ids) for i, (time_s, (_, _, isl, osl, ids)) in enumerate(zip(times_s, rows))]


def spread(times_s: list[float], seed: int) -> list[float]:
    """Spread times that come in steps uniformly within their step, and sort them; times that are all different are returned as they are.

    A step ends at the next one, or after the median gap if that is sooner, so a pause in the trace stays a pause.
    """
    starts = sorted(set(times_s))
    if len(starts) == len(times_s) or len(starts) == 1:
        return times_s
    gaps = [after - before for before, after in pairwise(starts)]
    usual_s = median(gaps)
    width_s = {start: min(gap, usual_s) for start, gap in zip(starts, [*gaps, usual_s])}
    random = Random(seed)
    return sorted(time_s + width_s[time_s] * random.random() for time_s in times_s)


def _recognised(trace: Table | Lines) -> Format:
    """The format whose columns or keys are all there; else the one with most of them, whose reader reports what is missing."""
    fitting = [f for f in FORMATS if f.fits(trace)]
    if fitting:
        return fitting[0]
    if isinstance(trace, Lines):
        return FORMATS[0]
    if not trace.columns:
        raise ValueError(f"trace {trace.path} is empty; it needs at least one request")
    best = max((f for f in FORMATS if f.kind is Table), key=lambda f: len(set(f.names) & set(trace.columns)))
    if not set(best.names) & set(trace.columns):
        tables = "; ".join(", ".join(f.names) for f in FORMATS if f.kind is Table)
        raise bad_line(trace.path, 1, f"the columns {', '.join(trace.columns)} are no trace's; there must be {tables}")
    return best
