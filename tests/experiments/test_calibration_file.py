"""The calibration that a verb uses: the one beside the model, a given file, or none; checked against the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from abkt.codec.calibration import Calibration
from abkt.spec import KVLayout, ModelSpec
from experiments.lib.compose import compose
from experiments.lib.paths import data_path
from experiments.models.calibration import AUTO, calibration_file

LAYOUT = KVLayout(ModelSpec("m", layers=2, kv_heads=1, head_dim=8), 4)


def made(path: Path, layers: int) -> Path:
    Calibration("m", 0.5, np.ones((layers, 2, 1)), np.zeros((layers, 2, 1), dtype=np.uint8)).save(path)
    return path


def test_the_file_beside_the_model_is_the_default_and_null_is_none(tmp_path: Path) -> None:
    assert calibration_file(AUTO, tmp_path, LAYOUT) is None
    beside, other = made(tmp_path / "calibration.json", 2), made(tmp_path / "other.json", 2)
    assert calibration_file(AUTO, tmp_path, LAYOUT) == beside
    assert calibration_file(other, tmp_path, LAYOUT) == other
    assert calibration_file(None, tmp_path, LAYOUT) is None


def test_a_file_of_another_model_or_none_at_all_is_refused_in_one_line(tmp_path: Path) -> None:
    made(tmp_path / "calibration.json", 3)
    with pytest.raises(ValueError, match=r"\(3, 2, 1\); the pool has \(2, 2, 1\); give calibration=null"):
        calibration_file(AUTO, tmp_path, LAYOUT)
    with pytest.raises(ValueError, match="does not exist; give calibration=null"):
        calibration_file(tmp_path / "none.json", tmp_path, LAYOUT)


@pytest.mark.parametrize("verb", ["study", "validate", "adaptation", "serve", "replay", "profile"])
def test_every_verb_that_serves_takes_the_probes_by_default(verb: str) -> None:
    config = compose(verb, []).config
    assert config["calibration"] == str(AUTO)
    assert (Path(str(config["model_folder"])) / "calibration.json") == data_path("probe/calibration.json")
