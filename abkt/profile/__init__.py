"""The Profile of a machine: its measured costs, their fits, the file format, and rooflines for hardware that was not measured. The
simulator and the workers read a profile; abkt.measure writes it. Only `fingerprint` needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.profile.expect import expected_view
    from abkt.profile.schema import Fit, Profile, RateCurve, load

__all__ = ["Fit", "Profile", "RateCurve", "expected_view", "load"]
__getattr__ = exporter(
    __name__,
    {
        "Fit": "schema",
        "Profile": "schema",
        "RateCurve": "schema",
        "expected_view": "expect",
        "load": "schema",
    },
)
