"""The frame header is laid out as documented, and a frame that was changed after sealing is refused."""

import io
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from abkt.transfer.protocol.frame import (
    CLOSING,
    COMMITTED,
    DATA_CAP_BYTES,
    HEADER_BYTES,
    HELLO_CAP_BYTES,
    META_CAP_BYTES,
    FrameError,
    FrameHeader,
    FrameType,
    parse,
    seal,
)
from abkt.transfer.protocol.tags import PlainTags


def verify(header, payload):
    """Read and check the payload, as a receiver does."""
    wire = io.BytesIO(b"".join(payload))
    PlainTags().open(header, [memoryview(bytearray(header.length))], lambda step: [wire.readinto(piece) for piece in step])


U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


@st.composite
def frames(draw):
    kind = draw(st.sampled_from(FrameType))
    most = {FrameType.PING: 0, FrameType.ACK: 8, FrameType.PROOF: 32}.get(kind, 300)
    payload = draw(st.binary(min_size=min(most, 1), max_size=most))
    alone = kind in (FrameType.HELLO, FrameType.PROOF, FrameType.PING)
    header = FrameHeader(
        kind,
        0 if alone else draw(U64),
        draw(U64) if kind in (FrameType.OFFER, FrameType.DATA, FrameType.COMMIT) else 0,
        draw(st.integers(0, 2**47)) if kind in (FrameType.DATA, FrameType.ACK) else 0,
        0 if alone else draw(U32),
        len(payload),
        draw(st.sampled_from([0, {FrameType.ABORT: CLOSING, FrameType.ACK: COMMITTED}.get(kind, 0)])),
    )
    return header, payload


def test_a_data_frame_is_laid_out_as_documented():
    payload = b"keys and values"
    sealed = seal(FrameHeader(FrameType.DATA, transfer_id=7, sequence=3, offset=65_536, epoch=2, length=15), [payload])
    by_hand = b"ABKT" + bytes([3, 0, 4, 0]) + struct.pack("<QQQ", 7, 3, 65_536) + struct.pack("<II", 2, 15) + bytes(8)
    assert sealed == by_hand + xxhash.xxh3_128(by_hand + payload).digest()
    assert len(sealed) == HEADER_BYTES == 64


@given(frames())
def test_a_sealed_frame_is_parsed_and_verified(frame):
    header, payload = frame
    half = len(payload) // 2
    parsed = parse(seal(header, [payload]))
    verify(parsed, [payload[:half], memoryview(payload)[half:]])
    assert all(getattr(parsed, name) == getattr(header, name) for name in FrameHeader.__slots__ if name != "tag")


@given(frames(), st.data())
def test_every_flipped_bit_of_a_frame_is_detected(frame, data):
    header, payload = frame
    sealed = bytearray(seal(header, [payload]) + payload)
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        verify(parse(sealed[:HEADER_BYTES]), [sealed[HEADER_BYTES:]])


@given(frames(), st.data())
def test_a_changed_header_does_not_match_the_tag(frame, data):
    """The tag covers the header, so nobody can move a payload to another offset, transfer or sequence."""
    header, payload = frame
    sealed = seal(header, [payload])
    start = data.draw(st.integers(0, 47))
    patch = data.draw(st.binary(min_size=1, max_size=48 - start))
    changed = sealed[:start] + patch + sealed[start + len(patch) :]
    if changed != sealed:
        with pytest.raises(FrameError) as error:
            verify(parse(changed), [payload])
        assert "\n" not in str(error.value)


@given(st.binary(max_size=80) | st.binary(min_size=56, max_size=56).map(lambda tail: b"ABKT\x03\x00\x04\x00" + tail))
def test_any_header_bytes_are_parsed_or_refused(data):
    try:
        header = parse(data)
    except FrameError:
        return
    assert 0 <= header.length <= DATA_CAP_BYTES
    assert header.untagged() + header.tag == data  # no byte of the header is ignored


def changed(header, start, patch):
    sealed = seal(header)
    return sealed[:start] + patch + sealed[start + len(patch) :]


DATA = FrameHeader(FrameType.DATA, length=1)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (bytes(63), "64 bytes, not 63"),
        (changed(DATA, 0, b"HTTP"), "does not speak this protocol"),
        (changed(DATA, 4, b"\x09"), "version 9, this side 3"),
        (changed(DATA, 6, b"\x0a"), "type 10 is unknown"),
        (changed(DATA, 7, b"\x01"), "unknown flags 1"),
        (changed(DATA, 40, b"\x01"), "reserved"),
        (seal(FrameHeader(FrameType.DATA, length=DATA_CAP_BYTES + 1)), "above the cap"),
        (seal(FrameHeader(FrameType.OFFER, length=META_CAP_BYTES + 1)), "above the cap"),
        (seal(FrameHeader(FrameType.PING, length=1)), "above the cap"),
        (seal(FrameHeader(FrameType.HELLO, length=HELLO_CAP_BYTES + 1)), "above the cap"),
        (seal(FrameHeader(FrameType.PROOF, length=33)), "above the cap of 32"),
        (seal(FrameHeader(FrameType.ABORT, flags=2, length=1)), "unknown flags 2"),
        (seal(FrameHeader(FrameType.DATA)), "is empty"),
        (seal(FrameHeader(FrameType.DATA, offset=2**63, length=1)), "above the cap"),
        (seal(FrameHeader(FrameType.HELLO, transfer_id=1, length=1)), "belongs to none"),
        (seal(FrameHeader(FrameType.GRANT, sequence=1, length=1)), "are counted"),
        (seal(FrameHeader(FrameType.OFFER, offset=1, length=1)), "have one"),
    ],
)
def test_a_malformed_header_is_refused_with_the_reason(data, complaint):
    with pytest.raises(FrameError, match=complaint):
        parse(data)
