"""Calibration files: what is saved loads unchanged, and bad files are refused."""

from dataclasses import replace

import numpy as np
import pytest

from abkt.codec.calibration import Calibration, load


def test_a_saved_calibration_loads_unchanged(tmp_path):
    made = Calibration("m", 0.4, np.array([[[0.5, 2.0], [1.0, 3.0]]]), np.array([[[0, 1], [2, 3]]], dtype=np.uint8), {"prompts": "20"})
    made.save(tmp_path / "m.json")
    read = load(tmp_path / "m.json")
    assert (read.model, read.gamma, read.about) == ("m", 0.4, {"prompts": "20"})
    assert np.array_equal(read.sensitivity, made.sensitivity)
    assert np.array_equal(read.levels, made.levels)
    assert read.levels.dtype == np.uint8


def test_the_digest_names_what_the_codec_uses_and_survives_a_file(tmp_path):
    made = Calibration("m", 0.4, np.array([[[0.5, 2.0]]]), np.array([[[0, 1]]], dtype=np.uint8), {"prompts": "20"})
    made.save(tmp_path / "m.json")
    assert load(tmp_path / "m.json").digest == made.digest
    assert replace(made, model="n", about={}).digest == made.digest
    others = [{"gamma": 0.5}, {"sensitivity": np.array([[[0.5, 2.1]]])}, {"levels": np.array([[[1, 1]]], dtype=np.uint8)}]
    assert len({made.digest, *(replace(made, **other).digest for other in others)}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ("[1]", "version None"),
        ('{"version": 2}', "version 2; version 1 can be read"),
        ('{"version": 1, "model": "m", "gamma": 1}', "damaged: 'levels'"),
        ('{"version": 1, "model": "m", "gamma": 1, "sensitivity": [[[1]]], "levels": [[[4]]]}', "0 to 3"),
        ('{"version": 1, "model": "m", "gamma": 2, "sensitivity": [[[1]]], "levels": [[[0]]]}', "gamma is 2.0"),
        ('{"version": 1, "model": "m", "gamma": 1, "sensitivity": [[[0]]], "levels": [[[0]]]}', "not above 0"),
        ('{"version": 1, "model": "m", "gamma": 1, "sensitivity": [[[1, 1]]], "levels": [[[0]]]}', "must both be"),
    ],
)
def test_a_bad_calibration_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "c.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
