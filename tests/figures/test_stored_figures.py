"""Every figure is drawn from its stored table, to the same bytes each time. A missing table is reported and the others are drawn."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from experiments.figures import collect
from experiments.figures.__main__ import draw, main, modules, name_of
from experiments.figures.stored import load
from experiments.lib.paths import ROOT
from experiments.lib.stamps import write_table_stamped

DATA = ROOT / "data" / "figures"
KINDS = {"pdf": b"%PDF-", "svg": b"<?xml", "png": b"\x89PNG"}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_there_is_a_table_for_each_figure_and_a_collector_for_each_table() -> None:
    needed = {name for module in modules() for name in module.INPUTS}
    assert needed == set(collect.KINDS)
    assert {path.stem for path in DATA.glob("*.parquet")} == needed
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 1_000_000


TWICE = "fig04_routing"  # in the default run; it has lines, bands and a legend


@pytest.mark.parametrize("module", [pytest.param(m, marks=[] if name_of(m) == TWICE else pytest.mark.slow) for m in modules()], ids=name_of)
def test_each_figure_is_drawn_with_the_same_bytes(module, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw(module, DATA, tmp_path / folder)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


@pytest.mark.parametrize("module", modules(), ids=name_of)
def test_each_figure_has_three_formats_and_names_its_origin(module, tmp_path: Path) -> None:
    name = name_of(module)
    draw(module, DATA, tmp_path / "one")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {f"{name}.{kind}" for kind in (*KINDS, "json")}
    for kind, magic in KINDS.items():
        assert (tmp_path / "one" / f"{name}.{kind}").read_bytes().startswith(magic)
    sidecar = json.loads((tmp_path / "one" / f"{name}.json").read_text())
    assert sidecar["caption"]
    for table, about in sidecar["inputs"].items():
        assert about["sha256"] == hashlib.sha256((DATA / f"{table}.parquet").read_bytes()).hexdigest()
        assert about["command"].startswith("abkt ")


def test_a_missing_table_is_reported_and_the_others_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for name in ("scale", "kernels"):
        shutil.copy(DATA / f"{name}.parquet", data)
    write_table_stamped(data / "cost.parquet", pa.table({"a": pa.array([], pa.int64())}), {"verb": "sweep"})
    (data / "routing.parquet").write_bytes(b"not parquet")
    pd.DataFrame({"a": [1]}).to_parquet(data / "layout.parquet")
    assert main([f"data={data}", f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert {path.stem for path in out.glob("*.png")} == {"fig06_kernels", "fig09_scale"}
    for words in (
        "bandwidth.parquet does not exist",
        "routing.parquet cannot be read",
        "cost.parquet has no rows",
        "layout.parquet has schema",
    ):
        assert words in error
    assert f"{len(modules()) - 2} of {len(modules())} figures could not be drawn" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("arguments", "words"), [(["only=fig99"], "no such figure"), (["colour=red"], "argument colour=red is unknown")])
def test_bad_arguments_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_break_even_by_hand() -> None:
    """int4 sends a quarter; coding a token of 4 kB takes 3 us longer than copying it: (1 - 1/4) x 4096 B / 3 us."""
    rows = pd.DataFrame({"bitrate": ["int4", "raw"], "error": ["", ""], "wire_bytes": [25, 100], "raw_bytes": [100, 100]})
    fits = {name: {"features": ["1", "tokens"], "coefficients": [1.0, s]} for name, s in COSTS.items()}
    profile = {"model": {"layers": 2, "kv_heads": 4, "head_dim": 128}, "fits": fits}
    assert collect.break_even_gbps(rows, profile) == pytest.approx(0.75 * 4096 / 3e-6 * 8 / 1e9)


COSTS = {"encode/4": 3e-6, "encode/raw": 1e-6, "expand/4": 1.5e-6, "expand/raw": 0.5e-6}


def test_collecting_from_another_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argument, words in (
        (f"routing={tmp_path}", "does not exist"),
        (f"nothing={tmp_path}", "no table nothing"),
        ("routing", "give NAME"),
    ):
        assert collect.main([argument, f"data={tmp_path / 'data'}"]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_kernels_are_collected_with_their_limit(tmp_path: Path) -> None:
    facts = {"gpu": "none", "cpu": "some CPU", "torch": "2"}
    rows = [
        {"name": "encode_4bit_gbps/1024x16", "value": 2.0, "unit": "GB/s", "yardstick": 10.0},
        {"name": "encode_4bit/1024x16", "value": 100.0, "unit": "ns/token", "yardstick": 1.0},
        {"name": "encode_4bit_gbps/1024x64", "value": 3.0, "unit": "GB/s", "yardstick": 10.0},
    ]
    (tmp_path / "kernels.json").write_text(json.dumps({"facts": facts, "rows": rows}))
    assert collect.main([f"kernels={tmp_path}", f"data={tmp_path}"]) == 0
    stored = load(tmp_path, "kernels")
    assert stored.rows.to_dict("records") == [{"verb": "encode", "bits": 4, "tokens": 1024, "gbps": 2.0, "copy_gbps": 10.0}]
    assert stored.facts["device"] == "some CPU, one core"
