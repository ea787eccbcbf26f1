"""A request that the frontend has open, and the terms of the run that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.records import RequestRecord, TransferRecord
from abkt.serve.merge import Parts
from abkt.serve.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all requests of a run. bitrate: a policy's configuration. most_tokens: of one request, prompt and output; refusal:
    what to say of more. replace: start another worker for one that has died. longest: the prompt whose KV is sent, where compute is paced.
    """

    bitrate: Mapping[str, Any]
    network: Capacity
    pacing: str
    slo_ttft_s: float
    profile: Profile | None
    compute: str = "real"
    most_tokens: int = 0
    refusal: str = ""
    replace: bool = False
    longest: tuple[int, ...] = ()


@dataclass(slots=True)
class Ticket:
    """A request that is open, and what came of it. tokens, margins: of the outputs, as far as they are known. troubles: of earlier tries.

    on_tokens: told new tokens of a streamed one. record, transfer: when it is done.
    """

    prompt: Prompt
    on_tokens: Callable[[list[int]], None] | None = None
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    parts: Parts | None = None
    number: int = -1
    record: RequestRecord | None = None
    transfer: TransferRecord | None = None
