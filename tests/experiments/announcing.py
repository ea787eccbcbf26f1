"""A bitrate policy that says when it decides, so that a test can wait until a run of other processes is under way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from abkt.policy.bitrate.fixed import Raw
from abkt.policy.view import Decision, TransferView

FILE = "TEST_ANNOUNCED"  # the environment variable that names the file


@dataclass(slots=True)
class AnnouncingRaw(Raw):
    """Raw, which makes a file at each decision."""

    def decide(self, now_s: float, view: TransferView) -> Decision:
        Path(os.environ[FILE]).touch()
        return Raw.decide(self, now_s, view)
