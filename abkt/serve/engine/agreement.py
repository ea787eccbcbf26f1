"""Whether the workers' attention gives transformers' own logits: the check behind `abkt check`.

Random tokens go through the block pool as a worker sends them (a prompt, then more tokens at once, then single tokens, alone and in a
batch with a row of another length) and through the same weights with transformers' eager attention, without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from abkt.serve.engine.attention import NAME, ForwardPass, SequenceRow
from abkt.serve.engine.engine import Engine

SINGLE = 8  # tokens decoded one at a time
WRONG = 2e-3
"""Largest difference that rounding in float32 explains, over the standard deviation of the logits."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Largest difference of a logit from transformers' eager one, over the standard deviation of the logits.

    alone, batch : of a row computed by itself, and of rows decoded together. neighbours : between a row alone and in the batch. argmax :
    share of positions with the same most likely token. tokens : positions compared.
    """

    alone: float
    batch: float
    neighbours: float
    argmax: float
    tokens: int

    @property
    def right(self) -> bool:
        """Whether all differences are those of rounding. NaN is wrong."""
        return all(found <= WRONG for found in (self.alone, self.batch, self.neighbours))


def agreement(engine: Engine, rows: Sequence[Sequence[int]]) -> Agreement:
    """Compare a model's logits over the pool with its own eager ones.

    Parameters
    ----------
    engine : computes in float32. Its pool is used from the first block on, and must hold no KV that is needed.
    rows : token ids of each row, more than 3 * SINGLE each.

    Raises
    ------
    ValueError : if the rows do not fit the pool.
    """
    blocks = [engine.layout.blocks_for(len(row)) for row in rows]
    starts = [sum(blocks[:i]) for i in range(len(rows))]
    tables = [list(range(start, start + count))[::-1] for start, count in zip(starts, blocks, strict=True)]  # reversed: not adjacent
    alone = [_over_pool(engine, row, table) for row, table in zip(rows, tables, strict=True)]
    begun = [SequenceRow(table, len(row) - SINGLE) for row, table in zip(rows, tables, strict=True)]
    steps = []
    for at in range(SINGLE, 0, -1):
        tokens, positions = [[row[-at]] for row in rows], [[len(row) - at] for row in rows]
        steps.append(engine._logits(tokens, positions, ForwardPass(engine.pool, begun))[:, -1].float().cpu())
        for row_ in begun:
            row_.tokens += 1
    batch = torch.stack(steps, 1)  # [rows, SINGLE, vocabulary]
    eager = [_eager(engine, row) for row in rows]
    scale = torch.cat(eager).std().clamp_min(1e-12)

    def apart(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
        return float(torch.stack([(f - w).abs().max() for f, w in zip(found, wanted, strict=True)]).max() / scale)

    same = torch.cat([f.argmax(-1) == w[-len(f) :].argmax(-1) for f, w in zip(alone, eager, strict=True)]).float().mean()
    return Agreement(
        alone=apart(alone, [w[-len(f) :] for f, w in zip(alone, eager, strict=True)]),
        batch=apart(list(batch), [w[-SINGLE:] for w in eager]),
        neighbours=apart(list(batch), [f[-SINGLE:] for f in alone]),
        argmax=float(same),
        tokens=sum(len(f) for f in alone),
    )


def _over_pool(engine: Engine, row: Sequence[int], table: list[int]) -> torch.Tensor:
    """Logits of one row alone from the middle of its prompt on: the last of the prompt, those of more tokens, then single tokens."""
    begun = len(row) // 2
    first = engine._logits([list(row[:begun])], [list(range(begun))], ForwardPass(engine.pool, [SequenceRow(table, 0)]))[0].float()
    held = SequenceRow(table, begun)
    more = engine.score(row[begun:-SINGLE], held)
    single = [engine.score([token], held) for token in row[-SINGLE:]]
    return torch.cat([first, more, *single]).cpu()


@torch.inference_mode()
def _eager(engine: Engine, row: Sequence[int]) -> torch.Tensor:
    """transformers' own logits [tokens, vocabulary], with the same weights."""
    engine.model.set_attn_implementation("eager")
    try:
        return engine.model(input_ids=torch.tensor([list(row)], device=engine.device), use_cache=False).logits[0].float().cpu()
    finally:
        engine.model.set_attn_implementation(NAME)
