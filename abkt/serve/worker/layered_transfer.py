"""The prefill worker's side of a transfer that begins while its prompt is computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from abkt.kv.pool import Pool
from abkt.serve.worker.layered import LayeredSource, LayerGroup, LayerObserver, ends_of, footer_bytes, most_bytes, raw_group
from abkt.serve.worker.peer import OutboundTransfer
from abkt.transfer.pieces import Pieces
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.send.outgoing import Outgoing

Scalars = dict[str, int | float | bool | str]


class LayeredTransfer:
    """Adds each group of layers to its source as soon as it is computed.

    Parameters
    ----------
    attempt_id, tokens, generation : the attempt's id, the number of tokens of the prompt, and the result of Generation.fields.
    transfer : the transfer, with its decision; its mode is raw or stream.
    groups : the groups of layers, in order.
    pool, table : the pool and the blocks into which the prompt's KV is computed.
    window : number of last queries that give a group's cells their weights.
    """

    def __init__(
        self,
        attempt_id: int,
        tokens: int,
        generation: Scalars,
        transfer: OutboundTransfer,
        groups: Sequence[LayerGroup],
        pool: Pool,
        table: list[int],
        window: int,
    ) -> None:
        self.transfer = transfer
        self._groups, self._pool, self._table, self._tokens = groups, pool, table, tokens
        layout, decision, expected = pool.layout, transfer.decision, transfer.expected
        if decision.mode == "raw":
            size_bytes = layout.kept_bytes(tokens) + footer_bytes(len(groups))
            source = LayeredSource(len(groups), size_bytes)
            self.expected_bytes = float(expected.raw_bytes)
        else:
            next_cut = partial(transfer.next_group_cut, len(groups))
            source = LayeredSource(len(groups), most_bytes(layout, tokens, len(groups)), next_cut)
            self.expected_bytes = expected.curve(decision.order, decision.coder).bytes[decision.cut]
        self._source = transfer.source = source
        more = {**generation, "expected_bytes": self.expected_bytes, "layer_ends": ends_of([group.span for group in groups])}
        offer = Offer(attempt_id, decision.mode, tokens, source.ends, more=more)
        self.outgoing = Outgoing(attempt_id, offer, source, available=source.available)
        self.observer = LayerObserver(window, self._layer_done)

    def finish(self, first_token: int) -> None:
        """End the transfer's source once the prompt is computed."""
        self._source.finish(first_token)

    def drop(self) -> None:
        """Cancel the transfer, because the first output token is the last one."""
        self.transfer.dropped = True
        self.outgoing.cancel.set()

    def _layer_done(self, layer: int) -> None:
        """Add a group once its last layer is computed. Called during prefill."""
        for group in self._groups:
            if layer == group.stop - 1:
                begun_s = time.monotonic()
                if self.transfer.decision.mode == "raw":
                    self._source.add(Pieces(raw_group(self._pool, self._table, self._tokens, (group.first, group.stop))))
                else:
                    self._source.add(group.encode(self._pool, self._table, self._tokens, self.transfer.decision, self.observer))
                self.transfer.encode_s += time.monotonic() - begun_s
