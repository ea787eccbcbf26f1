"""`abkt bench kernels|transfer|sim …`: the benches of `python -m abkt.bench`, and the bench of the simulator, each with a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lib.manifest import manifest
from experiments.lib.out import results
from experiments.lib.progress import bar
from experiments.lib.results import write_json
from experiments.lib.verb import OVERWRITE, VerbCall, out_folder, switch

if TYPE_CHECKING:
    from abkt.bench.rows import BenchRow

BENCHES = ("kernels", "transfer", "sim")


def main(given: Sequence[str]) -> None:
    """Raises ValueError, one line, for bad input."""
    if not given or given[0] not in BENCHES:
        wrong = f"there is no bench {given[0]}" if given else "a bench is needed"
        raise ValueError(f"{wrong}: kernels, transfer or sim; then key=value, such as out=DIR")
    name = given[0]
    rest, overwrite = switch(given[1:], OVERWRITE)
    outs = [word.removeprefix("out=") for word in rest if word.startswith("out=")]
    out = out_folder(outs[-1] if outs else None, "bench")
    arguments = _read(name, [*(word for word in rest if not word.startswith("out=")), f"out={out}"])
    with results(out, "bench", overwrite):
        rows, facts = _measure(name, arguments)
        _report(name, rows, facts, VerbCall("bench", tuple(given), {"bench": name, **_plain(arguments)}, {}, out))


def _read(name: str, words: Sequence[str]) -> Any:
    if name == "sim":
        from abkt.arguments import read
        from experiments.bench.simulator import SimulatorBenchArguments

        return read(SimulatorBenchArguments, words)
    from abkt.bench.__main__ import check_device
    from abkt.bench.arguments import parse

    arguments = parse(words)
    check_device(arguments.device)
    return arguments


def _measure(name: str, arguments: Any) -> tuple[list[BenchRow], dict[str, str]]:
    with bar(f"bench {name}", 100) as progress:
        if name == "sim":
            from experiments.bench import simulator

            return simulator.run(arguments, progress.share)
        from abkt.bench.__main__ import measure

        return measure(name, arguments, lambda row, share: progress.share(share, row.name))


def _report(name: str, rows: Sequence[BenchRow], facts: dict[str, str], run: VerbCall) -> None:
    from experiments.bench.report import REPORTS
    from experiments.report.page import origin, write_page
    from experiments.report.terminal import show_lines, show_table, show_verdict

    made = manifest(run)
    write_json(run.out / "manifest.json", made)
    report = REPORTS[name](rows)
    show_lines([f"{fact}: {value}" for fact, value in facts.items()])
    show_table(report.table)
    if report.verdict is not None:
        show_verdict(report.verdict)
    show_lines([report.text])
    print(f"report: {write_page(run.out / 'report.html', report.page(rows, {**facts, **origin(made)}))}")
    print(f"{name}: {run.out / f'{name}.json'}")


def _plain(arguments: Any) -> dict[str, Any]:
    return {
        field: str(value) if isinstance(value, Path) else value for field in arguments.__slots__ for value in [getattr(arguments, field)]
    }
