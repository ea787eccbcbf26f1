"""The glossary has every policy and every column of the records, once and in alphabetical order."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from abkt.records import DERIVED, RequestRecord, TransferRecord
from experiments.lib import usage
from experiments.lib.paths import ROOT

TEXT = (ROOT / "docs" / "glossary.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", TEXT, flags=re.M)[1]
    section = re.split(r"^#+ ", section, flags=re.M)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(heading: str) -> list[str]:
    return [name for row in rows(heading) for name in re.findall(r"`(\w+)`", row[0])]


@pytest.mark.parametrize("group", ["bitrate", "routing", "roles", "admission"])
def test_every_policy_has_one_row(group: str) -> None:
    assert sorted(names(group.capitalize())) == sorted(usage.choices(group))


@pytest.mark.parametrize(
    ("heading", "kind", "more"), [("requests.parquet", RequestRecord, DERIVED), ("transfers.parquet", TransferRecord, ())]
)
def test_every_column_has_one_row(heading: str, kind: type, more: tuple[str, ...]) -> None:
    assert sorted(names(heading)) == sorted([*(field.name for field in fields(kind)), *more])


@pytest.mark.parametrize("heading", ["Bitrate", "Routing", "Roles", "Admission", "Terms", "requests.parquet", "transfers.parquet"])
def test_rows_are_complete_and_in_order(heading: str) -> None:
    table = rows(heading)
    order = [row[0].replace("`", "").lower() for row in table]
    assert order == sorted(order)
    assert all(row[-1] for row in table)
    assert len({len(row) for row in table}) == 1
