"""The handshake over all transports, with and without a key. A refused peer gets the reason, is logged once and disturbs no other peer."""

import hashlib
import hmac
import threading
import time
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.frame import VERSION, FrameHeader, FrameType, seal
from abkt.transfer.protocol.handshake import SessionKeys
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.send.sender import Sender
from abkt.transfer.transport import PeerError, PeerLost
from abkt.transfer.transports.tcp import Tcp
from tests.transfer.backends import BARE

WAIT_S = 30.0
LAYOUT = "model of the tests, 2 layers"
KEYS = {"none": None, "one": Key(b"1" * 32), "other": Key(b"2" * 32), "hidden": Key(b"1" * 32, encrypt=True)}
SECURITY = {"none": "open", "one": "keyed", "other": "keyed", "hidden": "encrypted"}


def untouched(receiver):
    assert receiver.aborts.empty()
    assert receiver.commits.empty()


bare = pytest.mark.parametrize("endpoints", BARE, indirect=True)  # for tests that have their own keys, or that end before a key matters


@bare
@pytest.mark.parametrize("theirs", KEYS)
@pytest.mark.parametrize("ours", KEYS)
def test_only_peers_with_the_same_key_and_setting_are_accepted(endpoints, outgoing, caplog, ours, theirs):
    asked = []
    receiver = endpoints.receiver(key=KEYS[ours], sink_of=lambda offer: asked.append(offer) or BufferSink(offer.size))
    endpoints.key = KEYS[theirs]
    sent = endpoints.sender(receiver.address).submit(outgoing(1, [b"x" * 1000])).result(WAIT_S)
    if ours == theirs:
        assert not sent.error
        assert receiver.committed().sink.data == b"x" * 1000
        assert not caplog.records
        return
    if SECURITY[ours] == SECURITY[theirs]:
        assert sent.error == "decode-0 does not hold the key of prefill-0; give both the same key file"
    else:
        assert f"prefill-0 is {SECURITY[theirs]}, decode-0 is {SECURITY[ours]}; give both the same key" in sent.error
    assert not asked
    untouched(receiver)
    endpoints.key = KEYS[ours]
    assert not endpoints.sender(receiver.address).submit(outgoing(2, [b"y"])).result(WAIT_S).error
    until_s = time.monotonic() + WAIT_S
    while not caplog.records and time.monotonic() < until_s:  # the receiver may notice later than its peer
        time.sleep(0.001)
    assert len(caplog.records) == 1
    assert "key" in caplog.records[0].getMessage()


@bare
def test_a_wrong_proof_is_refused(endpoints, outgoing, caplog):
    """The peer continues although the receiver's proof does not match its key."""
    key = endpoints.key = Key(b"1" * 32)
    receiver = endpoints.receiver(key=key)
    channel = endpoints.channel(receiver.address, handshake=False)
    channel.send(FrameHeader(FrameType.HELLO), [Hello("liar", LAYOUT, security="keyed", nonce="00" * 32).payload()])
    channel.expect(FrameType.HELLO)
    channel.expect(FrameType.PROOF)
    channel.send(FrameHeader(FrameType.PROOF), [bytes(32)])
    with suppress(PeerError):  # the receiver may have closed the connection already
        channel.send(FrameHeader(FrameType.OFFER, 1), [Offer(1, "raw", 1, (10,)).payload()])
    with pytest.raises((PeerError, ValueError)):
        channel.expect(FrameType.GRANT)
    assert not endpoints.sender(receiver.address).submit(outgoing(2, [b"y"])).result(WAIT_S).error
    assert receiver.committed().transfer_id == 2
    untouched(receiver)
    assert [record.getMessage() for record in caplog.records] == [
        "liar: liar does not hold the key of decode-0; give both the same key file; connection closed"
    ]


@bare
def test_a_proof_of_another_connection_is_refused(endpoints, caplog):
    """An eavesdropper replays a recorded proof. It fails, because the receiver's nonce is new."""
    key = endpoints.key = Key(b"1" * 32)
    receiver = endpoints.receiver(key=key)
    hello = Hello("prefill-0", LAYOUT, security="keyed", nonce="ab" * 32)
    for replayed in (False, True):
        channel = endpoints.channel(receiver.address, handshake=False)
        channel.send(FrameHeader(FrameType.HELLO), [hello.payload()])
        theirs = Hello.parse(channel.expect(FrameType.HELLO)[1])
        channel.expect(FrameType.PROOF)
        if not replayed:
            proof = SessionKeys.of(key.secret, hello, theirs).client_proof
        channel.send(FrameHeader(FrameType.PROOF), [proof])
        if replayed:
            with pytest.raises((PeerError, ValueError)):
                channel.expect(FrameType.GRANT)
    assert len(caplog.records) == 1
    untouched(receiver)


