"""Who is let in: over all transports, with and without a key. Whoever is not harms nobody, and is told and logged once."""

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
from abkt.transfer.protocol.frame import FrameHeader, FrameType, seal
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


def untouched(desk):
    assert desk.aborts.empty()
    assert desk.commits.empty()


bare = pytest.mark.parametrize("house", BARE, indirect=True)  # for what brings its own keys, or comes before them


@bare
@pytest.mark.parametrize("theirs", KEYS)
@pytest.mark.parametrize("ours", KEYS)
def test_only_the_same_key_and_setting_are_let_in(house, outgoing, caplog, ours, theirs):
    asked = []
    desk = house.desk(key=KEYS[ours], sink_of=lambda offer: asked.append(offer) or BufferSink(offer.size))
    house.key = KEYS[theirs]
    sent = house.sender(desk.address).submit(outgoing(1, [b"x" * 1000])).result(WAIT_S)
    if ours == theirs:
        assert not sent.error
        assert desk.committed().sink.data == b"x" * 1000
        assert not caplog.records
        return
    if SECURITY[ours] == SECURITY[theirs]:
        assert sent.error == "decode-0 does not hold the key of prefill-0; give both the same key file"
    else:
        assert f"prefill-0 is {SECURITY[theirs]}, decode-0 is {SECURITY[ours]}; give both the same key" in sent.error
    assert not asked
    untouched(desk)
    house.key = KEYS[ours]
    assert not house.sender(desk.address).submit(outgoing(2, [b"y"])).result(WAIT_S).error
    until_s = time.monotonic() + WAIT_S
    while not caplog.records and time.monotonic() < until_s:  # the receiver may notice after its peer
        time.sleep(0.001)
    assert len(caplog.records) == 1
    assert "key" in caplog.records[0].getMessage()


@bare
def test_a_wrong_proof_is_refused(house, outgoing, caplog):
    """A peer that goes on although the receiver's proof does not fit its key."""
    key = house.key = Key(b"1" * 32)
    desk = house.desk(key=key)
    channel = house.channel(desk.address, greeted=False)
    channel.send(FrameHeader(FrameType.HELLO), [Hello("liar", LAYOUT, security="keyed", nonce="00" * 32).payload()])
    channel.expect(FrameType.HELLO)
    channel.expect(FrameType.PROOF)
    channel.send(FrameHeader(FrameType.PROOF), [bytes(32)])
    with suppress(PeerError):  # it may have gone already
        channel.send(FrameHeader(FrameType.OFFER, 1), [Offer(1, "raw", 1, (10,)).payload()])
    with pytest.raises((PeerError, ValueError)):
        channel.expect(FrameType.GRANT)
    assert not house.sender(desk.address).submit(outgoing(2, [b"y"])).result(WAIT_S).error
    assert desk.committed().transfer_id == 2
    untouched(desk)
    assert [record.getMessage() for record in caplog.records] == [
        "liar: liar does not hold the key of decode-0; give both the same key file; connection closed"
    ]


@bare
def test_a_proof_of_another_connection_is_refused(house, caplog):
    """What an eavesdropper heard, said again: the receiver's nonce is another."""
    key = house.key = Key(b"1" * 32)
    desk = house.desk(key=key)
    hello = Hello("prefill-0", LAYOUT, security="keyed", nonce="ab" * 32)
    for replayed in (False, True):
        channel = house.channel(desk.address, greeted=False)
        channel.send(FrameHeader(FrameType.HELLO), [hello.payload()])
        theirs = Hello.parse(channel.expect(FrameType.HELLO)[1])
        channel.expect(FrameType.PROOF)
        if not replayed:
            proof = SessionKeys.of(key.secret, hello, theirs).first_proof
        channel.send(FrameHeader(FrameType.PROOF), [proof])
        if replayed:
            with pytest.raises((PeerError, ValueError)):
                channel.expect(FrameType.GRANT)
    assert len(caplog.records) == 1
    untouched(desk)


def test_keys_by_another_way():
    """HMAC and HKDF by hand; each field that both must agree on changes every proof and key."""
    first, second = Hello("a", "x", "", "keyed", "01" * 32), Hello("b", "y", "", "keyed", "02" * 32)
    said = [b"\x02\x00", first.payload(), second.payload()]
    transcript = hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in said)).digest()
    salt = bytes([1]) * 32 + bytes([2]) * 32
    made = HKDF(SHA256(), 96, salt, b"abkt transfer session\0" + transcript).derive(b"s" * 32)
    keys = SessionKeys.of(b"s" * 32, first, second)
    assert keys.first_proof == hmac.new(made[:32], b"first\0" + transcript, "sha256").digest()
    assert keys.second_proof == hmac.new(made[:32], b"second\0" + transcript, "sha256").digest()
    assert (keys.first_key, keys.second_key) == (made[32:64], made[64:])
    others = [
        SessionKeys.of(b"t" * 32, first, second),
        SessionKeys.of(b"s" * 32, second, first),
        *(SessionKeys.of(b"s" * 32, Hello(*change), second) for change in changes(first)),
    ]
    seen = {value for each in [keys, *others] for value in (each.first_proof, each.second_proof, each.first_key, each.second_key)}
    assert len(seen) == 4 * (1 + len(others))


