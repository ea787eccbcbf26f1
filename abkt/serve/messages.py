"""The format of messages between the frontend and a worker process: one JSON object on one line.

A message is a frozen dataclass. `commands.py` defines the messages to a worker, `reports.py` the messages from a worker. The types of the
fields define the format of a line, so one encoder and one decoder serve all messages. JSON has no nan and no infinity; these are written as
{"float": "nan"}, {"float": "inf"} or {"float": "-inf"}.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAME = "message"  # the key under which a line holds the name of the message's class
TAG = "float"
PLAIN: set[Any] = {str, int, bool}  # JSON types; lists of them are not converted item by item, since prompts are long
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
Reader = Callable[[object, str], Any]  # (JSON value, name of its place) -> the field's value


def encode(message: object) -> str:
    """A message as one line, without the newline. Raises ValueError, one line, for a field that JSON cannot hold."""
    return json.dumps({NAME: type(message).__name__, **_written(message)}, allow_nan=False)


def decode(line: str | bytes, kinds: Sequence[type]) -> Any:
    """The message in a line.

    Parameters
    ----------
    line : one JSON object, as `encode` writes it.
    kinds : the message classes that are accepted.

    Raises
    ------
    ValueError : one line, if the line is not JSON, names none of `kinds`, lacks a field, or has a field that is unknown or of a wrong type.
    """
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a message is not JSON: {type(error).__name__}") from None
    if not isinstance(data, dict):
        raise ValueError("a message is not a JSON object")
    name = data.pop(NAME, None)
    for kind in kinds:
        if kind.__name__ == name:
            return _reader(kind)(data, kind.__name__)
    raise ValueError(f"message {reprlib.repr(name)} is unknown; expected one of {', '.join(kind.__name__ for kind in kinds)}")


def _written(value: object) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: str(float(value))}
    if value is None or isinstance(value, str | int):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _written(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): _written(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return value if set(map(type, value)) <= PLAIN else [_written(member) for member in value]
    raise ValueError(f"a message cannot hold {reprlib.repr(value)}, which is a {type(value).__name__}")


@cache
def _reader(hint: Any) -> Reader:
    """The reader for fields of this type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return _plain(hint)
    if hint is float:
        return _float
    if hint is Any:
        return _any
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, UnionType) and len(arguments) == 2 and NoneType in arguments:
        return _optional(_reader(next(argument for argument in arguments if argument is not NoneType)))
    if origin is tuple and arguments[1:] == (...,):
        return _items(arguments[0])
    if origin is tuple:
        return _row([_reader(argument) for argument in arguments])
    if origin in (dict, Mapping):
        return _members(_reader(arguments[1]))
    if is_dataclass(hint):
        return _dataclass(hint)
    raise TypeError(f"a message cannot have a field of type {hint}")


def _plain(kind: type) -> Reader:
    name = {str: "a text", int: "an integer", bool: "true or false"}[kind]

    def read(value: object, where: str) -> Any:
        if type(value) is not kind:
            raise _wrong(value, where, name)
        return value

    return read


def _float(value: object, where: str) -> float:
    if isinstance(value, dict) and value.keys() == {TAG} and value[TAG] in list(NOT_FINITE):
        return NOT_FINITE[value[TAG]]
    if type(value) not in (int, float):
        raise _wrong(value, where, "a number")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong(value, where, "a number that fits a double")
    return number


def _any(value: object, where: str) -> Any:
    """Any JSON value, such as a policy's configuration."""
    if isinstance(value, dict):
        if value.keys() == {TAG}:
            return _float(value, where)
        return {key: _any(member, f"{where}.{key}") for key, member in value.items()}
    if isinstance(value, list):
        return [_any(member, where) for member in value]
    return value


def _choice(choices: tuple[object, ...]) -> Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not str or value not in choices:
            raise _wrong(value, where, f"one of {', '.join(map(repr, choices))}")
        return value

    return read


def _optional(reader: Reader) -> Reader:
    return lambda value, where: None if value is None else reader(value, where)


def _items(hint: Any) -> Reader:
    reader = _reader(hint)

    def read(value: object, where: str) -> Any:
        if not isinstance(value, list):
            raise _wrong(value, where, "a list")
        if hint in PLAIN and set(map(type, value)) <= {hint}:
            return tuple(value)
        return tuple([reader(member, where) for member in value])

    return read


def _row(readers: list[Reader]) -> Reader:
    def read(value: object, where: str) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            raise _wrong(value, where, f"a list of {len(readers)}")
        return tuple([reader(member, where) for reader, member in zip(readers, value, strict=True)])

    return read


def _members(reader: Reader) -> Reader:
    def read(value: object, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {key: reader(member, f"{where}.{key}") for key, member in value.items()}

    return read


def _dataclass(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind) if field.init}

    def read(value: object, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        if unknown := sorted(value.keys() - readers.keys()):
            raise ValueError(f"{where} has an unknown field {reprlib.repr(unknown[0])}")
        if missing := [name for name in readers if name not in value]:
            raise ValueError(f"{where} lacks {missing[0]}")
        return kind(**{name: reader(value[name], f"{where}.{name}") for name, reader in readers.items()})

    return read


def _wrong(value: object, where: str, expected: str) -> ValueError:
    return ValueError(f"{where} is {reprlib.repr(value)}; it must be {expected}")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
