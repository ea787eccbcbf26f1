"""A sweep gives the same as single simulations, resumes after a stop, and survives a point that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import dispatch
from experiments.lib import compose as composer
from experiments.lib import manifest, usage
from experiments.lib.stamps import read_stamp
from experiments.sweeps.grid import Axis, axes, points
from experiments.sweeps.journal import Journal, flat, table
from tests.experiments.refused import refused

SMALL = ("workload=poisson", "workload.requests=6", "workload.isl=500", "workload.osl=8")


def test_points_are_the_configurations_that_simulate_composes() -> None:
    """Each point equals what `abkt simulate` gets from the same overrides; interpolations follow the axis."""
    grid = axes("sweep", ["bitrate=raw,embedded", "network.gbps=1,10.0", "seed=range(0,2)"])
    made = list(points("sweep", SMALL, grid))
    assert [point.place for point in made][:3] == [
        {"bitrate": "raw", "network.gbps": 1, "seed": 0},
        {"bitrate": "raw", "network.gbps": 1, "seed": 1},
        {"bitrate": "raw", "network.gbps": 10.0, "seed": 0},
    ]
    assert len(made) == 8
    for point in (made[0], made[-1]):
        whole = composer.compose("simulate", [*SMALL, *(f"{key}={value}" for key, value in point.place.items())]).config
        assert point.config == {key: value for key, value in whole.items() if key not in ("out", "progress", "plot", "csv")}
    assert made[-1].config["bitrate"]["link"]["initial_bytes_per_s"] == 10e9 / 8


def test_a_key_of_a_group_that_the_sweep_chooses_is_an_axis() -> None:
    assert axes("sweep", ["workload.isl=1,2"], ["workload=poisson"])[0].values == (1, 2)
    with pytest.raises(ValueError, match=r"no group or key workload\.isl"):
        axes("sweep", ["workload.isl=1,2"])


@pytest.mark.parametrize("name", usage.choices("experiment"))
def test_each_experiment_has_axes_that_exist(name: str) -> None:
    given = [f"experiment={name}", *(["hardware.profile=profile.json"] if name == "bandwidth" else [])]
    grid = axes("sweep", composer.compose("sweep", given).config["grid"], given)
    assert len(list(points("sweep", given, [Axis(a.name, a.values[:1], a.group) for a in grid]))) == 1


def test_a_later_axis_of_a_name_wins() -> None:
    (axis,) = axes("sweep", ["seed=0,1,2", "seed=5,6"])
    assert axis.values == (5, 6)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["sweep", "sed=0,1"], ["no group or key sed", "did you mean seed?"]),
        (["sweep", "experiment=nothing"], ["experiment=nothing is not known", "policies"]),
        (["sweep", "bitrate=raw,int5"], ["bitrate=int5 is not known"]),
        (["sweep", "seed=1"], ["the sweep has no axis"]),
        (["sweep", "seed=0,1", "workers=0"], ["workers is 0"]),
        (["sweep", "cluster.decode=0,1"], ["cluster.decode is 0"]),
        (["sweep", "bitrate=int4,raw", "bitrate.bits=2,4"], ["the point bitrate=raw, bitrate.bits=2 cannot be configured"]),
        (["sweep", "-m", "experiment=policies,nothing"], ["experiment=nothing is not known"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused([*arguments, "out=results"], tmp_path, capsys)
    for part in parts:
        assert part in error


def test_a_sweep_against_single_runs_stopped_in_between_and_with_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One point's trace is missing: it is recorded, the others are done, the exit code says so; afterwards only it runs again."""
    trace = tmp_path / "trace.jsonl"
    lines = [json.dumps({"timestamp": i, "input_length": 500, "output_length": 8}) for i in range(4)]
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(lines))
    out = tmp_path / "sweep"
    arguments = ["sweep", f"workload.path={trace},{good}", "bitrate=raw,int4", "workers=2", "workload.time_unit=ms", f"out={out}"]
    assert dispatch(arguments) == 1
    assert "2 of 4 points failed" in capsys.readouterr().err
    rows = pd.read_parquet(out / "sweep.parquet")
    assert list(rows["workload.path"]) == [str(trace)] * 2 + [str(good)] * 2
    assert rows.error.str.contains("does not exist").tolist() == [True, True, False, False]
    assert rows["ttft_s.mean"].isna().tolist() == [True, True, False, False]

    assert (
        dispatch(
            ["simulate", f"workload.path={good}", "workload.time_unit=ms", "bitrate=int4", "progress=false", f"out={tmp_path / 'one'}"]
        )
        == 0
    )
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert rows.iloc[3]["ttft_s.mean"] == summary["ttft_s"]["mean"]
    assert rows.iloc[3]["wire_bytes"] == summary["wire_bytes"]

    trace.write_text("\n".join(lines[:2]))
    with (out / "points.jsonl").open("a") as file:
        file.write('{"point": "killed while wri')
    capsys.readouterr()
    assert dispatch(arguments) == 0
    assert "2 of them done before" in capsys.readouterr().out
    again = pd.read_parquet(out / "sweep.parquet")
    assert (again.error == "").all()
    assert again.iloc[2:]["wall_s"].tolist() == rows.iloc[2:]["wall_s"].tolist()  # not run again
    assert again.iloc[0]["requests.completed"] == 2
    assert read_stamp(out / "sweep.parquet")["verb"] == "sweep"


