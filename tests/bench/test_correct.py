"""The check of a device against the oracle: it passes here, and names what differs."""

import pytest
import torch

from abkt.bench import arguments, correct
from abkt.codec.fixed.oracle import OracleBackend

CPU = torch.device("cpu")


@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("shape", [correct.SHAPES[4], correct.SHAPES[6]], ids=str)
def test_this_machine_agrees_with_the_oracle(shape, depth):
    assert correct.compared(shape, depth, CPU)[1] == ""


def test_what_differs_is_named_after_all_cases(monkeypatch):
    class Wrong(OracleBackend):
        def encode(self, data, blocks, cells, centres):
            coded = super().encode(data, blocks, cells, centres)
            coded.body[7] ^= 1
            return coded

    monkeypatch.setattr("abkt.codec.codec.Codec.backend_on", lambda self, device: Wrong())
    monkeypatch.setattr(correct, "SHAPES", (correct.SHAPES[6], correct.SHAPES[6]))
    rows = correct.rows(arguments.parse(["depths=2"]), {})
    assert [next(rows).value for _ in range(4)] == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="2 cases differ from the oracle: bfloat16/16/77/32/16/2bit: bytes; "):
        next(rows)
