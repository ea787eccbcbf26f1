"""What the documents show is what the commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.outputs import blocks, difference, found, printed

BLOCKS = [pytest.param(block, id=block.name, marks=[] if block.quick else [pytest.mark.slow]) for block in found()]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_shown_output_is_what_the_command_prints(block) -> None:
    assert not difference(block.shown, printed(block)), "python -m tests.docs.outputs --write writes all outputs anew"


def test_outputs_are_shown() -> None:
    verbs = {command.split()[1] for block in found() for command in block.commands}
    assert {"simulate", "compare", "sweep"} <= verbs


def test_a_block_runs_after_those_whose_folders_it_names(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    first = "```bash\nabkt simulate out=a  # one\nabkt sweep out=c\n```\n\n```output\nx\n```\n"
    page.write_text(first + "```bash\nabkt compare a b out=d\n```\nwords\n```output\ny\nz\n```\n```bash\nabkt serve\n```\n")
    one, other = blocks(page)
    assert (one.commands, one.before, one.shown) == (("abkt simulate out=a", "abkt sweep out=c"), (), "x\n")
    assert (other.commands, other.before, other.shown) == (("abkt compare a b out=d",), one.commands, "y\nz\n")
    assert (one.quick, other.quick) == (False, False)


@pytest.mark.parametrize(
    ("shown", "now", "same"),
    [
        ("200 completed in 0.1 s", "200 completed in 490 ms", True),
        ("│ ttft │ 1.229 │", "│ ttft │ 1.396 │", False),
        ("│ ttft │ 1.396 │", "│ ttft  │ 1.397 │", True),
        ("goodput 2.4", "throughput 2.4", False),
        ("one\ntwo", "one", False),
        ("1,000 requests", "1,200 requests", False),
    ],
)
def test_a_difference_is_found(shown: str, now: str, same: bool) -> None:
    assert bool(difference(shown, now)) != same
