"""What happened to each request of a run, from the traces of both servers (abkt.connect.vllm.trace) and the client's times, as records.

A stage ends where the next begins:

queue    from the client's request until the prefill server's pass begins
prefill  until its engine has taken the first token; the server takes one prompt at a time
encode   until the decode side is offered the KV: the copy and the coding, and beside them the response through the proxy and the ask
wire     until the promised cut has arrived
expand   until one iteration before the client's first token: writing, the report, the end of the running step, the way to the client
decode   until the last token

The decode server computes the prompt's last token again. So an answer of `osl` tokens is the prefill server's token, which the client does
not get, and osl - 1 of the decode server.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abkt.profile.schema import parse_curve
from abkt.records import RequestRecord, TransferRecord
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import CodedCurves

FRAME_BYTES = 1 << 20  # as the simulator counts calls of coded KV
FULL_BITS = 8
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """A step that computes tokens. requests: name -> (tokens computed before, tokens of this step)."""

    begin_s: float
    requests: Mapping[str, tuple[int, int]]


class Timeline:
    """One run.

    Parameters
    ----------
    prefill, decode : the servers' traces.
    answers : the driver's lines by request id.
    origin_s : time 0 of the run.
    tag : request id -> the X-Request-Id of the request.
    max_batch : most requests in a step of the decode server. While it is full, vLLM does not even ask for the KV of the next request, so
        the busy times of its encode and expand stages are not known: nan.
    """

    def __init__(
        self,
        prefill: Sequence[Line],
        decode: Sequence[Line],
        answers: Mapping[int, Line],
        origin_s: float,
        tag: Mapping[int, str],
        max_batch: int,
    ) -> None:
        self.answers, self.origin_s, self.tag, self.max_batch = answers, origin_s, tag, max_batch
        self.passes, self.steps = steps_of(prefill), steps_of(decode)
        self._begins = [step.begin_s for step in self.steps]
        self._of: dict[tuple[str, str], Line] = {}
        for line in (*prefill, *decode):
            if line["kind"] != "step":
                self._of[line["kind"], external(line.get("remote", line["request"]))] = line

    def record(self, prompt: Prompt) -> tuple[RequestRecord, TransferRecord | None]:
        """The request's record, and that of its transfer."""
        answer, name = self.answers[prompt.request_id], self.tag[prompt.request_id]
        record = RequestRecord(prompt.request_id, prompt.isl, prompt.osl, answer["sent_s"] - self.origin_s, compute="real")
        record.prefill_node, record.decode_node = "p0", "d0"
        loaded, kept = self._of.get(("loaded", name)), self._of.get(("kept", name))
        passes = [step.begin_s for step in self.passes if any(external(each) == name for each in step.requests)]
        mine = [step.begin_s for step in self.steps if any(external(each) == name for each in step.requests)]
        if reason := answer.get("error") or missing(loaded, kept, passes, mine):
            record.outcome, record.reason = "failed", reason
            return record, None
        assert loaded is not None
        assert kept is not None
        at = lambda clock_s: clock_s - self.origin_s  # noqa: E731
        record.prefill_token_s, record.decode_token_s = at(kept["added_s"]), at(answer["first_s"])
        record.finish_s = at(answer["last_s"])
        start_s = record.decode_token_s - (mine[1] - mine[0])
        committed_s, offered_s = at(loaded["committed_s"]), at(loaded["offered_s"])
        record.expose(at(passes[0]), record.prefill_token_s, offered_s, committed_s, start_s)
        full = self.full(kept["added_s"], mine[0])
        record.prefill_busy_s, record.wire_busy_s, record.decode_busy_s = (
            record.prefill_exposed_s, record.wire_exposed_s, record.decode_exposed_s
        )  # fmt: skip
        record.encode_busy_s = math.nan if full else record.encode_exposed_s
        record.expand_busy_s = math.nan if full else max(0.0, record.expand_exposed_s - self.wait_s(loaded["written_s"], mine[0]))
        record.raw_bytes, more = loaded["raw_bytes"], self._of.get(("refined", name), {"bytes": 0})["bytes"]
        record.wire_bytes = loaded["bytes"] + more
        record.rate = 32 * loaded["bytes"] / record.raw_bytes
        record.distortion_start = record.distortion_final = record.distortion_token_weighted = loaded["distortion"]
        transfer = TransferRecord(
            prompt.request_id, "p0", "d0", offered_s, committed_s, loaded["mode"], cut=loaded["cut"], wire_bytes=record.wire_bytes,
            calls=1 if loaded["mode"] == "raw" else -(-loaded["bytes"] // FRAME_BYTES), raw_bytes=record.raw_bytes,
            bits_per_value=record.rate, distortion_start=loaded["distortion"], distortion_final=loaded["distortion"], refine_bytes=more,
        )  # fmt: skip
        return record, transfer

    def full(self, begin_s: float, end_s: float) -> bool:
        """Whether a step of the decode server between two times had no place for one more request."""
        between = self.steps[bisect_left(self._begins, begin_s) : bisect_left(self._begins, end_s)]
        return any(len(step.requests) >= self.max_batch for step in between)

    def wait_s(self, written_s: float, joined_s: float) -> float:
        """How long KV that is written now waits for steps of other requests before it joins one; 0 if none runs."""
        after = bisect_right(self._begins, written_s)
        if not 0 < after < len(self.steps) or not self.steps[after].requests.keys() & self.steps[after - 1].requests.keys():
            return 0.0
        return joined_s - written_s

    def iterations(self) -> list[tuple[int, int, float]]:
        """(requests, tokens of context, seconds) of each decode step that was followed by the next at once: one of its requests went on."""
        found = []
        for step, after in zip(self.steps, self.steps[1:]):
            if step.requests.keys() & after.requests.keys() and all(count == 1 for _, count in step.requests.values()):
                context = sum(before + 1 for before, _ in step.requests.values())
                found.append((len(step.requests), context, after.begin_s - step.begin_s))
        return found

    def front_s(self, records: Sequence[RequestRecord]) -> list[float]:
        """From the client's request until the pass begins, where the prefill server had nothing else to do."""
        order = sorted((r for r in records if r.outcome == "completed"), key=lambda r: r.prefill_token_s)
        free_s, found = float("-inf"), []
        for record in order:
            if free_s <= record.arrival_s:
                found.append(record.queue_exposed_s)
            free_s = record.prefill_token_s
        return found

    def coded(self) -> list[CodedCurves]:
        """The curves of the prompts that were coded at full depth."""
        found = []
        for (kind, name), line in self._of.items():
            kept = self._of.get(("kept", name))
            if kind == "coded" and kept and line["depth"] >= FULL_BITS:
                slope, uniform = parse_curve(line["slope"]), parse_curve(line["uniform"])
                found.append(CodedCurves(kept["tokens"], "fixed", line["raw_bytes"], slope, uniform))
        return found


def steps_of(lines: Sequence[Line]) -> list[Step]:
    return [
        Step(line["begin_s"], {name: (before, count) for name, before, count in line["requests"]})
        for line in lines
        if line["kind"] == "step"
    ]  # fmt: skip


def external(name: str) -> str:
    """The X-Request-Id in vLLM's name of a completion: cmpl-ID-0-RANDOM."""
    return name.removeprefix("cmpl-").rsplit("-", 2)[0]


def missing(loaded: Line | None, kept: Line | None, passes: Sequence[float], mine: Sequence[float]) -> str:
    """Why a request cannot be followed through the traces; empty if it can."""
    if not passes or kept is None:
        return "the prefill server did not keep its KV"
    if loaded is None:
        return "the decode server did not load its KV, and computed the prompt"
    return "" if len(mine) > 1 else "the decode server computed fewer than two of its steps"
