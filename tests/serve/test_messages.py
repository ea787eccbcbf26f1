"""Messages between the frontend and its workers are read back from their line unchanged, and a damaged line is refused with one line."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.view import Curve
from abkt.profile.schema import Fit, Profile, RateCurve
from abkt.serve.commands import (
    CancelAttempt,
    Prepare,
    StartPrefillRun,
    SubmitPrompt,
    WorkerCommand,
    WorkerConfig,
    decode_command,
    decode_config,
)
from abkt.serve.engine.generation import Generation, Sampling
from abkt.serve.messages import NAME, encode
from abkt.serve.reports import AttemptFailed, BrokenTransfer, Pong, StreamedTokens, WorkerReport, decode_report
from abkt.spec import ModelSpec

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
FREE_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=6), inner, max_size=3),
    max_leaves=6,
)
CONFIGS = st.dictionaries(st.text(min_size=6), FREE_JSON, max_size=3)
# Classes that refuse some values of their fields' types.
st.register_type_strategy(Sampling, st.builds(Sampling, st.just(0.0) | st.floats(0.01, 100), st.integers(0, 9), st.floats(0.01, 1)))
st.register_type_strategy(Capacity, st.builds(Capacity.constant, st.floats(1, allow_infinity=True)))
st.register_type_strategy(Curve, st.integers(1, 3).flatmap(lambda n: st.builds(Curve, *[st.tuples(*[NUMBERS] * n)] * 3)))
st.register_type_strategy(ModelSpec, st.builds(ModelSpec, st.text(), *[st.integers(1, 9)] * 3))
st.register_type_strategy(Fit, st.builds(Fit, st.just(("1",)), st.tuples(st.floats(-9, 9)), *[st.dictionaries(st.text(), NUMBERS)] * 2))
CURVES = st.from_type(Curve)
KINDS_OF_CURVES = st.sampled_from([(False, st.none()), (True, st.none()), (True, CURVES)])  # nats, klt: the same for all of a profile
st.register_type_strategy(
    Profile,
    KINDS_OF_CURVES.flatmap(
        lambda kind: st.builds(
            Profile,
            curves=st.lists(st.builds(RateCurve, calibration=st.none() | st.text(), nats=st.just(kind[0]), klt=kind[1]), max_size=2).map(
                tuple
            ),
            lossless_share=NUMBERS,
            entropy_share=NUMBERS,
        )
    ),
)
PREFILL_RUNS = st.builds(StartPrefillRun, bitrate=CONFIGS, peers=st.dictionaries(st.text(), st.text(), max_size=3))
MESSAGES = st.one_of(
    PREFILL_RUNS,
    *[st.from_type(kind) for kind in (*get_args(WorkerCommand), *get_args(WorkerReport)) if kind is not StartPrefillRun],
)


def same(found: Any, expected: Any) -> bool:
    """Equality in which nan is nan, and a list of free JSON is a list."""
    if isinstance(expected, float):
        return type(found) is float and (found == expected or (math.isnan(found) and math.isnan(expected)))
    if is_dataclass(expected):
        return type(found) is type(expected) and all(same(getattr(found, f.name), getattr(expected, f.name)) for f in fields(expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def back(message: object) -> object:
    return (decode_command if type(message) in get_args(WorkerCommand) else decode_report)(encode(message).encode())


@given(MESSAGES)
def test_every_message_is_read_back_unchanged(message: object) -> None:
    line = encode(message)
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert same(back(message), message)


@pytest.mark.parametrize("kind", [*get_args(WorkerCommand), *get_args(WorkerReport)], ids=lambda kind: kind.__name__)
def test_each_kind_of_message_can_be_made_and_read(kind: type) -> None:
    """The strategy above makes this kind, and the types of its fields can be read."""
    found: list[object] = []

    @given(PREFILL_RUNS if kind is StartPrefillRun else st.from_type(kind))
    def comes_back(message: object) -> None:
        found.append(message)
        assert same(back(message), message)

    comes_back()
    assert found


def test_a_workers_config_and_the_profile_of_a_run_are_read_back_unchanged() -> None:
    config = WorkerConfig("d0", "decode", "folder", 80, 16, 4, core=1, key_file="key", encrypt=True)
    assert decode_config(encode(config)) == config
    curve = Curve((1.0, 2.0), (1.0, 0.0), (0.0, 8.0))
    fit = Fit(("1", "tokens"), (0.5, 1e-3), {"tokens": 1.0}, {"tokens": 9.0}, 0.01, 7)
    profile = Profile(ModelSpec("m", 2, 2, 8), {"prefill": fit}, (RateCurve(64, curve, curve),), {"cpu": "x"})
    run = StartPrefillRun(3.0, Capacity.constant(math.inf), {"_target_": "a.B", "behind": math.inf}, "tbf", profile, {"d0": "host:1"})
    assert decode_command(encode(run)) == run


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "a message is not JSON: JSONDecodeError"),
        ('{"message": "CancelAttempt", "attempt_id": NaN}', "a message is not JSON: ValueError"),
        (b"\xff", "a message is not JSON: UnicodeDecodeError"),
        ("[" * 100_000, "a message is not JSON: RecursionError"),
        ("[]", "a message is not a JSON object"),
        ('{"attempt_id": 1}', "message None is unknown; expected one of Ping, "),
        ('{"message": "Pong"}', "message 'Pong' is unknown; expected one of Ping, "),
        ('{"message": ["CancelAttempt"]}', "message ['CancelAttempt'] is unknown; "),
        ('{"message": "CancelAttempt"}', "CancelAttempt lacks attempt_id"),
        ('{"message": "CancelAttempt", "attempt_id": 1, "why": 2}', "CancelAttempt has an unknown field 'why'"),
        ('{"message": "CancelAttempt", "attempt_id": "1"}', "CancelAttempt.attempt_id is '1'; it must be an integer"),
        ('{"message": "CancelAttempt", "attempt_id": true}', "CancelAttempt.attempt_id is True; it must be an integer"),
        ('{"message": "Prepare", "tokens": [1, 2.5]}', "Prepare.tokens is 2.5; it must be an integer"),
        ('{"message": "Prepare", "tokens": 7}', "Prepare.tokens is 7; it must be a list"),
        (
            '{"message": "StartDecodeRun", "origin_s": 1e999, "network": {}}',
            "StartDecodeRun.origin_s is inf; it must be a number that fits",
        ),
        ('{"message": "StartDecodeRun", "origin_s": 0, "network": {}}', "StartDecodeRun.network lacks starts_s"),
    ],
)
def test_a_damaged_line_is_refused_in_one_line(line: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        decode_command(line)
    assert str(caught.value).startswith(reason)


@given(MESSAGES, st.data())
def test_a_lost_added_or_changed_field_is_refused_in_one_line(message: object, data: st.DataObject) -> None:
    members = json.loads(encode(message))
    name = data.draw(st.sampled_from(sorted(members)))
    kind = data.draw(st.sampled_from(["lost", "added", "changed"]))
    if kind == "lost":
        del members[name]
    elif kind == "added":
        members["surplus"] = 1
    else:
        members[name] = {"surplus": "x"}
        if name in ("bitrate", "peers"):  # any object will do
            members[name] = 3
    decode = decode_command if type(message) in get_args(WorkerCommand) else decode_report
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        decode(json.dumps(members))


def test_optional_and_nested_fields_are_explicit() -> None:
    broken = BrokenTransfer("raw", 7, 1.0, 2.0, "none")
    assert json.loads(encode(AttemptFailed(1, "cancelled")))["broken"] is None
    assert decode_report(encode(AttemptFailed(1, "cut", broken))) == AttemptFailed(1, "cut", broken)
    assert json.loads(encode(StreamedTokens(((1, 2, ((2, -0.5),)),)))) == {NAME: "StreamedTokens", "tokens": [[1, 2, [[2, -0.5]]]]}
    with pytest.raises(ValueError, match="message 'Pong' is unknown"):
        decode_command(encode(Pong()))
    with pytest.raises(ValueError, match="a message cannot hold"):
        encode(Prepare((object(),)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature is -1"):
        decode_command(encode(SubmitPrompt(1, (1,), "d0", 1.0, Generation(2))).replace('"temperature": 0.0', '"temperature": -1'))
    assert decode_command(encode(CancelAttempt(3))) == CancelAttempt(3)
