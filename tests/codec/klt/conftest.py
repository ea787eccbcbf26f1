"""A made-up basis for a tiny layout, and a codec that has it."""

import numpy as np
import pytest
import torch

from abkt.codec.calibration import Calibration
from abkt.codec.codec import Codec
from abkt.codec.klt.basis import FIRST_TOKENS, Basis
from abkt.codec.klt.rotary import HALVES, Rotary
from abkt.spec import KVLayout
from experiments.quality.bases import formula, step_of


def make_basis(layout: KVLayout, seed: int = 0, **changes) -> Basis:
    """Coefficients that matter alike by construction: any matrices that have an inverse will do. groups: as in Basis; without, K and V of
    a layer's heads are together."""
    model, rng = layout.model, np.random.default_rng(seed)
    shape = (model.layers, 2, model.kv_heads, model.head_dim)
    groups = changes.get("groups", np.arange(model.layers, dtype=np.int16).repeat(2 * model.kv_heads).reshape(shape[:3]))
    matrices, deviation = [], np.empty(shape, np.float32)
    for number in range(int(groups.max()) + 1):
        of = np.nonzero(groups == number)
        size = len(of[0]) * model.head_dim
        matrices.append((np.linalg.qr(rng.standard_normal((size, size)))[0] * np.exp(0.3 * rng.standard_normal(size))).ravel())
        deviation[of] = 4 * np.sort(np.exp(rng.standard_normal(size)))[::-1].reshape(len(of[0]), -1)
    rotary = Rotary(
        torch.full((model.layers,), HALVES, dtype=torch.uint8), (100.0 ** -torch.linspace(0, 1, shape[-1] // 2)).repeat(model.layers, 1)
    )
    chances, points = formula()
    given = {
        "groups": groups, "matrices": np.concatenate(matrices).astype(np.float16),
        "unit": np.exp(0.3 * rng.standard_normal(shape[:3])).astype(np.float32), "deviation": deviation,
        "mean": rng.standard_normal(shape).astype(np.float32), "first": np.full((*shape[:3], FIRST_TOKENS), 16, np.int16), "rotary": rotary,
        "chances": chances, "points": points, "step": step_of(deviation), "exponent": 0.5, "mixing": 0.4, "nats": 0.5,
    }  # fmt: skip
    return Basis(**{**given, **changes})


def make_calibration(layout: KVLayout, basis: Basis | None, **more) -> Calibration:
    model = layout.model
    shape = (model.layers, model.kv_kinds, model.kv_heads)
    return Calibration(model.name, 0.0, np.ones(shape), np.zeros(shape, dtype=np.uint8), basis=basis, **more)


@pytest.fixture(scope="session")
def basis_of():
    return make_basis


@pytest.fixture(scope="session")
def calibration_of():
    return make_calibration


@pytest.fixture(scope="session")
def klt_codec():
    def made(layout: KVLayout, seed: int = 0, **more) -> Codec:
        return Codec(layout, calibration=make_calibration(layout, make_basis(layout, seed)), **more)

    return made
