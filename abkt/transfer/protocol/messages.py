"""The messages in metadata frames: size-bounded JSON, checked field by field. Parsing raises FrameError, one line."""

from __future__ import annotations

import json
import math
import struct
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from abkt.transfer.protocol.frame import META_CAP_BYTES, OFFSET_CAP_BYTES, PRICE_BYTES, FrameError

Scalar = str | int | float | bool
TransferMode = Literal["raw", "lossless", "stream"]
COUNT_CAP = 1 << 31
LIST_CAP = 16_384
NAME_CAP = 256
TEXT_CAP = 1024
PRICE_CAP = 1e30
NONCE_BYTES = 32
INSTANCE_BYTES = 16
SECURITIES = ("open", "keyed", "encrypted")
_PRICE = struct.Struct("<d")


class JsonFields:
    """The members of one JSON object, taken out one by one. `end` raises FrameError if any is left."""

    def __init__(self, payload: bytes, message: str) -> None:
        self._message = message
        if len(payload) > META_CAP_BYTES:
            raise FrameError(f"{message} of {len(payload)} bytes is above the cap of {META_CAP_BYTES}")
        try:
            members = json.loads(payload.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"{message} is not JSON: {type(error).__name__}") from None
        if not isinstance(members, dict):
            raise FrameError(f"{message} is not a JSON object")
        self._members: dict[str, Any] = members

    def take(self, key: str) -> Any:
        if key not in self._members:
            raise FrameError(f"{self._message} lacks {key}")
        return self._members.pop(key)

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.take(key)
        if type(value) is not int or not low <= value <= high:
            raise FrameError(f"{self._message}: {key} must be an integer from {low} to {high}")
        return value

    def text(self, key: str, cap: int = NAME_CAP) -> str:
        """Printable characters only, so that a text is one line: it may go into logs."""
        value = self.take(key)
        if not isinstance(value, str) or len(value) > cap or not value.isprintable():
            raise FrameError(f"{self._message}: {key} must be a text of at most {cap} printable characters")
        return value

    def boolean(self, key: str) -> bool:
        value = self.take(key)
        if not isinstance(value, bool):
            raise FrameError(f"{self._message}: {key} must be true or false")
        return value

    def price(self, key: str) -> float:
        value = self.take(key)
        if type(value) not in (int, float):
            raise FrameError(f"{self._message}: {key} must be a number")
        return _price(value, self._message)

    def hexadecimal(self, key: str, digits: int) -> str:
        """Exactly this many digits, or an empty text."""
        value = self.text(key, digits)
        if len(value) not in (0, digits) or any(digit not in "0123456789abcdef" for digit in value):
            raise FrameError(f"{self._message}: {key} must be {digits} hexadecimal digits, or empty")
        return value

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        value = self.take(key)
        if not isinstance(value, list) or len(value) > LIST_CAP or any(type(n) is not int or not low <= n <= high for n in value):
            raise FrameError(f"{self._message}: {key} must be a list of at most {LIST_CAP} integers from {low} to {high}")
        return tuple(value)

    def scalars(self, key: str) -> dict[str, Scalar]:
        value = self.take(key)
        if not isinstance(value, dict) or not all(_plain(member) for member in value.values()):
            raise FrameError(f"{self._message}: {key} must be an object of texts, booleans and finite numbers")
        return cast("dict[str, Scalar]", value)

    def end(self) -> None:
        if self._members:
            raise FrameError(f"{self._message} has an unknown field {min(self._members)[:NAME_CAP]!r}")


def _plain(value: object) -> bool:
    return isinstance(value, Scalar) and not (isinstance(value, float) and not math.isfinite(value))


