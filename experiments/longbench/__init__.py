"""LongBench and retrieval tasks with transferred KV: the questions, their scores, and the costs of the transfer.

Used by `abkt longbench`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.longbench.answer import Answer
    from experiments.longbench.pair import TransferPair, Transferred
    from experiments.longbench.rows import Rows
    from experiments.longbench.tasks import Task

__all__ = ["Answer", "Rows", "Task", "TransferPair", "Transferred"]
__getattr__ = exporter(__name__, {"Answer": "answer", "Rows": "rows", "Task": "tasks", "TransferPair": "pair", "Transferred": "pair"})
