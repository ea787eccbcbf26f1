"""What a worker counts of its transfers, as plain lists and numbers that vLLM sends to its frontend."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

LISTS = (
    *("received_bytes", "received_raw_bytes", "received_cut", "received_distortion", "exposed_s", "received_peer"),
    *("offer_s", "arrive_s", "write_s", "report_s"),  # parts of a load, one after another; the first three are exposed_s
    *("sent_bytes", "sent_peer", "encode_s", "held_s"),
)
PARTS = {"offer_s": "offer", "arrive_s": "arrive", "write_s": "write", "report_s": "report"}
COUNTS = ("retries", "resumes", "failed_loads", "failed_sends", "expired", "refined_cuts", "refined_bytes")


def empty() -> dict[str, Any]:
    return {**{name: [] for name in LISTS}, **dict.fromkeys(COUNTS, 0)}


def is_empty(data: Mapping[str, Any]) -> bool:
    return not any(data[name] for name in (*LISTS, *COUNTS))


def added(data: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both together."""
    return {name: data[name] + more[name] for name in (*LISTS, *COUNTS)}


def reduced(data: Mapping[str, Any]) -> dict[str, int | float | str]:
    """One line for the log: sums, means, and the received bytes of each peer."""
    received, raw, sent = sum(data["received_bytes"]), sum(data["received_raw_bytes"]), sum(data["sent_bytes"])
    found: dict[str, int | float | str] = {}
    if data["received_bytes"]:
        found = {
            "loads": len(data["received_bytes"]),
            "received_mb": round(received / 1e6, 3),
            "ratio": round(received / raw, 3) if raw else 1.0,
            "mean_cut": round(_mean(data["received_cut"]), 1),
            "mean_distortion": round(_mean(data["received_distortion"]), 6),
            "mean_exposed_s": round(_mean(data["exposed_s"]), 3),
            "parts_s": " ".join(f"{shown}:{_mean(data[name]):.3f}" for name, shown in PARTS.items()),
            "peers": " ".join(f"{peer}:{data['received_peer'].count(peer)}" for peer in sorted(set(data["received_peer"]))),
        }
    if data["sent_bytes"]:
        found |= {"sends": len(data["sent_bytes"]), "sent_mb": round(sent / 1e6, 3)}
    for name, shown in (("held_s", "mean_blocks_held_s"), ("encode_s", "mean_encode_s")):
        if data[name]:
            found[shown] = round(_mean(data[name]), 4)
    return found | {name: data[name] for name in COUNTS if data[name]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


class Counters:
    """The counts of one worker since they were last taken. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data = empty()

    def add(self, **values: Any) -> None:
        """Append to lists, and add to counts."""
        with self._lock:
            for name, value in values.items():
                if name in COUNTS:
                    self._data[name] += value
                else:
                    self._data[name].append(value)

    def take(self) -> dict[str, Any] | None:
        """The counts, which begin again from 0; None if there are none."""
        with self._lock:
            if is_empty(self._data):
                return None
            data, self._data = self._data, empty()
        return data
