"""The bench: the rows that it writes, that it fails for a wrong kernel, and its messages for bad input."""

import json
import subprocess
import sys

import pytest

from abkt.bench import arguments, kernels
from abkt.bench.__main__ import run
from abkt.bench.rows import BenchRow, save, table
from abkt.codec.fixed.oracle import OracleBackend
from experiments.lib.paths import conf_dir
from experiments.lib.usage import keys

SMALL = ["tokens=80,200", "blocks=16,32", "depths=2,4", "repeats=1", "kv_heads=2", "head_dim=32"]


def test_rows_are_those_that_the_arguments_ask_for(tmp_path, capsys):
    run(["kernels", f"out={tmp_path}", *SMALL])
    written = json.loads((tmp_path / "kernels.json").read_text())
    rows = {row["name"]: row for row in written["rows"]}
    assert rows["values_equal_to_oracle"]["value"] > 0
    for verb in ("encode", "expand", "order", "stream"):
        for depth in (2, 4):
            for case in ("80x16", "200x16", "200x32"):
                row = rows[f"{verb}_{depth}bit/{case}"]
                assert row["unit"] == "ns/token"
                assert row["value"] > 0
                assert row["yardstick"] > 0
    for verb in ("gather", "scatter", "lossless_encode", "lossless_decode"):
        for case in ("80x16", "200x16", "200x32"):
            assert rows[f"{verb}/{case}"]["unit"] == "ns/token"
            assert min(rows[f"{verb}/{case}"][key] for key in ("value", "yardstick")) > 0
            assert rows[f"{verb}_gbps/{case}"]["unit"] == "GB/s of raw KV"
    assert rows["importance/200x16"]["unit"] == "ns/token"
    assert 1.2 < rows["lossless_ratio/200x16"]["value"] < 1.5, "normal values of a few deviations"
    raw_bytes_per_token = 2 * 2 * 32 * 2
    assert rows["encode_4bit_gbps/200x16"]["value"] == pytest.approx(raw_bytes_per_token / rows["encode_4bit/200x16"]["value"])
    assert rows["gather_gbps/200x32"]["value"] == pytest.approx(raw_bytes_per_token / rows["gather/200x32"]["value"])
    assert "encode_4bit_over_copy" not in rows, "no case of 16 MiB"
    assert written["facts"]["shape"] == "1 layers, 2 KV heads of 32, bfloat16"
    assert "200x16" in capsys.readouterr().out


def test_a_wrong_kernel_fails(monkeypatch):
    class Wrong(OracleBackend):
        def encode(self, data, blocks, cells, centres):
            coded = super().encode(data, blocks, cells, centres)
            coded.body[coded.body.shape[0] // 2] ^= 1
            return coded

    monkeypatch.setattr("abkt.codec.codec.Codec.backend_on", lambda self, device: Wrong())
    with pytest.raises(ValueError, match="depth 2 differ from the oracle's"):
        next(kernels.rows(arguments.parse(SMALL), {}))


def test_a_wrong_gather_or_scatter_fails(monkeypatch):
    for verb, wrong in (
        ("gather", lambda pool, table, out: out.copy_(pool.data[table[::-1]])),
        ("scatter", lambda staged, pool, table: pool.data.__setitem__(slice(len(table)), staged)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(f"abkt.kv.copy.{verb}", wrong)
            with pytest.raises(ValueError, match=f"{verb} of 7 blocks on cpu"):
                next(kernels.rows(arguments.parse(SMALL), {}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "name a bench: kernels"),
        (["speed"], "name a bench"),
        (["kernels", "tokns=3"], "tokns=3 is unknown; there are device="),
        (["kernels", "tokens=a,b"], "tokens=a,b: it must be a whole number"),
        (["kernels", "device=tpu"], "one of cpu, cuda"),
        (["kernels", "repeats=0"], "repeats is 0; it must be 1"),
    ],
)
def test_bad_input_is_one_line(given, message):
    with pytest.raises(ValueError, match=message):
        run(given)


def test_it_needs_neither_hydra_nor_pandas_nor_transformers():
    code = "import sys, abkt.bench.kernels, abkt.bench.__main__; print({'hydra', 'pandas', 'transformers', 'simpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_help_lists_the_arguments_as_they_are():
    listed = {key: value for key, value, _ in keys(conf_dir() / "bench.yaml")}
    assert listed.pop("out") == "null"
    assert arguments.parse([f"{key}={value}" for key, value in listed.items()]) == arguments.BenchArguments()
    assert {*listed, "out"} == set(arguments.BenchArguments.__slots__)


def test_a_table_and_its_file(tmp_path):
    rows = [BenchRow("a", 1.5, "ns/token", 2.0), BenchRow("long name", 12345.678, "GB/s")]
    assert table(rows).splitlines()[1:] == ["a                1.5  ns/token          2", "long name  1.235e+04  GB/s"]
    save(tmp_path / "x" / "rows.json", rows, {"cpu": "none"})
    assert json.loads((tmp_path / "x" / "rows.json").read_text())["rows"][1]["yardstick"] is None
