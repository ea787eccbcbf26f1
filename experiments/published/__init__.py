"""Published measurements: fits of kernel tables, servers and KV transfers, compared with the simulator's costs.

Used by `abkt published` and `abkt fit-hardware`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.published.kernel_tables import fit_gpu
    from experiments.published.links import fit_link

__all__ = ["fit_gpu", "fit_link"]
__getattr__ = exporter(__name__, {"fit_gpu": "kernel_tables", "fit_link": "links"})
