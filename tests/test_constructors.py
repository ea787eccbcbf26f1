"""Constructors that the build writes out: on any arguments they set what the dataclass's own constructor sets."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from abkt import compiled
from abkt.constructors import written_out

SHAPES = '''
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Kind = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    kind: Kind = "a"
    KINDS: ClassVar[int] = 2


@dataclass(slots=True)
class Base:
    """Two points."""

    one: Point
    limit: float = math.inf
    seen: list[int] = field(default_factory=list, init=False)
    total: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.total = self.one.x + self.limit


@dataclass(slots=True)
class Same(Base):
    def double(self) -> float:
        return 2 * self.total


@dataclass(slots=True)
class More(Base):
    more: float = 1.0

    def __post_init__(self) -> None:
        Base.__post_init__(self)
        self.total += self.more


@dataclass
class Left:
    made: list[int] = field(default_factory=list)
'''


def module(source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("shapes")
    monkeypatch.setitem(sys.modules, "shapes", made)
    exec(source, made.__dict__)  # our own text
    return made


def test_written_constructors_do_what_the_dataclasses_do(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written_out({"shapes": SHAPES})["shapes"]
    found = []
    for source in (SHAPES, text):
        of = module(source, monkeypatch)
        point = of.Point(2.0)
        objects = [point, of.Point(x=1.0, kind="b"), of.Base(point), of.Same(point, limit=3.0), of.More(point, 3.0, more=5.0), of.Left()]
        found.append([repr(one) for one in objects] + [hash(point) == hash(of.Point(2.0)), of.Same(point, 1.0).double()])
        with pytest.raises(TypeError):
            of.Base()
        with pytest.raises(TypeError):
            of.Point(1.0, "a", 3)
    assert found[0] == found[1]


def test_which_classes_are_written_out_and_cannot_be_in_a_cycle() -> None:
    text = written_out({"shapes": SHAPES})["shapes"]
    assert text.count("def __init__(") == 3  # Point, Base and More; Same inherits, and Left is left
    assert "self.total = 0.0" in text
    assert "self.seen = list()" in text
    assert text.count("acyclic=True") == 2
    assert "acyclic=True)\n@dataclass(slots=True, init=False, unsafe_hash=True)\nclass Point" in text


def test_the_simulator_s_sources_stay_valid() -> None:
    texts = written_out({str(path): path.read_text(encoding="utf-8") for path in compiled.sources()})
    for name, text in texts.items():
        compile(text, name, "exec")
    records = next(text for name, text in texts.items() if name.endswith("abkt/records.py"))
    assert "def __init__(self, request_id: int, isl: int, osl: int, arrival_s: float, queue_exposed_s: float = 0.0" in records
