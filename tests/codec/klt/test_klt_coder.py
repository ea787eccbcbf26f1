"""The klt coder in a stream: any cut decodes, with the distortion that was stated; what it cannot code travels verbatim or is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from abkt.codec.codec import Codec
from abkt.codec.importance import Importance
from abkt.codec.klt.weights import HIDDEN, LEAST, NEVER, SPREAD, TOP, bounded, group_classes, token_classes
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec


def small(layout_of, **changes):
    return layout_of(**{"layers": 2, "heads": 2, "dim": 16, "block_tokens": 4, "blocks": 24, **changes})


def importance_of(layout, tokens, seed=0):
    model = layout.model
    return torch.rand(model.layers, 2, model.kv_heads, tokens, generator=torch.Generator().manual_seed(seed)) ** 6


def expanded(codec, stream, cut, layout, table):
    out = Pool(layout)
    found = codec.expand(stream.prefix(cut), out, table)
    return out, found


@pytest.mark.parametrize("tokens", [1, 3, 50, 96])
def test_every_cut_decodes_with_the_distortion_that_was_stated(layout_of, filled_pool, table_of, klt_codec, tokens):
    """The distortion is nats x the mean over tokens of the squared error in the transform's coordinates, at each token's scale."""
    layout = small(layout_of, dtype="float32")
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, tokens)
    seen = importance_of(layout, tokens)
    stream = codec.encode(pool, table, tokens, coder="klt", importance=seen)
    basis = codec.calibration.basis
    assert list(stream.curve.distortion) == sorted(stream.curve.distortion, reverse=True)
    for cut in (0, len(stream.ends) // 3, len(stream.ends) - 1):
        out, found = expanded(codec, stream, cut, layout, table)
        assert (found.tokens, found.distortion) == (tokens, pytest.approx(stream.curve.distortion[cut], rel=1e-5))
        total = 0.0
        alone = np.stack([token_classes(seen[layer].numpy(), 0.5, 0.4, basis.first[layer]) for layer in range(2)])
        for layer, scale in enumerate(2.0 ** (torch.from_numpy(bounded(alone, basis.members)) / 2)):
            moved = []
            for kind, (x, y) in enumerate(zip(pool.read(table, layer, tokens), out.read(table, layer, tokens), strict=True)):
                off = (x - y) if kind else basis.rotary.turned(x, layer, back=True) - basis.rotary.turned(y, layer, back=True)
                moved += list(off * scale[kind][..., None])
            total += float((torch.cat(moved, -1) @ basis.matrix(layer)[0].mT).double().square().sum())
        assert found.distortion == pytest.approx(basis.nats * total / tokens, rel=1e-2, abs=1e-9)


def test_at_full_depth_little_is_left(layout_of, filled_pool, table_of, klt_codec):
    layout = small(layout_of)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 90)
    stream = codec.encode(pool, table, 90, coder="klt")
    out, _ = expanded(codec, stream, len(stream.ends) - 1, layout, table)
    assert stream.curve.distortion[-1] < 1e-4 * stream.curve.distortion[0]
    for layer in range(2):
        for x, y in zip(pool.read(table, layer, 90), out.read(table, layer, 90), strict=True):
            spread = (x.float() - x.float().mean(1, keepdim=True)).square().sum()
            assert (x.float() - y.float()).square().sum() < 1e-2 * spread


def test_a_table_elsewhere_and_a_last_block_that_is_part_full_are_left_alone(layout_of, filled_pool, klt_codec):
    layout = small(layout_of)
    codec, pool = klt_codec(layout), filled_pool(layout)
    stream = codec.encode(pool, [3, 1, 2], 10, coder="klt")
    out = Pool(layout)
    out.data.fill_(7.0)
    codec.expand(stream.prefix(3), out, [20, 5, 11])
    assert (out.data[11, ..., 2:, :] == 7.0).all(), "tokens 10 and 11 do not belong to the sequence"
    others = [block for block in range(24) if block not in (20, 5, 11)]
    assert (out.data[others] == 7.0).all()
    assert (out.data[[20, 5]] != 7.0).all()


def test_values_that_are_not_finite_send_their_group_and_tile_verbatim(layout_of, filled_pool, table_of, klt_codec):
    layout = small(layout_of)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 60)
    pool.data[table[3], 1, 0, 1, 2, 5], pool.data[table[14], 0, 1, 0, 1, 1] = float("nan"), float("inf")
    stream = codec.encode(pool, table, 60, coder="klt", importance=importance_of(layout, 60))
    assert stream.verbatim_cells == 8, "K and V of both heads of a layer are together"
    for cut in (0, len(stream.ends) - 1):
        out, _ = expanded(codec, stream, cut, layout, table)
        for layer, kind, head in np.ndindex(2, 2, 2):
            theirs, ours = pool.read(table, layer, 60)[kind][head], out.read(table, layer, 60)[kind][head]
            assert torch.equal(theirs.view(torch.int16), ours.view(torch.int16))


def test_a_head_of_two_parts_is_one_transform(filled_pool, table_of, klt_codec):
    layout = KVLayout(ModelSpec("wide", layers=1, kv_heads=1, head_dim=256), 8, 4)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 20)
    stream = codec.encode(pool, table, 20, coder="klt")
    assert stream.header.cells.shape == (1, 2, 2, 1)
    out, _ = expanded(codec, stream, len(stream.ends) - 1, layout, table)
    x, y = pool.read(table, 0, 20)[1].float(), out.read(table, 0, 20)[1].float()
    assert (x - y).square().sum() < 2e-3 * (x - x.mean(1, keepdim=True)).square().sum()
    pool.data[table[2], 0, 0, 0, 1, 7] = float("nan")
    both = codec.encode(pool, table, 20, coder="klt")
    assert both.header.verbatim.tolist() == [0, 1, 2, 3]
    out, _ = expanded(codec, both, 0, layout, table)
    assert torch.equal(out.read(table, 0, 20)[0].view(torch.int16), pool.read(table, 0, 20)[0].view(torch.int16))


def test_a_layer_with_a_window_leaves_out_what_no_token_sees(filled_pool, table_of, klt_codec):
    model = ModelSpec("windowed", layers=2, kv_heads=1, head_dim=16, window=8, window_layers=1, layer_windows=(8, 0))
    layout = KVLayout(model, 24, 4)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 80)
    importance = Importance(8)
    for layer in range(2):
        importance.observe(layer, torch.randn(2, 80, 16, generator=torch.Generator().manual_seed(layer)), 0.25)
    seen = importance.tokens(pool, table, 80)
    assert (seen[0, ..., :73] == 0).all()
    assert (seen[0, ..., 73:] > 0).all()
    assert (seen[1] > 0).all()
    stream = codec.encode(pool, table, 80, coder="klt", importance=seen)
    assert stream.ends[-1] < 0.7 * codec.encode(pool, table, 80, coder="klt").ends[-1]
    basis = codec.calibration.basis
    assert (token_classes(seen[0].numpy(), 0.5, 0.4, basis.first[0])[..., :73] == HIDDEN).all()


def test_classes_of_tokens_follow_importance_and_stay_in_range():
    few, rng = np.full((2, 2, 4), -50), np.random.default_rng(0)
    importance = np.exp(6 * rng.standard_normal((2, 2, 400)))
    found = token_classes(importance, 0.5, 0.0, few)
    order = np.argsort(importance[0, 1, 4:])
    assert (np.diff(found[0, 1, 4:][order]) >= 0).all()
    assert LEAST <= found.min() < found.max() <= TOP
    four = token_classes(np.r_[np.ones(100), 4.0][None, None], 1.0, 0.0, np.full((1, 1, 4), -50))
    assert four[0, 0, -1] - four[0, 0, 50] == 2, "4 times the importance is a step half as wide: two half octaves"
    assert (token_classes(importance, 0.0, 0.0, few) == 0).all()
    with_sinks = token_classes(importance, 0.0, 0.0, np.full((2, 2, 4), 9))
    assert (with_sinks[..., :4] == 9).all()
    assert (with_sinks[..., 4:] == 0).all()


def test_the_class_of_a_group_is_the_mean_of_its_heads_squared_scales():
    assert group_classes(np.array([[5, -3, 0], [5, -3, 0]])).tolist() == [10, -6, 0]
    mean = np.log2((2.0**8 + 2.0**0 + 2.0**-4) / 3)
    assert group_classes(np.array([[8], [0], [-4]])).tolist() == [round(2 * mean)]
    assert group_classes(np.array([[HIDDEN, HIDDEN], [HIDDEN, 4]])).tolist() == [NEVER, round(2 * np.log2((2.0**4 + 2.0**HIDDEN) / 2))]
    classes = np.array([[8, HIDDEN], [-10, HIDDEN], [7, 3]]).reshape(1, 1, 3, 2)
    first, second = np.array([[0, 0, 0], [0, 0, 1]]), np.array([[0, 0, 2]])
    assert bounded(classes, [first, second])[0, 0].tolist() == [[8, HIDDEN], [7 - SPREAD, HIDDEN], [7, 3]]


def test_both_ends_need_the_same_calibration(layout_of, filled_pool, table_of, klt_codec):
    layout = small(layout_of)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 40)
    data = codec.encode(pool, table, 40, coder="klt").prefix(2)
    out = Pool(layout)
    ours, theirs = codec.calibration.basis.digest, klt_codec(layout, seed=1).calibration.basis.digest
    with pytest.raises(ValueError, match=f"was coded with calibration {ours}, and this side has {theirs}: give both the same file"):
        klt_codec(layout, seed=1).expand(data, out, table)
    with pytest.raises(ValueError, match="coder klt needs a calibration with a klt basis"):
        Codec(layout).expand(data, out, table)
    assert not out.data.any()
    with pytest.raises(ValueError, match="coder klt needs a calibration with a klt basis"):
        Codec(layout).encode(pool, table, 40, coder="klt")


def test_layouts_and_arguments_that_do_not_fit_are_refused_in_one_line(
    layout_of, filled_pool, table_of, klt_codec, basis_of, calibration_of
):
    layout = small(layout_of)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 40)
    latent = KVLayout(ModelSpec("mla", layers=2, kv_heads=1, head_dim=16, kv_kinds=1), 24, 4)
    with pytest.raises(ValueError, match=r"model mla has one latent \(MLA\): take coder fixed or entropy"):
        Codec(latent).encode(Pool(latent), list(range(24)), 40, coder="klt")
    other = small(layout_of, dim=32)
    with pytest.raises(ValueError, match=r"klt basis of the calibration is of .*\[2, 2, 2, 16\]; model small has \[2, 2, 2, 32\]"):
        Codec(other, calibration=calibration_of(other, basis_of(layout)))
    with pytest.raises(ValueError, match=r"importance .* does not fit"):
        codec.encode(pool, table, 40, coder="klt", importance=torch.ones(2, 2, 2, 39))
    with pytest.raises(ValueError, match="takes no importance of tokens"):
        codec.encode(pool, table, 40, coder="entropy", importance=torch.ones(2, 2, 2, 40))
    with pytest.raises(ValueError, match="and no weights"):
        codec.encode(pool, table, 40, coder="klt", weights=torch.ones(2, 2, 2, 1))


def test_damage_is_found_before_anything_is_written(layout_of, filled_pool, table_of, klt_codec):
    layout = small(layout_of)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 40)
    good = codec.encode(pool, table, 40, coder="klt", importance=importance_of(layout, 40)).prefix(4)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(good), 60).tolist():
        bad, out = bytearray(good), Pool(layout)
        bad[at] ^= int(rng.integers(1, 255))
        with pytest.raises(ValueError, match=r"stream|calibration"):
            codec.expand(bytes(bad), out, table)
        assert not out.data.any()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("matrices", lambda a: np.full_like(a, np.nan), "matrices holds a number that is not finite"),
        ("matrices", lambda a: a[1:], "matrices is"),
        ("groups", lambda a: a + 1, "numbered from 0, without a gap"),
        ("unit", lambda a: -a, "units above 0"),
        ("mean", lambda a: a[:1], r"mean is \[1, 2, 2, 16\]"),
        ("chances", lambda a: a * 0, "out of range"),
        ("deviation", lambda a: -a, "deviations of at least 0"),
    ],
)
def test_a_basis_with_bad_numbers_is_refused(layout_of, basis_of, name, change, message):
    basis = basis_of(small(layout_of))
    with pytest.raises(ValueError, match=message) as caught:
        replace(basis, **{name: change(getattr(basis, name))})
    assert "\n" not in str(caught.value)


def test_a_calibration_file_with_a_basis_comes_back_and_bad_ones_are_refused(tmp_path, layout_of, basis_of, calibration_of):
    from abkt.codec.calibration import load

    layout = small(layout_of)
    made = calibration_of(layout, basis_of(layout), choices=((0.05, "klt"), (0.3, "entropy")), fingerprint="00ff", about={"texts": "abc"})
    path = tmp_path / "c.safetensors"
    made.save(path)
    read = load(path)
    assert (read.digest, read.basis.digest, read.choices, read.fingerprint, read.about) == (
        made.digest, made.basis.digest, made.choices, "00ff", {"texts": "abc"},
    )  # fmt: skip
    assert [read.coder_at(share) for share in (0.01, 0.05, 0.29, 0.3, 0.9)] == ["klt", "klt", "klt", "entropy", "entropy"]
    assert calibration_of(layout, None).coder_at(0.1) == "entropy"
    assert calibration_of(layout, None).digest != made.digest
    with pytest.raises(ValueError, match=r"was made on other weights than those here \(1111\)"):
        read.check_files("1111")
    read.check_files("00ff")
    whole = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a safetensors file, or it is cut"):
        load(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        made.save(tmp_path / "c.json")


def test_some_layers_keep_the_name_of_the_whole(layout_of, filled_pool, table_of, klt_codec):
    """A group of layers is sent alone while prefill runs; the other side has the same part of the same calibration."""
    layout = small(layout_of)
    codec, pool, table = klt_codec(layout), filled_pool(layout), table_of(layout, 30)
    part = codec.calibration.part(1, 2)
    assert part.basis.digest == codec.calibration.basis.digest
    alone = KVLayout(layout.model.part(1, 2), layout.blocks, layout.block_tokens)
    one = Pool(alone)
    one.data.copy_(pool.data[:, 1:2])
    of_part = Codec(alone, calibration=part)
    out, whole = Pool(alone), Pool(layout)
    of_part.expand(of_part.encode(one, table, 30, coder="klt").prefix(-1), out, table)
    codec.expand(codec.encode(pool, table, 30, coder="klt").prefix(-1), whole, table)
    assert torch.equal(out.data[:, 0], whole.data[:, 1])


def test_auto_takes_the_coder_that_held_out_prompts_chose(layout_of, filled_pool, table_of, basis_of, calibration_of):
    layout = small(layout_of)
    pool, table, seen = filled_pool(layout), table_of(layout, 40), importance_of(layout, 40)
    weights = torch.rand(Codec(layout).cells(40).shape, generator=torch.Generator().manual_seed(1))
    facts = calibration_of(layout, basis_of(layout), choices=((0.05, "klt"), (0.2, "entropy")))
    codec = Codec(layout, calibration=facts)

    def sent(of_raw, coder="auto", codec=codec):
        return codec.encode(pool, table, 40, coder=coder, weights=weights, importance=seen, of_raw=of_raw).prefix(-1)

    klt = codec.encode(pool, table, 40, coder="klt", importance=seen).prefix(-1)
    entropy = codec.encode(pool, table, 40, coder="entropy", weights=weights).prefix(-1)
    assert (sent(0.01), sent(0.1)) == (klt, klt)
    assert (sent(0.2), sent(0.9)) == (entropy, entropy)
    plain = Codec(layout, calibration=calibration_of(layout, None))
    assert sent(0.1, codec=plain) == plain.encode(pool, table, 40, coder="entropy", weights=weights).prefix(-1)
