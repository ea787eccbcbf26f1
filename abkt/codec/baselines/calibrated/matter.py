"""A simple rule: KIVI 4 for the heads that matter, and only the mean of each channel for the others.

A head matters if leaving it out costs much by Fisher information. On models where few heads matter, this rule alone saves most bytes.
"""

from __future__ import annotations

import torch

from abkt.codec.baselines.calibrated.kv import CalibrationKV
from abkt.codec.baselines.calibrated.kvtuner import allocated
from abkt.codec.baselines.layerwise import LayerWise, losses


def fit(calibration: CalibrationKV, share: float, bits: int = 4, name: str = "") -> LayerWise:
    """`bits` bits for the share of the (layer, K or V, head) whose loss is greatest, and the mean for the rest."""
    fisher = calibration.of_heads
    cost = torch.stack([torch.stack([losses(x, fisher, b) for x in calibration.kv]).sum(0) for b in (0, bits)])
    chosen = allocated(cost, torch.tensor((0.0, float(bits)), dtype=torch.float64), share * bits)
    kept = (chosen * bits).tolist()
    return LayerWise(
        name or f"matter{share:g}", tuple(tuple(tuple(int(b) for b in kind) for kind in layer) for layer in kept), residual=128
    )
