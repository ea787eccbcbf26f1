"""How busy the workers of a twin were, from the records of a run, real or simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def utilisation(requests: pd.DataFrame) -> dict[str, float]:
    """Shares of the time in which the requests arrived, the mean gap after the last one included. Above 1, work was left over at the end.

    prefill: the prefill worker computed prompts. encode: it encoded KV; both use the same core. decode: at least one request was being
    decoded.
    """
    first_s, last_s = requests.arrival_s.min(), requests.arrival_s.max()
    span_s = (last_s - first_s) * len(requests) / (len(requests) - 1) if len(requests) > 1 else float("nan")
    done = requests[requests.outcome == "completed"]
    spells = sorted(zip(done.finish_s - done.decode_exposed_s, done.finish_s, strict=True))
    busy_s, until_s = 0.0, float("-inf")
    for start_s, finish_s in spells:
        busy_s += max(0.0, finish_s - max(start_s, until_s))
        until_s = max(until_s, finish_s)
    return {
        "prefill": float(requests.prefill_busy_s.sum()) / span_s,
        "encode": float(requests.encode_busy_s.sum()) / span_s,
        "decode": busy_s / span_s,
    }
