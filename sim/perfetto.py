"""A run as a Chrome trace, which ui.perfetto.dev opens: a process for each node, tracks for the stages on it, arrows between the stages of
each request, and a counter of each link's rate.

The trace is made from the records after the run, so it costs nothing unless it is asked for. Stages are the exposed parts of a request, so
they follow each other without a gap. A link's counter is the sum of its transfers' mean rates, each over the transfer's own time.

Format: the JSON object of Google's "Trace Event Format" (ph X, s, t, f, C, i, M; ts and dur in microseconds).
Not modelled: iterations of a batch and rates within a transfer, because the records do not have them.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

from abkt.records import STAGES, RequestRecord, TransferRecord

Event = dict[str, Any]
ON_DECODE_NODE = {"expand", "decode"}
FLOW = "request"
KIND = 1_000_000  # the track numbers of stage n start at n x KIND


class Lanes:
    """The tracks of one stage on one node. A slice gets the lowest free track, so overlapping slices lie on different tracks."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.busy: list[tuple[int, int]] = []  # (until, lane)
        self.count = 0

    def take(self, start_ns: int, end_ns: int) -> int:
        """The lowest free track for this slice. Calls must be in order of start_ns."""
        while self.busy and self.busy[0][0] <= start_ns:
            heappush(self.free, heappop(self.busy)[1])
        if self.free:
            lane = heappop(self.free)
        else:
            lane, self.count = self.count, self.count + 1
        heappush(self.busy, (end_ns, lane))
        return lane


def chrome_trace(requests: Sequence[RequestRecord], transfers: Sequence[TransferRecord]) -> Iterator[str]:
    """The text of the file in pieces, one line per event: names first, then each track in order of time."""
    nodes = sorted({name for r in requests for name in (r.prefill_node, r.decode_node) if name}, key=_natural)
    pids = {name: pid for pid, name in enumerate(nodes, start=1)}
    events = [*_slices(requests, pids), *_lost(requests), *_links(transfers, pids)]
    events.sort(key=lambda e: (e["pid"], e["tid"], e["ts"], e["ph"] != "X"))
    yield '{"displayTimeUnit":"ms","traceEvents":[\n'
    named = [*_names({0: "requests that were not served", **{pid: name for name, pid in pids.items()}}, events), *events]
    for i, event in enumerate(named):
        yield json.dumps(event, separators=(",", ":"), allow_nan=False) + (",\n" if i + 1 < len(named) else "\n")
    yield "]}\n"


def _slices(requests: Iterable[RequestRecord], pids: dict[str, int]) -> Iterator[Event]:
    """Each request's stages and the arrows between them."""
    stages = [stage for r in requests if r.outcome == "completed" for stage in _stages(r, pids)]
    stages.sort(key=lambda s: (s[0], s[1], s[2]))
    lanes: dict[tuple[int, str], Lanes] = defaultdict(Lanes)
    placed: dict[int, list[tuple[int, int, int]]] = defaultdict(list)  # request -> (start, pid, tid)
    for start_ns, end_ns, _, pid, stage, record in stages:
        tid = KIND * (1 + STAGES.index(stage)) + lanes[pid, stage].take(start_ns, end_ns)
        arguments = {"request": record.request_id, "isl": record.isl, "osl": record.osl}
        if stage == "wire":
            arguments |= {"wire_bytes": record.wire_bytes, "raw_bytes": record.raw_bytes}
        yield _event("X", f"{stage} {record.request_id}", start_ns, pid, tid, dur=(end_ns - start_ns) / 1e3, args=arguments, cat=stage)
        placed[record.request_id].append((start_ns, pid, tid))
    for request_id, places in placed.items():
        for i, (start_ns, pid, tid) in enumerate(places):
            if len(places) > 1:
                ph = "s" if i == 0 else "f" if i + 1 == len(places) else "t"
                end = {"bp": "e"} if ph == "f" else {}
                yield _event(ph, FLOW, start_ns, pid, tid, id=request_id, cat=FLOW, **end)


def _stages(record: RequestRecord, pids: dict[str, int]) -> Iterator[tuple[int, int, int, int, str, RequestRecord]]:
    now_s = record.arrival_s
    for order, stage in enumerate(STAGES):
        seconds = getattr(record, f"{stage}_exposed_s")
        start_ns, end_ns = _ns(now_s), _ns(now_s + seconds)
        now_s += seconds
        node = record.decode_node if stage in ON_DECODE_NODE and record.decode_node else record.prefill_node
        if end_ns > start_ns and node in pids:
            yield start_ns, end_ns, order, pids[node], stage, record


def _lost(requests: Iterable[RequestRecord]) -> Iterator[Event]:
    for r in requests:
        if r.outcome != "completed":
            arguments = {"request": r.request_id, "reason": r.reason}
            yield _event("i", f"{r.outcome} {r.request_id}", _ns(r.arrival_s), 0, 0, s="p", args=arguments, cat=r.outcome)


def _links(transfers: Iterable[TransferRecord], pids: dict[str, int]) -> Iterator[Event]:
    """Counters of what each node sends and receives, in Gbit/s."""
    changes: dict[tuple[int, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for t in transfers:
        ends_s = t.finish_s if math.isnan(t.refine_finish_s) else t.refine_finish_s
        if not ends_s > t.start_s:
            continue
        gbps = t.wire_bytes * 8 / (ends_s - t.start_s) / 1e9
        for node, way in ((t.source, "sends"), (t.destination, "receives")):
            if node in pids:
                changes[pids[node], way][_ns(t.start_s)] += gbps
                changes[pids[node], way][_ns(ends_s)] -= gbps
    for (pid, way), steps in changes.items():
        carried = 0.0
        for moment_ns in sorted(steps):
            carried += steps[moment_ns]
            yield _event("C", f"{way} Gbit/s", moment_ns, pid, 0, args={"Gbit/s": round(max(0.0, carried), 6)})


def _names(nodes: dict[int, str], events: Sequence[Event]) -> Iterator[Event]:
    tracks = sorted({(e["pid"], e["tid"]) for e in events})
    for pid, name in nodes.items():
        if pid or any(track[0] == 0 for track in tracks):
            yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
            yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for pid, tid in tracks:
        if tid >= KIND:
            lane = f"{STAGES[tid // KIND - 1]} {tid % KIND}"
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": lane}}
            yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _event(ph: str, name: str, moment_ns: int, pid: int, tid: int, **more: Any) -> Event:
    return {"ph": ph, "name": name, "ts": moment_ns / 1e3, "pid": pid, "tid": tid, **more}


def _ns(seconds: float) -> int:
    """Whole nanoseconds, so that slices that end and begin at the same time do so in the file."""
    return round(seconds * 1e9)


def _natural(name: str) -> tuple[str, int, str]:
    """Sort prefill-10 after prefill-9, and prefill before decode."""
    head, _, tail = name.rpartition("-")
    return ("0" if head.startswith("prefill") else "1") + head, int(tail) if tail.isdigit() else -1, name
