"""The outputs that the documents show are those of the commands above them: ``python -m tests.docs.outputs --write`` writes them anew.

A block that begins with ```output shows what the commands of the ```bash block before it print. The commands run in an empty folder, after
those of earlier such blocks whose out= folder they name. Progress bars are left out, and times of the wall are not compared.
"""

from __future__ import annotations

import io
import math
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.cli import dispatch
from experiments.lib.paths import ROOT

DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"^```(?P<kind>bash|output)\n(?P<text>.*?)^```$", re.M | re.S)
WALL = re.compile(r"\bin \d[\d.,]* (?:µs|ms|s)\b")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
OUT = re.compile(r"\bout=(\S+)")
QUICK = {"simulate", "compare"}  # verbs that take a few seconds at most


@dataclass(frozen=True, slots=True)
class ShownOutput:
    """One output block. commands: of the bash block before it. before: commands that must have run. shown: the text of the block."""

    document: Path
    commands: tuple[str, ...]
    before: tuple[str, ...]
    shown: str

    @property
    def name(self) -> str:
        return f"{self.document.name}: {self.commands[-1]}"

    @property
    def quick(self) -> bool:
        return {shlex.split(command)[1] for command in (*self.before, *self.commands)} <= QUICK


def found() -> list[ShownOutput]:
    return [block for document in DOCUMENTS for block in blocks(document)]


def blocks(document: Path) -> Iterator[ShownOutput]:
    commands: tuple[str, ...] = ()
    made: dict[str, tuple[str, ...]] = {}  # folder -> the commands that make it
    for match in BLOCK.finditer(document.read_text(encoding="utf-8")):
        if match["kind"] == "bash":
            lines = (line.partition("  #")[0].strip() for line in match["text"].splitlines())
            commands = tuple(line for line in lines if line.startswith("abkt "))
            continue
        own = {folder for command in commands for folder in OUT.findall(command)}
        words = {word for command in commands for word in shlex.split(command)} - {f"out={folder}" for folder in own}
        before = [command for folder, needed in made.items() if folder in words and folder not in own for command in needed]
        yield ShownOutput(document, commands, tuple(dict.fromkeys(before)), match["text"])
        made |= dict.fromkeys(own, (*before, *commands))


def printed(block: ShownOutput) -> str:
    """What the commands print now. Raises RuntimeError where one fails."""
    with TemporaryDirectory() as folder, chdir(folder):
        for command in block.before:
            _run(command)
        return "".join(_run(command) for command in block.commands)


def _run(command: str) -> str:
    said, failed = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(failed):
        code = dispatch(shlex.split(command)[1:])
    if code:
        raise RuntimeError(f"{command} ended with {code}: {failed.getvalue()}")
    lines = [line.rstrip() for line in said.getvalue().splitlines()]
    return "".join(f"{line}\n" for line in lines if " ETA " not in line)


def difference(shown: str, now: str) -> str:
    """The first line that differs by more than a hundredth in a number, or in anything else; empty if none does."""
    one, other = (WALL.sub("in T", text).splitlines() for text in (shown, now))
    if len(one) != len(other):
        return f"{len(one)} lines are shown, {len(other)} are printed"
    for a, b in zip(one, other, strict=True):
        figures = [[float(number.replace(",", "")) for number in NUMBER.findall(line)] for line in (a, b)]
        words = [re.sub(r"[ ─━]+", " ", NUMBER.sub("#", line)) for line in (a, b)]
        if words[0] != words[1] or not all(math.isclose(x, y, rel_tol=0.01) for x, y in zip(*figures, strict=True)):
            return f"shown:   {a}\nprinted: {b}"
    return ""


def write(document: Path) -> None:
    """Put what the commands print into the output blocks of a document; one that differs in times of the wall alone stays."""
    text = document.read_text(encoding="utf-8")
    made = iter([now if difference(block.shown, now) else block.shown for block in blocks(document) for now in [printed(block)]])
    document.write_text(BLOCK.sub(lambda m: m[0] if m["kind"] == "bash" else f"```output\n{next(made)}```", text), encoding="utf-8")


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--write"]):
        print("usage: python -m tests.docs.outputs [--write]", file=sys.stderr)
        return 2
    if arguments:
        for document in DOCUMENTS:
            write(document)
        return 0
    wrong = {block.name: text for block in found() if (text := difference(block.shown, printed(block)))}
    print("\n".join(f"{name}\n{text}" for name, text in wrong.items()) or f"{len(found())} outputs are as shown")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
