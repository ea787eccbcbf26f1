"""A link with delay and loss for kernels without netem: two TAP devices, and this process, which passes frames between them.

`python -m abkt.net.relay CONFIG` creates both devices in its namespace and prints a line when they are ready. The process that started it
then moves them to their namespaces. For each line on its stdin it prints a report as JSON, and it ends when its stdin is closed.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from abkt.net.delay_line import DelayLine

TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
NICE = -10
BATCH = 64  # packets read from one side before the other side is served


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """devices: names of the two TAP devices. delay_s, loss: of each direction; losses are drawn independently."""

    devices: tuple[str, str]
    mtu: int
    delay_s: float
    loss: float
    seed: int


class Relay:
    """Passes frames between two file descriptors, through a delay line for each direction.

    ends: non-blocking file descriptors on which each read or write is one frame. lines: lines[i] delays the frames read from ends[i].
    frame_bytes: size of the largest frame.
    """

    def __init__(self, ends: Sequence[int], lines: Sequence[DelayLine], frame_bytes: int) -> None:
        self.lines = list(lines)
        self._ends = list(ends)
        self._frame_bytes = frame_bytes

    def step(self, control: int) -> bool:
        """Wait until a frame comes or is due, or `control` is readable, and pass frames on. Returns whether `control` is readable."""
        # select rather than epoll, whose timeout has a resolution of 1 ms: a tenth of a 10 ms delay.
        wait_s = min(line.next_s() for line in self.lines) - time.monotonic()
        readable, _, _ = select.select([*self._ends, control], (), (), min(max(wait_s, 0.0), 1.0))
        for index, end in enumerate(self._ends):
            if end in readable:
                self._read_frames(end, self.lines[index])
        for index, line in enumerate(self.lines):
            self._write_due(line, self._ends[1 - index])
        return control in readable

    def report(self) -> dict[str, float]:
        """Frames passed and lost so far in both directions, and how late they were sent: on average and at worst."""
        passed = sum(line.passed for line in self.lines)
        return {
            "passed": passed,
            "lost": sum(line.lost for line in self.lines),
            "late_mean_s": sum(line.late_sum_s for line in self.lines) / max(1, passed),
            "late_s": max(line.late_s for line in self.lines),
        }

    def _read_frames(self, end: int, line: DelayLine) -> None:
        size = self._frame_bytes
        try:
            for _ in range(BATCH):
                packet = os.read(end, size)
                line.put(time.monotonic(), packet)
        except BlockingIOError:
            pass

    def _write_due(self, line: DelayLine, end: int) -> None:
        now_s = time.monotonic()
        while (packet := line.take(now_s)) is not None:
            try:
                os.write(end, packet)
            except OSError:  # the other device is not up yet, or is gone
                line.lost += 1


def open_tap(device: str) -> int:
    """The file descriptor of a new TAP device in this process's namespace. Raises OSError."""
    tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def main() -> None:
    with suppress(PermissionError):  # a higher priority where permitted: lateness adds to the delay of the link
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    values = json.loads(sys.argv[1])
    config = RelayConfig(**{**values, "devices": tuple(values["devices"])})
    ends = [open_tap(device) for device in config.devices]
    lines = [DelayLine(config.delay_s, config.loss, 2 * config.seed + way) for way in range(2)]
    relay = Relay(ends, lines, config.mtu + 64)
    print(json.dumps({"ready": asdict(config)}), flush=True)
    while True:
        if relay.step(control=0):
            if not os.read(0, 4096):
                return
            print(json.dumps(relay.report()), flush=True)


if __name__ == "__main__":
    main()
