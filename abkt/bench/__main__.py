"""`python -m abkt.bench kernels|transfer device=cpu|cuda out=DIR …`: needs torch, triton, numpy, and xxhash for transfers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from abkt.bench import arguments as reader
from abkt.bench.rows import BenchRow, save, table

BENCHES = ("kernels", "transfer")
BAD_INPUT = 2


def run(given: Sequence[str]) -> None:
    """Run the bench that `given` names, and write its JSON. Raises ValueError, in one line, for bad input."""
    if not given or given[0] not in BENCHES:
        raise ValueError(f"name a bench: {' or '.join(BENCHES)}; key=value arguments follow, such as device=cpu out=DIR")
    arguments = reader.parse(given[1:])
    check_device(arguments.device)
    bench = import_module(f"abkt.bench.{given[0]}")
    rows: list[BenchRow] = []
    facts = bench.facts(arguments)
    for row in bench.rows(arguments, facts):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} rows, {row.name:<40}", end="", file=sys.stderr, flush=True)
    path = arguments.out / f"{given[0]}.json"
    save(path, rows, facts)
    shown = [row for row in rows if bench.is_shown(row)]
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(table(shown))
    print(f"{given[0]}: {path}")


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
