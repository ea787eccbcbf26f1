"""Keyed tags equal AES-GCM, no nonce is used twice, and only the next frame of the same connection and direction is accepted."""

import io
import os
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.transfer.protocol.frame import HEADER_BYTES, FrameError, FrameHeader, FrameType, parse
from abkt.transfer.protocol.tags import STEP_BYTES, KeyedTags, PlainTags, steps

KEY = bytes(range(32))
DATA = FrameType.DATA


def pieces_of(data, cuts):
    stops = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    return [data[a:b] for a, b in zip([0, *stops], stops, strict=False) if a < b]


def opened(tags, frame, cuts=()):
    """Open a frame into scattered buffers, as a receiver does; returns the header and the payload."""
    header = parse(frame[:HEADER_BYTES])
    rest = (frame[HEADER_BYTES:] + bytes(header.length))[: header.length]  # if the length is wrong, the stream has other bytes there
    buffers = [memoryview(bytearray(len(piece))) for piece in pieces_of(rest, cuts)]
    wire = io.BytesIO(rest)
    tags.open(header, buffers, lambda step: [wire.readinto(piece) for piece in step])
    assert not wire.read()
    return header, b"".join(buffers)


def sealed(tags, header, payload, cuts=()):
    return b"".join(tags.seal(replace(header, length=len(payload)), pieces_of(payload, cuts)))


@given(
    st.sampled_from(["plain", "keyed", "encrypted"]),
    st.lists(st.tuples(st.binary(max_size=200), st.integers(0, 2**32 - 1)), min_size=1, max_size=4),
    st.lists(st.integers(0, 200), max_size=5),
    st.lists(st.integers(0, 200), max_size=5),
)
def test_frames_are_opened_in_the_order_they_were_sealed(kind, frames, cuts, other_cuts):
    """This holds for frames of any size and for any pieces that the payload is cut into on each side."""
    out, into = [PlainTags() if kind == "plain" else KeyedTags(KEY, 0, kind == "encrypted") for _ in range(2)]
    for payload, epoch in frames:
        header = FrameHeader(DATA, 7, 1, 2, epoch) if payload else FrameHeader(FrameType.PING)
        got, data = opened(into, sealed(out, header, payload, cuts), other_cuts)
        assert data == payload
        assert (got.type, got.epoch) == (header.type, header.epoch)


@pytest.mark.parametrize("direction", [0, 1])
def test_the_tag_equals_that_of_another_aes_gcm_implementation(direction):
    payload, header = os.urandom(1000), FrameHeader(DATA, 7, 1, 2, epoch=5, length=1000)
    nonces = [bytes([direction]) + (5).to_bytes(4, "little") + count.to_bytes(7, "little") for count in range(2)]
    mac, gcm = KeyedTags(KEY, direction, False), KeyedTags(KEY, direction, True)
    for nonce in nonces:
        assert sealed(mac, header, payload)[48:64] == AESGCM(KEY).encrypt(nonce, b"", header.untagged() + payload)
        frame = sealed(gcm, header, payload)
        assert frame[64:] + frame[48:64] == AESGCM(KEY).encrypt(nonce, payload, header.untagged())


def test_only_encryption_hides_the_payload():
    assert b"secret" in sealed(KeyedTags(KEY, 0, False), FrameHeader(DATA), b"secret")
    assert b"secret" not in sealed(KeyedTags(KEY, 0, True), FrameHeader(DATA), b"secret")


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("fault", ["repeated", "skipped", "other direction", "other key", "reflected"])
def test_a_repeated_skipped_or_reflected_frame_is_refused(encrypt, fault):
    out = KeyedTags(bytes(32) if fault == "other key" else KEY, 1 if fault == "other direction" else 0, encrypt)
    into = KeyedTags(KEY, 1 if fault == "reflected" else 0, encrypt)
    frame = sealed(out, FrameHeader(DATA, 1), b"x" * 50)
    if fault == "repeated":
        opened(into, frame)
    elif fault == "skipped":
        frame = sealed(out, FrameHeader(DATA, 1), b"x" * 50)
    with pytest.raises(FrameError, match="does not fit"):
        opened(into, frame)


@given(st.booleans(), st.binary(min_size=1, max_size=100), st.data())
def test_every_flipped_bit_of_a_tagged_frame_is_detected(encrypt, payload, data):
    frame = bytearray(sealed(KeyedTags(KEY, 0, encrypt), FrameHeader(DATA, 1, 2, 3, 4), payload))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        opened(KeyedTags(KEY, 0, encrypt), bytes(frame[: HEADER_BYTES + len(payload)]))


def test_no_nonce_is_used_twice(monkeypatch):
    """This holds even for equal headers, because the counter alone makes each nonce of a key new."""
    from cryptography.hazmat.primitives.ciphers import modes

    seen, made = [], modes.GCM
    monkeypatch.setattr(modes, "GCM", lambda nonce, *rest: seen.append(nonce) or made(nonce, *rest))
    tags = KeyedTags(KEY, 0, False)
    for epoch in (0, 0, 1, 0):
        sealed(tags, FrameHeader(DATA, 1, epoch=epoch), b"x")
    assert len(set(seen)) == len(seen) == 4
    assert {len(nonce) for nonce in seen} == {12}


@given(st.lists(st.integers(1, 3 * STEP_BYTES), max_size=6))
@settings(deadline=None)
def test_steps_cover_every_byte_and_all_but_the_last_are_full(sizes):
    buffers = [memoryview(bytearray(size)) for size in sizes]
    taken = [sum(map(len, step)) for step in steps(buffers)]
    assert sum(taken) == sum(sizes)
    assert all(size == STEP_BYTES for size in taken[:-1])
    for number, piece in enumerate(piece for step in steps(buffers) for piece in step):
        piece[:] = bytes([number + 1]) * len(piece)
    assert all(0 not in bytes(buffer[:1]) + bytes(buffer[-1:]) for buffer in buffers)