def test_session_keys_equal_hmac_and_hkdf_computed_independently():
    """Each field that both sides must agree on changes every proof and key."""
    first, second = Hello("a", "x", "", "keyed", "01" * 32), Hello("b", "y", "", "keyed", "02" * 32)
    said = [b"\x03\x00", first.payload(), second.payload()]
    transcript = hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in said)).digest()
    salt = bytes([1]) * 32 + bytes([2]) * 32
    made = HKDF(SHA256(), 96, salt, b"abkt transfer session\0" + transcript).derive(b"s" * 32)
    keys = SessionKeys.of(b"s" * 32, first, second)
    assert keys.client_proof == hmac.new(made[:32], b"first\0" + transcript, "sha256").digest()
    assert keys.server_proof == hmac.new(made[:32], b"second\0" + transcript, "sha256").digest()
    assert (keys.client_key, keys.server_key) == (made[32:64], made[64:])
    others = [
        SessionKeys.of(b"t" * 32, first, second),
        SessionKeys.of(b"s" * 32, second, first),
        *(SessionKeys.of(b"s" * 32, Hello(*change), second) for change in changes(first)),
    ]
    seen = {value for each in [keys, *others] for value in (each.client_proof, each.server_proof, each.client_key, each.server_key)}
    assert len(seen) == 4 * (1 + len(others))


def changes(hello):
    fields = [hello.node, hello.layout, hello.instance, hello.security, hello.nonce]
    for index, other in enumerate(["c", "z", "0" * 32, "encrypted", "03" * 32]):
        yield [*fields[:index], other, *fields[index + 1 :]]


