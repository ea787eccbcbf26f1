"""Fixtures of all transfer tests: endpoints over every transport, connected pairs, and a clock that advances only by sleeping."""

import threading

import pytest

from abkt.transfer.pieces import PiecesSource
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.send.outgoing import Outgoing
from tests.transfer.endpoints import CASES, WAIT_S, Endpoints


class FakeClock:
    def __init__(self, now_s=0.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s

    def sleep(self, duration_s):
        assert duration_s > 0
        self.now_s += duration_s


@pytest.fixture(params=CASES)
def endpoints(request, tmp_path):
    before = set(threading.enumerate())
    try:
        endpoints = Endpoints(request.param, tmp_path)
    except ValueError as missing:  # a library or a device that this machine does not have
        pytest.skip(str(missing))
    yield endpoints
    endpoints.close()
    assert not [thread.name for thread in threading.enumerate() if thread not in before], "threads outlived close()"


@pytest.fixture
def ends_of(tmp_path):
    """ends_of(transport): the two connections of a pair; the second one is the accepted one."""
    opened = []

    def make(transport, silence_s=WAIT_S):
        listener = transport.listen(str(tmp_path / "socket"), silence_s)
        there = transport.connect(listener.address, silence_s)
        here = listener.accept(WAIT_S)
        listener.close()
        opened.extend([here, there])
        return there, here

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture(scope="session")
def fake_clock():
    return FakeClock


@pytest.fixture(scope="session")
def outgoing():
    """outgoing(transfer_id, pieces, ends=…, **options): one raw transfer, or a stream if it has ends."""

    def make(transfer_id, pieces, ends=(), more=None, **options):
        source = PiecesSource(pieces, ends)
        offer = Offer(transfer_id, "stream" if ends else "raw", 16, source.ends, more=more or {})
        return Outgoing(transfer_id, offer, source, **options)

    return make
