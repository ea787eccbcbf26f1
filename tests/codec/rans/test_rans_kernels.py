"""rANS in Triton without a GPU: the interpreter gives bytes, symbols and refusals; ahead-of-time compilation gives the registers."""

import json

import numpy as np
import pytest
import torch

from tests.codec.rans.test_rans import sample
from tests.triton_check_main import run

pytest.importorskip("triton")
CHECK = "tests.codec.rans.rans_triton_check"


def test_kernels_give_the_oracles_bytes_symbols_and_refusals():
    run(CHECK, "values")


def test_kernels_compile_ahead_of_time_without_spills():
    report = json.loads(run(CHECK, "compile", "80", "90"))
    assert len(report) == 6
    for row in report:
        assert row["stack"] == row["local"] == 0, row
        assert row["registers"] <= 32, f"fewer than 2,048 threads a multiprocessor: {row}"


def test_multiplying_by_the_inverse_and_comparing_divides_by_every_share():
    """This is the division in put(): the upper half of x times the inverse, plus 1 where the rest is not below the share."""
    from abkt.codec.rans.launch import entries_of

    rng = np.random.default_rng(0)
    for share in [*range(1, 70), *rng.integers(70, 4096, 200).tolist(), 4095, 4096]:
        entry = entries_of(np.array([[share, 4096 - share]], dtype=np.uint16))[0][0, 0]
        inverse, most = np.uint64(entry) >> np.uint64(32), (share << 20) - 1
        quotients = np.append(rng.integers(0, 1 << 20, 500), (1 << 20) - 1)
        x = np.concatenate((quotients * share, np.maximum(quotients * share - 1, 0), rng.integers(0, most + 1, 500), [most])).astype(
            np.uint64
        )
        quotient = (x * inverse) >> np.uint64(32)
        quotient += (x - quotient * np.uint64(share)) >= share
        assert (quotient == x // np.uint64(share)).all()
        assert entry & 0xFFFF == share


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_oracles_bytes_and_symbols():
    from abkt.codec.rans import launch as rans_launch
    from abkt.codec.rans import oracle as rans

    device = torch.device("cuda")
    for streams, n, contexts, alphabet, flatness in ((1000, 999, 5, 30, 0.3), (3, 5, 1, 2, 0.05), (40, 64, 61, 256, 1.0)):
        symbols, context, shares = sample(n, streams, n, contexts, alphabet, flatness)
        tables = rans_launch.RansTables.of(shares, device)
        on_device = torch.from_numpy(context).to(device)
        done = rans_launch.encode(torch.from_numpy(symbols).to(device), on_device, tables)
        expected = rans.encode(symbols, context, shares)
        assert done.sizes.tolist() == [len(d) for d in expected]
        assert done.body[: int(done.ends[-1])].cpu().numpy().tobytes() == b"".join(expected)
        found, damaged = rans_launch.decode(done.body, done.ends - done.sizes, done.sizes, n, on_device, tables)
        assert not damaged.any()
        assert np.array_equal(found.cpu().numpy(), symbols)
