"""Other quantisers beside ours: the rows of a peer whose figures are known, and of one that is missing."""

import logging
import subprocess
import sys

import pytest
import torch

from abkt.bench import arguments, peer_codecs, peers
from abkt.bench.case import BenchCase
from abkt.bench.peers import PeerMatch, PeerResult, compared, match
from abkt.codec.baselines import affine

SMALL = arguments.parse(["blocks=16", "repeats=1", "kv_heads=2", "head_dim=32"])


class PerToken:
    """For each token of a head a scale and a zero in float16, and one code per value, two in a byte if they have 4 bits."""

    name, distribution, bits = "per_token", "torch", 4

    def encode(self, x):
        return affine.quantise(x.float(), self.bits)

    def decode(self, coded):
        return affine.restore(*coded).bfloat16()

    def wire_bytes(self, coded):
        codes, pair = coded
        return codes.numel() * self.bits // 8 + pair.nbytes


class Coarse(PerToken):
    name, bits = "coarse", 2


class Fine(PerToken):
    name, bits = "fine", 6


class Same(PerToken):
    """Does not code: encode returns the values."""

    name, bits = "same", 16

    def encode(self, x):
        return x, x[:0]

    def decode(self, coded):
        return coded[0]


class Missing(PerToken):
    name, distribution = "missing", "no-such-distribution-of-abkt"


class Unimportable(PerToken):
    name = "unimportable"

    def __init__(self):
        raise ImportError("no accelerator\nand more of it")


class Failing(PerToken):
    name = "failing"

    def encode(self, x):
        raise RuntimeError("needs a GPU")


def rows_of(monkeypatch, *kinds):
    monkeypatch.setattr(peers, "PEERS", kinds)
    facts = {"cpu": "some"}
    case = BenchCase(SMALL, 200, 16)
    return {row.name: row for row in peers.rows(case, SMALL, facts)}, facts, case


def test_the_rows_of_a_peer_are_its_own(monkeypatch):
    rows, facts, case = rows_of(monkeypatch, Coarse)
    x = peers.contiguous(case, case.pool.data)
    assert x.shape == (1, 2, 2, 176, 32)
    assert torch.equal(x[0, 1, 0, 16:32], case.pool.data[case.table[2], 0, 1, 0]), "the first block is a verbatim edge"
    y, f = Coarse().decode(Coarse().encode(x)).double(), x.double()
    nmse = (y - f).square().sum() / (f - f.mean(-2, keepdim=True)).square().sum()
    assert rows["peer_coarse_nmse"].value == pytest.approx(float(nmse), rel=1e-5)
    assert rows["peer_coarse_bits"].value == 2 + 32 / 32
    taken = [rows[f"peer_coarse_{verb}"] for verb in ("encode", "decode")]
    ratio = sum(row.value for row in taken) / sum(row.yardstick for row in taken)
    assert rows["peer_coarse_over_ours"].value == pytest.approx(ratio), "ours at 4 bits is more accurate than 2 bits a token"
    assert rows["peer_coarse_over_ours"].unit == "x ours at 4 bits"
    assert rows["over_fastest_peer"].value == rows["peer_coarse_over_ours"].value
    assert rows["over_fastest_peer_bits"].value == rows["peer_coarse_bits"].yardstick
    assert facts == {"cpu": "some", "peer coarse": f"torch {torch.__version__}"}


def test_ours_is_compared_at_the_depth_that_matches_a_peer_s_accuracy(monkeypatch):
    rows, _, _ = rows_of(monkeypatch, PerToken, Fine)
    assert rows["peer_per_token_nmse"].value > rows["peer_fine_nmse"].value
    assert rows["peer_fine_nmse"].value < rows["peer_fine_nmse"].yardstick, "ours at 4 bits is no match"
    assert rows["peer_fine_over_ours"].unit in ("x ours at 6 bits", "x ours at 8 bits")
    both = (rows["peer_per_token_over_ours"], rows["peer_fine_over_ours"])
    assert rows["over_fastest_peer"].value == min(row.value for row in both)


