"""Measures a machine and writes its Profile: `calibrate` uses a real cluster, `measure` one device alone (`python -m abkt.measure`). The
command line and experiments use it; nothing else in abkt imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.measure.cluster import calibrate
    from abkt.measure.device import measure
    from abkt.measure.shape import DecoderShape

__all__ = ["DecoderShape", "calibrate", "measure"]
__getattr__ = exporter(
    __name__,
    {
        "DecoderShape": "shape",
        "calibrate": "cluster",
        "measure": "device",
    },
)
