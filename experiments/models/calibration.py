"""The calibration of a model that a verb serves: the file beside the model, another one, or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abkt.spec import KVLayout

AUTO = Path("auto")
NAME = "calibration.json"


def calibration_file(given: Path | None, model_folder: Path, layout: KVLayout) -> Path | None:
    """The calibration.json to use, checked against the model.

    Parameters
    ----------
    given : a file; None: no calibration; AUTO: the one in the model folder, if there is one.
    model_folder : folder of the LLM.
    layout : layout of its KV.

    Raises
    ------
    ValueError : one line, if the file cannot be read, or is of another model.
    """
    from abkt.codec.calibration import load

    file = model_folder / NAME if given == AUTO else given
    if file is None or (given == AUTO and not file.is_file()):
        return None
    try:
        load(file).check(layout)
    except ValueError as error:
        raise ValueError(f"{error}; give calibration=null for none, or calibration=FILE of this model") from None
    return file
