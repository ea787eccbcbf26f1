"""The bench of the entropy coder: its rows."""

import pytest

from abkt.bench import arguments, entropy
from abkt.bench.case import BenchCase


@pytest.fixture(scope="module")
def case():
    return BenchCase(arguments.parse(["kv_heads=2", "head_dim=32"]), 200, 16)


def test_rows_stand_for_the_coded_tokens(case):
    rows = {row.name: row for row in entropy.rows(case, "200x16", 1)}
    assert rows.keys() == {f"entropy_{what}/200x16" for what in ("encode", "encode_gbps", "decode", "decode_gbps", "bits")}
    for verb in ("encode", "decode"):
        row = rows[f"entropy_{verb}/200x16"]
        assert row.unit == "ns/token"
        assert row.value > row.yardstick > 0
        assert rows[f"entropy_{verb}_gbps/200x16"].value == pytest.approx(2 * 2 * 32 * 2 / row.value)
    assert 3 < rows["entropy_bits/200x16"].value < 5
    coded = case.table[1:12]  # 11 of 13 blocks lie between the edges
    error = (case.pool.data[coded].float() - case.other.data[coded].float()).square().mean()
    assert float(error) < 0.02 * float(case.pool.data[coded].float().var())
