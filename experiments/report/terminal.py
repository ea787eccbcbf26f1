"""A report's tables and verdict on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.page import Table
from experiments.report.verdict import Verdict

STYLES = {"use": "green", "tie": "yellow", "no_answer": "red"}


def show_table(table: Table, title: str = "") -> None:
    """Print all rows; a row that is marked as the best one is bold."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(title=title or None, title_justify="left")
    for number, name in enumerate(table.columns):
        made.add_column(Text(name), justify="left" if number == 0 or name in table.left else "right", no_wrap=True)
    for number, row in enumerate(table.rows):
        made.add_row(*map(Text, row), style="bold" if number == table.best else "")
    console = Console(soft_wrap=True)
    console.width = max(console.width, made.__rich_measure__(console, console.options.update(max_width=1000)).maximum)  # never cut cells
    console.print(made)
    if table.note:
        Console(soft_wrap=True).print(Text(table.note))


def show_verdict(verdict: Verdict) -> None:
    """Print the sentence of the verdict, and why."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(Text(verdict.sentence, style=f"bold {STYLES[verdict.kind]}"))
    if verdict.why:
        console.print(Text(verdict.why))


def show_lines(lines: Sequence[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for line in lines:
        console.print(Text(line))
