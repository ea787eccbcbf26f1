"""The expected cost of a transfer between two real workers. The frontend's quotes and a worker's decision both use it."""

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
    profile : the measured costs; None: coding costs nothing in the view.
    tokens : tokens of KV to transfer.
    deadline_s : when the KV should be usable.
    device : device of the workers' pools. Workers encode the lossless mode and klt for a CPU pool only, so neither is offered on another
        device.
    """
    if profile:
        view = expected_view(profile, tokens, deadline_s)
    else:
        view = unmeasured_view(model.kv_bytes(tokens), deadline_s)
    whole = tokens * model.kv_bytes_per_token / max(1, view.raw_bytes)  # the lossless mode sends KV before a window too
    if device != "cpu":
        return replace(view, lossless_bytes=0.0, klt=None)
    return replace(view, lossless_bytes=view.lossless_bytes * whole)


def quoted(view: TransferView, decision: Decision) -> tuple[float, float, float]:
    """(seconds of encoding, wire bytes, seconds of expanding) expected for a decision, with the coder that it names.

    An entropy coder that was not measured counts as the fixed one.
    """
    encode_s, wire_bytes, expand_s = stage_costs(view, decision)
    if decision.mode == "stream" and decision.coder == "entropy" and view.entropy_share > 0:
        return view.entropy_encode_s, view.entropy_share * wire_bytes, view.entropy_expand_s
    return encode_s, wire_bytes, expand_s
