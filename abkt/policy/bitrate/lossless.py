"""Lossless compression of every transfer with the fixed exponent code, whatever the link does.

Source: SplitZip (arXiv 2605.01708), fixed-length exponent codes with escapes; here abkt.codec.lossless.stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import LOSSLESS, Stateless
from abkt.policy.view import Decision, TransferView


@dataclass(slots=True)
class Lossless(Stateless):
    """Sends every transfer losslessly coded. Raises ValueError if the profile lacks the lossless mode; this is checked before the first
    request."""

    def decide(self, now_s: float, view: TransferView) -> Decision:
        if view.lossless_bytes <= 0:
            raise ValueError("bitrate lossless: the profile has no encode/lossless and expand/lossless; run `abkt profile` again")
        return LOSSLESS
