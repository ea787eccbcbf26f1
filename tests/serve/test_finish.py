"""A client that has what it wants ends its request: the tokens so far are reported, and the memory is free."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from abkt.serve.commands import FinishAttempt
from abkt.serve.engine.generation import Sampling
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import AttemptFinished, Prefilled, StreamedTokens
from abkt.serve.worker.control import Log
from tests.serve.in_process import Pair, pair

RAW = {"_target_": "abkt.policy.bitrate.fixed.Raw"}
LONG = Prompt(0, 0.0, tuple(range(40)), 900, stream=True)


def finished(running: Pair) -> AttemptFinished:
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        report = running.decode.reports.get(timeout=60)
        if isinstance(report, AttemptFinished):
            return report
    raise AssertionError("it never came")


def test_a_running_request_ends_with_the_tokens_it_has(tiny_model: Path) -> None:
    with pair(tiny_model, RAW) as running:
        running.submit(LONG)
        streamed: list[int] = []
        while len(streamed) < 3:
            report = running.decode.reports.get(timeout=60)
            if isinstance(report, StreamedTokens):
                streamed += [token for _, token, _ in report.tokens]
        running.decode.tell(FinishAttempt(0))
        report = finished(running)
        assert 4 <= len(report.tokens) < 900
        assert list(report.tokens[1:4]) == streamed[:3]
        assert running.decode_worker.memory.attempts == []


def test_a_request_that_has_not_arrived_ends_with_its_first_token(tiny_model: Path) -> None:
    with pair(tiny_model, RAW) as running:
        running.decode.tell(FinishAttempt(0))
        running.submit(LONG)
        report = finished(running)
        assert len(report.tokens) == 1
        assert report.decode_token_s <= report.finish_s
        assert running.decode_worker.memory.attempts == []
        assert not running.decode_worker.ended


def test_logprobs_come_with_the_tokens_of_both_workers(tiny_model: Path) -> None:
    with pair(tiny_model, RAW) as running:
        running.submit(Prompt(0, 0.0, tuple(range(40)), 5, sampling=Sampling(logprobs=2)))
        report = finished(running)
        while not isinstance(first := running.prefill.reports.get(timeout=60), Prefilled):
            pass
        for token, logprobs in zip(report.tokens, (first.logprobs, *report.logprobs), strict=True):
            assert [entry[0] for entry in logprobs[:2]] == [token, token]  # greedy: the chosen token is the likeliest
            assert logprobs[1][1] >= logprobs[2][1]


class Full:
    def write(self, text: str = "") -> int:
        raise OSError(28, "No space left on device")

    flush = write


def test_a_full_disk_for_the_log_is_no_error_of_the_worker() -> None:
    log = Log(Full())  # type: ignore[arg-type]
    with pytest.raises(OSError, match="No space left"):
        Full().write("a")
    print("a line", file=log, flush=True)  # type: ignore[call-overload]
