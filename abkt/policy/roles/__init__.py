"""Roles policies, one file each. A policy decides which nodes prefill, which decode, and when that changes. The simulator and the frontend
call them; configurations name them by class (conf/roles).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.policy.roles.arrow import Arrow
    from abkt.policy.roles.base import NodeLoad, RoleChange, RolesPolicy
    from abkt.policy.roles.colocated import Colocated
    from abkt.policy.roles.conditional import Conditional
    from abkt.policy.roles.load_aware import LoadAwareRoles
    from abkt.policy.roles.scheduled import Scheduled
    from abkt.policy.roles.static import Static

__all__ = ["Arrow", "Colocated", "Conditional", "LoadAwareRoles", "NodeLoad", "RoleChange", "RolesPolicy", "Scheduled", "Static"]
__getattr__ = exporter(
    __name__,
    {
        "Arrow": "arrow",
        "Colocated": "colocated",
        "Conditional": "conditional",
        "LoadAwareRoles": "load_aware",
        "NodeLoad": "base",
        "RoleChange": "base",
        "RolesPolicy": "base",
        "Scheduled": "scheduled",
        "Static": "static",
    },
)
