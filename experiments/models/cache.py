"""The cache of models that had to be fetched or converted: below $ABKT_CACHE, or ~/.cache/abkt."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp


def cache_dir() -> Path:
    return Path(os.environ.get("ABKT_CACHE") or "~/.cache/abkt").expanduser()


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made when it is first asked for.

    Parameters
    ----------
    folder : where it stands when it is complete.
    make : fills an empty folder, which is renamed to `folder` when `make` returns. If `make` raises, nothing is left.

    Raises
    ------
    ValueError : one line, if the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        growing = Path(mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"the cache of models cannot be written ({error}); set ABKT_CACHE to a folder that can") from None
    try:
        make(growing)
        growing.chmod(0o755)
        growing.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster, and its folder holds the same
            raise ValueError(f"{folder} cannot be made: {error}") from None
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return folder
