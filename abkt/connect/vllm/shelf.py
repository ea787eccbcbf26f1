"""The KV of finished requests that waits for decode servers: what is known, until when each is kept, and how much memory they take.

The outbox uses it under its lock; it has no clock and no thread of its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from abkt.codec.stream import Stream
from abkt.connect.vllm.ask import Ask
from abkt.connect.vllm.layout import CODEC_TOKENS
from abkt.connect.vllm.metadata import Send
from abkt.kv.pool import Pool
from abkt.transfer.send.outgoing import Outgoing

UNKNOWN_S = 5.0  # how long an ask may come before the request it names: the response travels faster than the step that follows it
GONE = 4096  # requests whose names are remembered after they were fetched or dropped


@dataclass(slots=True, eq=False)
class Kept:
    """The KV of one finished request.

    pool: its copy; None before, and once it is not needed. stream: the copy, coded. sending: transfers that read it. dropped: nobody wants
    it any more. until_s: when its lease ends.
    """

    request_id: str
    send: Send
    added_s: float
    until_s: float
    pool: Pool | None = None
    stream: Stream | None = None
    encode_s: float = 0.0
    held_bytes: int = 0
    sending: dict[int, Outgoing] = field(default_factory=dict)
    dropped: bool = False


class Shelf:
    """lease_s: how long KV is kept for a decode server. memory_bytes: for all of it; a single request may have more."""

    def __init__(self, lease_s: float, memory_bytes: int) -> None:
        self._lease_s, self._memory_bytes = lease_s, memory_bytes
        self._kept: dict[str, Kept] = {}
        self._gone: deque[str] = deque(maxlen=GONE)
        self._asked: dict[str, float] = {}  # request that is not known yet -> when it was first asked for
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, request_id: str, send: Send, now_s: float) -> Kept:
        """A request has finished."""
        self._asked.pop(request_id, None)
        self._kept[request_id] = kept = Kept(request_id, send, now_s, now_s + self._lease_s)
        return kept

    def get(self, request_id: str) -> Kept | None:
        return self._kept.get(request_id)

    def known(self, ask: Ask, now_s: float) -> bool:
        """Whether the request of an ask is here; False: it may come soon. Raises ValueError, one line, if it is not, and will not be."""
        kept = self._kept.get(ask.request_id)
        if kept and not kept.dropped:
            if kept.send.tokens != ask.tokens or ask.first_token % CODEC_TOKENS:
                raise ValueError(f"request {ask.request_id} has {kept.send.tokens} tokens, not {ask.tokens} from {ask.first_token}")
            return True
        first_s = self._asked.setdefault(ask.request_id, now_s)
        if ask.request_id in self._gone or now_s - first_s >= UNKNOWN_S:
            self._asked.pop(ask.request_id, None)
            raise ValueError(f"the KV of request {ask.request_id} is not here; it was fetched, or its lease has expired")
        return False

    def has_room(self, size_bytes: int) -> bool:
        return not self._held_bytes or self._held_bytes + size_bytes <= self._memory_bytes

    def hold(self, kept: Kept, more_bytes: int) -> None:
        """Count memory of a request; negative: it was given back."""
        kept.held_bytes += more_bytes
        self._held_bytes += more_bytes

    def sweep(self, now_s: float) -> list[Kept]:
        """Forget requests that nobody needs, or whose lease has ended; returns them."""
        over = [kept for kept in self._kept.values() if not kept.sending and (kept.dropped or now_s >= kept.until_s)]
        for kept in over:
            self.hold(kept, -kept.held_bytes)
            del self._kept[kept.request_id]
            self._gone.append(kept.request_id)
        for request_id in [each for each, first_s in self._asked.items() if now_s - first_s > 2 * UNKNOWN_S]:
            del self._asked[request_id]
        return over

    def clear(self) -> None:
        self._kept.clear()
