"""Strangers open connections and say nothing. A peer that holds the key is served all the same, and one that is served stays."""

import resource
import socket
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.messages import Hello
from abkt.transfer.receive.visitors import Visitors, network_of
from tests.transfer.endpoints import WAIT_S, Endpoints

ROOT = Path(__file__).parents[3]
STRANGERS = 1000
SLOW = Keepalive(ping_s=10.0, silence_s=60.0, greet_s=60.0, resume_s=0.5, hold_s=1.0)  # no stranger leaves by itself


@pytest.fixture
def keyed(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3 * STRANGERS:
        pytest.skip(f"a process may open only {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * STRANGERS), hard))
    endpoints = Endpoints("tcp-keyed", tmp_path)
    yield endpoints
    endpoints.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(address):
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def half_hello():
    """The first bytes of a frame whose rest never comes."""
    return Hello("stranger", "").payload()[:20]


def test_a_thousand_silent_connections_keep_no_peer_out(keyed, outgoing):
    """Half of them send a part of a frame. The silent ones all arrive before the peer, then more arrive with each of its transfers."""
    receiver = keyed.receiver(keepalive=SLOW)
    with ExitStack() as opened:
        for number in range(STRANGERS):
            stranger = opened.enter_context(closing(connect(receiver.address)))
            if number % 2:
                stranger.sendall(half_hello())
        for number in range(12):
            sender = keyed.sender(receiver.address)
            assert not sender.submit(outgoing(number, [b"x" * 1000])).result(WAIT_S).error
            assert receiver.committed().transfer_id == number
            for _ in range(20):
                opened.enter_context(closing(connect(receiver.address)))
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("receive from")]
        assert len(threads) < 300


def test_strangers_push_out_no_peer_that_is_served(keyed, outgoing):
    receiver = keyed.receiver(keepalive=SLOW)
    sender = keyed.sender(receiver.address)
    assert not sender.submit(outgoing(0, [b"x"])).result(WAIT_S).error
    with ExitStack() as opened:
        for _ in range(300):
            opened.enter_context(closing(connect(receiver.address)))
        sent = sender.submit(outgoing(1, [b"x"])).result(WAIT_S)
    assert (sent.error, sent.retries, sent.resumes) == ("", 0, 0)  # over the same connection


def test_an_evicted_stranger_is_disconnected(keyed):
    receiver = keyed.receiver(keepalive=SLOW)
    with ExitStack() as opened:
        first = opened.enter_context(closing(connect(receiver.address)))
        for _ in range(150):
            opened.enter_context(closing(connect(receiver.address)))
        assert first.recv(1) == b""


def test_strangers_do_not_fill_the_log(keyed, caplog):
    receiver = keyed.receiver(keepalive=SLOW)
    for _ in range(30):
        with closing(connect(receiver.address)) as stranger, suppress(ConnectionResetError):
            stranger.sendall(b"GET / HTTP/1.1\r\n" * 10)
            while stranger.recv(4096):  # the ABORT with the reason, then the end
                pass
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("; connection closed")


def test_the_oldest_visitor_of_the_fullest_address_leaves():
    """At most 4 visitors, 3 from one address. Worked by hand."""
    visitors = Visitors(most_peers=1, most=4, most_per_address=3)
    assert [visitors.enter(name, "10.0.0.1:5") for name in ("a", "b", "c")] == [[], [], []]
    assert visitors.enter("d", "10.0.0.1:6") == ["a"]  # its address is full
    assert visitors.enter("e", "10.0.0.2:5") == []
    assert visitors.enter("f", "10.0.0.3:5") == ["b"]  # all is full, and 10.0.0.1 has most
    assert visitors.greet("e")
    assert visitors.enter("g", "10.0.0.2:5") == []  # a peer is no visitor
    assert not visitors.greet("f")  # one peer is enough
    visitors.leave("e")
    assert visitors.greet("g")
    assert visitors.greet("a")  # evicted before, and about to end


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("10.1.2.3:4", "10.1.2.3"),
        ("2001:db8:0:1:2:3:4:5:80", "2001:db8:0:1::/64"),
        ("a peer of /tmp/socket", "a peer of /tmp/socket"),
    ],
)
def test_a_quota_counts_hosts_and_ipv6_sites(peer, network):
    assert network_of(peer) == network


STARVED = """
    import logging, os, resource, sys, threading, time
    from tests.transfer.endpoints import Endpoints
    from pathlib import Path
    from abkt.transfer.pieces import PiecesSource
    from abkt.transfer.protocol.messages import Offer
    from abkt.transfer.send.outgoing import Outgoing
    import torch  # loads what it needs before there are no descriptors left

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    endpoints = Endpoints(sys.argv[1], Path(sys.argv[2]))
    receiver = endpoints.receiver()
    accepts = 0
    listener, accept = receiver._listener, receiver._listener.accept

    def counted(timeout_s):
        global accepts
        accepts += 1
        return accept(timeout_s)

    def transfer(number):
        source = PiecesSource([b"x" * 1000], ())
        sender = endpoints.sender(receiver.address)
        return sender.submit(Outgoing(number, Offer(number, "raw", 16, source.ends), source))

    def one(number):
        result = transfer(number).result(30)
        assert not result.error, result.error
        assert receiver.committed().transfer_id == number

    one(0)
    listener.accept = counted
    connected = endpoints.transport.connect(receiver.address, 30.0)  # the lowest free descriptor of this process is now known
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    os.close(held.pop())
    knocking = endpoints.transport.connect(receiver.address, 30.0)  # takes the last descriptor, so it cannot be accepted
    time.sleep(0.6)
    before = accepts
    time.sleep(1.0)
    print("ACCEPTS", accepts - before)
    for descriptor in held:
        os.close(descriptor)
    one(1)
    knocking.close(), connected.close(), endpoints.close()
    print("SERVED")
"""


@pytest.mark.parametrize("transport", ["tcp-keyed", "unix"])
def test_a_receiver_out_of_descriptors_waits_says_so_once_and_recovers(transport, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STARVED), transport, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    lines = run.stdout.splitlines()
    assert "SERVED" in lines, run.stdout + run.stderr
    accepts = next(int(line.split()[1]) for line in lines if line.startswith("ACCEPTS"))
    assert accepts < 100  # it was tens of thousands
    said = [line.partition(": ")[2] for line in lines if "accepted" in line]
    assert said == ["no connection can be accepted: Too many open files; trying again", "connections are accepted again"]
