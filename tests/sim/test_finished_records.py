"""Records leave a simulation in order of arrival: an open request holds back those that arrived after it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from abkt.records import RequestRecord
from sim import records


def test_an_open_request_holds_back_those_that_arrived_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "request_record", lambda job: RequestRecord(job.index, 10, 5, 0.0, finish_s=job.finish_s))
    finished = records.FinishedRecords()
    jobs = [SimpleNamespace(index=i, outcome="completed", finish_s=9.0 - i) for i in range(3)]
    finished.add(jobs[0])
    finished.add(jobs[2])
    assert [record.request_id for record in finished.collect()] == [0]
    finished.ready.clear()  # taken
    assert finished.collect() == []
    finished.add(jobs[1])
    assert [(record.request_id, record.finish_s) for record in finished.collect()] == [(1, 8.0), (2, 7.0)]


def test_the_record_of_a_failed_request_is_made_when_it_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its end and the collection, its last iteration may still be charged to it."""
    monkeypatch.setattr(records, "request_record", lambda job: RequestRecord(job.index, 10, 5, 0.0, cost_usd=job.cost_usd))
    finished, job = records.FinishedRecords(), SimpleNamespace(index=0, outcome="failed", cost_usd=1.0)
    finished.add(job)
    job.cost_usd = 2.0
    assert [record.cost_usd for record in finished.collect()] == [2.0]
