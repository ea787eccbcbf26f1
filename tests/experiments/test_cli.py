"""The command line: help, errors in one line, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import VERBS, dispatch
from experiments.lib import usage
from experiments.lib.compose import ANY, RENAMED
from experiments.lib.errors import RunError, exit_code
from experiments.lib.paths import ROOT
from tests.experiments.refused import refused

HEAVY = ("torch", "transformers", "pandas", "pyarrow", "matplotlib", "hydra", "omegaconf", "numpy", "simpy", "pydantic", "rich")


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n@@' + ' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return set(out.rpartition("@@")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--help"], ["study", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    loaded = modules_after(f"from experiments.cli import dispatch; assert dispatch({arguments!r}) == 0")
    assert "experiments.lib.usage" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_simulate_loads_no_torch(curves: Path, tmp_path: Path) -> None:
    arguments = ["simulate", f"curves={curves}", f"out={tmp_path}", "workload.scaling.requests=5", "progress=false"]
    loaded = modules_after(f"from experiments.cli import dispatch; assert dispatch({arguments!r}) == 0")
    assert "sim.cluster" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "matplotlib"})


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every choice of every group has a line that says what it does, every key has a line, and there is an example."""
    assert dispatch([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert f"Example: abkt {verb}" in shown
    assert any(line.startswith("  out=null ") and "folder for" in line for line in lines)
    for group, choice in usage.groups(verb).items():
        folder = group.partition("@")[0]
        assert any(line.startswith(f"{folder}, ") and f"default {choice}" in line for line in lines)
        for path in (ROOT / "conf" / folder).glob("*.yaml"):
            (line,) = [line for line in lines if line.split()[:1] == [f"{folder}={path.stem}"]]
            assert len(line.split()) > 2


def test_help_gives_the_first_sentence_of_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["simulate", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("cluster, default 4p4d:")
    assert lines[at + 1] == "  cluster=1p1d  1 prefill and 1 decode instance"
    assert "  slo.ttft_s=10.0" in [line.partition("  seconds")[0].rstrip() for line in lines]
    assert usage.sentence(["# @package _global_", "# What it does, over", "# two lines. More."]) == "What it does, over two lines"


def test_choices_that_several_places_share_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that several places share, such as the bitrates of a study, is listed once."""
    assert dispatch(["study", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  bitrate=raw ") for line in lines) == 1
    assert sum("bitrate@scaleout.bitrates.raw (default raw)" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["replay", "carrier=shm"], "carrier is now transport_name: give transport_name=shm"),
        (["simulate", "bitrate.form=entropy"], "bitrate.form is now bitrate.coder: give bitrate.coder=entropy"),
        (
            ["study", "bitrates.embedded.form=fixed"],
            "bitrates.embedded.form is now bitrates.embedded.coder: give bitrates.embedded.coder=fixed",
        ),
        (["longbench", "data=DIR", "form=entropy"], "form is now coder: give coder=entropy"),
        (["adaptation", "asked=0.5"], "asked is now target: give target=0.5"),
        (["sweep", "bitrate.form=fixed,entropy"], "bitrate.form is now bitrate.coder: give bitrate.coder=fixed,entropy"),
        (["simulate", "-m", "bitrate.form=fixed,entropy"], "bitrate.form is now bitrate.coder: give bitrate.coder=fixed,entropy"),
    ],
)
def test_an_old_key_names_the_new_one(arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(arguments, tmp_path, capsys) == f"abkt: {line}\n"


def test_every_new_name_of_a_renamed_key_exists() -> None:
    for verb, names in RENAMED.items():
        for new in names.values():
            assert verb == ANY or new in {key for key, _, _ in usage.keys(ROOT / "conf" / f"{verb}.yaml")}


def test_a_package_of_somebody_else_is_one_line(tmp_path: Path) -> None:
    """A folder `sim` where the command is run, or a `experiments` that comes first on the path."""
    for name, command in (("sim", ["-m", "experiments.cli"]), ("experiments", ["-c", "from abkt.console import main; main()"])):
        folder = tmp_path / name / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / name), str(ROOT)))}
        done = subprocess.run(
            [sys.executable, *command, "simulate"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        place = folder / "__init__.py"
        assert done.returncode == 2
        assert done.stderr == f"abkt: {name} is {place}, which is not ABKT's; run from another folder or rename it\n"


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown if line.startswith("  ")] == list(VERBS)


def test_help_reads_nested_keys_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "group.yaml"
    path.write_text("# What it is.\nflat: 1.5  # metres\nnest:\n  _target_: a.B\n  inner: [1, 2]\nlast: x\n")
    assert usage.keys(path) == [("flat", "1.5", "metres"), ("nest.inner", "[1, 2]", ""), ("last", "x", "")]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["simulat"], ["no verb simulat", "did you mean simulate?", "train-probe"]),
        (["simulate", "bitrate=embeded"], ["bitrate=embeded", "did you mean embedded?", "fleet, int2"]),
        (["simulate", "bitrate="], ["bitrate", "fleet, int2"]),
        (["simulate", "routng=random"], ["no group or key routng", "did you mean routing?", "bitrate, cluster"]),
        (["simulate", "network.gpbs=3"], ["network.gpbs", "did you mean gbps?", "delay_s, egress_usd_per_gb, gbps, loss, period_s"]),
        (["simulate", "seed.x=3"], ["seed is a single value"]),
        (["simulate", "+network.latency_s=3"], ["network.latency_s is not a key"]),
        (["simulate", "+model.colour=red"], ["model.colour is not a key"]),
        (["simulate", "bitrate=raw,int4"], ["several values", "-m"]),
        (["simulate", "seed=[1"], ["cannot read 'seed=[1'"]),
        (["simulate", "faster"], ["cannot read 'faster'"]),
        (["simulate", "--fast"], ["unknown option --fast"]),
        (["simulate", "cluster.prefill=two"], ["cluster.prefill is 'two'", "whole number"]),
        (["simulate", "cluster.decode=0"], ["cluster.decode is 0", "1 to 100,000"]),
        (["simulate", "network.gbps=fast"], ["network.gbps is 'fast'", "number"]),
        (["simulate", "network.gbps=0"], ["network.gbps is 0", "it must be"]),
        (["simulate", "network.share=[1,2]"], ["network", "one rate per start"]),
        (["simulate", "network.loss=1.5"], ["network.loss is 1.5", "below 1"]),
        (["simulate", "network=wan_5g"], ["network.path must be given"]),
        (["simulate", "network=wan_5g", "network.path=/nowhere/drive.parquet"], ["/nowhere/drive.parquet does not exist"]),
        (["simulate", "bitrate=int4", "bitrate.bits=5"], ["bitrate.bits is 5", "2, 4, 8"]),
        (["simulate", "bitrate.target_distortion=0.9"], ["target_distortion"]),
        (["simulate", "bitrate._target_=abkt.policy.nothing.At"], ["'abkt.policy.nothing.At' cannot be found"]),
        (["simulate", "routing._target_=abkt.policy.routing.random.RandomRouting"], ["policy abkt.policy.routing.random.RandomRouting"]),
        (["simulate", "model=llama-3.1-70b"], ["llama-3.1-70b does not fit on 1 x H100"]),
        (["simulate", "workload=azure"], ["workload.path must be given"]),
        (["simulate", "workload.path=/nowhere/trace.jsonl"], ["/nowhere/trace.jsonl does not exist"]),
        (["simulate", "workload.scaling.requests=0"], ["workload.scaling.requests is 0; it must be at least 1"]),
        (["simulate", "curves=/nowhere/curves.json"], ["/nowhere/curves.json do not exist"]),
        (["simulate", "hardware=profile"], ["hardware.profile must be given"]),
        (["simulate", "hardware=profile", "hardware.profile=/nowhere/profile.json"], ["/nowhere/profile.json does not exist"]),
        (["simulate", "curves=${nothing}"], ["nothing"]),
        (["simulate", "out=/etc/passwd/here"], ["/etc/passwd is a file"]),
        (["simulate", "-m", "bitrate=raw,int5"], ["bitrate=int5", "fleet, int2"]),
        (["simulate", "-m", "network.gpbs=1,2"], ["network.gpbs", "did you mean gbps?"]),
        (["study", "model@scaleout.model=gpt"], ["model@scaleout.model=gpt", "llama-3.1-8b"]),
        (
            ["study", "model@scaleout.model=qwen3-8b", "max_distorsion=1"],
            ["no group or key max_distorsion", "did you mean max_distortion?"],
        ),
        (["study", "+bitrate@bitrates.int5=int5"], ["bitrate@bitrates.int5=int5", "fleet, int2"]),
        (["study", "routing=random"], ["no group or key routing", "network"]),
        (["compare", "/nowhere/a"], ["b must be given"]),
        (["compare", "/nowhere/a", "/nowhere/b"], ["/nowhere/a/requests.parquet does not exist"]),
        (["compare", "/nowhere/a", "/nowhere/b", "/nowhere/c"], ["cannot read '/nowhere/c'"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], parts: list[str], curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {argument.partition("=")[0] for argument in arguments}
    if arguments[0] == "simulate":
        arguments = [*arguments, *([] if "curves" in given else [f"curves={curves}"]), *([] if "out" in given else ["out=results"])]
    error = refused(arguments, tmp_path, capsys)
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "trace.jsonl",
            '{"timestamp": 0, "input_length": 5, "output_length": 2}\n{"timestamp": 1, "input_length": 0, "output_length": 2}\n',
            2,
        ),
        ("trace.jsonl", '{"timestamp": 0, "input_length": 5, "output_length": 2}\nnot json\n', 2),
        ("trace.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:47.1,12,-3\n", 3),
    ],
)
def test_a_damaged_trace_names_file_and_line(
    name: str, text: str, line: int, curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert dispatch(["simulate", f"workload.path={path}", f"curves={curves}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert f"{path}, line {line}:" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_profile_of_another_schema_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    path.write_text('{"schema_version": 99}')
    assert dispatch(["simulate", "hardware=profile", f"hardware.profile={path}", "model=probe"]) == 2
    assert "schema version" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(curves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["simulate", f"curves={curves}", "out=/proc/foo/bar"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "abkt: out=/proc/foo/bar cannot be written to: No such file or directory; give another out=DIR\n"
    assert "plan:" not in captured.out


def test_exit_codes_and_messages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> int:
        def work() -> None:
            raise error

        return exit_code(work)

    assert exit_code(lambda: None) == 0
    assert fail(ValueError("two\n   lines")) == 2
    assert capsys.readouterr().err == "abkt: two lines\n"
    assert fail(PermissionError("no")) == 2
    assert fail(RunError("worker decode-0 died; its last lines:\n  boom")) == 1
    assert capsys.readouterr().err.endswith("its last lines:\n  boom\n")
    assert fail(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):  # a defect keeps its traceback
        fail(ZeroDivisionError())
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="seen"):
        fail(ValueError("seen"))


def test_an_interrupted_run_exits_with_130_and_leaves_no_results(curves: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["simulate", f"curves={curves}", f"out={out}", "progress=false"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "experiments.cli", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("plan: 12,031 requests")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "abkt: interrupted\n"
    assert not out.exists()
