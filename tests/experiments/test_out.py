"""The folder of a run holds that run and nothing else, and nothing is lost that somebody else has put there."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from abkt.records import RequestRecord
from experiments.cli import dispatch
from experiments.lib.out import make, results
from experiments.lib.record_writer import RecordWriter
from experiments.lib.results import write_text
from experiments.lib.verb import OVERWRITE, switch


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def a_run(folder: Path, *files: str, verb: str = "simulate", **more: object) -> None:
    with results(folder, verb, **more):  # type: ignore[arg-type]
        for name in files:
            write_text(folder / name, "new")


def test_a_run_lists_its_files(tmp_path: Path) -> None:
    a_run(tmp_path / "out", "a", "below/b")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"] == ["a", "below/b", "manifest.json"]
    assert (manifest["verb"], manifest["complete"]) == ("simulate", True)


def test_results_are_refused_and_overwritten_on_request(tmp_path: Path) -> None:
    a_run(tmp_path, "a", "old/b")
    with pytest.raises(ValueError, match=r"holds results of `abkt simulate`; give another out=DIR, or overwrite=true"):
        a_run(tmp_path, "a")
    assert names(tmp_path) == {"a", "old/b", "manifest.json"}
    a_run(tmp_path, "c", overwrite=True)
    assert names(tmp_path) == {"c", "manifest.json"}
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_removed(tmp_path: Path, overwrite: bool) -> None:
    a_run(tmp_path, "a")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds a file that `abkt simulate` did not finish or write, such as thesis.tex"):
        a_run(tmp_path, "a", overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "a").exists()


def test_the_results_of_another_verb_stay(tmp_path: Path) -> None:
    a_run(tmp_path, "a", verb="profile")
    with pytest.raises(ValueError, match=r"holds results of `abkt profile`; give another out=DIR$"):
        a_run(tmp_path, "b", overwrite=True)


def test_a_run_that_writes_nothing_leaves_nothing_and_gives_the_old_results_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), results(tmp_path / "x" / "y", "simulate"):
        raise ValueError("boom")
    assert not (tmp_path / "x").exists()
    a_run(tmp_path / "out", "a")
    with pytest.raises(ValueError, match="boom"), results(tmp_path / "out", "simulate", overwrite=True):
        raise ValueError("boom")
    assert names(tmp_path / "out") == {"a", "manifest.json"}


def test_what_a_broken_run_wrote_can_be_overwritten(tmp_path: Path) -> None:
    def half() -> None:
        write_text(tmp_path / "out" / "p0.log", "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), results(tmp_path / "out", "replay"):
        half()
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]
    a_run(tmp_path / "out", "a", verb="replay", overwrite=True)
    assert names(tmp_path / "out") == {"a", "manifest.json"}


def test_a_verb_that_resumes_goes_on_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "points.jsonl").write_text("")  # of a sweep that was killed
    a_run(tmp_path, "sweep.parquet", verb="sweep", resumes=("points.jsonl",))
    a_run(tmp_path, "sweep.json", verb="sweep", resumes=("points.jsonl",))
    assert names(tmp_path) == {"points.jsonl", "sweep.parquet", "sweep.json", "manifest.json"}
    a_run(tmp_path, "one", verb="sweep", resumes=("points.jsonl",), overwrite=True)
    assert names(tmp_path) == {"one", "manifest.json"}
    with pytest.raises(ValueError, match="holds results of `abkt sweep`"):
        a_run(tmp_path, "a", verb="longbench", resumes=("rows.jsonl",))


@pytest.mark.parametrize("out", ["/proc/foo", "/proc/foo/bar", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_found_before_the_run(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["simulate", f"out={out}", "workload.scaling.requests=2"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"abkt: out={out}")
    assert "plan" not in captured.out


def test_only_what_was_made_is_removed_again(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    assert make(tmp_path / "kept") == []
    assert make(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]


def test_overwrite_is_true_or_false() -> None:
    assert switch(["a=1", "overwrite=true"], OVERWRITE) == (["a=1"], True)
    assert switch(["overwrite=true", "overwrite=false"], OVERWRITE) == ([], False)
    with pytest.raises(ValueError, match="overwrite is yes; it must be true or false"):
        switch(["overwrite=yes"], OVERWRITE)


def test_many_runs_are_replaced_together(curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["workload=poisson", "workload.requests=3", "workload.isl=200", "workload.osl=4", "progress=false", f"curves={curves}"]
    many = ["simulate", "-m", f"out={tmp_path / 'out'}", *few]
    assert dispatch([*many, "bitrate=raw,int4,int8"]) == 0
    assert dispatch([*many, "bitrate=raw,int4"]) == 2
    assert "overwrite=true to replace them" in capsys.readouterr().err
    assert dispatch([*many, "bitrate=raw,int4", "overwrite=true"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1", "multirun.yaml"]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """A file can have this many bytes at most; the error of a longer one is that of a full disk in all but its number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_with_the_path_and_leaves_no_part(tmp_path: Path) -> None:
    reason = os.strerror(errno.EFBIG)
    with full_disk(100), pytest.raises(ValueError, match=rf"^{tmp_path}/text cannot be written: {reason}$"):
        write_text(tmp_path / "text", "x" * 1000)
    records = [RequestRecord(i, 10, 5, float(i), prefill_node=f"node {i}") for i in range(2000)]
    with (
        full_disk(3000),
        pytest.raises(ValueError, match=rf"requests.parquet cannot be written: {reason}$"),
        RecordWriter(tmp_path) as writer,
    ):
        writer.add(records, [])
    assert not list(tmp_path.iterdir())
