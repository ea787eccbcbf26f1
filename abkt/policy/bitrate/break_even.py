"""When compression loses: the break-even test that `+off` policies and ours share.

A serial codec wins iff raw_bytes / B > encode + wire_bytes / B + expand, which is B < (1 - 1/r) S with 1/S = 1/S_enc + 1/S_dec
(docs: break-even of a serial codec). Here with this transfer's own bytes and times, so no ratio need be assumed.
"""

from __future__ import annotations

from abkt.policy.view import TransferView


def compression_loses(bytes_per_s: float, view: TransferView, wire_bytes: float) -> bool:
    """True if raw bytes would be usable at least as early as `wire_bytes` of coded ones."""
    raw_s = view.raw_s + view.raw_bytes / bytes_per_s
    return raw_s <= view.encode_s + wire_bytes / bytes_per_s + view.expand_s
