"""Transfers that begin while prefill still runs deliver the same KV in another order of bytes, and their records add up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.codec import Codec
from abkt.codec.importance import Importance
from abkt.kv.pool import Pool
from abkt.policy.view import Decision
from abkt.records import STAGES
from abkt.serve import LocalCluster, LocalClusterSpec
from abkt.serve.worker.layered import (
    LayeredSource,
    LayerFooter,
    LayerGroup,
    RawSink,
    ends_of,
    footer_bytes,
    most_bytes,
    raw_group,
    spans,
    spans_of,
)
from abkt.spec import KVLayout, ModelSpec
from abkt.transfer.pieces import Pieces
from abkt.transfer.protocol.messages import Offer
from tests.codec.klt.conftest import make_basis, make_calibration
from tests.serve.test_engine import generate
from tests.serve.test_real_cluster import EMBEDDED, INT8, LINK, RAW, SLOW_SLO, UNLIMITED, prompts

LAYOUT = KVLayout(ModelSpec("made-up", layers=5, kv_heads=2, head_dim=32, dtype="bfloat16"), blocks=24, block_tokens=16)
TOKENS, GROUPS = 170, 3
SPANS = spans(5, GROUPS)


def test_groups_of_layers_end_where_a_calibration_lets_them() -> None:
    assert spans(30, 4) == [(0, 7), (7, 15), (15, 22), (22, 30)]
    assert spans(30, 4, range(2, 31, 2)) == [(0, 6), (6, 14), (14, 22), (22, 30)]
    assert spans(6, 6, (2, 4, 6)) == [(0, 2), (2, 4), (4, 6)]
    assert spans(6, 3, (6,)) == [(0, 6)]


@pytest.mark.parametrize("ends", ["", "3,5", "3,2,6", "0,6", "2,4", "2,x,6", "2,-4,6", "2,4,6,6", "9" * 5000, 6.0, True])
def test_groups_of_layers_that_do_not_divide_the_model_are_not_taken(ends: object) -> None:
    groups = [(0, 2), (2, 4), (4, 6)]
    assert spans_of(Offer(1, "raw", 5, (9,), more={"layer_ends": ends_of(groups)}), 6) == groups
    assert spans_of(Offer(1, "raw", 5, (9,)), 6) == [(0, 6)]
    assert spans_of(Offer(1, "raw", 5, (9,), more={"layer_ends": ends}), 6) == []  # type: ignore[dict-item]


def test_a_group_that_divides_layers_which_are_transformed_together_refuses_klt_alone(pool: Pool) -> None:
    groups = np.array([0, 0, 1, 1, 1], np.int16)[:, None, None].repeat(2, 1).repeat(2, 2)
    codec = Codec(LAYOUT, calibration=make_calibration(LAYOUT, make_basis(LAYOUT, groups=groups)))
    assert codec.layer_ends() == (2, 5)
    table, klt = list(range(11)), Decision("stream", coder="klt")
    for span in ((0, 2), (2, 5)):
        LayerGroup(codec, span).encode(pool, table, TOKENS, klt, Importance(0))
    group = LayerGroup(codec, (0, 3))
    group.encode(pool, table, TOKENS, Decision("stream"), Importance(0))
    with pytest.raises(ValueError, match="coder klt needs a calibration with a klt basis"):
        group.encode(pool, table, TOKENS, klt, Importance(0))


@pytest.fixture(scope="module")
def pool() -> Pool:
    made = Pool(LAYOUT)
    made.data.copy_(torch.randn(made.data.shape, generator=torch.Generator().manual_seed(2)))
    return made


@pytest.fixture(scope="module")
def groups() -> list[LayerGroup]:
    codec = Codec(LAYOUT)
    return [LayerGroup(codec, span) for span in SPANS]


def taken(source: LayeredSource, sizes: Iterator[int], add: list[object], token: int) -> bytes:
    """The bytes that a sender takes from a source. A group is added whenever the sender has to wait."""
    data, waiting = b"", [*add]
    while True:
        until, last = source.available(0.0, len(data))
        if len(data) < until:
            stop = min(until, len(data) + next(sizes))
            data += b"".join(source.buffers(len(data), stop))
        elif last:
            return data
        elif waiting:
            source.add(waiting.pop(0))  # type: ignore[arg-type]
        else:
            source.finish(token)


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 80), min_size=1, max_size=30), frames=st.lists(st.integers(1, 60_000), min_size=1, max_size=9))
def test_each_layer_group_arrives_up_to_its_own_cut(pool: Pool, groups: list[LayerGroup], cuts: list[int], frames: list[int]) -> None:
    """The policy answers with these cuts in turn and repeats the last one. Bytes that were sent stay sent."""
    table, asked = list(range(3, 14)), iter(cuts)
    streams = [group.encode(pool, table, TOKENS, Decision("stream"), Importance(8)) for group in groups]
    seen: list[tuple[int, int, int]] = []

    def next_cut(index: int, stream: object, now_s: float, before_bytes: int, sent_bytes: int, complete: int) -> int:
        seen.append((index, before_bytes, sent_bytes))
        assert stream is streams[index]
        assert streams[index].ends[complete] <= sent_bytes - before_bytes or complete == 0
        return min(next(asked, cuts[-1]), len(streams[index].ends) - 1)

    source = LayeredSource(GROUPS, most_bytes(LAYOUT, TOKENS, GROUPS), next_cut)
    sizes = (frames[i % len(frames)] for i in range(10**6))
    data = taken(source, sizes, list(streams), 77)
    assert len(data) <= source.ends[-1]
    size = footer_bytes(GROUPS)
    footer = LayerFooter(data[-size:], GROUPS, len(data))
    assert footer.first_token == 77
    for stream, cut, (start, stop) in zip(streams, source.cuts, footer.sections, strict=True):
        assert data[start:stop] == stream.prefix(cut)
    left = sum(s.curve.distortion[cut] * (b - a) / 5 for s, cut, (a, b) in zip(streams, source.cuts, SPANS, strict=True))
    assert source.distortion() == pytest.approx(left)
    assert [index for index, _, _ in seen] == sorted(index for index, _, _ in seen)
    if len(set(cuts)) == 1:
        assert all(cut == min(cuts[0], len(s.ends) - 1) for s, cut in zip(streams, source.cuts, strict=True))


def test_expanding_a_layer_group_writes_its_values_and_no_other_groups(pool: Pool, groups: list[LayerGroup]) -> None:
    table, other = list(range(3, 14)), list(range(12, 1, -1))
    for group, (first, stop) in zip(groups, SPANS, strict=True):
        stream = group.encode(pool, table, TOKENS, Decision("stream"), Importance(8))
        target = Pool(LAYOUT)
        target.data.fill_(7.0)
        left = group.expand(memoryview(stream.prefix(len(stream.ends) - 1)), target, other, TOKENS)
        assert left == pytest.approx(stream.curve.distortion[-1], rel=1e-6)
        inside, truth = target.data[torch.tensor(other)], pool.data[torch.tensor(table)]
        error = (inside[:, first:stop].float() - truth[:, first:stop].float())[:, :, :, :, :10].square().mean()
        assert error < 1e-3
        assert (inside[:, :first] == 7.0).all()
        assert (inside[:, stop:] == 7.0).all()


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=7))
def test_raw_layer_groups_arrive_in_their_blocks(pool: Pool, sizes: list[int]) -> None:
    table, other, target = list(range(3, 14)), list(range(12, 1, -1)), Pool(LAYOUT)
    size = len(table) * LAYOUT.block_bytes + footer_bytes(GROUPS)
    source = LayeredSource(GROUPS, size)
    data = taken(source, (sizes[i % len(sizes)] for i in range(10**6)), [Pieces(raw_group(pool, table, TOKENS, span)) for span in SPANS], 5)
    sink = RawSink(target, other, TOKENS, SPANS)
    assert len(data) == source.ends[-1] == sink.size == size
    at = 0
    for piece in sink.buffers(0, size):
        piece[:] = data[at : at + len(piece)]
        at += len(piece)
    assert LayerFooter(sink.footer, GROUPS, size).first_token == 5
    assert torch.equal(target.data[torch.tensor(other)], pool.data[torch.tensor(table)])


@pytest.mark.parametrize("change", [(0, 1), (-1, 200), (-16, 1), (4, 255)])
def test_a_damaged_footer_is_refused(pool: Pool, change: tuple[int, int]) -> None:
    source = LayeredSource(GROUPS, 10**7)
    data = taken(source, iter(lambda: 1000, 0), [Pieces([b"x" * 300])] * GROUPS, 5)
    footer = bytearray(data[-footer_bytes(GROUPS) :])
    at, value = change
    footer[at] = value
    if at == 0:
        assert LayerFooter(footer, GROUPS, len(data)).first_token == 1
        return
    with pytest.raises(ValueError, match=r"groups? of layers"):
        LayerFooter(footer, GROUPS, len(data))


# In a cluster


@pytest.fixture(scope="module")
def layered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """With a key and encryption too; the session's cluster has neither, and processes take long to start."""
    folder = tmp_path_factory.mktemp("layered")
    key = folder / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    with LocalCluster(
        LocalClusterSpec(tiny_model, pool_tokens=1024, max_batch=4, layer_groups=2, key_file=str(key), encrypt=True), folder
    ) as running:
        yield running


