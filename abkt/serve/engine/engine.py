"""A Hugging Face causal LM over a block pool: prefill a prompt, decode one token for each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from abkt.codec.importance import Importance
from abkt.kv.pool import Pool
from abkt.serve.engine.attention import ForwardPass, SequenceRow, register
from abkt.serve.engine.sampling import GREEDY, Choice, Sampling, choose
from abkt.spec import KVLayout, ModelSpec


def read_spec(folder: Path) -> ModelSpec:
    """The shapes of a model and its KV.

    Parameters
    ----------
    folder : a Hugging Face model folder.

    Raises
    ------
    ValueError : one line, if the folder has no readable config.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ValueError(f"model folder {folder} has no config.json; give a Hugging Face folder, or make one with `abkt train-probe`")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model folder {folder}: its config cannot be read: {str(error).splitlines()[0]}") from None
    heads = config.num_attention_heads
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    return ModelSpec(
        name=folder.name,
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=str(config.dtype or "float32").removeprefix("torch."),
        hidden=config.hidden_size,
        heads=heads,
        max_tokens=min(config.max_position_embeddings, window),  # inside a sliding window attention is full, as it is here
    )


def rope_theta(folder: Path) -> float | None:
    """Base of the rotary embedding (RoPE); None if the model has no RoPE or a scaled one."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    scaling = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None) or {}
    theta = scaling.get("rope_theta") or getattr(config, "rope_theta", None)
    return float(theta) if theta and scaling.get("rope_type", "default") == "default" else None


class Engine:
    """A model and its KV pool. Not thread-safe: one thread computes. Meanwhile, transfers may use other blocks of the pool.

    Parameters
    ----------
    folder : a Hugging Face model folder.
    layout : layout of the KV pool, which the engine allocates.
    device : cpu or cuda.
    dtype : what the model computes in; empty: the KV's dtype. See abkt.serve.engine.compute_dtype.

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
        self.model = load(folder, dtype=getattr(torch, dtype or layout.model.dtype), attn_implementation=register()).to(device).eval()

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
        self._check(len(tokens), table)
        logits = self._logits([list(tokens)], [list(range(len(tokens)))], [SequenceRow(table, 0)], importance)
        return choose(logits[:, -1], [sampling], [len(tokens)])[0]

    @torch.inference_mode()
    def step(self, rows: Sequence[SequenceRow], last: Sequence[int], samplings: Sequence[Sampling]) -> list[Choice]:
        """As decode, but each row's sampling chooses its token. Raises ValueError if a table or the model holds too few tokens."""
        for row in rows:
            self._check(row.tokens + 1, row.table)
        logits = self._logits([[token] for token in last], [[row.tokens] for row in rows], rows)
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
        self._check(row.tokens + len(tokens), row.table)
        positions = list(range(row.tokens, row.tokens + len(tokens)))
        logits = self._logits([list(tokens)], [positions], [row], keep=len(tokens))[0]
        row.tokens += len(tokens)
        return logits.float()

    def _logits(
        self,
        tokens: list[list[int]],
        positions: list[list[int]],
        rows: Sequence[SequenceRow],
        importance: Importance | None = None,
        keep: int = 1,
    ) -> torch.Tensor:
        """Logits [rows, keep, vocabulary] of the last `keep` tokens of each row."""
        out = self.model(
            input_ids=torch.tensor(tokens, device=self.device),
            position_ids=torch.tensor(positions, device=self.device),
            use_cache=False,
            logits_to_keep=keep,
            pass_=ForwardPass(self.pool, rows, importance),
        )
        return out.logits

    def _check(self, tokens: int, table: Sequence[int]) -> None:
        if self.layout.blocks_for(tokens) > len(table):
            raise ValueError(
                f"{tokens} tokens need {self.layout.blocks_for(tokens)} blocks of {self.layout.block_tokens}; the table has {len(table)}"
            )
        if tokens > self.layout.model.max_tokens:
            raise ValueError(f"{tokens} tokens are more than the {self.layout.model.max_tokens} that model {self.layout.model.name} takes")
