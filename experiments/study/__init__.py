"""The study: twin runs on real processes and in the simulator, their comparison, the ranking of policies, and the report.

Used by `abkt study`, `compare`, `replay`, `validate` and `reproduce`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.study.comparison import compare
    from experiments.study.folder import Study, load_study
    from experiments.study.ranking import Regret, rank, regret
    from experiments.study.twin import Twin, run_real, run_simulated, simulated_cluster

__all__ = [
    "Regret",
    "Study",
    "Twin",
    "compare",
    "load_study",
    "rank",
    "regret",
    "run_real",
    "run_simulated",
    "simulated_cluster",
]
__getattr__ = exporter(
    __name__,
    {
        "Regret": "ranking",
        "Study": "folder",
        "Twin": "twin",
        "compare": "comparison",
        "load_study": "folder",
        "rank": "ranking",
        "regret": "ranking",
        "run_real": "twin",
        "run_simulated": "twin",
        "simulated_cluster": "twin",
    },
)