def test_a_damaged_journal_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "points.jsonl").write_text("no json\n{}\n")
    assert dispatch(["sweep", *SMALL, "seed=0,1", f"out={tmp_path}"]) == 2
    assert "points.jsonl is damaged" in capsys.readouterr().err


def test_a_journal_keeps_the_last_row_of_a_point_and_drops_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "points.jsonl")
    for error in ("broke", ""):
        journal.add({"point": "a", "error": error})
    journal.path.write_text(journal.path.read_text() + '{"point": "b"')
    assert journal.rows() == {"a": {"point": "a", "error": ""}}
    journal.mend()
    journal.add({"point": "c", "error": ""})
    assert set(journal.rows()) == {"a", "c"}


def test_a_table_has_the_columns_of_all_rows() -> None:
    made = table([{"a": 1, "b": 2.5}, {"a": 2, "b": 3, "c": "x"}, {"a": "inf"}])
    assert made.column_names == ["a", "b", "c"]
    assert made["a"].to_pylist() == ["1", "2", "inf"]
    assert made["b"].to_pylist() == [2.5, 3.0, None]
    assert flat({"ttft_s": {"mean": 1, "deep": {"er": 2}}, "x": 3}) == {"ttft_s.mean": 1, "ttft_s.deep.er": 2, "x": 3}


def test_a_change_of_the_code_runs_the_points_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", *SMALL, "seed=0,1", "workers=1", f"out={tmp_path}"]
    for expected in ("in 1 process", "2 of them done before"):
        assert dispatch(arguments) == 0
        assert expected in capsys.readouterr().out
    monkeypatch.setattr("experiments.sweeps.run.code_hash", lambda: "other")
    assert dispatch(arguments) == 0
    assert "done before" not in capsys.readouterr().out
    assert len(Journal(tmp_path / "points.jsonl").rows()) == 4


def test_the_hash_of_the_code_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any change of contents or names of the files of abkt, sim and experiments/lib, and of no others."""
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    for folder in ("abkt/policy", "sim", "experiments/lib", "tests"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text(folder)
    found = [manifest.code_hash.__wrapped__()]
    for folder in ("abkt/policy", "sim", "experiments/lib"):
        (tmp_path / folder / "a.py").write_text("changed")
        found.append(manifest.code_hash.__wrapped__())
    (tmp_path / "sim" / "a.py").rename(tmp_path / "sim" / "b.py")
    found.append(manifest.code_hash.__wrapped__())
    assert len(set(found)) == 5
    (tmp_path / "tests" / "a.py").write_text("changed")
    assert manifest.code_hash.__wrapped__() == found[-1]


def test_the_files_of_policies_are_those_of_other_packages() -> None:
    config = {
        "bitrate": {"_target_": "abkt.policy.bitrate.off.Off", "inner": {"_target_": "json.decoder.JSONDecoder"}},
        "routing": [{"_target_": "no.such.Class"}],
    }
    assert [path.name for path in manifest.policy_files(config)] == ["decoder.py"]
