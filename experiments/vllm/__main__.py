"""`python -m experiments.vllm model_folder=DIR out=DIR [text=FILE] [links=inf,1000,100,20,5] [prompts=4] [context=512]`: the measurement of
docs/vllm.md, in network namespaces, so as root. It can be stopped and started again; about 15 minutes on two idle cores.

`python -m experiments.vllm table=DIR` writes and prints the table of what is measured so far."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from abkt.net.namespaces import Namespaces
from experiments.lib.errors import exit_code
from experiments.lib.results import write_text
from experiments.vllm import measure, server, table
from experiments.vllm.plan import MeasureConfig, read_rows

KINDS: dict[str, Any] = {
    "model_folder": Path, "text": Path, "out": Path, "python": Path, "prompts": int, "context": int, "answer": int,
    "deadline_s": float, "links": lambda text: tuple(float(each) for each in text.split(",")), "drop": lambda text: text == "true",
}  # fmt: skip


def config_of(arguments: list[str]) -> MeasureConfig:
    """Raises ValueError, one line, for a key that is unknown or missing, or a value that cannot be read."""
    given: dict[str, Any] = {"text": Path("docs/results.md"), "python": measure.default_python()}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if key not in KINDS or not sign:
            raise ValueError(f"{argument!r} is not one of {', '.join(f'{each}=' for each in KINDS)}")
        try:
            given[key] = KINDS[key](value)
        except ValueError:
            raise ValueError(f"{key} is {value!r}, which cannot be read") from None
    if missing := [key for key in ("model_folder", "out") if key not in given]:
        raise ValueError(f"give {missing[0]}=DIR")
    return MeasureConfig(**{key: value.absolute() if key in ("model_folder", "out") else value for key, value in given.items()})


def main(arguments: list[str]) -> None:
    if len(arguments) == 1 and arguments[0].startswith("table="):
        show(Path(arguments[0].removeprefix("table=")), read_rows(Path(arguments[0].removeprefix("table=")) / "rows.jsonl"))
        return
    config = config_of(arguments)
    if reason := server.why_not(config.python) or Namespaces.why_not():
        raise ValueError(reason)
    show(config.out, measure.measure(config))


def show(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Write and print the table. Raises ValueError, one line, if there are no rows."""
    if not rows:
        raise ValueError(f"{folder / 'rows.jsonl'} has no rows; give model_folder= and out= to measure")
    page = table.table(rows)
    write_text(folder / "vllm.md", page)
    print(page)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