def changes(hello):
    fields = [hello.node, hello.layout, hello.instance, hello.security, hello.nonce]
    for index, other in enumerate(["c", "z", "0" * 32, "encrypted", "03" * 32]):
        yield [*fields[:index], other, *fields[index + 1 :]]


def test_another_layout_is_refused_with_both_named(house, outgoing, caplog):
    desk = house.desk()
    sent = house.sender(desk.address, layout="another model").submit(outgoing(1, [b"x"])).result(WAIT_S)
    assert "prefill-0 has layout 'another model', decode-0 has 'model of the tests, 2 layers'" in sent.error
    untouched(desk)
    assert len(caplog.records) == 1
    assert not house.sender(desk.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error


def test_another_protocol_version_is_refused(house, outgoing, caplog):
    desk = house.desk()
    channel = house.channel(desk.address, greeted=False)
    frame = bytearray(seal(FrameHeader(FrameType.HELLO, length=2), [b"{}"]) + b"{}")
    frame[4] = 9
    channel.connection.send([frame], lambda: None)
    with pytest.raises(PeerError, match="version 9, this side 2"):
        channel.expect(FrameType.HELLO)
    assert not house.sender(desk.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error
    assert len(caplog.records) == 1


def test_a_stranger_that_says_no_hello(house):
    desk = house.desk()
    channel = house.channel(desk.address, greeted=False)
    channel.send(FrameHeader(FrameType.OFFER, 1), [Offer(1, "raw", 1, (10,)).payload()])
    with pytest.raises(PeerError, match="OFFER frame came out of turn"):
        channel.expect(FrameType.GRANT)


@bare
@pytest.mark.parametrize("chatty", [False, True])
def test_a_stranger_is_not_waited_for_long(house, outgoing, caplog, chatty):
    """Silent, or alive but never saying who it is."""
    desk = house.desk(keepalive=Keepalive(ping_s=0.2, silence_s=2.0, greet_s=0.6))
    alive = Keepalive(ping_s=0.1 if chatty else WAIT_S, silence_s=2 * WAIT_S)
    channel = house.channel(desk.address, greeted=False, keepalive=alive)
    with pytest.raises(PeerLost):
        listen(channel)
    name, _, rest = caplog.records[0].getMessage().partition(": ")
    assert rest == f"{name} has not proved who it is within 0.6 s; connection closed"
    assert len(caplog.records) == 1
    assert not house.sender(desk.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error


def listen(channel):
    while True:
        if channel.arrived(0.1):
            channel.aside(channel.header())


@bare
def test_a_receiver_that_never_answers_is_left(house, outgoing):
    listener = house.listener()
    keepalive = Keepalive(ping_s=0.2, silence_s=WAIT_S, greet_s=0.5)
    sent = house.sender(listener.address, keepalive=keepalive).submit(outgoing(1, [b"x"])).result(WAIT_S)
    assert sent.error.endswith("has not proved who it is within 0.5 s")


def test_so_many_peers_and_no_more(house, outgoing, caplog):
    desk = house.desk(most_peers=2)
    channels = [house.channel(desk.address) for _ in range(2)]
    for _ in range(3):
        assert house.sender(desk.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "a connection more than the 2 served at a time; closed, as are those after it"
    ]
    channels[0].connection.abort()
    deadline_s = time.monotonic() + WAIT_S
    while house.sender(desk.address).submit(outgoing(1, [b"x"])).result(WAIT_S).error:
        assert time.monotonic() < deadline_s
    assert desk.committed().transfer_id == 1


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


def test_with_a_key_any_address_is_served(outgoing):
    """All addresses of this machine; reached over loopback, where the tests stay."""
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


def test_on_the_wire_a_secret_is_hidden_only_if_asked(house, outgoing):
    desk = house.desk()
    transport, heard = type(house.transport)(), bytearray()
    connect, house.transport = transport.connect, transport
    transport.connect = lambda *where, **how: Tapped(connect(*where, **how), heard)
    assert not house.sender(desk.address).submit(outgoing(1, [b"secret" * 100], more={"secret": 1})).result(WAIT_S).error
    assert desk.committed().sink.data == b"secret" * 100
    assert len(heard) > 600
    assert (b"secret" in heard) == (not (house.key and house.key.encrypt))
    assert b"kkkkkkkk" not in heard
    assert b"eeeeeeee" not in heard


class Tapped:
    """A connection of which every byte that leaves is heard."""

    def __init__(self, connection, heard):
        self._connection, self._heard = connection, heard

    def send(self, buffers, waiting):
        self._heard.extend(b"".join(buffers))
        return self._connection.send(buffers, waiting)

    def __getattr__(self, name):
        return getattr(self._connection, name)
