"""Published KV codecs that calibrate on texts before any request: one file each, with the function that fits it.

Every fit gets the same `CalibrationKV`. What it learns is held on both sides, like a model's weights, and costs no bytes of a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.codec.baselines.calibrated.kv import CalibrationKV

__all__ = ["CalibrationKV"]
__getattr__ = exporter(__name__, {"CalibrationKV": "kv"})
