"""Messages survive encoding and parsing, and anything else is refused."""

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.transfer.protocol.frame import META_CAP_BYTES, FrameError
from abkt.transfer.protocol.messages import Abort, Ack, Commit, Grant, Hello, Offer

KINDS = [Hello, Offer, Grant, Ack, Commit, Abort]
ENDS = st.lists(st.integers(1, 2**47), min_size=1, max_size=65, unique=True).map(lambda ends: tuple(sorted(ends)))
NAMES = st.text(max_size=20).filter(str.isprintable)
MORE = st.dictionaries(NAMES, NAMES | st.integers(-(2**70), 2**70) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
OFFER = Offer(1, "stream", 40, (10, 20), 3, (2, 1), {"osl": 8})


@given(st.integers(0, 2**62), st.integers(0, 2**31), ENDS, st.lists(st.integers(1, 2**31)).map(tuple), MORE)
def test_an_offer_survives_encoding(request_id, tokens, ends, runs, more):
    offer = Offer(request_id, "stream", tokens, ends, tokens - 1, runs, more)
    assert Offer.parse(offer.payload()) == offer


@given(NAMES, NAMES, st.integers(1, 2**48), st.integers(0, 100))
def test_the_other_messages_survive_encoding(name, text, size, cut):
    keyed = Hello(name, text, "0a" * 16, "keyed", "1b" * 32)
    grant = Grant(size, size - 1, min(cut, size - 1), True, cut / 7)
    for message in (Hello(name, text), keyed, Grant(size), grant, Ack(cut / 7), Commit(cut, size, "00" * 16), Abort(text)):
        assert type(message).parse(message.payload()) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(st.sampled_from(KINDS), st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_message_payload_is_refused_or_parsed(kind, payload):
    try:
        message = kind.parse(payload)
    except FrameError:
        return
    assert kind.parse(message.payload()) == message


@given(st.sampled_from(sorted(json.loads(OFFER.payload()))), JSON)
def test_an_offer_with_a_random_field_is_parsed_as_sent_or_refused(key, value):
    members = json.loads(OFFER.payload()) | {key: value}
    try:
        offer = Offer.parse(json.dumps(members).encode())
    except FrameError:
        return
    assert json.loads(offer.payload()) == members  # every field was parsed as it was sent


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ends": [20, 10]}, "must rise"),
        ({"ends": []}, "one at least"),
        ({"ends": [0, 10]}, "list of at most"),
        ({"mode": "raw"}, "one cut, not 2"),
        ({"mode": "fast"}, "raw, lossless or stream"),
        ({"mode": "exact"}, "raw, lossless or stream, not 'exact'"),
        ({"tokens": True}, "tokens must be an integer"),
        ({"tokens": 1.0}, "tokens must be an integer"),
        ({"tokens": -1}, "tokens must be an integer"),
        ({"runs": [0]}, "list of at most"),
        ({"more": {"a": [1]}}, "more must be"),
        ({"price": 1}, "unknown field 'price'"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change, complaint):
    with pytest.raises(FrameError, match=complaint):
        Offer.parse(json.dumps(json.loads(OFFER.payload()) | change).encode())


@pytest.mark.parametrize("text", ["[" * 200_000, "NaN", '{"reason": ' + "9" * 5000 + "}", "\xff", '{"reason": Infinity}', "[]", "{}"])
def test_hostile_json_is_refused(text):
    with pytest.raises(FrameError):
        Abort.parse(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("kind", "members", "complaint"),
    [
        (Hello, {"node": "a\nb"}, "printable"),
        (Hello, {"nonce": "0" * 63}, "64 hexadecimal"),
        (Hello, {"instance": "G" * 32}, "32 hexadecimal"),
        (Hello, {"security": "none"}, "one of open, keyed, encrypted"),
        (Hello, {"security": "keyed"}, "need a nonce"),
        (Hello, {"nonce": "0" * 64}, "need a nonce"),
        (Grant, {"held": 11}, "11 bytes in 0 frames cannot be held of 10"),
        (Grant, {"frames": 1}, "cannot be held"),
        (Grant, {"committed": 1}, "true or false"),
        (Grant, {"price": -1.0}, "price"),
        (Grant, {"price": True}, "must be a number"),
        (Grant, {"price": 10**400}, "price"),
    ],
)
def test_an_impossible_hello_or_grant_is_refused(kind, members, complaint):
    good = Hello("a", "b") if kind is Hello else Grant(10)
    with pytest.raises(FrameError, match=complaint):
        kind.parse(json.dumps(json.loads(good.payload()) | members).encode())


@pytest.mark.parametrize("payload", [b"", bytes(7), struct.pack("<d", math.nan), struct.pack("<d", -1), struct.pack("<d", math.inf)])
def test_an_impossible_price_is_refused(payload):
    with pytest.raises(FrameError):
        Ack.parse(payload)


def test_a_reason_is_one_line():
    assert Abort.parse(Abort("a\nb\x00c").payload()).reason == "a b c"


def test_the_size_of_a_message_is_limited_on_both_sides():
    with pytest.raises(FrameError, match="above the cap"):
        Abort.parse(b" " * (META_CAP_BYTES + 1))
    with pytest.raises(FrameError, match="put less into it"):
        Offer(1, "raw", 1, (1,), more={"prompt": "x" * META_CAP_BYTES}).payload()
    with pytest.raises(FrameError, match="more must be"):
        Offer.parse(OFFER.payload().replace(b'"osl":8', b'"osl":1e999'))


def test_an_offer_gives_the_finest_cut_within_a_number_of_bytes():
    assert [OFFER.cut_within(size) for size in (0, 9, 10, 19, 20, 99)] == [-1, -1, 0, 0, 1, 1]
