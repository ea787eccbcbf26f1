"""The handshake: a HELLO in both directions and, with a key, a proof from each side that it holds the key.

The client is the side that connected. It sends HELLO; the server answers with its own HELLO and a PROOF; the client answers with its
PROOF. A proof is an HMAC-SHA256 over the protocol version and both HELLOs (node names, layouts, nonces, security). After its proof, every
frame of a side is sealed with a key of this connection and direction (HKDF-SHA256 of the secret and both nonces).
Without a key only the HELLOs are exchanged and compared.
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
from abkt.transfer.protocol.tags import KeyedTags

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What both sides derive from the secret and the two HELLOs."""

    client_proof: bytes
    server_proof: bytes
    client_key: bytes
    server_key: bytes

    @classmethod
    def of(cls, secret: bytes, client: Hello, server: Hello) -> SessionKeys:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        parts = [VERSION.to_bytes(2, "little"), client.payload(), server.payload()]
        transcript = hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).digest()
        salt = bytes.fromhex(client.nonce + server.nonce)
        derived = HKDF(SHA256(), 3 * KEY_BYTES, salt, b"abkt transfer session\0" + transcript).derive(secret)
        proof_key, client_key, server_key = (derived[i : i + KEY_BYTES] for i in range(0, len(derived), KEY_BYTES))
        client_proof, server_proof = (hmac.digest(proof_key, role + transcript, "sha256") for role in (b"first\0", b"second\0"))
        return cls(client_proof, server_proof, client_key, server_key)


def client_handshake(channel: Channel, hello: Hello, key: Key | None) -> None:
    """The handshake of the side that connected.

    Raises PeerError if the peer refuses this side, and FrameError if this side refuses the peer because its security or key differs.
    """
    hello = _with_security(hello, key)
    channel.handshake_deadline_s = time.monotonic() + channel.keepalive.greet_s
    channel.send(FrameHeader(FrameType.HELLO), [hello.payload()], channel.tick)  # over some transports the first send waits for the peer
    theirs = Hello.parse(channel.expect(FrameType.HELLO)[1])
    channel.peer = theirs.node
    _check_security(theirs, hello)
    if key:
        session = SessionKeys.of(key.secret, hello, theirs)
        _check_proof(channel, session.server_proof, hello.node)
        channel.incoming = KeyedTags(session.server_key, 1, key.encrypt)
        channel.send(FrameHeader(FrameType.PROOF), [session.client_proof])
        channel.outgoing = KeyedTags(session.client_key, 0, key.encrypt)
    channel.handshake_deadline_s = math.inf


def server_handshake(channel: Channel, hello: Hello, key: Key | None) -> Hello:
    """The handshake of the side that was connected to. Returns the peer's HELLO. Raises FrameError, with the reason, to refuse it."""
    hello = _with_security(hello, key)
    channel.handshake_deadline_s = time.monotonic() + channel.keepalive.greet_s
    theirs = Hello.parse(channel.expect(FrameType.HELLO)[1])
    channel.peer = theirs.node
    _check_security(theirs, hello)
    if not key:
        _check_layout(theirs, hello)
    channel.send(FrameHeader(FrameType.HELLO), [hello.payload()])
    if key:
        session = SessionKeys.of(key.secret, theirs, hello)
        channel.send(FrameHeader(FrameType.PROOF), [session.server_proof])
        channel.outgoing = KeyedTags(session.server_key, 1, key.encrypt)
        _check_proof(channel, session.client_proof, hello.node)
        channel.incoming = KeyedTags(session.client_key, 0, key.encrypt)
        _check_layout(theirs, hello)
    channel.handshake_deadline_s = math.inf
    return theirs


def _with_security(hello: Hello, key: Key | None) -> Hello:
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
