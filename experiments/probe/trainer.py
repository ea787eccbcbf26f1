"""Train the probe: first short recall, then longer sequences, more symbols and more text.

At this size, training on the whole mixture at once gave no recall, but a curriculum does. Each stage has a length, a number of symbols and
a share of text. It ends when copying and key-value recall both pass `pass_recall` on fresh samples, or when its time is over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.probe import tasks
from experiments.probe.corpus import Corpus
from experiments.probe.tasks import RecallSample

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True, slots=True)
class Stage:
    """tokens: sequence length; text: share of sequences that are plain text; needle: share that is text with key-value lines."""

    tokens: int
    symbols: int
    text: float
    needle: float
    until: float  # share of the time budget after which the stage ends even if recall has not passed


CURRICULUM = (
    Stage(48, 64, 0.0, 0.0, 0.30),
    Stage(64, 128, 0.0, 0.0, 0.45),
    Stage(96, 512, 0.0, 0.0, 0.52),
    Stage(128, 1700, 0.0, 0.0, 0.60),
    Stage(256, 1700, 0.2, 0.1, 0.66),
    Stage(512, 1700, 0.3, 0.15, 0.72),
    Stage(1024, 1700, 0.45, 0.2, 0.88),
    Stage(2048, 1700, 0.5, 0.25, 1.0),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a training. minutes: time budget. pass_recall: recall that ends a stage."""

    minutes: float = 60.0
    tokens_per_step: int = 4608
    learning_rate: float = 2e-3
    beta2: float = 0.98
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_share: float = 0.2  # last part of the time budget, in which the learning rate falls to 5 %
    pass_recall: float = 0.85  # copying stays below 1, because the first tokens of a repetition cannot be known
    seed: int = 0
    threads: int = 2


@dataclass(slots=True)
class TrainingProgress:
    """The state of training, saved with every checkpoint."""

    step: int = 0
    stage: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    recall: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)


def model_config(
    vocabulary: int = 2048, layers: int = 6, heads: int = 4, kv_heads: int = 2, head_dim: int = 64, mlp: int = 704
) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=heads * head_dim,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tasks.BOS,
        eos_token_id=tasks.EOS,
        pad_token_id=tasks.PAD,
    )


def batch(rng: np.random.Generator, stage: Stage, sequences: int, corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, labels), both [sequences, stage.tokens] int64; a label of -100 carries no loss."""
    samples = [one_sample(rng, stage, corpus) for _ in range(sequences)]
    tokens = torch.from_numpy(np.stack([sample.tokens for sample in samples]))
    answer = torch.from_numpy(np.stack([sample.answer for sample in samples]))
    return tokens, tokens.masked_fill(~answer, -100)


def one_sample(rng: np.random.Generator, stage: Stage, corpus: Corpus) -> RecallSample:
    dice = rng.random()
    if dice < stage.text + stage.needle:
        at = rng.integers(0, len(corpus.train) - stage.tokens)
        text = corpus.train[at : at + stage.tokens].astype(np.int64)
        if dice < stage.text:
            return RecallSample(text, np.ones(stage.tokens, dtype=bool))
        sample = tasks.needles(rng, stage.tokens, stage.symbols, text, asks=int(rng.integers(4, 17)))
        return RecallSample(sample.tokens, sample.answer | (sample.tokens != tasks.PAD))
    task = rng.random()
    if task < 0.25:
        return tasks.copying(rng, stage.tokens, stage.symbols)
    if task < 0.55:
        return tasks.segments(rng, stage.tokens, stage.symbols)
    value_tokens = 1 if stage.tokens < 128 else int(rng.integers(1, 4))
    return tasks.key_values(rng, stage.tokens, stage.symbols, value_tokens=value_tokens)


def vocabulary(stage: Stage) -> int | None:
    """How many ids take part in the loss; None: all, as soon as there is text.

    With tied weights, ids that never occur would all be pushed in one direction, and later stages could not tell them apart.
    """
    return None if stage.text or stage.needle else tasks.FIRST_SYMBOL + stage.symbols


@torch.no_grad()
def recall(model: Any, samples: list[RecallSample]) -> float:
    """Share of answer tokens that the model's argmax gets right, with teacher forcing."""
    tokens = torch.from_numpy(np.stack([sample.tokens for sample in samples]))
    answer = torch.from_numpy(np.stack([sample.answer for sample in samples]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guess = model(input_ids=tokens, use_cache=False).logits.argmax(-1)
    right = guess[:, :-1] == tokens[:, 1:]
    return right[answer[:, 1:]].float().mean().item()


def learning_rate(recipe: Recipe, step: int, share_of_time: float) -> float:
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    decay = min(1.0, max(0.05, (1.0 - share_of_time) / recipe.decay_share))
    return recipe.learning_rate * warmup * decay


def train(
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    save: Callable[[Any, TrainingProgress], None],
    report: Callable[[TrainingProgress, str], None],
) -> TrainingProgress:
    """Run the curriculum for `recipe.minutes`. A `checkpoint.pt` in `folder` is resumed (read with weights_only).

    save: called with the model at checkpoints and at the end. report: called with a line of text every 50 steps.
    """
    from transformers import LlamaForCausalLM

    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(model_config())
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, recipe.beta2),
    )
    progress = TrainingProgress()
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = TrainingProgress(**state["progress"])
    rng = np.random.default_rng((recipe.seed, progress.step))
    compiled = torch.compile(model, dynamic=False)
    base_s, started = progress.elapsed_s, time.monotonic()
    while progress.elapsed_s < recipe.minutes * 60:
        stage = CURRICULUM[progress.stage]
        share = progress.elapsed_s / (recipe.minutes * 60)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, progress.step, share)
        tokens, labels = batch(rng, stage, max(1, recipe.tokens_per_step // stage.tokens), corpus)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compiled(input_ids=tokens, use_cache=False).logits[..., : vocabulary(stage)]
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += tokens.numel()
        progress.elapsed_s = base_s + time.monotonic() - started
        if progress.step % 50 == 0:
            examine(model, progress, stage, loss.item(), recipe)
            report(progress, f"{stage.tokens} tokens, {stage.symbols} symbols, loss {loss.item():.3f}, recall {progress.recall}")
            passed = min(progress.recall.values()) >= recipe.pass_recall
            if (passed or share > stage.until) and progress.stage + 1 < len(CURRICULUM):
                progress.stage += 1
        if progress.step % 400 == 0:
            write_checkpoint(checkpoint, model, optimizer, progress)
            save(model, progress)
    write_checkpoint(checkpoint, model, optimizer, progress)
    save(model, progress)
    return progress


def examine(model: Any, progress: TrainingProgress, stage: Stage, loss: float, recipe: Recipe) -> None:
    rng = np.random.default_rng((recipe.seed, 1, progress.step))
    count = max(2, 4096 // stage.tokens)
    progress.recall = {
        "copying": round(recall(model, [tasks.copying(rng, stage.tokens, stage.symbols) for _ in range(count)]), 3),
        "key_values": round(recall(model, [tasks.key_values(rng, stage.tokens, stage.symbols) for _ in range(count)]), 3),
    }
    progress.log.append(
        {"step": progress.step, "tokens": progress.tokens, "length": stage.tokens, "loss": round(loss, 4), **progress.recall}
    )


def write_checkpoint(path: Path, model: Any, optimizer: torch.optim.Optimizer, progress: TrainingProgress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}, part)
    part.replace(path)
    (path.parent / "progress.json").write_text(json.dumps(asdict(progress), indent=1))
