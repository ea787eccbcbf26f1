"""Two TP ranks on each side: each rank sends its own heads to the rank of the same number, and ranks that do not fit are refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from abkt.codec.calibration import Calibration
from abkt.connect.vllm.layout import PagedKV
from abkt.connect.vllm.metadata import Send
from abkt.connect.vllm.scheduler import SchedulerSide
from abkt.connect.vllm.settings import Settings
from abkt.connect.vllm.worker import WorkerSide, of_rank

BLOCKS, HEADS, TOKENS = 8, 2, 100


class Side:
    """A server with some TP ranks of HEADS heads each."""

    def __init__(self, ranks: int) -> None:
        settings = Settings(bitrate="raw", timeout_s=5.0)
        self.caches = [tuple(torch.zeros(BLOCKS, HEADS, 32, 64) for _ in range(2)) for _ in range(ranks)]
        self.workers = [WorkerSide(settings, PagedKV(each, "split", "m"), rank, ranks) for rank, each in enumerate(self.caches)]
        self.scheduler = SchedulerSide(settings, 32)
        self.scheduler.introduce({rank: worker.handshake for rank, worker in enumerate(self.workers)})

    def step(self) -> list[tuple[set[str], set[str], set[int]]]:
        work = self.scheduler.step(SimpleNamespace(total_num_scheduled_tokens=0))
        for worker in self.workers:
            worker.step(work)
        return [worker.poll() for worker in self.workers]


@pytest.fixture
def sides() -> Iterator[Any]:
    made: list[Side] = []

    def make(ranks: int) -> Side:
        made.append(Side(ranks))
        return made[-1]

    yield make
    for side in made:
        for worker in side.workers:
            worker.close()


def handed_off(p: Side) -> dict[str, Any]:
    request = SimpleNamespace(
        request_id="p",
        num_prompt_tokens=TOKENS,
        kv_transfer_params={"do_remote_decode": True},
        status=SimpleNamespace(name="FINISHED_STOPPED"),
    )
    kept, params = p.scheduler.finished(request, [1, 2, 3, 4])
    assert kept
    assert params is not None
    return params


def test_each_rank_sends_its_heads(sides: Any) -> None:
    p, d = sides(2), sides(2)
    for each in (layer for rank in p.caches for layer in rank):
        each.copy_(torch.randn(each.shape))
    request = SimpleNamespace(request_id="d", num_prompt_tokens=TOKENS, kv_transfer_params=handed_off(p), block_hashes=[])
    assert d.scheduler.matched_tokens(request, 0) == (TOKENS, True)
    d.scheduler.allocated(request, [7, 5, 3, 1], TOKENS)
    sent, loaded, until_s = set(), [set(), set()], time.monotonic() + 20
    while not all(loaded) and time.monotonic() < until_s:
        sent |= {rank for rank, (done, _, _) in enumerate(p.step()) if done}
        for rank, (_, done, bad) in enumerate(d.step()):
            loaded[rank] |= done
            assert not bad
    assert sent == {0, 1}
    assert loaded == [{"d"}, {"d"}]
    for mine, theirs in zip(p.caches, d.caches):
        for a, b in zip(mine, theirs):
            assert torch.equal(a[[1, 2, 3]], b[[7, 5, 3]])
            assert torch.equal(a[4, :, :4], b[1, :, :4])


def test_unequal_ranks_are_refused_and_computed_here(sides: Any, caplog: Any) -> None:
    p, d = sides(2), sides(1)
    request = SimpleNamespace(request_id="d", num_prompt_tokens=TOKENS, kv_transfer_params=handed_off(p), block_hashes=[])
    assert d.scheduler.matched_tokens(request, 0) == (0, False)


def test_a_rank_takes_its_heads_of_a_calibration() -> None:
    sensitivity = 1.0 + np.arange(2 * 2 * 4, dtype=np.float64).reshape(2, 2, 4)
    whole = Calibration("m", 0.5, sensitivity, np.zeros((2, 2, 4), dtype=np.uint8))
    assert np.array_equal(of_rank(whole, 1, 2).sensitivity, sensitivity[:, :, 2:])
    assert np.array_equal(of_rank(whole, 0, 1).sensitivity, sensitivity[:, :, :1])
    assert of_rank(whole, 0, 4) is whole


def test_a_send_names_only_the_prompts_blocks(sides: Any) -> None:
    p = sides(1)
    handed_off(p)
    assert p.scheduler.step(SimpleNamespace(total_num_scheduled_tokens=1)).sends == {"p": Send((1, 2, 3, 4), TOKENS)}
