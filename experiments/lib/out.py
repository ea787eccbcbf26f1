"""The folder of a run's results: it holds one run and nothing else, and a later run replaces only what an earlier one wrote.

A run that ends writes in its manifest.json which files are its own. So `overwrite=true` never removes a file of somebody else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.lib.results import read_json, write_json

MANIFEST = "manifest.json"
ASIDE = ".replaced"  # where the results of the earlier run wait until the new run has begun to write
OF_HYDRA = "multirun.yaml"


@contextmanager
def results(folder: Path, verb: str, overwrite: bool = False, resumes: Sequence[str] = (), sign: bool = True) -> Iterator[None]:
    """Make the folder of a run, and list the run's files in its manifest at the end.

    Parameters
    ----------
    folder : of the results.
    verb : name of the verb that runs.
    overwrite : replace the results of an earlier run of the same verb. They are put back if the run fails before it has written anything.
    resumes : patterns of files by which a run that was stopped is known; such a run goes on where it was stopped. Empty: the verb cannot.
    sign : False for a folder of several runs, each with a manifest of its own.

    A run that writes nothing leaves no folder.

    Raises
    ------
    ValueError
        One line, if the folder cannot be made, holds anything that this run may not replace, or is a file.
    """
    standing = files(folder)
    own = _own(folder)
    if standing and not (resumes and not overwrite and _may_resume(folder, verb, resumes)):
        _check_may_replace(folder, verb, overwrite)
        _move(standing, folder, folder / ASIDE)
        own, standing = set(), set()
    own |= {path for pattern in resumes for path in folder.glob(pattern)}
    made = make(folder)
    before = _folders(folder)
    done = False
    try:
        yield
        done = True
    finally:
        aside = files(folder / ASIDE)
        written = (files(folder) - aside - standing) | own
        if aside and not done and not written:
            _move(aside, folder / ASIDE, folder)
        elif aside:
            shutil.rmtree(folder / ASIDE)
        if not sign and files(folder) == {folder / OF_HYDRA}:
            (folder / OF_HYDRA).unlink()
        _remove_empty([*sorted(_folders(folder) - before, reverse=True), *made])
        if sign and written:
            with nullcontext() if done else suppress(ValueError):  # where the disk is full, that is the error to report
                _sign(folder, verb, {path for path in written if path.exists()}, done)


def make(folder: Path) -> list[Path]:
    """Make a folder, and return those of its parents and itself that did not exist. Raises ValueError, one line, if it cannot be made."""
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{MANIFEST}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        _remove_empty(missing)
        raise ValueError(f"out={folder} cannot be written to: {error.strerror}; give another out=DIR") from None
    return missing


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()} if folder.is_dir() else set()


def _may_resume(folder: Path, verb: str, resumes: Sequence[str]) -> bool:
    runs = _runs(folder)
    if any(_manifest(run).get("verb", verb) != verb for run in runs):
        return False
    return any(_manifest(run).get("verb") == verb or any(next(run.glob(pattern), None) for pattern in resumes) for run in runs)


def _check_may_replace(folder: Path, verb: str, overwrite: bool) -> None:
    """Raises ValueError unless all that the folder holds was written by earlier runs of this verb and may be replaced."""
    runs, own = _runs(folder), _own(folder)
    writers = sorted({str(_manifest(run).get("verb")) for run in runs if _manifest(run)})
    foreign = sorted(files(folder) - own)
    replaceable = bool(own) and writers == [verb] and not foreign
    if replaceable and overwrite:
        return
    if replaceable:
        raise ValueError(f"out={folder} holds results of `abkt {verb}`; give another out=DIR, or overwrite=true to replace them")
    if writers and writers != [verb]:
        raise ValueError(f"out={folder} holds results of `abkt {', '.join(writers)}`; give another out=DIR")
    many = f"{len(foreign)} files" if len(foreign) > 1 else "a file"
    raise ValueError(
        f"out={folder} holds {many} that `abkt {verb}` did not finish or write, such as {foreign[0].name}; give another out=DIR"
    )


def _runs(folder: Path) -> list[Path]:
    """The folder, or the numbered folders of a multirun in it."""
    numbered = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    return [folder] if (folder / MANIFEST).exists() or not numbered else numbered


def _own(folder: Path) -> set[Path]:
    """The files that the runs in the folder have written."""
    if not folder.is_dir():
        return set()
    listed = {run / name for run in _runs(folder) for name in _manifest(run).get("files", ())}
    return {path for path in (*listed, folder / OF_HYDRA) if path.exists()}


def _manifest(run: Path) -> dict[str, Any]:
    path = run / MANIFEST
    return dict(read_json(path)) if path.is_file() else {}


def _sign(folder: Path, verb: str, written: set[Path], done: bool) -> None:
    """List the files in the manifest. A run that ended with an error may have none yet."""
    path = folder / MANIFEST
    if path in written and path.exists():
        manifest = json.loads(path.read_text(encoding="utf-8"))
    else:
        manifest = {"schema_version": 1, "verb": verb, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    names = sorted(p.relative_to(folder).as_posix() for p in written | {path})
    write_json(path, {**manifest, "complete": done, "files": names})


def _move(paths: set[Path], source: Path, target: Path) -> None:
    """Move files, and leave no empty folder behind."""
    for path in sorted(paths):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    _remove_empty(
        sorted(
            {path for path in (*_folders(source), source) if target not in (path, *path.parents) and path != target.parent}, reverse=True
        )
    )


def _folders(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()}


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
