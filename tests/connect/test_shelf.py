"""The shelf of prefilled KV, without a clock: an ask that comes too early, too late, or for something else; leases; memory."""

from __future__ import annotations

import pytest

from abkt.connect.vllm.ask import Ask
from abkt.connect.vllm.metadata import Send
from abkt.connect.vllm.shelf import UNKNOWN_S, Shelf

ASK = Ask("fetch", "a", 1, "h:1", 0, 64)
SEND = Send((1, 2), 64)


def test_an_ask_may_come_before_its_request_but_not_forever() -> None:
    shelf = Shelf(60.0, 100)
    assert not shelf.known(ASK, 0.0)
    assert not shelf.known(ASK, UNKNOWN_S - 0.1)
    with pytest.raises(ValueError, match="the KV of request a is not here"):
        shelf.known(ASK, UNKNOWN_S)
    assert not shelf.known(ASK, UNKNOWN_S + 1.0), "it was told, so a later ask waits again"
    shelf.put("a", SEND, 7.0)
    assert shelf.known(ASK, 8.0)
    with pytest.raises(ValueError, match="request a has 64 tokens, not 65 from 0"):
        shelf.known(Ask("fetch", "a", 1, "h:1", 0, 65), 8.0)


def test_what_nobody_fetches_is_dropped_when_its_lease_ends_and_what_is_being_sent_is_not() -> None:
    shelf = Shelf(60.0, 100)
    kept, sending = shelf.put("a", SEND, 0.0), shelf.put("b", SEND, 0.0)
    sending.sending[1] = None  # type: ignore[assignment]
    assert shelf.sweep(59.9) == []
    assert shelf.sweep(60.0) == [kept]
    assert len(shelf) == 1
    with pytest.raises(ValueError, match="it was fetched, or its lease has expired"):
        shelf.known(ASK, 60.1)
    sending.sending.clear()
    sending.dropped = True
    assert shelf.sweep(0.0) == [sending]


def test_memory_is_bounded_but_a_single_request_always_fits() -> None:
    shelf = Shelf(60.0, 100)
    assert shelf.has_room(1000)
    kept = shelf.put("a", SEND, 0.0)
    shelf.hold(kept, 80)
    assert shelf.has_room(20)
    assert not shelf.has_room(21)
    kept.dropped = True
    shelf.sweep(0.0)
    assert shelf.has_room(100), "what was dropped has given its memory back"
