"""The rANS coder: a case worked out by hand, size against the cross-entropy, equal bytes of both implementations, and damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.rans import compiled as rans_fast
from abkt.codec.rans import oracle as rans

PATHS = (rans, rans_fast)


def sample(seed: int, streams: int, n: int, contexts: int, alphabet: int, flatness: float = 0.5) -> tuple[np.ndarray, ...]:
    """Random tables, and symbols drawn from them."""
    rng = np.random.default_rng(seed)
    tables = rans.shares_of(rng.dirichlet(np.full(alphabet, flatness), contexts))
    context = rng.integers(0, contexts, (streams, n)).astype(np.uint8)
    shares = rng.integers(0, rans.SHARES, (streams, n))
    symbols = (shares[..., None] >= tables.cumsum(1, dtype=np.int64)[context]).sum(-1).astype(np.uint8)
    return symbols, context, tables


def test_a_short_string_codes_to_the_bytes_worked_out_by_hand() -> None:
    # Shares: symbol 0 has 1 (from 0), symbol 1 has 4,095 (from 1). Two symbols, 0 then 1, in lanes 0 and 1; the other six rest at 65536.
    # Lane 1, symbol 1: 65536 < 4095 << 20, so nothing leaves; 65536 = 16 * 4095 + 16, so x = 16 * 4096 + 16 + 1 = 65553.
    # Lane 0, symbol 0: 65536 < 1 << 20, so nothing leaves; x = 65536 * 4096 + 0 + 0 = 2**28.
    tables = np.array([[1, 4095]], dtype=np.uint16)
    symbols = np.array([[0, 1]], dtype=np.uint8)
    expected = np.array([2**28, 65553] + [65536] * 6, dtype="<u4").tobytes()
    # A third symbol 0 in lane 0 of a longer string comes first in coding: see x = 2**28 >= 2**20, so a word leaves before the next one.
    longer = np.array([[0, 1, 1, 1, 1, 1, 1, 1, 0]], dtype=np.uint8)
    # Lane 0: position 8 first, 65536 -> 2**28; then position 0: the low 16 bits of 2**28 (0) leave, 2**12 * 4096 = 2**24.
    states = np.array([2**24] + [65553] * 7, dtype="<u4").tobytes()
    for path in PATHS:
        assert path.encode(symbols, np.zeros_like(symbols), tables) == [expected]
        assert path.encode(longer, np.zeros_like(longer), tables) == [states + b"\0\0"]
        assert (path.decode([states + b"\0\0"], 9, np.zeros_like(longer), tables) == longer).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(0, 4), st.integers(0, 150), st.integers(1, 5),
    st.sampled_from([1, 2, 3, 17, 256]), st.sampled_from([0.05, 1.0]),
)  # fmt: skip
def test_symbols_are_restored_and_both_implementations_write_the_same_bytes(
    seed: int, streams: int, n: int, contexts: int, alphabet: int, flatness: float
) -> None:
    symbols, context, tables = sample(seed, streams, n, contexts, alphabet, flatness)
    data = rans.encode(symbols, context, tables)
    assert rans_fast.encode(symbols, context, tables) == data
    assert all(len(d) <= rans.most_bytes(n) for d in data)
    for path in PATHS:
        assert np.array_equal(path.decode(data, n, context, tables), symbols)


@pytest.mark.parametrize(("alphabet", "flatness"), [(2, 1.0), (8, 0.5), (256, 0.2)])
def test_the_size_is_the_cross_entropy_plus_the_states(alphabet: int, flatness: float) -> None:
    symbols, context, tables = sample(7, 8, 8192, 4, alphabet, flatness)
    ideal = -np.log2(tables[context, symbols] / rans.SHARES).sum(1) / 8
    sizes = np.array([len(d) for d in rans_fast.encode(symbols, context, tables)])
    assert (sizes <= 1.01 * ideal + rans.STATE_BYTES).all()
    assert (sizes >= ideal).all(), "fewer bytes than the information is too good to be true"


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.data())
def test_damage_is_refused_or_decodes_to_the_same_symbols_in_both_implementations(seed: int, n: int, data: st.DataObject) -> None:
    symbols, context, tables = sample(seed, 1, n, 2, 5)
    whole = bytearray(rans.encode(symbols, context, tables)[0])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        whole[at] = value
    length = data.draw(st.integers(0, len(whole) + 4))
    damaged = bytes(whole[:length]) + b"\7" * (length - len(whole))
    answers = []
    for path in PATHS:
        try:
            answers.append(path.decode([damaged], n, context, tables).tolist())
        except ValueError:
            answers.append(None)
    assert answers[0] == answers[1]
    assert answers[0] is None or max(answers[0][0]) < 5


def test_a_stream_with_bytes_missing_or_added_is_refused() -> None:
    symbols, context, tables = sample(3, 3, 64, 2, 5)
    good = rans.encode(symbols, context, tables)
    for bad in (good[1][:-2], good[1][:-1], good[1] + b"\0\0", b"", b"\0" * 32):
        for path in PATHS:
            with pytest.raises(ValueError, match="stream 1"):
                path.decode([good[0], bad, good[2]], 64, context, tables)


@pytest.mark.parametrize("path", PATHS)
def test_symbols_that_the_tables_cannot_code_are_refused(path) -> None:  # type: ignore[no-untyped-def]
    tables = np.array([[4096, 0], [1, 4095]], dtype=np.uint16)
    zeros = np.zeros((2, 9), dtype=np.uint8)
    for symbol, context, message in ((1, 0, "position 4: symbol 1 has no share"), (2, 1, "alphabet of 2"), (0, 2, "context 2 of only 2")):
        symbols, contexts = zeros.copy(), zeros.copy()
        symbols[1, 4], contexts[1, 4] = symbol, context
        with pytest.raises(ValueError, match=message):
            path.encode(symbols, contexts, tables)
    with pytest.raises(ValueError, match="row 1 of the tables sums to 4095"):
        path.encode(zeros, zeros, np.array([[4096, 0], [0, 4095]], dtype=np.uint16))
    with pytest.raises(ValueError, match="one shape"):
        path.encode(zeros, zeros[:1], tables)
    assert path.decode(path.encode(zeros, zeros, tables), 9, zeros, tables).sum() == 0  # a certain symbol takes no bytes beyond the states


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=256))
def test_tables_sum_to_all_shares_and_give_each_occurring_symbol_at_least_one(counts: list[int]) -> None:
    table = rans.shares_of(np.array([counts], dtype=np.float64))[0].astype(int)
    assert table.sum() == rans.SHARES
    if any(counts):
        assert ((table > 0) == (np.array(counts) > 0)).all()


def test_moving_one_share_never_makes_a_table_cheaper() -> None:
    counts = np.random.default_rng(1).dirichlet(np.full(6, 0.4))
    table = rans.shares_of(counts[None])[0].astype(float)
    cost = -(counts * np.log2(table)).sum()
    for a in range(6):
        for b in range(6):
            moved = table.copy()
            moved[a] -= 1
            moved[b] += 1
            if a != b and moved[a] > 0:
                assert -(counts * np.log2(moved)).sum() >= cost - 1e-12
