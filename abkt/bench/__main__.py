"""`python -m abkt.bench kernels|transfer|counted|correct device=cpu|cuda out=DIR …`: needs torch, triton and numpy; transfers, xxhash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from abkt.bench import arguments as reader
from abkt.bench.rows import BenchRow, save, table

BENCHES = ("kernels", "transfer", "counted", "correct")
BAD_INPUT = 2


def run(given: Sequence[str]) -> None:
    """Run the bench that `given` names, and write its JSON. Raises ValueError, in one line, for bad input."""
    if not given or given[0] not in BENCHES:
        raise ValueError(f"name a bench: {', '.join(BENCHES)}; key=value arguments follow, such as device=cpu out=DIR")
    arguments = reader.parse(given[1:])

    def show(row: BenchRow, share: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{share:4.0%}, {row.name:<40}", end="", file=sys.stderr, flush=True)

    rows, facts = measure(given[0], arguments, show)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(table([row for row in rows if shown(given[0], row)]))
    print(f"{given[0]}: {arguments.out / given[0]}.json")


def measure(
    name: str, arguments: reader.BenchArguments, progress: Callable[[BenchRow, float], None]
) -> tuple[list[BenchRow], dict[str, str]]:
    """Run a bench and write NAME.json; returns its rows and facts. progress: called with each row and the share of the work done."""
    check_device(arguments.device)
    bench = import_module(f"abkt.bench.{name}")
    rows: list[BenchRow] = []
    facts = bench.facts(arguments)
    done, total = 0.0, bench.total_work(arguments)
    for row in bench.rows(arguments, facts):
        rows.append(row)
        done += bench.work(row)
        progress(row, min(1.0, done / total))
    save(arguments.out / f"{name}.json", rows, facts)
    return rows, facts


def shown(name: str, row: BenchRow) -> bool:
    """Whether a row belongs in the table on the terminal."""
    return bool(import_module(f"abkt.bench.{name}").is_shown(row))


def check_device(device: str) -> None:
    """Raises ValueError, one line, where this machine has no such device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("device=cuda: this machine has no GPU that PyTorch can use")


def main() -> None:
    try:
        run(sys.argv[1:])
    except ValueError as error:
        print(f"abkt.bench: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
