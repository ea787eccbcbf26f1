"""Decisions on bitrate, routing, roles and admission: numbers in, numbers out, with no clock, no I/O, no SimPy and no torch. The simulator
and real workers use the same classes; abkt.policy.build makes an object from its configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.policy.admission.base import AdmissionPolicy
    from abkt.policy.bandwidth import Bandwidth
    from abkt.policy.price import Price
    from abkt.policy.roles.base import RolesPolicy
    from abkt.policy.routing.base import RoutingPolicy
    from abkt.policy.view import BitratePolicy, Curve, Decision, Delivered, GoodputSample, Refined, TransferView

__all__ = [
    "AdmissionPolicy",
    "Bandwidth",
    "BitratePolicy",
    "Curve",
    "Decision",
    "Delivered",
    "GoodputSample",
    "Price",
    "Refined",
    "RolesPolicy",
    "RoutingPolicy",
    "TransferView",
]
__getattr__ = exporter(
    __name__,
    {
        "AdmissionPolicy": "admission.base",
        "Bandwidth": "bandwidth",
        "BitratePolicy": "view",
        "Curve": "view",
        "Decision": "view",
        "Delivered": "view",
        "GoodputSample": "view",
        "Price": "price",
        "Refined": "view",
        "RolesPolicy": "roles.base",
        "RoutingPolicy": "routing.base",
        "TransferView": "view",
    },
)
