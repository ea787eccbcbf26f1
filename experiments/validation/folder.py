"""The folder of a validation: real/CONDITION/POLICY/REPEAT and model/CONDITION/POLICY, each with requests.parquet and summary.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lib.results import read_json, read_records

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class ValidationFolder:
    path: Path
    repeats: int

    def real(self, condition: str, policy: str, repeat: int) -> Path:
        return self.path / "real" / condition / policy / str(repeat)

    def model(self, condition: str, policy: str) -> Path:
        return self.path / "model" / condition / policy


@dataclass(frozen=True, slots=True)
class ValidationCase:
    """One policy under one condition: what the model says, and every repeat of what the machine did. Requests in order of arrival."""

    condition: str
    policy: str
    predicted: pd.DataFrame
    measured: tuple[pd.DataFrame, ...]
    predicted_summary: dict[str, Any]
    measured_summaries: tuple[dict[str, Any], ...]


def load_case(folder: ValidationFolder, condition: str, policy: str) -> ValidationCase:
    """Raises ValueError, one line, where a run of it is missing or damaged."""
    model = folder.model(condition, policy)
    real = [folder.real(condition, policy, repeat) for repeat in range(folder.repeats)]
    return ValidationCase(
        condition,
        policy,
        _requests(model),
        tuple(map(_requests, real)),
        read_json(model / "summary.json"),
        tuple(read_json(path / "summary.json") for path in real),
    )


def _requests(path: Path) -> pd.DataFrame:
    rows = read_records(path / "requests.parquet")
    return rows.sort_values(["arrival_s", "request_id"], kind="stable").reset_index(drop=True)
