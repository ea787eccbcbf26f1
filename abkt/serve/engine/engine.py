"""A Hugging Face causal LM over a block pool: prefill a prompt, decode one token for each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from abkt.codec.importance import Importance
from abkt.kv.pool import Pool
from abkt.serve.engine.attention import NAME, OWN_ATTENTION, ForwardPass, LayerAttention, SequenceRow, register, running
from abkt.serve.engine.features import Unsupported
from abkt.serve.engine.generation import GREEDY, Sampling
from abkt.serve.engine.model_folder import read_spec, rope_theta
from abkt.serve.engine.sampling import Choice, choose
from abkt.spec import KVLayout

__all__ = ["Engine", "read_spec", "rope_theta"]
PROBED = 6  # tokens of the pass that shows, when a model is loaded, what its layers ask of attention
LIKE = 0.3  # logits of a token alone against those of the whole prompt; rounding is far below, and lost state far above


class Engine:
    """A model and its KV pool. Not thread-safe: one thread computes. Meanwhile, transfers may use other blocks of the pool.

    Parameters
    ----------
    folder : a Hugging Face model folder.
    layout : layout of the KV pool, which the engine allocates.
    device : cpu or cuda.
    dtype : what the model computes in; empty: the KV's dtype. See abkt.serve.engine.compute_dtype.

    Raises
    ------
    ValueError : one line, if the weights cannot be loaded, or if the model's attention has a feature that is not computed here. What its
        config does not tell is found by a pass over a few tokens: unknown terms of a layer, layers without KV, masks of another form, and
        state that passes from token to token outside of K and V.

    Examples
    --------
    >>> engine = Engine(folder, KVLayout(read_spec(folder), blocks=64))
    >>> table = [0, 1, 2]                                      # blocks of 16 tokens
    >>> token = engine.prefill(prompt, table)                  # up to 47 tokens
    >>> row = SequenceRow(table, len(prompt))
    >>> token = engine.decode([row], [token])[0]
    """

    def __init__(self, folder: Path, layout: KVLayout, device: str = "cpu", dtype: str = "") -> None:
        from transformers import AutoModelForCausalLM

        self.layout = layout
        self.pool = Pool(layout, device)
        self.device = device
        load: Any = AutoModelForCausalLM.from_pretrained
        kind = getattr(torch, dtype or layout.model.dtype)
        try:
            self.model = load(folder, dtype=kind, attn_implementation=register(), trust_remote_code=False).to(device).eval()
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            if NAME in str(error):
                raise Unsupported(f"model {layout.model.name} has {OWN_ATTENTION}; it cannot be served here") from None
            raise ValueError(f"model folder {folder}: its weights cannot be loaded: {_first_line(error)}") from None
        self.attention = self._probe()

    def _probe(self) -> tuple[LayerAttention, ...]:
        """What each layer asks of attention. Raises Unsupported, one line, if the pool cannot answer it."""
        model = self.layout.model
        count = min(PROBED, model.max_tokens, self.layout.blocks * self.layout.block_tokens)
        tokens = [token % model.vocabulary if model.vocabulary else token for token in range(3, 3 + count)]
        table = list(range(self.layout.blocks_for(count)))
        try:
            pass_ = ForwardPass(self.pool, [SequenceRow(table, 0)])
            whole = self._logits([tokens], [list(range(count))], pass_)[0, -1]
            _check_layers(pass_.layers, self.layout)
            if count > 1:
                self._logits([tokens[:-1]], [list(range(count - 1))], ForwardPass(self.pool, [SequenceRow(table, 0)]))
                alone = self._logits([tokens[-1:]], [[count - 1]], ForwardPass(self.pool, [SequenceRow(table, count - 1)]))[0, -1]
                if not (alone.float() - whole.float()).norm() <= LIKE * whole.float().norm():
                    raise Unsupported("state outside of K and V that passes from token to token")
        except Unsupported as error:
            raise Unsupported(f"model {model.name} has {error}; it cannot be served here") from None
        except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError, NotImplementedError) as error:
            own = f"{OWN_ATTENTION} ({_first_line(error)})"
            raise Unsupported(f"model {model.name} has {own}; it cannot be served here") from None
        self.pool.data[: len(table)] = 0
        return tuple(pass_.layers)

    def prefill(self, tokens: Sequence[int], table: Sequence[int], importance: Importance | None = None) -> int:
        """Write the KV of a prompt into the blocks of a table; returns the most likely next token.

        importance: observes the last queries of each layer.
        """
        return self.begin(tokens, table, importance).token

    def decode(self, rows: Sequence[SequenceRow], last: Sequence[int]) -> list[int]:
        """One iteration: write the KV of each row's last token into the pool, and return the most likely next tokens. Rows grow by one."""
        return [choice.token for choice in self.step(rows, last, [GREEDY] * len(rows))]

    @torch.inference_mode()
    def begin(
        self, tokens: Sequence[int], table: Sequence[int], importance: Importance | None = None, sampling: Sampling = GREEDY
    ) -> Choice:
        """As prefill, but `sampling` chooses the next token. Raises ValueError if the table or the model holds too few tokens."""
        self._check(len(tokens), table, tokens)
        pass_ = ForwardPass(self.pool, [SequenceRow(table, 0)], importance)
        logits = self._logits([list(tokens)], [list(range(len(tokens)))], pass_)
        return choose(logits[:, -1], [sampling], [len(tokens)])[0]

    @torch.inference_mode()
    def step(self, rows: Sequence[SequenceRow], last: Sequence[int], samplings: Sequence[Sampling]) -> list[Choice]:
        """As decode, but each row's sampling chooses its token. Raises ValueError if a table or the model holds too few tokens."""
        for row, token in zip(rows, last, strict=True):
            self._check(row.tokens + 1, row.table, [token])
        logits = self._logits([[token] for token in last], [[row.tokens] for row in rows], ForwardPass(self.pool, rows))
        for row in rows:
            row.tokens += 1
        return choose(logits[:, -1], samplings, [row.tokens for row in rows])

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], row: SequenceRow) -> torch.Tensor:
        """Append given tokens to a row instead of tokens that the model chooses.

        Their KV is written into the pool, and the row grows by them.

        Returns
        -------
        Logits [tokens, vocabulary], float32, for the token after each given token.

        Raises
        ------
        ValueError : if the table or the model holds too few tokens.
        """
        return self.score_rows(tokens, [row])[0]

    @torch.inference_mode()
    def score_rows(self, tokens: Sequence[int], rows: Sequence[SequenceRow]) -> torch.Tensor:
        """As score, with the same tokens after each of several rows, in one pass: logits [rows, tokens, vocabulary], float32."""
        for row in rows:
            self._check(row.tokens + len(tokens), row.table, tokens)
        positions = [list(range(row.tokens, row.tokens + len(tokens))) for row in rows]
        logits = self._logits([list(tokens)] * len(rows), positions, ForwardPass(self.pool, rows), keep=len(tokens))
        for row in rows:
            row.tokens += len(tokens)
        return logits.float()

    @torch.inference_mode()
    def _logits(self, tokens: list[list[int]], positions: list[list[int]], pass_: ForwardPass, keep: int = 1) -> torch.Tensor:
        """Logits [rows, keep, vocabulary] of the last `keep` tokens of each row."""
        with running(pass_):
            out = self.model(
                input_ids=torch.tensor(tokens, device=self.device),
                position_ids=torch.tensor(positions, device=self.device),
                use_cache=False,
                logits_to_keep=keep,
            )
        return out.logits[:, -keep:]

    def _check(self, count: int, table: Sequence[int], tokens: Sequence[int]) -> None:
        """Raise ValueError unless `count` tokens fit, and each of `tokens` is in the vocabulary."""
        model = self.layout.model
        if self.layout.blocks_for(count) > len(table):
            raise ValueError(
                f"{count} tokens need {self.layout.blocks_for(count)} blocks of {self.layout.block_tokens}; the table has {len(table)}"
            )
        if count > model.max_tokens:
            raise ValueError(f"{count} tokens are more than the {model.max_tokens} that model {model.name} takes")
        if model.vocabulary and tokens and not 0 <= min(tokens) <= max(tokens) < model.vocabulary:
            raise ValueError(
                f"token {max(tokens) if min(tokens) >= 0 else min(tokens)} is not among the {model.vocabulary} of model {model.name}; "
                "make the prompt with the model's own tokenizer"
            )


def _check_layers(asked: Sequence[LayerAttention], layout: KVLayout) -> None:
    """Raise Unsupported unless every layer asked for attention once, in order, with a mask that the pool can answer."""
    layers = [each.layer for each in asked]
    if layers != list(range(layout.model.layers)):
        missing = sorted(set(range(layout.model.layers)) - set(layers))
        raise Unsupported(
            f"layers without KV of their own ({', '.join(map(str, missing))})" if missing else "layers that attend more than once"
        )
    for mask in {id(each.mask): each.mask for each in asked}.values():
        mask.check()
    windows = tuple(each.mask.window for each in asked)
    if layout.model.layer_windows and any(said and said != found for said, found in zip(layout.model.layer_windows, windows, strict=True)):
        raise Unsupported(f"windows of {windows} tokens, and its config names {layout.model.layer_windows}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
