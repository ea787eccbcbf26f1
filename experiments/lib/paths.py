"""Where conf/ and data/ are: at the root of a checkout (editable install), or inside the package of a wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import abkt

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(abkt.__file__).resolve().parent
CONFIG_DIR = "--config-dir"


def conf_dir() -> Path:
    return _first("conf", "simulate.yaml")


def data_path(name: str) -> Path:
    """A file that comes with ABKT, by its path below data/. The caller reports a missing file."""
    return _first("data", "ATTRIBUTION.md") / name


def split_config_dirs(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """(the other arguments, the folders of `--config-dir DIR`). Such a folder holds YAMLs of the user, such as DIR/bitrate/mine.yaml.

    Raises
    ------
    ValueError
        One line, where a folder is missing.
    """
    rest: list[str] = []
    folders: list[Path] = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != CONFIG_DIR:
            rest.append(word)
            continue
        given = value if equals else next(words, "")
        folder = Path(given).expanduser()
        if not given or not folder.is_dir():
            raise ValueError(f"{CONFIG_DIR} needs a folder with your own YAMLs, such as {CONFIG_DIR} DIR with DIR/bitrate/mine.yaml")
        folders.append(folder.resolve())
    return rest, folders


def _first(name: str, witness: str) -> Path:
    """The first folder of that name that holds `witness`, a file of ABKT. Other packages may have a folder called data too."""
    places = (ROOT / name, PACKAGE / name)
    for place in places:
        if (place / witness).is_file():
            return place
    raise ValueError(f"no {name} folder in {' or '.join(str(p.parent) for p in places)}; install abkt again")
