"""Traffic over plain sockets for the namespace tests: `python traffic.py WHAT ADDRESS [AMOUNT]` inside a namespace."""

from __future__ import annotations

import json
import select
import socket
import sys
import time

PORT = 5201


def sink(address: str) -> None:
    """Receive what one peer sends. Prints rows (seconds, bytes so far), at most one every 20 ms."""
    with socket.create_server((address, PORT)) as listening:
        print("up", flush=True)
        connected, _ = listening.accept()
        rows, total, buffer = [], 0, bytearray(1 << 20)
        with connected:
            while got := connected.recv_into(buffer):
                total += got
                if not rows or time.monotonic() >= rows[-1][0] + 0.02:
                    rows.append((time.monotonic(), total))
    print(json.dumps(rows))


def many(address: str, senders: int) -> None:
    """Bytes per second from each of several peers, from when all are connected to when the first one ends."""
    with socket.create_server((address, PORT), backlog=senders) as listening:
        print("up", flush=True)
        connected = [listening.accept()[0] for _ in range(senders)]
    begun_s, total, buffer, ended = time.monotonic(), [0] * senders, bytearray(1 << 20), False
    while not ended:
        for one in select.select(connected, (), ())[0]:
            got = one.recv_into(buffer)
            total[connected.index(one)] += got
            ended = ended or not got
    print(json.dumps([size / (time.monotonic() - begun_s) for size in total]))
    for one in connected:
        one.close()


def pump(address: str, seconds: float) -> None:
    """Send as much as the connection takes."""
    end_s = time.monotonic() + seconds
    with socket.create_connection((address, PORT)) as connected:
        while time.monotonic() < end_s:
            try:
                connected.sendall(bytes(1 << 16))
            except ConnectionError:  # the receiver has closed the connection
                return


def echo(address: str) -> None:
    """Send every datagram back, until an empty one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind((address, PORT))
        print("up", flush=True)
        while (came := there.recvfrom(2048))[0]:
            there.sendto(*came)


def ping(address: str, count: float) -> None:
    """Round trips in seconds."""
    trips = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.settimeout(1.0)
        for number in range(int(count)):
            sent_s = time.monotonic()
            here.sendto(str(number).encode(), (address, PORT))
            here.recv(2048)
            trips.append(time.monotonic() - sent_s)
        here.sendto(b"", (address, PORT))
    print(json.dumps(trips))


def spray(address: str, count: float) -> None:
    """`count` numbered datagrams, slowly enough that no queue drops one, then empty ones."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        for number in range(int(count)):
            here.sendto(str(number).encode(), (address, PORT))
            if number % 20 == 0:
                time.sleep(0.002)
        time.sleep(0.3)
        for _ in range(20):
            here.sendto(b"", (address, PORT))


def count(address: str) -> None:
    """How many datagrams came, until an empty one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind((address, PORT))
        there.settimeout(30.0)
        print("up", flush=True)
        came = 0
        while there.recv(2048):
            came += 1
    print(came)


if __name__ == "__main__":
    what = {"sink": sink, "echo": echo, "count": count}.get(sys.argv[1])
    if what:
        what(sys.argv[2])
    else:
        {"pump": pump, "ping": ping, "spray": spray}[sys.argv[1]](sys.argv[2], float(sys.argv[3]))
