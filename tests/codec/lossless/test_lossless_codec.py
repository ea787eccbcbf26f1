"""The lossless code: every bit is restored, all backends write the same bytes, damage is refused with the unit's number, no unit grows."""

import ctypes
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.compile import FLAGS
from abkt.codec.lossless import compiled as lossless_compiled
from abkt.codec.lossless import oracle as lossless
from abkt.codec.lossless.codec import LosslessCodec, OracleLossless
from abkt.codec.lossless.oracle import LosslessUnits, UnitLayout, Windows

SAMPLE = Path(__file__).parents[3] / "data" / "probe" / "kv_sample.safetensors"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float8": torch.float8_e4m3fn, "float32": torch.float32}
RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
ORACLE, BEST = LosslessCodec(OracleLossless()), LosslessCodec.best()


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def same_units(a, b):
    return torch.equal(a.sizes, b.sizes) and torch.equal(a.body, b.body)


def random_bits(units, n, dtype, seed, spread=256):
    """Random bit patterns. A small spread keeps exponents near each other, as in KV."""
    generator = torch.Generator().manual_seed(seed)
    if spread < 256:
        return (torch.randn(units, n, generator=generator) * 2 ** (torch.rand(units, 1, generator=generator) * spread / 16)).to(dtype)
    return torch.randint(0, 256, (units, n * dtype.itemsize), dtype=torch.uint8, generator=generator).view(dtype)


def kv_sample(dtype=torch.bfloat16):
    """KV of the probe, as a pool holds it: [block, layer, K|V, kv_head, token, head_dim]."""
    from safetensors.torch import load_file

    sample = load_file(SAMPLE)
    both = torch.stack([sample["keys"], sample["values"]], 1).unflatten(3, (-1, 16))
    return both.permute(3, 0, 1, 2, 4, 5).contiguous().to(dtype)


