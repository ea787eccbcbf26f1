"""The run of all GPU measurements: it resumes, goes on after a failure, and ends with a short summary. The steps here are made up."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from abkt.bench import gpu_run
from abkt.bench.gpu_run import GpuArguments, Step, in_a_process, run_steps, steps_of, summary

QUIET = {"say": lambda line: None}


@pytest.fixture
def steps(tmp_path):
    return steps_of(GpuArguments(device="cpu", out=tmp_path))


def runner(out, failing=(), ran=None):
    rows = {
        "correct": [{"name": "cases_that_agree", "value": 5, "yardstick": 5, "unit": "cases"}],
        "counted": [{"name": f"{verb}_{depth}bit_counted_gbps", "value": 2000.0} for verb in ("encode", "expand") for depth in (4, 8)],
        "kernels": [
            *(
                {"name": f"{verb}_4bit_gbps/{n}x16", "value": n / 10, "unit": "GB/s"}
                for verb in ("encode", "expand")
                for n in (8192, 16384)
            ),
            *({"name": f"gather_gbps/{n}x16", "value": 3.0, "unit": "GB/s"} for n in range(100)),
        ],
    }

    def run(step):
        if ran is not None:
            ran.append(step.name)
        if step.name in failing:
            return 2, "many lines\nthe GPU is on fire\n"
        (out / step.result).write_text(json.dumps({"rows": rows.get(step.name, [])}))
        return 0, "fine"

    return run


def test_a_step_that_fails_does_not_stop_the_rest_and_alone_runs_again(tmp_path, steps):
    ran = []
    first = run_steps(steps, tmp_path, runner(tmp_path, failing=("kernels",), ran=ran), **QUIET)
    assert ran == ["correct", "counted", "kernels", "transfer", "profile"]
    assert [step.name for step in steps if not first[step.name].succeeded] == ["kernels"]
    assert first["kernels"].reason == "exit code 2: the GPU is on fire"
    ran.clear()
    second = run_steps(steps, tmp_path, runner(tmp_path, ran=ran), **QUIET)
    assert ran == ["kernels"]
    assert all(outcome.succeeded for outcome in second.values())


def test_a_step_with_other_arguments_or_without_its_file_runs_again(tmp_path, steps):
    run_steps(steps, tmp_path, runner(tmp_path), **QUIET)
    ran, changed = [], [replace(step, command=(*step.command, "repeats=3")) if step.name == "profile" else step for step in steps]
    (tmp_path / "counted.json").unlink()
    run_steps(changed, tmp_path, runner(tmp_path, ran=ran), **QUIET)
    assert ran == ["counted", "profile"]


def test_what_was_done_is_on_disk_after_each_step(tmp_path, steps):
    def breaks_at_the_third(step):
        if step.name == "kernels":
            raise KeyboardInterrupt
        return runner(tmp_path)(step)

    with pytest.raises(KeyboardInterrupt):
        run_steps(steps, tmp_path, breaks_at_the_third, **QUIET)
    assert json.loads((tmp_path / "steps.json").read_text()).keys() == {"correct", "counted"}


def test_the_summary_has_at_most_30_lines_and_counted_beside_measured(tmp_path, steps):
    outcomes = run_steps(steps, tmp_path, runner(tmp_path, failing=("transfer",)), **QUIET)
    lines = summary(steps, outcomes, tmp_path)
    assert len(lines) == gpu_run.SUMMARY_LINES
    assert any("transfer" in line and "FAILED" in line and "on fire" in line for line in lines)
    assert any("5 of 5 cases" in line for line in lines)
    assert json.loads((tmp_path / "counted_and_measured.json").read_text()) == [
        {"name": f"{verb}_4bit/16384x16", "counted": 2000.0, "measured": 1638.4, "share": 1638.4 / 2000} for verb in ("encode", "expand")
    ]


def test_an_old_result_is_not_taken_for_that_of_a_step_that_fails_now(tmp_path, steps):
    run_steps(steps, tmp_path, runner(tmp_path), **QUIET)
    changed = [replace(step, command=(*step.command, "repeats=3")) for step in steps]
    outcomes = run_steps(changed, tmp_path, runner(tmp_path, failing=("kernels",)), **QUIET)
    assert not any("counted" in line and "measured" in line for line in summary(changed, outcomes, tmp_path))


def test_the_limits_add_up_to_less_than_nine_minutes(steps):
    assert sum(step.limit_s for step in steps) < 9 * 60


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_step_names_a_program_takes_its_arguments_and_leaves_the_file_that_is_read(tmp_path, device):
    """What a GPU would first show by a failure of each step."""
    from importlib import import_module

    from abkt.arguments import read
    from abkt.bench import arguments as reader
    from abkt.bench.__main__ import BENCHES
    from abkt.measure.__main__ import DeviceArguments

    for step in steps_of(GpuArguments(device=device, out=tmp_path)):
        program, *given = step.command
        if program == "abkt.bench":
            name, *given = given
            assert name in BENCHES
            assert step.result == f"{name}.json"
            assert callable(import_module(f"abkt.bench.{name}").rows)
            taken = reader.parse(given)
        else:
            taken, name = read(DeviceArguments, given), program
            assert step.result == "profile.json"
        assert taken.out == tmp_path
        assert name == "counted" or taken.device == device


def test_a_step_that_takes_too_long_is_stopped():
    step = Step("slow", ("timeit", "-n1", "-r1", "import time; time.sleep(60)"), 0.5, "nothing")
    code, output = in_a_process(step)
    assert code == -1
    assert output.strip().endswith("stopped after 0 s")


def test_without_a_gpu_there_is_one_line():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-m", "abkt.bench.gpu_run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU that PyTorch can use" in done.stderr
    assert done.stderr.count("\n") == 1
