"""`python -m abkt.bench.gpu_run out=DIR`, which `make gpu` calls: everything that a GPU can tell about this project, in under nine minutes.

The steps run one after the other, each in a process of its own with a limit of time: values against the oracle, counted and measured
kernels, transfers by CUDA IPC, and the profile of the device. After each, steps.json is written. A step that fails does not stop the rest,
and a second run repeats only what failed. The last 30 lines are a summary. Needs torch, triton and numpy, and xxhash for transfers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abkt.arguments import read

BAD_INPUT = 2
SUMMARY_LINES = 30


@dataclass(frozen=True, slots=True)
class GpuArguments:
    """device: cuda, or cpu to try the run without a GPU. out: folder for all results. tokens: prompt lengths of the kernels' bench."""

    device: str = "cuda"
    out: Path = Path("outputs/gpu")
    tokens: tuple[int, ...] = (8_192, 131_072)


@dataclass(frozen=True, slots=True)
class Step:
    """command: what runs after `python -m`. result: the file that it leaves in the folder."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    result: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended. reason: its last line of errors if it failed."""

    command: tuple[str, ...]
    succeeded: bool
    seconds: float
    reason: str = ""


Runner = Callable[[Step], tuple[int, str]]
"""Runs a step; returns its exit code and its output. A step that takes too long ends with -1."""


def steps_of(arguments: GpuArguments) -> list[Step]:
    """The steps, the most important first. Their limits add up to less than nine minutes."""
    device, out, tokens = f"device={arguments.device}", f"out={arguments.out}", ",".join(map(str, arguments.tokens))
    return [
        Step("correct", ("abkt.bench", "correct", device, out, "depths=1,3,4,8"), 120, "correct.json"),
        Step("counted", ("abkt.bench", "counted", out, "architectures=90"), 60, "counted.json"),
        Step("kernels", ("abkt.bench", "kernels", device, out, f"tokens={tokens}", "blocks=16", "depths=4,8"), 130, "kernels.json"),
        Step("transfer", ("abkt.bench", "transfer", device, out), 90, "transfer.json"),
        Step("profile", ("abkt.measure", device, f"out={arguments.out}"), 120, "profile.json"),
    ]


def run_steps(steps: Sequence[Step], out: Path, runner: Runner, say: Callable[[str], None] = print) -> dict[str, Outcome]:
    """Run all steps but those that an earlier run in this folder finished with the same command. Writes steps.json after each."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes = _earlier(out)
    for step in steps:
        before = outcomes.get(step.name)
        if before and before.succeeded and before.command == step.command and (out / step.result).exists():
            say(f"{step.name}: done before, {before.seconds:.0f} s")
            continue
        (out / step.result).unlink(missing_ok=True)  # so that no summary takes an old result for a new one
        begin = time.monotonic()
        code, output = runner(step)
        (out / f"{step.name}.log").write_text(output)
        lines = [line for line in output.splitlines() if line.strip()]
        reason = "" if code == 0 else f"{'too slow' if code == -1 else f'exit code {code}'}: {lines[-1] if lines else 'no output'}"
        outcomes[step.name] = Outcome(step.command, code == 0, time.monotonic() - begin, reason)
        _save(out / "steps.json", {name: asdict(outcome) for name, outcome in outcomes.items()})
        say(f"{step.name}: {'done' if code == 0 else reason}, {outcomes[step.name].seconds:.0f} s")
    return outcomes


def in_a_process(step: Step) -> tuple[int, str]:
    try:
        done = subprocess.run([sys.executable, "-m", *step.command], capture_output=True, text=True, timeout=step.limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        parts = [part.decode(errors="replace") if isinstance(part, bytes) else part or "" for part in (error.stdout, error.stderr)]
        return -1, "\n".join((*parts, f"stopped after {step.limit_s:.0f} s"))
    return done.returncode, done.stdout + done.stderr


def summary(steps: Sequence[Step], outcomes: dict[str, Outcome], out: Path) -> list[str]:
    """At most SUMMARY_LINES lines: how each step ended, then what was counted beside what was measured."""
    lines = [f"{step.name:<10} {_told(outcomes.get(step.name))}" for step in steps]
    found = {step.name: _rows(out / step.result) for step in steps}
    if "cases_that_agree" in found["correct"]:
        agree = found["correct"]["cases_that_agree"]
        lines.append(f"values: {agree['value']:.0f} of {agree['yardstick']:.0f} cases equal the oracle's")
    compared = beside(found["counted"], found["kernels"])
    if compared:
        lines.append(f"{'GB/s of raw KV':<28}{'counted':>10}{'measured':>10}{'share':>8}")
        lines += [f"{row['name']:<28}{row['counted']:>10.0f}{row['measured']:>10.0f}{row['share']:>8.2f}" for row in compared]
        _save(out / "counted_and_measured.json", compared)
    for name in ("copy_gbps", "gather_gbps", "scatter_gbps", "lossless_encode_gbps", "lossless_decode_gbps", "alpha", "beta"):
        for row in {**found["kernels"], **found["transfer"]}.values():
            if row["name"].startswith(f"{name}/"):
                lines.append(f"{row['name']:<40} {row['value']:.4g} {row['unit']}")
    return [*lines[: SUMMARY_LINES - 1], f"results: {out}"]


def beside(counted: dict[str, Any], measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The rate of every kernel by count and by measurement, at the longest prompt that was measured."""
    rows = []
    for name, row in counted.items():
        if not name.endswith("_counted_gbps"):
            continue
        kernel = name.removesuffix("_counted_gbps")
        cases = [m for key, m in measured.items() if key.startswith(f"{kernel}_gbps/")]
        if cases:
            longest = max(cases, key=lambda m: int(m["name"].rpartition("/")[2].partition("x")[0]))
            rates = {"counted": row["value"], "measured": longest["value"], "share": longest["value"] / row["value"]}
            rows.append({"name": longest["name"].replace("_gbps", ""), **rates})
    return rows


def _told(outcome: Outcome | None) -> str:
    if outcome is None:
        return "was not run"
    return f"done in {outcome.seconds:.0f} s" if outcome.succeeded else f"FAILED, {outcome.reason[:100]}"


def _rows(path: Path) -> dict[str, Any]:
    """The rows of a bench's file by name; none if there is no such file, or it has no rows."""
    if not path.exists():
        return {}
    held = json.loads(path.read_text())
    return {row["name"]: row for row in held.get("rows", [])} if isinstance(held, dict) else {}


def _earlier(out: Path) -> dict[str, Outcome]:
    path = out / "steps.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    return {name: Outcome(tuple(of["command"]), of["succeeded"], of["seconds"], of["reason"]) for name, of in held.items()}


def _save(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def main() -> None:
    try:
        arguments = read(GpuArguments, sys.argv[1:])
        if arguments.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ValueError("device=cuda: this machine has no GPU that PyTorch can use; device=cpu tries the run without one")
    except ValueError as error:
        print(f"abkt.bench.gpu_run: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    steps = steps_of(arguments)
    outcomes = run_steps(steps, arguments.out, in_a_process)
    print("\n".join(summary(steps, outcomes, arguments.out)))
    sys.exit(0 if all(outcomes[step.name].succeeded for step in steps) else 1)


if __name__ == "__main__":
    main()
