"""Every bit, in fewer bytes: the fixed exponent code, whatever the link does.

Source: SplitZip (arXiv 2605.01708), fixed-length exponent codes with escapes; here abkt.codec.lossless.stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import LOSSLESS, Blind
from abkt.policy.view import Decision, TransferView


@dataclass(slots=True)
class Lossless(Blind):
    """Refuses (ValueError) where the lossless mode is not to be had; both worlds ask before their first request."""

    def decide(self, now_s: float, view: TransferView) -> Decision:
        if view.lossless_bytes <= 0:
            raise ValueError("bitrate lossless: the profile has no encode/lossless and expand/lossless; run `abkt profile` again")
        return LOSSLESS