def hand_coded(values, base):
    """Fixed part and tail of one unit of bfloat16 values (16-bit patterns) in 3 bits, written directly from the format."""
    n = len(values)
    rows_of_all, tail = b"", []
    for start in range(0, n, 4096):
        tile = values[start : start + 4096]
        lanes = -(-len(tile) // 128) * 8
        rows = [[0] * lanes for _ in range(11)]
        for index, bits in enumerate(tile):
            part, lane = divmod(index, lanes)
            exponent, rest = bits >> 7 & 255, bits >> 15 << 7 | bits & 127
            code = exponent - base if base <= exponent < base + 7 else 7
            rows[part % 8][lane] |= rest << (8 if part >= 8 else 0)
            rows[8 + part % 2][lane] |= (code & 3) << (part // 2 * 2)
            rows[10][lane] |= code >> 2 << part
        for lane in range(lanes):
            for bits in tile[lane::lanes]:
                if not base <= (bits >> 7 & 255) < base + 7:
                    tail.append(bits >> 7 & 255)
        rows_of_all += np.array(rows, dtype="<u2").tobytes()
    return rows_of_all, bytes(tail).ljust(-(-len(tail) // 16) * 16, b"\0")


@pytest.mark.parametrize("n", [128, 240, 4096, 5008])
def test_the_oracle_writes_the_bytes_of_the_documented_format(n):
    values = random_bits(1, n, torch.bfloat16, seed=n, spread=8)
    units = ORACLE.encode(values, windows=Windows(3, torch.tensor([122], dtype=torch.uint8)))
    fixed, tail = hand_coded((values.view(torch.int16).int() & 0xFFFF)[0].tolist(), 122)
    assert len(tail) > 0
    assert units.body.numpy().tobytes() == fixed + tail


@pytest.mark.parametrize("codec", [ORACLE, BEST], ids=["oracle", "best"])
@pytest.mark.parametrize("width", [0, 2, 3, 4])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_bit_pattern_is_restored(codec, dtype, width):
    dtype = DTYPES[dtype]
    if width not in (0, *lossless.widths_of(dtype)):
        with pytest.raises(ValueError, match="take one of"):
            UnitLayout(dtype, 16, width)
        return
    patterns = torch.arange(2 ** (8 * min(2, dtype.itemsize)))
    if dtype == torch.float32:  # every upper half (so NaN payloads, infinities, subnormals and -0), with some lower half
        patterns = patterns << 16 | (patterns * 40_503 & 0xFFFF)
    values = patterns.to(RAW[dtype.itemsize]).view(dtype)
    for n in (256, 128, 32):
        x = values.view(-1, n)
        for base in (0, 100, 250, 255):
            units = codec.encode(x, windows=Windows(width, torch.tensor([base, 120, 3], dtype=torch.uint8)))
            assert same_bits(codec.decode(units), x)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_all_backends_write_the_same_bytes_and_never_grow(data):
    dtype = DTYPES[data.draw(st.sampled_from(list(DTYPES)))]
    n, count = 16 * data.draw(st.integers(1, 530)), data.draw(st.integers(0, 5))
    x = random_bits(count, n, dtype, data.draw(st.integers(0, 999)), data.draw(st.sampled_from([8, 64, 256])))
    bases = torch.tensor(data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=3)), dtype=torch.uint8)
    windows = Windows(data.draw(st.sampled_from((0, *lossless.widths_of(dtype)))), bases)
    a, b = ORACLE.encode(x, windows=windows), BEST.encode(x, windows=windows)
    assert same_units(a, b)
    assert same_bits(ORACLE.decode(a), x)
    assert same_bits(BEST.decode(a), x)
    assert (a.sizes <= n * dtype.itemsize).all()
    assert (a.sizes % 16 == 0).all()
    assert a.sizes.sum() == len(a.body)
    packed = ORACLE.pack(a)
    assert packed == BEST.pack(b)
    assert len(packed) <= x.numel() * dtype.itemsize + 8 * count + len(windows.bases) + 48
    assert same_bits(BEST.decode(BEST.unpack(packed, count, n, dtype)), x)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_each_window_covers_the_most_values_and_the_width_takes_the_fewest_bytes(dtype):
    x = kv_sample(DTYPES[dtype]).view(-1, 2048)[:120]
    groups = 12
    widths = lossless.widths_of(x.dtype)
    sizes = {}
    for width in widths:
        windows = lossless.windows_for(x, groups, width)
        exponents, _ = lossless.split(lossless.lanes_of(x), x.dtype)
        for g in range(groups):
            counts = Counter(exponents[g::groups].flatten().tolist())
            covered = [sum(counts[e] for e in range(b, b + 2**width - 1)) for b in range(256)]
            assert covered[windows.bases[g]] == max(covered)
        sizes[width] = len(BEST.encode(x, windows=windows).body)
    chosen = lossless.windows_for(x, groups)
    assert sizes[chosen.width] == min(sizes.values())
    assert torch.equal(BEST.windows(x, groups=groups).bases, chosen.bases)


def test_kv_of_a_model_shrinks_as_documented():
    pool = kv_sample()
    blocks, layers = pool.shape[:2]
    x = pool.view(blocks * layers * 2, -1)
    ratios = {
        width: 2 * x.numel() / len(BEST.pack(BEST.encode(x, windows=lossless.windows_for(x, layers * 2, width))))
        for width in (None, 2, 3, 4)
    }
    assert ratios[None] == ratios[3] > 1.40
    assert 1.32 < ratios[4] < 4 / 3
    assert ratios[2] < 1.30
    halves = BEST.encode(x.to(torch.float16), groups=layers * 2)
    assert 2 * x.numel() / len(halves.body) > 1.11
    assert halves.layout.width == 3
    bytes_ = BEST.encode(x.to(torch.float8_e4m3fn), groups=layers * 2)
    assert x.numel() / len(bytes_.body) > 1.09


def test_incompressible_units_are_stored_uncoded():
    flat = random_bits(6, 2048, torch.bfloat16, seed=1)
    units = BEST.encode(flat)
    assert units.layout.width == 0
    assert same_bits(units.body.view(torch.bfloat16), flat.flatten())
    mixed = random_bits(12, 2048, torch.bfloat16, seed=2, spread=8)
    mixed[9] = flat[0]
    units = BEST.encode(mixed)
    assert (units.sizes == 4096).nonzero().flatten().tolist() == [9]
    assert same_bits(BEST.decode(units), mixed)


@pytest.mark.parametrize("codec", [ORACLE, BEST], ids=["oracle", "best"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_units_are_read_from_a_pool_and_written_into_one(codec, dtype):
    dtype = DTYPES[dtype]
    pool = kv_sample(dtype)
    blocks, layers = pool.shape[:2]
    n = pool[0, 0, 0].numel()
    chosen = [7, 3, 20, 4]
    starts = torch.cat([torch.arange(layers * 2) * n + b * layers * 2 * n for b in chosen])
    units = codec.encode(pool, starts, n, groups=layers * 2)
    assert same_units(units, codec.encode(pool[chosen].view(-1, n), groups=layers * 2))
    other = random_bits(1, pool.numel(), dtype, seed=5).view(pool.shape)
    before = other.clone()
    places = torch.cat([torch.arange(layers * 2) * n + b * layers * 2 * n for b in (1, 0, 9, 24)])
    assert codec.decode(units, other, places) is other
    for at, was in zip((1, 0, 9, 24), chosen, strict=True):
        assert same_bits(other[at], pool[was])
    untouched = [b for b in range(blocks) if b not in (1, 0, 9, 24)]
    assert same_bits(other[untouched], before[untouched])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_refused_naming_the_unit(data):
    n, count = 16 * data.draw(st.integers(1, 40)), 5
    x = random_bits(count, n, torch.bfloat16, seed=n, spread=8)
    x[2] = random_bits(1, n, torch.bfloat16, seed=n)  # stored uncoded
    units = BEST.encode(x, windows=Windows(3, torch.tensor([123], dtype=torch.uint8)))
    packed = bytearray(BEST.pack(units))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    for codec in (ORACLE, BEST):
        with pytest.raises(ValueError, match=r"damaged|version|not lossless units|cut") as refusal:
            codec.unpack(packed, count, n, torch.bfloat16)
    body = at - (len(packed) - len(units.body))
    if body >= 0:
        fixed = units.layout.fixed_bytes
        hit = body // fixed if body < count * fixed else int((units.tail_starts[1:] <= body).sum())
        assert f"unit {hit} is damaged" in str(refusal.value)
    packed = packed[:at]
    with pytest.raises(ValueError, match=r"cut"):
        BEST.unpack(packed, count, n, torch.bfloat16)


def test_units_of_a_wrong_shape_are_refused():
    packed = BEST.pack(BEST.encode(random_bits(3, 128, torch.bfloat16, 0, 8)))
    for shape in ((2, 128, torch.bfloat16), (3, 144, torch.bfloat16), (3, 128, torch.float16)):
        with pytest.raises(ValueError, match=r"data holds 3 units of 128 values of torch.bfloat16; expected"):
            BEST.unpack(packed, *shape)
    with pytest.raises(ValueError, match="1 bytes follow"):
        BEST.unpack(packed + b"\0", 3, 128, torch.bfloat16)


@pytest.mark.parametrize("codec", [ORACLE, BEST], ids=["oracle", "best"])
def test_sizes_that_do_not_fit_the_codes_are_refused(codec):
    x = random_bits(4, 4096, torch.bfloat16, 3, 8)
    units = codec.encode(x, windows=Windows(3, torch.tensor([123], dtype=torch.uint8)))
    longer, shifted = units.sizes.clone(), units.sizes.clone()
    longer[1] = 2 * 4096 + 16
    shifted[2] += 16
    shifted[3] -= 16
    body = torch.cat((units.body, torch.zeros(longer.sum() - len(units.body), dtype=torch.uint8)))
    for sizes, data, unit in ((longer, body, 1), (shifted, units.body, 2)):
        with pytest.raises(ValueError, match=f"unit {unit} is damaged"):
            codec.decode(LosslessUnits(units.layout, units.windows, sizes, data))
    with pytest.raises(ValueError, match="need"):
        codec.decode(LosslessUnits(units.layout, units.windows, units.sizes, units.body[:-16]))


def test_wrong_arguments_are_refused_in_one_line():
    x = random_bits(4, 128, torch.bfloat16, 0)
    starts = torch.tensor([0, 128])
    for wrong, match in (
        (lambda: BEST.encode(x.view(2, 2, 128)), r"\(2, 2, 128\)"),
        (lambda: BEST.encode(x[:, :120]), "contiguous"),
        (lambda: BEST.encode(x.view(-1)[:510].view(1, 510)), "multiple of 16"),
        (lambda: BEST.encode(x.double()), "no lossless code for torch.float64"),
        (lambda: BEST.encode(x, starts + 8, 128), "multiples of 16"),
        (lambda: BEST.encode(x, starts, 400), "not all"),
        (lambda: BEST.encode(x, starts), "multiple of 16"),
        (lambda: BEST.encode(x, starts.int(), 128), "int64"),
        (lambda: BEST.encode(x, groups=3), "not a multiple of 3 groups"),
        (lambda: Windows(3, torch.zeros(0, dtype=torch.uint8)), "one group at least"),
        (lambda: BEST.decode(BEST.encode(x), torch.empty(4, 128)), "do not fit"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()


@pytest.mark.slow
@pytest.mark.parametrize("machine", [("-mavx2", "-mfma", "-mf16c"), ("-march=x86-64",)])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_machines_with_narrower_vectors_give_the_same_units(tmp_path, machine, dtype):
    flags = [flag for flag in FLAGS if not flag.startswith("-march")]
    library = tmp_path / "lossless.so"
    if subprocess.run(["g++", *flags, *machine, "-o", str(library), str(lossless_compiled.SOURCE)], check=False).returncode:
        pytest.skip("no g++ for x86-64 here")
    narrow = LosslessCodec(lossless_compiled.CompiledLossless(ctypes.CDLL(str(library))))
    for n in (144, 4096, 5008):
        x = random_bits(6, n, DTYPES[dtype], n, 8)
        for width in lossless.widths_of(x.dtype):
            windows = lossless.windows_for(x, 2, width)
            units = narrow.encode(x, windows=windows)
            assert same_units(units, ORACLE.encode(x, windows=windows))
            assert same_bits(narrow.decode(units), x)
            assert narrow.pack(units) == ORACLE.pack(units)
