"""The bench of the entropy coder: its rows, and that it fails for a wrong kernel."""

import pytest
import torch

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


def test_wrong_bytes_or_values_fail(case, monkeypatch):
    monkeypatch.setattr(entropy, "_Enqueued", entropy._Compiled)
    assert entropy.check(case) == case.cells(entropy.DEPTH).count

    class Wrong(entropy._Compiled):
        def arrive(self):
            return super().arrive() ^ torch.tensor(self.wrong, dtype=torch.uint8)

        def decode(self):
            super().decode()
            self._case.other.data[self._case.table[1], 0, 0, 0, 0, 0] += 1

    monkeypatch.setattr(entropy, "_Enqueued", Wrong)
    for wrong, message in ((1, "bytes differ"), (0, "values differ")):
        Wrong.wrong = wrong
        with pytest.raises(ValueError, match=message):
            entropy.check(case)