def test_a_peer_more_accurate_than_every_depth_gets_a_ratio_of_0(monkeypatch):
    rows, _, _ = rows_of(monkeypatch, Coarse, Same)
    assert rows["peer_same_nmse"].value == 0
    assert rows["over_fastest_peer"].value == 0
    assert rows["over_fastest_peer"].unit == "no depth of ours is as accurate (same)"
    assert rows["over_fastest_peer_bits"].yardstick == 16


def test_a_peer_that_is_missing_or_fails_is_a_fact_and_no_row(monkeypatch):
    rows, facts, _ = rows_of(monkeypatch, Missing, Unimportable, Failing, Coarse)
    assert {name.split("_")[1] for name in rows if name.startswith("peer_")} == {"coarse"}
    assert facts["peer missing"] == "no-such-distribution-of-abkt not installed"
    assert facts["peer unimportable"] == f"torch {torch.__version__}, cannot be imported: ImportError: no accelerator"
    assert facts["peer failing"] == f"torch {torch.__version__}, fails: RuntimeError: needs a GPU"
    assert rows_of(monkeypatch, Missing)[0] == {}


def test_the_fastest_peer_of_a_hand_made_case():
    ours = {4: PeerResult(0.011, 4.25, (8.0, 2.0)), 6: PeerResult(0.001, 6.25, (9.0, 3.0))}
    quick, good, slow = PeerResult(0.020, 4.5, (20.0, 10.0)), PeerResult(0.009, 4.375, (20.0, 16.0)), PeerResult(0.011, 4.5, (99.0, 1.0))
    assert match(quick, ours) == PeerMatch(4, 3.0)
    assert match(good, ours) == PeerMatch(6, 3.0)
    assert match(slow, ours) == PeerMatch(4, 10.0), "an equal error is enough"
    assert match(PeerResult(0.0, 16.0, (1.0, 1.0)), ours) == PeerMatch(0, 0.0)
    rows = {row.name: row for row in compared({"slow": slow, "good": good}, ours)}
    assert (rows["over_fastest_peer"].value, rows["over_fastest_peer"].unit) == (3.0, "x ours at 6 bits (good)")
    assert (rows["over_fastest_peer_bits"].value, rows["over_fastest_peer_bits"].yardstick) == (6.25, 4.375)
    assert list(compared({}, ours)) == []


def test_warnings_come_back_after_quiet():
    level = logging.root.manager.disable
    with peers.quiet():
        assert not logging.getLogger("some.peer").isEnabledFor(logging.WARNING)
    assert logging.root.manager.disable == level


def test_no_peer_is_imported_before_it_is_made():
    code = "import sys, abkt.bench.peers; print({'optimum', 'hqq', 'torchao', 'lmcache', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("kind", "module", "bits"),
    [
        (peer_codecs.Quanto, "optimum.quanto", 4.5),
        (peer_codecs.QuantoChannels, "optimum.quanto", 4.5),
        (peer_codecs.Hqq, "hqq", 4.5),
        (peer_codecs.HqqUnrefined, "hqq", 4.5),
        (peer_codecs.TorchAo, "torchao", 4.375),
        (peer_codecs.LmCachePeer, "lmcache", None),
    ],
)
def test_a_real_peer_codes_to_4_bits_and_back(kind, module, bits):
    x = (torch.randn(2, 2, 2, 320, 128, generator=torch.Generator().manual_seed(1)) + 1).bfloat16()
    given = x.clone()
    with peers.quiet():
        pytest.importorskip(module)
        peer = kind()
        coded = peer.encode(x)
        y = peer.decode(coded)
    assert torch.equal(x, given)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert 0.001 < peers.squared(x, y) / peers.squared(x, x.float().mean(-2, keepdim=True)) < 0.02
    taken = 8 * peer.wire_bytes(coded) / x.numel()
    assert taken == bits if bits else 4 < taken < 8
