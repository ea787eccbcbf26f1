"""A report as one self-contained HTML page: a verdict, sections with text, tables and plots, and how the run was made.

`write_page` fills `base.html.j2`. A room with a template of its own lets it extend that file and renders it with `environment`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lib.results import write_text
from experiments.report import words
from experiments.report.verdict import Verdict

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

WIDE_IN, NARROW_IN = 9.0, 4.5  # widths of a plot on a screen, and on a phone


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column is a name and is aligned to the left.

    Parameters
    ----------
    columns : headings.
    rows : cells, as many in each row as there are columns.
    note : what the reader has to know about the figures.
    fold_after : rows that are shown; the others are folded. None: all are shown.
    best : number of the row to mark.
    left : headings of further columns that are aligned to the left.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    fold_after: int | None = 12
    best: int | None = None
    left: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"the row {list(row)} has {len(row)} cells; there are {len(self.columns)} columns")


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot as PNG. alt: what it shows, for those who cannot see it. narrow: the same plot drawn for a phone."""

    png: bytes
    alt: str
    caption: str = ""
    narrow: bytes | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """text: paragraphs, with an empty line between two. points: a list after them. Several plots stand side by side on a wide screen."""

    title: str
    text: str = ""
    points: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """lead: what was run, in a sentence or two. verdict: None where the run compares nothing. facts: how it was made, name -> value."""

    title: str
    lead: str
    verdict: Verdict | None = None
    sections: Sequence[Section] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_page(path: Path, page: Page) -> Path:
    """Write the page; returns its path."""
    write_text(path, environment().get_template("base.html.j2").render(page=page))
    return path


def environment(*folders: Path) -> Environment:
    """Jinja with the templates of this room and of further folders, and the filters of `words`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([*folders, Path(__file__).parent])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {function.__name__: function for function in words.FILTERS} | {"data_uri": data_uri}
    return made


def picture(draw: Callable[[float], Figure], alt: str, caption: str = "") -> Picture:
    """Draw a plot for a screen and for a phone. draw: takes the width in inches."""
    return Picture(png(draw, WIDE_IN), alt, caption, png(draw, NARROW_IN))


def png(draw: Callable[[float], Figure], width_in: float) -> bytes:
    from experiments.figures.style import sheet

    data = BytesIO()
    with sheet():
        draw(width_in).savefig(data, metadata={"Software": None})
    return data.getvalue()


def origin(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a page, from a run's manifest."""
    git, host = manifest["git"], manifest["host"]
    memory = f"{words.plural(host['cores'], 'core')}, {words.size(host['memory_bytes'])}"
    commit = git["sha"][:12] if git["sha"] else "not in a checkout"
    return {
        "made": words.date(manifest["created"]),
        "command": manifest["command"],
        "commit": commit + (", with changes that are not committed" if git["dirty"] else ""),
        "configuration": f"sha256 {manifest['config_sha256']}",
        "seed": words.NOTHING if manifest["seed"] is None else str(manifest["seed"]),
        **{i["name"]: f"{words.size(i['bytes'])}, sha256 {i['sha256']}" for i in manifest["inputs"]},
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version),
        "machine": f"{host['cpu']}, {memory}, {host['system']} {host['kernel']}",
    }


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
