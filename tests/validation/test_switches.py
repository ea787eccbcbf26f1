"""Changes of roles in both worlds, on made-up runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from abkt.records import RequestRecord, columns
from experiments.validation.folder import ValidationCase
from experiments.validation.switches import changes, placement, switches


def rows(ttft_s: float, nodes: list[tuple[str, str]]) -> pd.DataFrame:
    """A request a second, each in the cluster for two seconds."""
    made = [
        RequestRecord(i, 100, 10, arrival_s=float(i), prefill_node=p, decode_node=d, decode_token_s=i + ttft_s, finish_s=i + 2.0)
        for i, (p, d) in enumerate(nodes)
    ]
    return pd.DataFrame(columns(made))


def case(policy: str, predicted: pd.DataFrame, measured: list[pd.DataFrame], told: list, was: list[list]) -> ValidationCase:
    return ValidationCase("c", policy, predicted, tuple(measured), {"roles": told}, tuple({"roles": log} for log in was))


def test_changes_by_hand() -> None:
    log = [
        (1.0, "d1", ""),
        (1.5, "p1", ""),
        (2.0, "d1", "prefill"),
        (3.0, "d1", ""),
        (3.1, "d1", "decode"),
        (4.0, "d1", ""),
        (4.5, "d1", "prefill"),
    ]
    found = changes(log)
    assert found == {("d1", "prefill", 0): (1.0, 2.0), ("d1", "decode", 0): (3.0, 3.1), ("d1", "prefill", 1): (4.0, 4.5)}
    ((begun_s, ready_s),) = changes([(5.0, "d9", "decode")]).values()  # a worker that came
    assert math.isnan(begun_s)
    assert ready_s == 5.0


def test_both_worlds_beside_each_other() -> None:
    """Drains for 2 s in the simulator, for 1 s and 3 s on the machine; requests that are open meanwhile were predicted 10 % too late."""
    before, after = ("p0", "d0"), ("d1", "d0")
    told, was = rows(0.55, [before] * 6 + [after] * 4), [rows(0.5, [before] * 5 + [after] * 5), rows(0.5, [before] * 7 + [after] * 3)]
    logs = [[(4.0, "d1", ""), (end_s, "d1", "prefill")] for end_s in (6.0, 5.0, 7.0)]
    (row,) = switches([case("raw", told, was, logs[0], logs[1:])])
    assert (row["worker"], row["role"]) == ("d1", "prefill")
    assert (row["predicted_drain_s"], row["measured_drain_s"]) == (2.0, 2.0)
    assert (row["predicted_served"], row["measured_served"]) == (4.0, 4.0)
    assert row["open"] == 5.0  # arrived from 2 s to 5 s, and from 2 s to 7 s
    assert row["ttft_error"] == pytest.approx(0.1)
    assert placement([case("raw", told, was, logs[0], logs[1:])]) == {"c": pytest.approx(0.9)}


def test_a_change_that_one_side_lacks_gives_nan() -> None:
    same = rows(0.5, [("p0", "d0")] * 4)
    (row,) = switches([case("raw", same, [same], [], [[(1.0, "d1", ""), (2.0, "d1", "prefill")]])])
    assert math.isnan(row["predicted_at_s"])
    assert row["measured_drain_s"] == 1.0
    assert switches([replace(case("raw", same, [same], [], [[]]), predicted_summary={})]) == []
