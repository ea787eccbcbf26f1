"""`python -m experiments.validation DIR …`: the table of docs/results.md and the line of trust, from folders of `abkt validate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.lib.results import read_json
from experiments.report.page import Table
from experiments.validation.tables import DOCUMENT_COLUMNS, document_row, markdown


def text(folders: Sequence[Path]) -> str:
    """Raises ValueError, one line, where a folder holds no validation."""
    if not folders:
        raise ValueError("give a folder of `abkt validate`")
    found = [read_json(folder / "validation.json") for folder in folders]
    rows = [row for one in found for row in document_row(f"compute={one['compute']}", one)]
    table = markdown(Table(DOCUMENT_COLUMNS, rows))
    return "\n\n".join([table, *(f"{one['trust']} {one['made']}" for one in found)])


def main() -> None:
    try:
        print(text([Path(name) for name in sys.argv[1:]]))
    except (ValueError, OSError) as error:
        print(f"experiments.validation: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
