"""What the metadata frames say: bounded JSON, checked field by field into frozen dataclasses. Raises FrameError, one line."""

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


class Fields:
    """The members of one JSON object, taken one by one; what was not asked for is an error at the end."""

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
        """One line, because much of it goes into logs."""
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
        """So many digits, or none at all."""
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
    """The first frame of each side. layout: what both must have in common, as text (model, shapes, dtype, codec).

    instance: hexadecimal, which sender of its node this is, over all its connections; empty if it resumes nothing. security: what every
    frame after the proofs carries; nonce: hexadecimal, fresh for each connection that has a key.
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
        fields = Fields(payload, "HELLO")
        node, layout, instance = fields.text("node"), fields.text("layout", TEXT_CAP), fields.hexadecimal("instance", 2 * INSTANCE_BYTES)
        security, nonce = fields.text("security"), fields.hexadecimal("nonce", 2 * NONCE_BYTES)
        if security not in SECURITIES or (security == "open") != (nonce == ""):
            raise FrameError(f"HELLO: security must be one of {', '.join(SECURITIES)}, and all but open need a nonce")
        fields.end()
        return cls(node, layout, instance, security, nonce)


@dataclass(frozen=True, slots=True)
class Offer:
    """One transfer before it starts.

    ends: the byte at which each cut ends, rising; the last is the size of all that may come. Raw and lossless have one. runs: lengths of
    the adjacent runs on the sender's side, in blocks, for the receiver to mirror. more: what the two workers tell each other besides
    (texts, numbers); it is theirs to check.
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
        """The finest cut whose bytes are all among the first size_bytes; -1 if none is."""
        return bisect_right(self.ends, size_bytes) - 1

    def payload(self) -> bytes:
        return _payload({name: getattr(self, name) for name in ("request_id", "mode", "tokens", "ends", "first_token", "runs", "more")})

    @classmethod
    def parse(cls, payload: bytes) -> Offer:
        fields = Fields(payload, "OFFER")
        request_id, mode = fields.integer("request_id", 0, 1 << 62), fields.text("mode")
        if mode not in ("raw", "lossless", "stream"):
            raise FrameError(f"OFFER: mode must be raw, exact or stream, not {mode!r}")
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
    """The receiver holds memory for the first `size` bytes of an offer; the sender may write those and no others.

    held, frames: payload bytes and DATA frames of it that have come already, of a transfer that is resumed. committed: what was promised is
    there, and nothing may follow, unless it is refining. price: what a byte costs at this receiver now.
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
            raise FrameError("GRANT: what is not committed cannot be refined")

    def payload(self) -> bytes:
        return _payload({name: getattr(self, name) for name in ("size", "held", "frames", "committed", "price", "refining")})

    @classmethod
    def parse(cls, payload: bytes) -> Grant:
        fields = Fields(payload, "GRANT")
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
    """What has come so far stands in the frame's header; price: as in a GRANT. A double, little-endian, because it comes often."""

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
    """What the sender has promised and sent. digest: xxh3_128, hex, over the tags of all DATA frames in order, so over every byte."""

    cut: int
    size: int
    digest: str

    def payload(self) -> bytes:
        return _payload({"cut": self.cut, "size": self.size, "digest": self.digest})

    @classmethod
    def parse(cls, payload: bytes) -> Commit:
        fields = Fields(payload, "COMMIT")
        commit = cls(fields.integer("cut", 0, LIST_CAP), fields.integer("size", 1, OFFSET_CAP_BYTES), fields.text("digest", 32))
        fields.end()
        return commit


@dataclass(frozen=True, slots=True)
class Abort:
    reason: str

    def payload(self) -> bytes:
        line = "".join(letter if letter.isprintable() else " " for letter in self.reason[:TEXT_CAP])
        return _payload({"reason": line})

    @classmethod
    def parse(cls, payload: bytes) -> Abort:
        fields = Fields(payload, "ABORT")
        abort = cls(fields.text("reason", TEXT_CAP))
        fields.end()
        return abort
