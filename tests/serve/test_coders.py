"""The entropy coder and a model's calibration in the serving path: which coder's bytes are sent, and which weights order them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from abkt.codec.calibration import Calibration
from abkt.codec.header import read_header
from abkt.codec.importance import Importance
from abkt.codec.stream import Stream
from abkt.policy.view import Decision
from abkt.profile.expect import expected_view
from abkt.serve.commands import WorkerConfig
from abkt.serve.engine.model_folder import fingerprint, read_spec
from abkt.serve.worker.equipment import equip
from abkt.serve.worker.layered import LayerGroup
from abkt.serve.worker.prefill import PrefillWorker
from abkt.spec import KVLayout
from tests.codec.klt.conftest import make_basis, make_calibration
from tests.profile.test_expect import made
from tests.serve.in_process import FakeControl

TOKENS = 300


def calibrated(tiny_model: Path, path: Path) -> Path:
    """A calibration in which one head counts a thousand times as much as the others."""
    sensitivity = np.ones((2, 2, 2))
    sensitivity[1, 0, 1] = 1000.0
    Calibration("tiny", 0.5, sensitivity, np.zeros((2, 2, 2), dtype=np.uint8)).save(path)
    return path


def encoded(tiny_model: Path, calibration: str, coder: str) -> Stream:
    config = WorkerConfig("p0", "prefill", str(tiny_model), blocks=40, block_tokens=16, max_batch=1, calibration=calibration)
    equipment = equip(config)
    worker = PrefillWorker(config, FakeControl(), equipment)
    importance, table = Importance(16), list(range(19))
    equipment.engine.begin([(3 * i) % 2048 for i in range(TOKENS)], table, importance)
    source = worker._source(table, TOKENS, Decision("stream", coder=coder), importance)  # type: ignore[arg-type]
    assert isinstance(source, Stream)
    weights = importance.weights(equipment.engine.pool, table, equipment.codec.cells(TOKENS), equipment.codec.calibration)
    again = equipment.codec.encode(equipment.engine.pool, table, TOKENS, weights=weights, coder=coder)  # type: ignore[arg-type]
    assert source.prefix(5) == again.prefix(5)
    return source


def test_a_calibration_moves_the_important_head_to_the_front_of_the_stream(tiny_model: Path, tmp_path: Path) -> None:
    path = calibrated(tiny_model, tmp_path / "calibration.json")
    with_it, without = encoded(tiny_model, str(path), "fixed"), encoded(tiny_model, "", "fixed")

    def place(stream: Stream) -> float:
        """Mean band of the passes of the most important head, divided by the mean band of all passes."""
        of = stream.header.bands.of.reshape(-1, *stream.header.cells.shape).astype(float)
        return float(of[:, 1, 0, 1].mean() / of.mean())

    assert place(with_it) < 0.6 < 0.8 < place(without)


def test_the_coder_that_the_policy_decided_is_sent(tiny_model: Path) -> None:
    fixed, entropy = (encoded(tiny_model, "", coder) for coder in ("fixed", "entropy"))
    for stream, coder in ((fixed, "fixed"), (entropy, "entropy")):
        assert read_header(memoryview(stream.prefix(3)), stream.header.cells.layout).coder == coder
    same = [curve.bytes[curve.cut_reaching(0.02)] for curve in (fixed.slope, entropy.slope)]
    assert same[1] < same[0]


def test_a_calibration_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    Calibration("big", 0.5, np.ones((4, 2, 2)), np.zeros((4, 2, 2), dtype=np.uint8)).save(path)
    config = WorkerConfig("p0", "prefill", str(tiny_model), blocks=40, block_tokens=16, max_batch=1, calibration=str(path))
    with pytest.raises(ValueError, match=r"calibration of big has .*\(4, 2, 2\); the pool has \(2, 2, 2\)"):
        equip(config)


def test_the_klt_coder_is_sent_with_the_last_queries_and_only_with_a_calibration_of_these_weights(tiny_model: Path, tmp_path: Path) -> None:
    layout = KVLayout(read_spec(tiny_model), 40)
    path = tmp_path / "calibration.safetensors"
    made = make_calibration(layout, make_basis(layout), fingerprint=fingerprint(tiny_model))
    made.save(path)
    config = WorkerConfig("p0", "prefill", str(tiny_model), blocks=40, block_tokens=16, max_batch=1, calibration=str(path))
    equipment = equip(config)
    worker, importance, table = PrefillWorker(config, FakeControl(), equipment), Importance(16), list(range(19))
    equipment.engine.begin([(3 * i) % 2048 for i in range(TOKENS)], table, importance)
    pool, codec = equipment.engine.pool, equipment.codec
    source = worker._source(table, TOKENS, Decision("stream", coder="klt"), importance)
    assert isinstance(source, Stream)
    seen = importance.tokens(pool, table, TOKENS)
    assert source.prefix(5) == codec.encode(pool, table, TOKENS, coder="klt", importance=seen).prefix(5)
    assert source.prefix(5) != codec.encode(pool, table, TOKENS, coder="klt").prefix(5)
    group = LayerGroup(codec, (1, 2))
    part = group.encode(pool, table, TOKENS, Decision("stream", coder="klt"), importance)
    before = pool.data.clone()
    assert group.expand(memoryview(part.prefix(-1)), pool, table, TOKENS) == pytest.approx(part.curve.distortion[-1])
    assert torch.equal(pool.data[:, 0], before[:, 0])
    assert not torch.equal(pool.data[:, 1], before[:, 1])
    replace(made, fingerprint="0123456789abcdef").save(path)
    with pytest.raises(ValueError, match=r"\(0123456789abcdef\) was made on other weights than those here"):
        equip(config)


def test_policies_see_the_entropy_coder_where_the_profile_has_measured_it() -> None:
    profile = made()
    plain = expected_view(profile, 300, 1.0)
    assert plain.entropy_share == 0.0
    fits = {**profile.fits, "encode/entropy": profile.fits["encode/8"], "expand/entropy": profile.fits["expand/8"]}
    view = expected_view(replace(profile, fits=fits, entropy_share=0.7), 300, 1.0)
    assert (view.entropy_share, view.entropy_encode_s, view.entropy_expand_s) == (0.7, plain.encode_s, plain.expand_s)
    assert replace(view, entropy_share=0.0, entropy_encode_s=0.0, entropy_expand_s=0.0) == plain
