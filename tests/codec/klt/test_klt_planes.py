"""The bit-planes: compiled and Python code write the same bytes; any number of passes decodes, with the error that was stated."""

import numpy as np
import pytest

from abkt.codec.klt import compiled, planes, table

TABLES = planes.PlaneTables(
    np.linspace(10_000, 60_000, planes.CONTEXTS).astype(np.uint16), np.full((planes.CLASSES, 3), 0.45, np.float32), (0, 1, 2, 3, 5, 7)
)


def coefficients(seed: int, tokens: int = 24, dims: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    klass = np.sort(rng.integers(-40, 24, dims))[::-1].astype(np.int32)
    token = rng.integers(-10, 14, tokens).astype(np.int32)
    y = (rng.laplace(size=(tokens, dims)) * 2 ** ((klass + token[:, None]) / 4) * 128).astype(np.float32)
    return np.clip(y, -1e6, 1e6), token, klass


needs_compiler = pytest.mark.skipif(compiled.load() is None, reason="no g++")


@needs_compiler
@pytest.mark.parametrize("seed", range(4))
def test_compiled_code_writes_the_bytes_of_the_oracle(seed):
    y, token, klass = coefficients(seed)
    y[3, -1] = 30_000.0  # far beyond its class
    token[0] = 60  # a sink, far finer than the others
    slots, errors = planes.encode_cell(y, token, klass, TABLES)
    theirs, their_errors = compiled.encode_cell(y, token, klass, TABLES)
    assert theirs == slots
    assert np.allclose(their_errors, errors, rtol=1e-3)
    for count in range(len(slots) + 1):
        ours = planes.decode_cell(slots[:count], token, klass, TABLES)
        assert np.array_equal(compiled.decode_cell(slots[:count], token, klass, TABLES), ours)


@needs_compiler
@pytest.mark.parametrize(
    ("tokens", "dims", "steps"), [(1, 1, (0, 1)), (3, 40, (0, 4, 9)), (17, 33, (2, 3, 5, 8)), (9, 70, (0, 1, 2, 3, 5, 8, 9))]
)
def test_unsorted_classes_hidden_tokens_and_hard_values_give_the_same_bytes(tokens, dims, steps):
    """Classes in any order make many stretches of coefficients that start with different passes; a hidden token has none."""
    y, token, klass = coefficients(tokens + dims, tokens, dims)
    klass = np.random.default_rng(dims).permutation(klass)
    token[tokens // 2], y[0, 0], y[-1, -1] = -100_000 if tokens > 1 else 0, 2.0**24 - 1, -0.0
    tables = planes.PlaneTables(TABLES.chances[::-1].copy(), TABLES.points, steps)
    slots, errors = planes.encode_cell(y, token, klass, tables)
    theirs, their_errors = compiled.encode_cell(y, token, klass, tables)
    assert theirs == slots
    assert np.allclose(their_errors, errors, rtol=1e-3)
    for count in range(len(slots) + 1):
        ours = planes.decode_cell(slots[:count], token, klass, tables)
        assert np.array_equal(compiled.decode_cell(slots[:count], token, klass, tables), ours)
    damaged = [bytes([255]) * (9 * len(slot) // 10) for slot in slots]
    assert np.array_equal(compiled.decode_cell(damaged, token, klass, tables), planes.decode_cell(damaged, token, klass, tables))


@pytest.mark.parametrize("encode", [planes.encode_cell, pytest.param(compiled.encode_cell, marks=needs_compiler)])
def test_any_number_of_passes_decodes_with_the_stated_error(encode):
    y, token, klass = coefficients(9)
    slots, errors = encode(y, token, klass, TABLES)
    for count in range(len(slots) + 1):
        back = planes.decode_cell(slots[:count], token, klass, TABLES)
        assert np.square(y.astype(np.float64) - back).sum() == pytest.approx(errors[count], rel=1e-3)
    started = klass + token[:, None] + 4 * TABLES.planes[-1] >= planes.START
    assert np.abs(y - back)[started].max() <= 1  # one finest step
    assert not back[~started].any()


@needs_compiler
def test_damaged_bytes_decode_alike_and_to_bounded_values():
    _, token, klass = coefficients(1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        slots = [rng.bytes(120) for _ in TABLES.planes]
        ours, theirs = planes.decode_cell(slots, token, klass, TABLES), compiled.decode_cell(slots, token, klass, TABLES)
        assert np.array_equal(ours, theirs)
        assert np.abs(ours).max() <= 2 * planes.MOST


@pytest.mark.parametrize("encode", [planes.encode_cell, pytest.param(compiled.encode_cell, marks=needs_compiler)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**24])
def test_a_value_that_cannot_be_coded_is_refused(encode, value):
    y, token, klass = coefficients(2)
    y[5, 5] = value
    with pytest.raises(ValueError, match="not below"):
        encode(y, token, klass, TABLES)


@needs_compiler
def test_the_bits_are_close_to_the_entropy_given_the_scales():
    rng, tokens, dims = np.random.default_rng(3), 1024, 64
    klass, token = np.linspace(14, -30, dims).astype(np.int32), rng.integers(-6, 7, tokens).astype(np.int32)
    y = (rng.laplace(size=(tokens, dims)) / np.sqrt(2) * 2 ** ((klass + token[:, None]) / 4) * 128).astype(np.float32)
    from experiments.quality.bases import formula

    chances, points = formula()
    slots, _ = compiled.encode_cell(y, token, klass, planes.PlaneTables(chances, points, TABLES.planes))
    rate = np.sqrt(2) / 2 ** ((klass + token[:, None]) / 4)  # of the exponential fall of a magnitude, per first step
    for count, plane in enumerate(TABLES.planes[:4], start=1):
        r = rate / 2**plane
        q = np.exp(-r)  # magnitudes are geometric: P(0) = 1 - q, P(m) = (1 - q) q^m, and a sign
        bits = (-np.log2(1 - q) - q * np.log2(q) / (1 - q) + q).mean()
        assert sum(map(len, slots[:count])) * 8 / y.size <= bits + 0.05


@pytest.mark.parametrize("predicts", [True, False])
def test_a_table_of_integers_comes_back(predicts):
    rng = np.random.default_rng(4)
    values = (rng.laplace(size=(6, 40)) * 5).astype(np.int32)
    values[2, 3], values[4] = 300_000, -12
    data = table.pack(values, predicts)
    assert np.array_equal(table.unpack(data, 6, 40, predicts), values)
    if compiled.load() is not None:
        assert compiled.pack(values, predicts) == data
        assert np.array_equal(compiled.unpack(data, 6, 40, predicts), values)
        noise = rng.bytes(90)
        assert np.array_equal(compiled.unpack(noise, 6, 40, predicts), table.unpack(noise, 6, 40, predicts))
