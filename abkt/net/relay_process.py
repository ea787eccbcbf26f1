"""Starts a relay in a namespace, asks it for reports, and ends it."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from abkt.module_process import module_command, module_environment
from abkt.net.command import NetworkError
from abkt.net.relay import TUN, RelayConfig

ANSWER_S = 10.0


class RelayProcess:
    """A running relay (see relay.py). where: prefix that runs a command in the namespace in which both devices are created.

    Raises NetworkError if it cannot be started.
    """

    def __init__(self, where: Sequence[str], mtu: int, delay_s: float, loss: float, seed: int) -> None:
        if not os.path.exists(TUN):
            raise NetworkError(f"delay and loss need {TUN}, which this machine does not have")
        self.devices = ("tap0", "tap1")
        config = RelayConfig(self.devices, mtu, delay_s, loss, seed)
        self.process = subprocess.Popen(
            [*where, *module_command("abkt.net.relay", json.dumps(asdict(config)))],
            env=module_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C goes to the process that holds the relay, which then closes it
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def report(self) -> dict[str, Any]:
        """Packets passed and lost so far in both directions, and how late they were sent: on average and at worst."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"report\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise NetworkError("the relay has ended") from None
        return self._answer()

    def close(self) -> None:
        """End the process by closing its stdin, or kill it after 2 s."""
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        ready, _, _ = select.select([self.process.stdout], (), (), ANSWER_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.process.kill()
            said = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            raise NetworkError(f"the relay of delay and loss did not answer: {said[-1] if said else 'it said nothing'}")
        return dict(json.loads(line))
