"""How much of a coded prompt's divergence comes from K or V of some layers, measured against what the metric predicts.

The Fisher metric holds for small errors, one at a time. Errors as large as those of few bits are neither: on SmolLM2 it gives K half of the
divergence, where one seventh was measured. So the share is measured by putting the exact K or V of a run of layers into decoded KV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from abkt.codec.codec import Codec
from abkt.codec.klt.basis import FIRST_TOKENS
from abkt.codec.klt.coder import KltCoder, centred
from abkt.codec.klt.weights import scale_of
from experiments.quality.measure import Bench
from experiments.quality.methods import Held
from experiments.quality.samples import QualitySample

RUNS = 6  # of layers; each is measured as a whole
AT = (0.06, 0.12)  # shares of raw bytes at which it is measured
POWER = 0.5  # of the ratio that is believed: at 1 some prompts became worse
LEAST, MOST = 0.1, 10.0


def runs_of(layers: int) -> list[np.ndarray]:
    return [run for run in np.array_split(np.arange(layers), RUNS) if len(run)]


def corrections(bench: Bench, codec: Codec, samples: Sequence[QualitySample], done: Callable[[int], None]) -> np.ndarray:
    """What to multiply the metric with, [layers, kinds]: the measured share of the divergence over the predicted one, to the power POWER.

    codec: with the basis. done: called with 1 after each prompt.
    """
    model, total = codec.layout.model, np.zeros((2, codec.layout.model.layers, codec.layout.model.kv_kinds))
    for sample in samples:
        held = bench.prefill(sample)
        raw = bench.reference(sample, held)
        importance = held.importance.tokens(held.pool, held.table, held.tokens)
        stream = codec.encode(held.pool, held.table, held.tokens, coder="klt", importance=importance)
        for share in AT:
            cut = stream.curve.cut_within(share * held.tokens * model.kv_bytes_per_token)
            tables: list[list[int]] = []

            def put(exact: Sequence[tuple[int, int]], table: list[int]) -> None:
                codec.expand(stream.prefix(cut), held.pool, table)  # noqa: B023  called in this turn of the loop alone
                tables[:] = [list(table)]  # noqa: B023
                for layer, kind in exact:
                    held.pool.data[table, layer, kind] = held.pool.data[held.table, layer, kind]  # noqa: B023

            whole = bench.divergence(sample, partial(put, ()), raw)
            predicted = _predicted(codec, held, importance, tables[0])
            for run in runs_of(model.layers):
                for kind in range(model.kv_kinds):
                    left = bench.divergence(sample, partial(put, [(layer, kind) for layer in run.tolist()]), raw)
                    total[0, run, kind] += (whole - left) / max(whole, 1e-12)
                    total[1, run, kind] += predicted[run, kind].sum() / predicted.sum()
        done(1)
    ratio: np.ndarray = np.clip(total[0] / np.maximum(total[1], 1e-12), LEAST, MOST) ** POWER
    return ratio


def _predicted(codec: Codec, held: Held, importance: torch.Tensor, table: list[int]) -> np.ndarray:
    """Squared error in the metric of each (layer, kind), as if the heads' errors did not add up."""
    assert codec.calibration
    assert codec.calibration.basis
    basis, cells = codec.calibration.basis, codec.cells(held.tokens, 8, "klt")
    classes = KltCoder(basis, importance).classes(cells)
    found = np.zeros((codec.layout.model.layers, codec.layout.model.kv_kinds))
    pairs = cells.coded_table(held.table), cells.coded_table(table)
    for number, members in enumerate(basis.members):
        exact, coded = (centred(held.pool.data, blocks, members, held.tokens, basis) for blocks in pairs)
        error = (coded - exact) * torch.from_numpy(scale_of(classes[tuple(members.T)]))[..., None]
        matrix = basis.matrix(number)[0].unflatten(1, (len(members), -1))
        for row, (layer, kind, _) in enumerate(members.tolist()):
            found[layer, kind] += float((error[row, FIRST_TOKENS:] @ matrix[:, row].mT).double().square().sum())
    return found
