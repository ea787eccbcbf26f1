"""Asks: small transfers by which a decode server tells a prefill server what to do with prefilled KV.

An ask is an offer of one byte whose field `more` holds it, so it is authenticated, resumed and refused as every transfer is.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from abkt.connect.vllm.settings import BITRATES
from abkt.transfer.pieces import PiecesSource
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.send.outgoing import Outgoing

Kind = Literal["fetch", "cancel", "release"]
TEXT_CAP = 512


@dataclass(frozen=True, slots=True)
class Ask:
    """What a decode server wants.

    Parameters
    ----------
    ask : fetch: send the KV of a request. cancel: stop sending it, and forget it. release: forget it.
    request_id : the prefill server's name of the request.
    number : the transfer id that the KV is to have.
    address : where to send it.
    first_token, tokens : the tokens that are missing, from first_token to `tokens`, the length of the prompt.
    bitrate : in place of the prefill server's own; empty: none.
    """

    ask: Kind
    request_id: str
    number: int = 0
    address: str = ""
    first_token: int = 0
    tokens: int = 0
    bitrate: str = ""

    def outgoing(self) -> Outgoing:
        """The ask as a transfer."""
        offer = Offer(self.number, "raw", 0, (1,), more=asdict(self))
        return Outgoing(new_number(), offer, PiecesSource([b"?"]))

    @classmethod
    def of(cls, offer: Offer) -> Ask | None:
        """The ask in an offer; None if it offers KV. Raises ValueError, one line, for a malformed one."""
        if "ask" not in offer.more:
            return None
        kinds = {"ask": str, "request_id": str, "number": int, "address": str, "first_token": int, "tokens": int, "bitrate": str}
        more = dict(offer.more)
        if more.keys() != kinds.keys() or any(type(more[key]) is not kind for key, kind in kinds.items()):
            raise ValueError("an ask must have the fields " + ", ".join(kinds))
        made = cls(**more)  # type: ignore[arg-type]
        if made.ask not in get_args(Kind) or len(made.request_id) > TEXT_CAP or len(made.address) > TEXT_CAP:
            raise ValueError(
                f"ask is {made.ask[:20]!r}; it must be one of {', '.join(get_args(Kind))}, with an id and address of {TEXT_CAP}"
            )
        if made.bitrate not in ("", *BITRATES):
            raise ValueError(f"an ask has the bitrate {made.bitrate[:20]!r}; it may have {', '.join(BITRATES)}")
        if not 0 <= made.number < 1 << 62 or (made.ask == "fetch" and not 0 <= made.first_token < made.tokens):
            raise ValueError(f"an ask for tokens {made.first_token} to {made.tokens}, or number {made.number}, is out of range")
        return made


def new_number() -> int:
    """A transfer id that no other transfer has."""
    return secrets.randbits(61)
