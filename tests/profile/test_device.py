"""The profile of a device without a cluster: its stages and fits, what it imports, and how the simulator reads it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abkt.arguments import read
from abkt.measure.__main__ import DeviceArguments
from abkt.measure.device import Layer
from abkt.measure.shape import DecoderShape
from abkt.profile.schema import load
from experiments.lib.config import MeasuredHardware, instance

TINY = ["name=tiny", "layers=3", "hidden=64", "heads=4", "kv_heads=2", "head_dim=16", "intermediate=96", "vocab=200"]
CURVES = Path(__file__).parents[2] / "data" / "curves" / "probe.json"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A tiny model's profile, made by the command in a process that must not import what a bare image lacks."""
    out = tmp_path_factory.mktemp("device")
    code = (
        "import sys; from abkt.measure.__main__ import run; run(sys.argv[1:]);"
        "print('loaded:', sorted({'hydra', 'transformers', 'pandas', 'simpy', 'pydantic'} & set(sys.modules)))"
    )
    given = ["device=cpu", f"out={out}", "tokens=256", "repeats=1", *TINY]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "profile.json", done.stdout


def test_it_has_every_stage_that_the_simulator_reads_and_loads_nothing_else(measured):
    path, printed = measured
    profile = load(path)
    coded = {f"{what}/{depth}" for what in ("encode", "expand") for depth in ("raw", "lossless", "2", "4", "8")}
    assert set(profile.fits) == {"prefill", "decode", "transport"} | coded
    for stage, fit in profile.fits.items():
        assert fit.seconds(tokens=256, batch=4, context=512, calls=3, bytes=1e6) > 0, stage
    assert profile.model.kv_bytes_per_token == 3 * 2 * 2 * 16 * 2
    assert "loaded: []" in printed
    assert "random" in profile.fingerprint["weights"]
    assert 0.5 < profile.lossless_share < 1  # of bfloat16: sign and mantissa are half of it


def test_the_simulator_reads_curves_from_a_file_if_a_profile_has_none(measured):
    path, _ = measured
    profile = load(path)
    assert not profile.curves
    assert instance(MeasuredHardware(profile=path, kv_tokens=4096), profile.model, CURVES).profile.curves


def test_a_layer_is_causal_and_attends_to_the_kv_it_is_given():
    torch.manual_seed(0)
    shape = DecoderShape("tiny", 1, 64, 4, 2, 16, 96, 200)
    layer = Layer(shape, torch.device("cpu"))
    x = torch.randn(1, 9, 64).bfloat16()
    changed = x.clone()
    changed[:, 5:] += 1
    assert torch.allclose(layer.forward(x)[:, :5], layer.forward(changed)[:, :5], rtol=0.02, atol=0.02)
    keys = torch.randn(1, 2, 7, 16).bfloat16()
    assert not torch.equal(layer.forward(x[:, :1], keys, keys), layer.forward(x[:, :1], 2 * keys, keys))
    parts = (layer.qkv, layer.out, layer.gate_up, layer.down)
    assert sum(w.numel() for w in parts) + 2 * layer.head.numel() == shape.spec.parameters


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["device=tpu"], "one of cpu, cuda"),
        (["tokens=5"], "at least 128"),
        (["repeats=many"], "a whole number"),
        (["speed=1"], "unknown; there are name="),
        (["device"], "unknown"),
    ],
)
def test_bad_arguments_are_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(DeviceArguments, given)
    assert "\n" not in str(caught.value)
