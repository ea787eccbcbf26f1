"""The calibration: what it finds on a tiny random model, and that it never takes what is worse than no calibration."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from abkt.codec.calibration import load
from abkt.codec.codec import Codec
from abkt.codec.klt.rotary import AS_CACHED, HALVES, PAIRS, Rotary
from abkt.serve.engine.engine import Engine, read_spec, rope_theta
from abkt.serve.engine.model_folder import fingerprint
from abkt.spec import KVLayout, ModelSpec
from experiments.quality import bases, calibrate, likelihood, methods, shares
from experiments.quality.groups import groupings
from experiments.quality.measure import Bench
from experiments.quality.samples import QualitySample


@pytest.fixture(scope="module")
def bench(tiny_model):
    return Bench(Engine(tiny_model, KVLayout(read_spec(tiny_model), 3 * 9), dtype="float32"), 2)


def prompt(seed: int, tokens: int = 96, after: int = 16) -> QualitySample:
    ids = np.random.default_rng(seed).integers(0, 2048, tokens + after).tolist()
    return QualitySample("text", tuple(ids[:tokens]), tuple(ids[tokens:]), (True,) * after, (-1,) * after)


def test_the_rotation_is_found_by_moving_a_prompt(bench, tiny_model):
    rotary, errors = likelihood.rotary_of(bench, prompt(0).prompt)
    assert rotary.styles.tolist() == [HALVES, HALVES]
    assert errors.max() < 1e-4
    expected = rope_theta(tiny_model) ** -(torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(rotary.frequencies[1], expected)


@pytest.mark.parametrize("style", [AS_CACHED, HALVES, PAIRS])
def test_a_rotation_back_undoes_it_and_may_be_partial(style):
    x = torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(torch.tensor([style], dtype=torch.uint8), torch.tensor([[1.0, 0.1, 0.01]]))
    turned = rotary.turned(x, 0, first=5)
    torch.testing.assert_close(rotary.turned(turned, 0, back=True, first=5), x, rtol=1e-5, atol=1e-5)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    if style == PAIRS:
        angle = torch.tensor(5.0)
        assert turned[0, 0, 0] == pytest.approx(float(x[0, 0, 0] * angle.cos() - x[0, 0, 1] * angle.sin()), abs=1e-5)


def test_the_metric_predicts_the_divergence_of_a_small_error(bench):
    """Half of the error squared in the Fisher metric, against the divergence that noise in one head makes."""
    rotary, _ = likelihood.rotary_of(bench, prompt(0).prompt)
    sample = prompt(1)
    setting, groups = (0.0, 0.0), groupings(bench.engine.layout.model, 0)
    found = likelihood.empty(bench, [setting], groups)
    old, likelihood.DRAWS = likelihood.DRAWS, 60
    try:
        likelihood.add_prompt(found, bench, sample, rotary)
    finally:
        likelihood.DRAWS = old
    bench.prefill(sample)
    data, table = bench.engine.pool.data, bench.tables[0]
    data[table] = data[bench.sent]
    reference = bench.logits_of(sample, 1)[0].log_softmax(-1)
    noise = 0.02 * torch.randn(5, 16, 64, generator=torch.Generator().manual_seed(0))
    data[table[1:6], 1, 1, 0] += noise
    moved = bench.logits_of(sample, 1)[0].log_softmax(-1)
    kl = float((reference.exp() * (reference - moved)).sum(-1).sum())  # summed over the continuation, as the gradients are
    metric = found.metric[setting, "each head"][groups["each head"][1, 1, 0]] / found.draws
    predicted = 0.5 * float(torch.einsum("btd,de,bte->", noise.double(), metric, noise.double()))
    assert predicted == pytest.approx(kl, rel=0.4)


def test_the_metric_is_corrected_towards_what_the_divergence_comes_from(bench, monkeypatch):
    """A divergence to which K of the first layer alone contributes: its share is all of it, and that of the others nothing."""
    rotary, _ = likelihood.rotary_of(bench, prompt(0).prompt)
    setting, layout = (0.5, 0.4), bench.engine.layout
    found = likelihood.empty(bench, [setting], groupings(layout.model, 0))
    likelihood.add_prompt(found, bench, prompt(1), rotary)
    basis = bases.basis_of_statistics(found, rotary, setting, 0.3, "each head", 96, 16)
    codec = Codec(layout, calibration=calibrate.facts_of(layout.model, basis))
    data, passed = bench.engine.pool.data, []

    def divergence(sample, put, raw):
        table = bench.tables[0]
        put(table)
        return float((data[table[:6], 0, 0] - data[bench.sent[:6], 0, 0]).float().square().sum())

    monkeypatch.setattr(bench, "divergence", divergence)
    weights = shares.corrections(bench, codec, [prompt(2)], passed.append)
    assert passed == [1]
    assert weights[0, 0] > 1
    np.testing.assert_allclose(np.delete(weights.ravel(), 0), shares.LEAST**shares.POWER)
    plain, corrected = (
        bases.basis_of_statistics(found, rotary, setting, 0.3, "each head", 96, 16, each) for each in (None, np.full((2, 2), 4.0))
    )
    np.testing.assert_allclose(corrected.deviation, 2 * plain.deviation, rtol=1e-3, atol=1e-6)


def test_a_calibration_of_a_tiny_model_is_saved_and_used(bench, tiny_model, tmp_path):
    codec, reports = Codec(bench.engine.layout, rope_theta=rope_theta(tiny_model)), []
    samples = [prompt(seed) for seed in range(6)]
    made = calibrate.calibrate(bench, codec, samples, reports.append, fingerprint(tiny_model))
    assert sum(reports) == calibrate.passes(codec.layout.model, samples)
    assert made.about["rotation"].startswith("found in 2 of 2 layers")
    assert made.about["metric"].startswith("Fisher")
    assert (made.sensitivity == 1).all(), "no head counts more than others in the order of the other coders"
    if made.basis is None:
        assert made.about["klt"].startswith("not used")
        return
    path = tmp_path / "calibration.safetensors"
    made.save(path)
    again = load(path)
    assert again.digest == made.digest
    again.check_files(fingerprint(tiny_model))
    own = Codec(bench.engine.layout, calibration=again)
    held = bench.prefill(samples[-1])
    stream = own.encode(
        held.pool, held.table, held.tokens, coder="klt", importance=held.importance.tokens(held.pool, held.table, held.tokens)
    )
    assert own.expand(stream.prefix(-1), held.pool, bench.received).tokens == 96


def test_a_model_that_cannot_be_differentiated_is_probed(bench, tiny_model, monkeypatch, caplog):
    def refuses(*given):
        raise RuntimeError("element 0 of tensors does not require grad\nmore")

    monkeypatch.setattr(likelihood, "gradients", refuses)
    codec = Codec(bench.engine.layout, rope_theta=rope_theta(tiny_model))
    made = calibrate.calibrate(bench, codec, [prompt(seed) for seed in range(4)], lambda count: None)
    assert made.about["metric"] == "one number a head, by noise"
    assert "cannot be differentiated (element 0 of tensors does not require grad)" in caplog.text


def test_a_calibration_needs_two_prompts(bench):
    with pytest.raises(ValueError, match="at least 2 prompts, not 1"):
        calibrate.calibrate(bench, Codec(bench.engine.layout), [prompt(0)], lambda count: None)


def test_a_coder_that_is_not_better_on_held_out_prompts_is_not_chosen():
    shares = (0.05, 0.1, 0.2)
    klt = np.array([[0.1, 0.01, 0.004], [0.1, 0.02, 0.004]])
    entropy = np.array([[np.inf, 0.02, 0.001], [0.2, 0.03, 0.002]])
    assert bases.choices(shares, klt, entropy) == ((0.05, "klt"), (0.1, "klt"), (0.2, "entropy"))
    worse = bases.choices(shares, klt + 1, np.full((2, 3), 0.1))
    assert {coder for _, coder in worse} == {"entropy"}
    assert bases.choices((0.1,), np.array([[0.1]]), np.array([[0.1]])) == ((0.1, "entropy"),), "no better is not better"


def test_the_best_candidate_has_the_least_mean_logarithm():
    assert bases.best({"a": [0.1, 0.001], "b": [0.02, 0.002], "c": [1.0, 1.0]}) == "b"


def test_an_exponent_is_taken_only_if_it_is_at_no_rate_worse_than_none():
    none = np.array([0.1, 0.03, 0.003])
    assert calibrate.safest({0.0: none, 0.5: none * 0.5}) == 0.5
    assert calibrate.safest({0.0: none, 0.5: none * [0.1, 0.1, 1.01]}) == 0.0
    assert calibrate.safest({0.0: none, 0.5: none * 2}) == 0.0


def test_a_basis_is_dropped_where_it_is_nowhere_better(bench, tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(calibrate, "choices", lambda shares, klt, entropy: tuple((share, "entropy") for share in shares))
    made = calibrate.calibrate(bench, Codec(bench.engine.layout), [prompt(seed) for seed in range(2)], lambda count: None)
    assert (made.basis, made.choices) == (None, ())
    assert "not used" in made.about["klt"]
    assert "better than the entropy coder at no size" in caplog.text


def test_coefficients_are_uncorrelated_and_matter_alike():
    """Made-up statistics, two heads together: the inverse's metric is the identity, the coefficients' covariance diagonal and falling."""
    rng, dim, setting = np.random.default_rng(0), 6, (0.5, 0.4)
    shape, groups = (1, 2, 2), np.array([[[0, 0], [1, 1]]], np.int16)

    def positive():
        return [torch.from_numpy(a @ a.T) for a in rng.standard_normal((2, 2 * dim, 2 * dim))]

    metric, covariance, nothing = positive(), positive(), torch.zeros(*shape, dim, dtype=torch.float64)
    choice = setting, "both"
    found = likelihood.Statistics(
        {"both": groups},
        {choice: metric},
        {choice: covariance},
        nothing,
        nothing,
        torch.ones(*shape, 4),
        {setting: torch.ones(shape)},
        1,
        1,
    )
    rotary = Rotary(torch.zeros(1, dtype=torch.uint8), torch.zeros(1, 1))
    basis = bases.basis_of_statistics(found, rotary, setting, 0.0, "both", 100, 10)
    for kind in range(2):
        matrix, inverse = (each.double() for each in basis.matrix(kind))
        torch.testing.assert_close(inverse.mT @ metric[kind] @ inverse, torch.eye(2 * dim, dtype=torch.float64), rtol=5e-2, atol=5e-2)
        spread = matrix @ covariance[kind] @ matrix.mT
        variance = spread.diagonal()
        torch.testing.assert_close(spread, torch.diag(variance), rtol=1e-2, atol=1e-2 * float(variance.max()))
        assert (variance.diff() <= 1e-3 * variance.max()).all()
        said = torch.from_numpy(basis.deviation[0, kind].ravel())
        torch.testing.assert_close(variance.sqrt().float(), said, rtol=1e-2, atol=1e-2 * float(said.max()))
    assert replace(basis, digest="").digest == basis.digest


def test_groups_hold_layers_of_one_window_and_are_bounded():
    """Gemma 3: five layers with a window to one without. A group has at most 1,024 channels, and few tokens make small groups."""
    windows = tuple(0 if layer % 6 == 5 else 512 for layer in range(18))
    model = ModelSpec("gemma", layers=18, kv_heads=1, head_dim=256, window=512, window_layers=15, layer_windows=windows)
    found = groupings(model, 100_000)
    assert list(found) == ["each head", "a layer", "layers"]
    for name, most in (("a layer", 1), ("layers", 2)):
        groups = found[name]
        for number in range(int(groups.max()) + 1):
            layers = np.nonzero(groups == number)[0]
            assert len(set(layers)) <= most
            assert len({windows[layer] for layer in layers}) == 1
            assert (groups[layers] == number).all(), "K with V"
    assert groups[4, 0, 0] == groups[6, 0, 0], "layers 4 and 6 have a window, and layer 5 has none"
    assert list(groupings(model, 100)) == ["each head"]
    wide = groupings(ModelSpec("wide", layers=2, kv_heads=16, head_dim=128), 100_000)
    assert {name: int(groups.max()) + 1 for name, groups in wide.items()} == {"each head": 64, "a layer": 8}, "K and V of four heads fit"


def test_without_a_basis_the_better_coder_is_entropy(bench):
    codec = Codec(bench.engine.layout)
    held = bench.prefill(prompt(0))
    raw = held.tokens * codec.layout.model.kv_bytes_per_token
    points = list(methods.Better(codec, (0.5, 0.7)).points(held))
    stream = codec.encode(held.pool, held.table, held.tokens, coder="entropy")
    assert [point.wire_bytes for point in points] == [stream.ends[stream.curve.cut_within(share * raw)] for share in (0.5, 0.7)]