def test_encrypted_raw_layer_groups_give_the_tokens_of_a_single_process(layered: LocalCluster) -> None:
    run = layered.run(prompts(), RAW, UNLIMITED, SLOW_SLO)
    assert not any(t.resumes for t in run.transfers)
    assert run.outputs == {p.request_id: generate(layered.spec.model_folder, list(p.tokens), p.osl) for p in prompts()}


@pytest.mark.parametrize("bitrate", [RAW, INT8, EMBEDDED], ids=["raw", "int8", "embedded"])
def test_the_records_of_layer_groups_add_up(layered: LocalCluster, bitrate: dict[str, object]) -> None:
    given = prompts(lengths=(500, 300, 37))
    run = layered.run(given, bitrate, LINK, SLOW_SLO)
    assert [r.outcome for r in run.requests] == ["completed"] * len(given)
    for r, t in zip(run.requests, sorted(run.transfers, key=lambda t: t.request_id), strict=True):
        assert sum(getattr(r, f"{stage}_exposed_s") for stage in STAGES) == pytest.approx(r.e2e_s, abs=1e-9)
        assert all(getattr(r, f"{stage}_exposed_s") >= 0 for stage in STAGES)
        assert min(r.prefill_busy_s, r.encode_busy_s) >= 0
        assert t.mode == ("raw" if bitrate is RAW else "stream")
        assert (r.distortion_start == 0) == (bitrate is RAW)
        if bitrate is INT8 and r.isl > 100:
            assert r.distortion_start < 1e-3


def test_a_request_that_ends_at_its_first_token_leaves_no_memory_reserved(layered: LocalCluster) -> None:
    (one,) = prompts(lengths=(300,), osl=1)
    first = layered.run([one], EMBEDDED, LINK, SLOW_SLO).outputs[0]
    run = layered.run([replace(one, osl=8, stop=(first[0],))], EMBEDDED, LINK, SLOW_SLO)
    assert ([r.outcome for r in run.requests], run.outputs[0]) == (["completed"], first)
    again = layered.run(prompts(lengths=(400, 400)), EMBEDDED, LINK, SLOW_SLO)  # so the memory is free
    assert [r.outcome for r in again.requests] == ["completed"] * 2


def test_paced_workers_refuse_layer_groups(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="layer_groups is 2"):
        LocalClusterSpec(tiny_model, layer_groups=2, paced=tiny_model / "profile.json")
