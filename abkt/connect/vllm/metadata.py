"""What the scheduler side tells the worker side for one step. It is pickled from the engine's process to the workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from abkt.connect.vllm.params import RemoteKV


@dataclass(frozen=True, slots=True)
class Send:
    """Prefilled KV to keep for a decode server: the blocks of the prompt, in order."""

    block_ids: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """KV to fetch. block_ids: the blocks of tokens first_token to `tokens`; first_token is the first of a block. refinable: better values
    may follow."""

    remote: RemoteKV
    block_ids: tuple[int, ...]
    first_token: int
    tokens: int
    refinable: bool = True


@dataclass(slots=True)
class StepWork:
    """The work of one step.

    sends, loads : request id -> what to keep, or to fetch.
    ended : requests whose blocks are no longer theirs: finished, aborted or preempted.
    releases : KV at prefill servers that nobody will fetch.
    idle : no token is computed in this step.
    requests : (request, tokens computed before, tokens of this step), where a trace is written.
    """

    sends: dict[str, Send] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    releases: list[RemoteKV] = field(default_factory=list)
    idle: bool = False
    requests: list[tuple[str, int, int]] = field(default_factory=list)