def test_another_layout_is_refused_naming_both_layouts(endpoints, outgoing, caplog):
    receiver = endpoints.receiver()
    sent = endpoints.sender(receiver.address, layout="another model").submit(outgoing(1, [b"x"])).result(WAIT_S)
    assert "prefill-0 has layout 'another model', decode-0 has 'model of the tests, 2 layers'" in sent.error
    untouched(receiver)
    assert len(caplog.records) == 1
    assert not endpoints.sender(receiver.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error


def test_another_protocol_version_is_refused_in_one_clear_line(endpoints, outgoing, caplog):
    """The peer sends the HELLO of an older release."""
    receiver = endpoints.receiver()
    channel = endpoints.channel(receiver.address, handshake=False)
    frame = bytearray(seal(FrameHeader(FrameType.HELLO, length=2), [b"{}"]) + b"{}")
    frame[4:6] = (VERSION - 1).to_bytes(2, "little")
    channel.connection.send([frame], lambda: None)
    with pytest.raises(PeerError, match=f"peer speaks protocol version {VERSION - 1}, this side {VERSION}; run the same release on both"):
        channel.expect(FrameType.HELLO)
    assert not endpoints.sender(receiver.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error
    assert len(caplog.records) == 1


def test_a_peer_that_sends_no_hello_is_refused(endpoints):
    receiver = endpoints.receiver()
    channel = endpoints.channel(receiver.address, handshake=False)
    channel.send(FrameHeader(FrameType.OFFER, 1), [Offer(1, "raw", 1, (10,)).payload()])
    with pytest.raises(PeerError, match="OFFER frame came out of turn"):
        channel.expect(FrameType.GRANT)


@bare
@pytest.mark.parametrize("pings", [False, True])
def test_a_peer_that_does_not_finish_the_handshake_is_closed(endpoints, outgoing, caplog, pings):
    """The peer is silent, or sends PINGs but no HELLO."""
    receiver = endpoints.receiver(keepalive=Keepalive(ping_s=0.2, silence_s=2.0, greet_s=0.6))
    alive = Keepalive(ping_s=0.1 if pings else WAIT_S, silence_s=2 * WAIT_S)
    channel = endpoints.channel(receiver.address, handshake=False, keepalive=alive)
    with pytest.raises(PeerLost):
        listen(channel)
    name, _, rest = caplog.records[0].getMessage().partition(": ")
    assert rest == f"{name} has not completed the handshake within 0.6 s; connection closed"
    assert len(caplog.records) == 1
    assert not endpoints.sender(receiver.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error


def listen(channel):
    while True:
        if channel.arrived(0.1):
            channel.control_frame(channel.header())


@bare
def test_a_receiver_that_never_answers_is_given_up(endpoints, outgoing):
    listener = endpoints.listener()
    keepalive = Keepalive(ping_s=0.2, silence_s=WAIT_S, greet_s=0.5)
    sent = endpoints.sender(listener.address, keepalive=keepalive).submit(outgoing(1, [b"x"])).result(WAIT_S)
    assert sent.error.endswith("has not completed the handshake within 0.5 s")


def test_peers_above_the_limit_are_refused_with_the_reason(endpoints, outgoing):
    receiver = endpoints.receiver(most_peers=2)
    channels = [endpoints.channel(receiver.address) for _ in range(2)]
    deadline_s = time.monotonic() + WAIT_S
    while len(receiver._visitors._peers) < 2:  # with a key, the peer's last word may still be on its way
        assert time.monotonic() < deadline_s
    for _ in range(3):
        sent = endpoints.sender(receiver.address).submit(outgoing(1, [b"x"])).result(WAIT_S)
        assert "2 peers are connected already" in sent.error
    channels[0].connection.abort()
    deadline_s = time.monotonic() + WAIT_S
    while endpoints.sender(receiver.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error:
        assert time.monotonic() < deadline_s
    assert receiver.committed().transfer_id == 1


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:80", "[::]:0"])
def test_a_public_address_needs_a_key(address):
    hello = Hello("a", LAYOUT)
    with pytest.raises(ValueError, match="not loopback, so it needs a key: give key_file, or set ABKT_KEY_FILE"):
        Receiver(Tcp(), address, hello, lambda peer, offer: None, lambda received: None, lambda received, reason: None)
    with pytest.raises(ValueError, match="needs a key"):
        Tcp().connect(address, 1.0)


def test_a_refused_address_fails_the_transfer(outgoing):
    sender = Sender(Tcp(), "192.0.2.1:80", Hello("a", LAYOUT))
    assert "needs a key" in sender.submit(outgoing(1, [b"x"])).result(WAIT_S).error
    sender.close()


def test_with_a_key_a_receiver_serves_any_address(outgoing):
    """The receiver listens on all addresses; the test connects over loopback."""
    key, got = Key(b"1" * 32), threading.Event()
    receiver = Receiver(
        Tcp(),
        "0.0.0.0:0",
        Hello("a", LAYOUT),
        lambda peer, offer: BufferSink(offer.size),
        lambda received: got.set(),
        lambda received, reason: None,
        key=key,
    )
    sender = Sender(Tcp(), f"127.0.0.1:{receiver.address.rpartition(':')[2]}", Hello("b", LAYOUT), key=key)
    assert not sender.submit(outgoing(1, [b"x"])).result(WAIT_S).error
    assert got.wait(WAIT_S)
    sender.close()
    receiver.close()


def test_payloads_are_encrypted_on_the_wire_only_if_configured(endpoints, outgoing):
    receiver = endpoints.receiver()
    transport, heard = type(endpoints.transport)(), bytearray()
    connect, endpoints.transport = transport.connect, transport
    transport.connect = lambda *where, **how: TappedConnection(connect(*where, **how), heard)
    assert not endpoints.sender(receiver.address).submit(outgoing(1, [b"secret" * 100], more={"secret": 1})).result(WAIT_S).error
    assert receiver.committed().sink.data == b"secret" * 100
    assert len(heard) > 600
    assert (b"secret" in heard) == (not (endpoints.key and endpoints.key.encrypt))
    assert b"kkkkkkkk" not in heard
    assert b"eeeeeeee" not in heard


class TappedConnection:
    """A connection that records every byte it sends."""

    def __init__(self, connection, heard):
        self._connection, self._frames_received = connection, heard

    def send(self, buffers, on_wait):
        self._frames_received.extend(b"".join(buffers))
        return self._connection.send(buffers, on_wait)

    def __getattr__(self, name):
        return getattr(self._connection, name)
