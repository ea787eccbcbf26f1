"""Admission policies, one file each. A policy decides whether a request is accepted, waits, is prefilled on its decode node or is rejected.
The simulator calls them; configurations name them by class (conf/admission).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.policy.admission.always import Always
    from abkt.policy.admission.base import AdmissionDecision, AdmissionPolicy
    from abkt.policy.admission.ladder import Ladder
    from abkt.policy.admission.reject_late import RejectLate
    from abkt.policy.admission.reserve import Reserve

__all__ = ["AdmissionDecision", "AdmissionPolicy", "Always", "Ladder", "RejectLate", "Reserve"]
__getattr__ = exporter(
    __name__,
    {
        "AdmissionDecision": "base",
        "AdmissionPolicy": "base",
        "Always": "always",
        "Ladder": "ladder",
        "RejectLate": "reject_late",
        "Reserve": "reserve",
    },
)
