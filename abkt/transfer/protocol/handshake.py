"""HELLO in both directions and, with a key, the proofs that each side holds it.

The side that connected says HELLO; the other answers with its own HELLO and its PROOF; the first answers with a PROOF. A proof is an
HMAC-SHA256 over both HELLOs (node names, layouts, nonces, security) and the protocol version. From its proofs on
every frame of a direction is sealed with a key of this connection and direction (HKDF-SHA256 of secret and nonces).
Without a key the HELLOs alone must agree.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from dataclasses import dataclass, replace

from abkt.transfer.protocol.channel import Channel
from abkt.transfer.protocol.frame import VERSION, FrameError, FrameHeader, FrameType
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import NONCE_BYTES, Hello
from abkt.transfer.protocol.tags import Keyed

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What both sides derive from the secret and the two HELLOs. first: of the side that connected; second: of the other."""

    first_proof: bytes
    second_proof: bytes
    first_key: bytes
    second_key: bytes

    @classmethod
    def of(cls, secret: bytes, first: Hello, second: Hello) -> SessionKeys:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        said = [VERSION.to_bytes(2, "little"), first.payload(), second.payload()]
        transcript = hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in said)).digest()
        salt = bytes.fromhex(first.nonce + second.nonce)
        derived = HKDF(SHA256(), 3 * KEY_BYTES, salt, b"abkt transfer session\0" + transcript).derive(secret)
        proving, first_key, second_key = (derived[i : i + KEY_BYTES] for i in range(0, len(derived), KEY_BYTES))
        first_proof, second_proof = (hmac.digest(proving, role + transcript, "sha256") for role in (b"first\0", b"second\0"))
        return cls(first_proof, second_proof, first_key, second_key)


def greet(channel: Channel, hello: Hello, key: Key | None) -> None:
    """Of the side that connected. Raises PeerError if the peer refuses, FrameError if this side does: its security or key is another."""
    hello = _armed(hello, key)
    channel.greeted_by_s = time.monotonic() + channel.keepalive.greet_s
    channel.send(FrameHeader(FrameType.HELLO), [hello.payload()], channel.tick)  # some transports wait for the peer before the first byte
    theirs = Hello.parse(channel.expect(FrameType.HELLO)[1])
    channel.peer = theirs.node
    _check_security(theirs, hello)
    if key:
        session = SessionKeys.of(key.secret, hello, theirs)
        _check_proof(channel, session.second_proof, hello.node)
        channel.incoming = Keyed(session.second_key, 1, key.encrypt)
        channel.send(FrameHeader(FrameType.PROOF), [session.first_proof])
        channel.outgoing = Keyed(session.first_key, 0, key.encrypt)
    channel.greeted_by_s = math.inf


def welcome(channel: Channel, hello: Hello, key: Key | None) -> Hello:
    """Of the side that was connected to; returns who came. Raises FrameError, with the reason to refuse it."""
    hello = _armed(hello, key)
    channel.greeted_by_s = time.monotonic() + channel.keepalive.greet_s
    theirs = Hello.parse(channel.expect(FrameType.HELLO)[1])
    channel.peer = theirs.node
    _check_security(theirs, hello)
    if not key:
        _check_layout(theirs, hello)
    channel.send(FrameHeader(FrameType.HELLO), [hello.payload()])
    if key:
        session = SessionKeys.of(key.secret, theirs, hello)
        channel.send(FrameHeader(FrameType.PROOF), [session.second_proof])
        channel.outgoing = Keyed(session.second_key, 1, key.encrypt)
        _check_proof(channel, session.first_proof, hello.node)
        channel.incoming = Keyed(session.first_key, 0, key.encrypt)
        _check_layout(theirs, hello)
    channel.greeted_by_s = math.inf
    return theirs


def _armed(hello: Hello, key: Key | None) -> Hello:
    return replace(hello, security=key.security, nonce=secrets.token_hex(NONCE_BYTES)) if key else hello


def _check_security(theirs: Hello, ours: Hello) -> None:
    if theirs.security != ours.security:
        raise FrameError(
            f"{theirs.node} is {theirs.security}, {ours.node} is {ours.security}; give both the same key file and the same encrypt setting"
        )


def _check_proof(channel: Channel, expected: bytes, node: str) -> None:
    if not hmac.compare_digest(channel.expect(FrameType.PROOF)[1], expected):
        raise FrameError(f"{channel.peer} does not hold the key of {node}; give both the same key file")


def _check_layout(theirs: Hello, ours: Hello) -> None:
    if theirs.layout != ours.layout:
        raise FrameError(f"{theirs.node} has layout {theirs.layout!r}, {ours.node} has {ours.layout!r}; they must be the same")
