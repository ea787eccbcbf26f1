"""The probe: a small Llama-shaped model that uses its context, and its recall tasks, which are the prompts of real runs.

Used by `abkt train-probe`, and by all code that needs prompts with known answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.probe.tasks import key_values, recall_prompt

__all__ = ["key_values", "recall_prompt"]
__getattr__ = exporter(__name__, {"key_values": "tasks", "recall_prompt": "tasks"})
