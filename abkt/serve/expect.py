"""What a transfer between two real workers is expected to cost. The frontend's quotes and a worker's decision both ask here."""

from __future__ import annotations

from dataclasses import replace

from abkt.policy.bitrate.break_even import stage_costs
from abkt.policy.view import Decision, TransferView
from abkt.profile.expect import expected_view, unmeasured_view
from abkt.profile.schema import Profile
from abkt.spec import ModelSpec


def serving_view(profile: Profile | None, model: ModelSpec, tokens: int, deadline_s: float, device: str = "cpu") -> TransferView:
    """The view of a transfer before its first byte.

    Parameters
    ----------
    profile : what was measured; None: nothing, so that coding costs nothing in the view.
    tokens : of KV that travel.
    deadline_s : when the KV should be usable.
    device : of the workers' pools. Workers encode the lossless mode for a CPU pool only, so it is not offered on another device.
    """
    if profile:
        view = expected_view(profile, tokens, deadline_s)
    else:
        view = unmeasured_view(tokens * model.kv_bytes_per_token, deadline_s)
    return view if device == "cpu" else replace(view, lossless_bytes=0.0)


def quoted(view: TransferView, decision: Decision) -> tuple[float, float, float]:
    """(seconds of encoding, wire bytes, seconds of expanding) that a decision is expected to take, in the coder that it names.

    Where the entropy coder was not measured, it counts as the fixed one.
    """
    encode_s, wire_bytes, expand_s = stage_costs(view, decision)
    if decision.mode == "stream" and decision.coder == "entropy" and view.entropy_share > 0:
        return view.entropy_encode_s, view.entropy_share * wire_bytes, view.entropy_expand_s
    return encode_s, wire_bytes, expand_s
