"""The records that real and simulated runs write: one per request, one per transfer, one summary. All metrics are defined here.

Stages overlap, so their times do not add up. `_busy_s` is the time a stage worked; `_exposed_s` is the time the request waited for that
stage alone. The exposed times of a completed request sum to its E2E time. Times are seconds on the run's clock: CLOCK_MONOTONIC minus the
start of the run, or simulated time. TTFT is `decode_token_s - arrival_s`: the decode side has produced a token. docs/glossary.md describes
every column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from abkt.slo import SLO as SLO

SCHEMA_VERSION = 3
CHANGES = "queue_busy_s is gone, and compute and pacing say `simulated` instead of `model`"  # since version 2
STAGES = ("queue", "prefill", "encode", "wire", "expand", "decode")
OUTCOMES = ("completed", "rejected", "failed")


@dataclass(slots=True)
class RequestRecord:
    """One request: a row of requests.parquet.

    Parameters
    ----------
    isl, osl : number of prompt tokens and of output tokens.
    arrival_s, prefill_token_s, decode_token_s, finish_s : when the request arrived, when the prefill node had the first token, when the
        decode side had produced a token, and when the last token was there.
    queue : the stage from arrival to the start of prefill.
    prefill, encode : the stages that end with the first token and with the coded KV.
    wire : the stage that ends with the last promised byte; it includes the wait for the link.
    expand : the stage that ends with usable KV; it includes the waits for memory and for an iteration boundary.
    decode : the stage that ends with the last token.
    prefill_node, decode_node : names of the nodes.
    compute : `real`, `paced` (workers sleep profiled times) or `simulated`.
    rate : mean bits per KV value on the wire.
    wire_bytes, raw_bytes : bytes of KV sent, and bytes of the same KV in the pool.
    distortion_start, distortion_final : see TransferRecord.
    distortion_token_weighted : mean distortion over the output tokens.
    cached_tokens : prompt tokens that the prefill node's prefix cache held.
    preemptions : how often the request gave back its memory and was recomputed.
    retries : how often the request was placed again after a node was lost; the stages are those of the last attempt.
    cost_usd : cost of GPU time and egress bytes.
    extrapolated : whether a cost lies outside the range that the profile measured.
    outcome, reason : one of OUTCOMES, and why the request did not complete.
    """

    request_id: int
    isl: int
    osl: int
    arrival_s: float
    queue_exposed_s: float = 0.0
    prefill_busy_s: float = 0.0
    prefill_exposed_s: float = 0.0
    encode_busy_s: float = 0.0
    encode_exposed_s: float = 0.0
    wire_busy_s: float = 0.0
    wire_exposed_s: float = 0.0
    expand_busy_s: float = 0.0
    expand_exposed_s: float = 0.0
    decode_busy_s: float = 0.0
    decode_exposed_s: float = 0.0
    prefill_token_s: float = math.nan
    decode_token_s: float = math.nan
    finish_s: float = math.nan
    prefill_node: str = ""
    decode_node: str = ""
    compute: str = "simulated"  # real | paced | simulated
    rate: float = math.nan
    wire_bytes: int = 0
    raw_bytes: int = 0
    distortion_start: float = 0.0
    distortion_final: float = 0.0
    distortion_token_weighted: float = 0.0
    cached_tokens: int = 0
    preemptions: int = 0
    retries: int = 0
    cost_usd: float = 0.0
    extrapolated: bool = False
    outcome: str = "completed"
    reason: str = ""

    @property
    def colocated(self) -> bool:
        """Whether one node computed the prompt and the answer."""
        return self.decode_node != "" and self.prefill_node == self.decode_node

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token that the client gets: the prefill node's if that node also decodes, otherwise the decode side's."""
        return self.prefill_token_s - self.arrival_s if self.colocated else self.ttft_decode_s

    @property
    def ttft_decode_s(self) -> float:
        """Seconds until the decode side has produced a token."""
        return self.decode_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the one that ttft_s counts to; nan if there is only one."""
        if self.colocated:
            return (self.finish_s - self.prefill_token_s) / (self.osl - 1) if self.osl > 1 else math.nan
        return (self.finish_s - self.decode_token_s) / (self.osl - 2) if self.osl > 2 else math.nan

    @property
    def e2e_s(self) -> float:
        return self.finish_s - self.arrival_s

    @property
    def transfer_exposed_s(self) -> float:
        return self.encode_exposed_s + self.wire_exposed_s + self.expand_exposed_s

    def expose(
        self, prefill_start_s: float, encode_start_s: float, wire_start_s: float, expand_start_s: float, decode_start_s: float
    ) -> None:
        """Set every exposed time from the times at which one stage ends and the next begins; finish_s must be set."""
        self.queue_exposed_s = prefill_start_s - self.arrival_s
        self.prefill_exposed_s = encode_start_s - prefill_start_s
        self.encode_exposed_s = wire_start_s - encode_start_s
        self.wire_exposed_s = expand_start_s - wire_start_s
        self.expand_exposed_s = decode_start_s - expand_start_s
        self.decode_exposed_s = self.finish_s - decode_start_s


@dataclass(slots=True)
class TransferRecord:
    """One KV transfer: a row of transfers.parquet. It begins when the decode side has reserved memory for it.

    Parameters
    ----------
    request_id, source, destination : the request and the two nodes.
    start_s, finish_s : when the transfer started, and when the promised cut had arrived, so that decoding could begin.
    mode, order, depth_bits, coder : as in the first decision; order and coder are empty for a mode without them.
    cut : the cut that was reached when decoding could begin.
    slope : distortion that the last band of the cut removed per byte; nan on real workers and for cut 0.
    price : the higher of the two ends' prices at the start, in distortion per byte.
    estimate_bytes_per_s : the policy's link estimate at the start; nan if it has none.
    calls : number of send calls (frames or copies).
    wire_bytes, raw_bytes : bytes of KV sent, and bytes of the same KV in the pool.
    bits_per_value : mean bits per value of the sent KV.
    retries, resumes : how often the transfer was offered again, and how often it continued after a broken connection.
    distortion_start, distortion_final : weighted relative squared error on mean-removed channels, when decoding could begin and after
        refinement; 0: no error, 1: every value is its channel's mean. With a calibration that predicts it, the divergence of the model's
        answers in nats a token.
    refine_bytes, refine_finish_s : bytes that refined the KV after decoding could begin (part of wire_bytes), and when the last of them
        had arrived; 0 and nan without refinement.
    pacing : the mechanism that limited the rate: `simulated`, `tbf` (kernel token bucket), `socket` (SO_MAX_PACING_RATE), `userspace` (the
        sender) or `none`.
    outcome, reason : one of OUTCOMES, and why the transfer did not complete.
    """

    request_id: int
    source: str
    destination: str
    start_s: float
    finish_s: float = math.nan
    mode: str = "raw"
    order: str = ""
    depth_bits: int = 0
    cut: int = 0
    slope: float = math.nan
    price: float = 0.0
    estimate_bytes_per_s: float = math.nan
    calls: int = 0
    wire_bytes: int = 0
    raw_bytes: int = 0
    bits_per_value: float = math.nan
    retries: int = 0
    resumes: int = 0
    distortion_start: float = 0.0
    distortion_final: float = 0.0
    refine_bytes: int = 0
    refine_finish_s: float = math.nan
    pacing: str = ""  # simulated | tbf | socket | userspace | none
    outcome: str = "completed"
    reason: str = ""
    coder: str = ""


DERIVED = ("ttft_s", "ttft_decode_s", "tpot_s", "e2e_s", "transfer_exposed_s")
SUMMARIZED = (
    *("outcome", "osl", "arrival_s", "finish_s", "wire_bytes", "raw_bytes", "cost_usd", "distortion_token_weighted", "extrapolated"),
    *DERIVED,
    *(f"{stage}_exposed_s" for stage in STAGES),
)


def check_version(version: object, where: object) -> None:
    """Raises ValueError, one line, if records were written in another schema version. where: the folder or file of the records."""
    if version != SCHEMA_VERSION:
        raise ValueError(f"{where} has records of schema version {version}; this code reads {SCHEMA_VERSION} ({CHANGES}): run it again")


def columns(records: Sequence[RequestRecord] | Sequence[TransferRecord]) -> dict[str, list[object]]:
    """Records as columns, the schema of the Parquet files. For requests the DERIVED times are added."""
    if not records:
        return {}
    names = [f.name for f in fields(records[0])]
    if isinstance(records[0], RequestRecord):
        names += DERIVED
    return {name: [getattr(record, name) for record in records] for name in names}


def summarize(records: Sequence[RequestRecord], slo: SLO, wall_s: float) -> dict[str, object]:
    """The summary of a run. Throughput and goodput count from the first arrival to the last finish. wall_s: real seconds of the run."""
    found = {name: np.array([getattr(r, name) for r in records], dtype=str if name == "outcome" else None) for name in SUMMARIZED}
    return summarize_columns(found, slo, wall_s)


def summarize_columns(columns: Mapping[str, np.ndarray], slo: SLO, wall_s: float) -> dict[str, object]:
    """As `summarize`, from columns; the columns in SUMMARIZED are needed."""
    outcome = columns["outcome"]
    done = outcome == OUTCOMES[0]
    of = {name: values[done] for name, values in columns.items()}
    count, total = int(done.sum()), len(outcome)
    good = int(((of["ttft_s"] <= slo.ttft_s) & ~(of["tpot_s"] > slo.tpot_s)).sum())
    span_s = float(of["finish_s"].max() - columns["arrival_s"].min()) if count else math.nan
    distortion = of["distortion_token_weighted"]
    return {
        "schema_version": SCHEMA_VERSION,
        "requests": {"initiated": total, **{o: int((outcome == o).sum()) for o in OUTCOMES}},
        **{name: spread(of[name]) for name in DERIVED},
        "itl_s": itl(of["tpot_s"], of["osl"]),
        "stages_exposed_s": {s: spread(of[f"{s}_exposed_s"]) for s in STAGES},
        "throughput_per_s": count / span_s if span_s > 0 else 0.0,
        "goodput_per_s": good / span_s if span_s > 0 else 0.0,
        "good_share": good / total if total else 0.0,
        "wire_bytes": int(of["wire_bytes"].sum()),
        "raw_bytes": int(of["raw_bytes"].sum()),
        "cost_usd": float(of["cost_usd"].sum()),
        "distortion": {"mean": float(distortion.mean()), "p99": float(np.quantile(distortion, 0.99))} if count else {},
        "extrapolated_share": float(of["extrapolated"].mean()) if count else 0.0,
        "wall_s": wall_s,
    }


def itl(tpot_s: np.ndarray, osl: np.ndarray) -> dict[str, float]:
    """Inter-token latency: mean, p50, p90 and p99 over the gaps between two output tokens of the decode side, all requests together.

    A record holds the sum of its gaps and not each one, so every gap counts as the mean gap of its request. The mean is exact; the
    percentiles weigh requests by their gaps, and do not see a stall within a request.
    """
    known = ~np.isnan(tpot_s)
    values, gaps = tpot_s[known], osl[known] - 2
    if not len(values):
        return spread(())
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99), weights=gaps, method="inverted_cdf")
    return {"mean": float(np.average(values, weights=gaps)), "p50": float(p50), "p90": float(p90), "p99": float(p99)}


def spread(values: Iterable[float]) -> dict[str, float]:
    """mean, p50, p90 and p99 of the finite values; nan if there are none."""
    found = values if isinstance(values, np.ndarray) else np.array(list(values), dtype=float)
    finite = found[~np.isnan(found)]
    if not len(finite):
        return dict.fromkeys(("mean", "p50", "p90", "p99"), math.nan)
    p50, p90, p99 = np.quantile(finite, (0.5, 0.9, 0.99))
    return {"mean": float(finite.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99)}
