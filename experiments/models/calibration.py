"""The calibration of a model that a verb serves: the file beside the model, another one, or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abkt.spec import KVLayout

AUTO = Path("auto")
NAMES = ("calibration.safetensors", "calibration.json")
"""Of a calibration in a model folder; the first that is there is used."""


def calibration_file(given: Path | None, model_folder: Path, layout: KVLayout) -> Path | None:
    """The calibration.json to use, checked against the model.

    Parameters
    ----------
    given : a file, calibration.safetensors or .json; None: no calibration; AUTO: the one in the model folder, if there is one.
    model_folder : folder of the LLM.
    layout : layout of its KV.

    Raises
    ------
    ValueError : one line, if the file cannot be read, or is of another model.
    """
    from abkt.codec.calibration import load
    from abkt.serve.engine.model_folder import fingerprint

    file = next((model_folder / name for name in NAMES if (model_folder / name).is_file()), None) if given == AUTO else given
    if file is None:
        return None
    try:
        found = load(file)
        found.check(layout)
        found.check_files(fingerprint(model_folder))
    except ValueError as error:
        raise ValueError(f"{error}; give calibration=null for none, or calibration=FILE of this model") from None
    return file