def _price(value: float, message: str) -> float:
    if not 0 <= value <= PRICE_CAP:
        raise FrameError(f"{message}: the price must be a number from 0 to {PRICE_CAP:g}")
    return float(value)


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _payload(members: Mapping[str, Any]) -> bytes:
    payload = json.dumps(members, separators=(",", ":"), allow_nan=False).encode()
    if len(payload) > META_CAP_BYTES:
        raise FrameError(f"a message of {len(payload)} bytes is above the cap of {META_CAP_BYTES}; put less into it")
    return payload


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of each side.

    Parameters
    ----------
    node : str
        Name of the node.
    layout : str
        What both sides must have in common, as one text: model, shapes, dtype, codec.
    instance : str
        32 hexadecimal digits that identify a sender over all its connections; empty if it does not resume transfers.
    security : str
        How frames after the handshake are protected: open, keyed or encrypted.
    nonce : str
        64 hexadecimal digits, new for each connection; empty if security is open.
    """

    node: str
    layout: str
    instance: str = ""
    security: str = "open"
    nonce: str = ""

    def payload(self) -> bytes:
        return _payload({name: getattr(self, name) for name in ("node", "layout", "instance", "security", "nonce")})

    @classmethod
    def parse(cls, payload: bytes) -> Hello:
        fields = JsonFields(payload, "HELLO")
        node, layout, instance = fields.text("node"), fields.text("layout", TEXT_CAP), fields.hexadecimal("instance", 2 * INSTANCE_BYTES)
        security, nonce = fields.text("security"), fields.hexadecimal("nonce", 2 * NONCE_BYTES)
        if security not in SECURITIES or (security == "open") != (nonce == ""):
            raise FrameError(f"HELLO: security must be one of {', '.join(SECURITIES)}, and all but open need a nonce")
        fields.end()
        return cls(node, layout, instance, security, nonce)


@dataclass(frozen=True, slots=True)
class Offer:
    """The sender's description of a transfer that it wants to start.

    Parameters
    ----------
    request_id : int
        The request whose KV this is.
    mode : "raw", "lossless" or "stream"
        How the KV is coded. Only a stream can be cut.
    tokens : int
        Number of tokens.
    ends : tuple of int
        The byte at which each cut ends, rising. The last is the size of everything that may be sent. Raw and lossless have one cut.
    first_token : int
        The token that prefill produced, or -1.
    runs : tuple of int
        Lengths of the runs of adjacent blocks on the sender's side, in blocks, so that the receiver can reserve equal runs.
    more : mapping
        Further scalars that the two workers exchange. The workers check them.
    """

    request_id: int
    mode: TransferMode
    tokens: int
    ends: tuple[int, ...]
    first_token: int = -1
    runs: tuple[int, ...] = ()
    more: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.ends or self.ends[0] < 1 or any(b <= a for a, b in zip(self.ends, self.ends[1:], strict=False)):
            raise FrameError("OFFER: the ends of the cuts must rise from above 0, and there must be one at least")
        if self.mode != "stream" and len(self.ends) != 1:
            raise FrameError(f"OFFER: a transfer in mode {self.mode} has one cut, not {len(self.ends)}")

    @property
    def size(self) -> int:
        return self.ends[-1]

    def cut_within(self, size_bytes: int) -> int:
        """The finest cut that ends within the first size_bytes; -1 if none does."""
        return bisect_right(self.ends, size_bytes) - 1

    def payload(self) -> bytes:
        return _payload({name: getattr(self, name) for name in ("request_id", "mode", "tokens", "ends", "first_token", "runs", "more")})

    @classmethod
    def parse(cls, payload: bytes) -> Offer:
        fields = JsonFields(payload, "OFFER")
        request_id, mode = fields.integer("request_id", 0, 1 << 62), fields.text("mode")
        if mode not in ("raw", "lossless", "stream"):
            raise FrameError(f"OFFER: mode must be raw, lossless or stream, not {mode!r}")
        offer = cls(
            request_id,
            cast(TransferMode, mode),
            fields.integer("tokens", 0, COUNT_CAP),
            fields.integers("ends", 1, OFFSET_CAP_BYTES),
            fields.integer("first_token", -1, COUNT_CAP),
            fields.integers("runs", 1, COUNT_CAP),
            fields.scalars("more"),
        )
        fields.end()
        return offer


@dataclass(frozen=True, slots=True)
class Grant:
    """The receiver's answer to an offer: it has reserved memory.

    Parameters
    ----------
    size : int
        The sender may send the first `size` bytes of the offer, and no others.
    held, frames : int
        Payload bytes and DATA frames that the receiver already holds, if the transfer is resumed.
    committed : bool
        The transfer has been committed before. Nothing more may be sent, unless `refining`.
    price : float
        Price of a byte at the receiver's NIC now.
    refining : bool
        The committed transfer still takes refinement.
    """

    size: int
    held: int = 0
    frames: int = 0
    committed: bool = False
    price: float = 0.0
    refining: bool = False

    def __post_init__(self) -> None:
        if self.held > self.size or self.frames > self.held:
            raise FrameError(f"GRANT: {self.held} bytes in {self.frames} frames cannot be held of {self.size}")
        if self.refining and not self.committed:
            raise FrameError("GRANT: a transfer that is not committed cannot be refined")

    def payload(self) -> bytes:
        return _payload({name: getattr(self, name) for name in ("size", "held", "frames", "committed", "price", "refining")})

    @classmethod
    def parse(cls, payload: bytes) -> Grant:
        fields = JsonFields(payload, "GRANT")
        grant = cls(
            fields.integer("size", 1, OFFSET_CAP_BYTES),
            fields.integer("held", 0, OFFSET_CAP_BYTES),
            fields.integer("frames", 0, OFFSET_CAP_BYTES),
            fields.boolean("committed"),
            fields.price("price"),
            fields.boolean("refining"),
        )
        fields.end()
        return grant


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledgement. The bytes held are in the frame's header; the payload is the price, as in a GRANT.

    The price is one little-endian double rather than JSON, because there are many acknowledgements.
    """

    price: float = 0.0

    def payload(self) -> bytes:
        return _PRICE.pack(self.price)

    @classmethod
    def parse(cls, payload: bytes) -> Ack:
        if len(payload) != PRICE_BYTES:
            raise FrameError(f"ACK of {len(payload)} bytes; a price has {PRICE_BYTES}")
        return cls(_price(_PRICE.unpack(payload)[0], "ACK"))


@dataclass(frozen=True, slots=True)
class Commit:
    """The sender has sent all bytes of `cut`; the receiver checks that it has them.

    size: payload bytes sent. digest: xxh3_128, hexadecimal, over the tags of all DATA frames in order, and so over every byte.
    """

    cut: int
    size: int
    digest: str

    def payload(self) -> bytes:
        return _payload({"cut": self.cut, "size": self.size, "digest": self.digest})

    @classmethod
    def parse(cls, payload: bytes) -> Commit:
        fields = JsonFields(payload, "COMMIT")
        commit = cls(fields.integer("cut", 0, LIST_CAP), fields.integer("size", 1, OFFSET_CAP_BYTES), fields.text("digest", 32))
        fields.end()
        return commit


@dataclass(frozen=True, slots=True)
class Abort:
    """The reason, one line, why a side ends a transfer or the connection."""

    reason: str

    def payload(self) -> bytes:
        line = "".join(letter if letter.isprintable() else " " for letter in self.reason[:TEXT_CAP])
        return _payload({"reason": line})

    @classmethod
    def parse(cls, payload: bytes) -> Abort:
        fields = JsonFields(payload, "ABORT")
        abort = cls(fields.text("reason", TEXT_CAP))
        fields.end()
        return abort
