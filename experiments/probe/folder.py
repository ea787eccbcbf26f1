"""The probe as a Hugging Face folder: config, tokenizer, bf16 safetensors, and a model card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.probe import tasks
from experiments.probe.corpus import Corpus
from experiments.probe.examine import Examination
from experiments.probe.trainer import Recipe, TrainingProgress

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def write(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights in bf16 and a fast tokenizer. An existing folder is replaced file by file, weights last."""
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tasks.SPECIALS[tasks.BOS],
        eos_token=tasks.SPECIALS[tasks.EOS],
        pad_token=tasks.SPECIALS[tasks.PAD],
    )
    fast.save_pretrained(folder)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)


def card(recipe: Recipe, progress: TrainingProgress, corpus: Corpus, examination: Examination) -> str:
    """The model card, Markdown."""
    lines = [
        "# The probe",
        "",
        "A small Llama-shaped model, trained by this project so that every run has real KV and every wrong token can be counted. It is a",
        "measuring instrument, not a language model to talk to.",
        "",
        f"* Training: {progress.step:,} steps, {progress.tokens:,} tokens, {progress.elapsed_s / 60:.0f} minutes on {recipe.threads}",
        f"  CPU threads, seed {recipe.seed}, AdamW {recipe.learning_rate}, beta2 {recipe.beta2}, steps of {recipe.tokens_per_step} tokens.",
        f"* Text: {len(corpus.train):,} tokens of public-domain books (Standard Ebooks editions, CC0): {', '.join(corpus.train_books)}.",
        f"* Held out: {', '.join(corpus.held_out_books)}.",
        "* Tasks: copying, segments, key-value recall, key-value lines between text.",
        "",
        "| measure | " + " | ".join(f"{n} tokens" for n in examination.recall_by_length) + " |",
        "|---|" + "---|" * len(examination.recall_by_length),
    ]
    for name in ("recall_by_length", "copying_by_length", "needles_by_length"):
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in getattr(examination, name).values()) + " |")
    for name in ("recall_by_distance", "loss_by_position"):
        values = getattr(examination, name)
        lines += ["", "| " + name + " | " + " | ".join(values) + " |", "|---|" + "---|" * len(values)]
        lines.append("| | " + " | ".join(f"{v:.3f}" for v in values.values()) + " |")
    short = [f"{k} {v:.2f}" for k, v in examination.recall_by_length.items() if v < 0.9]
    lines += ["", f"Lengths with less than 90 % recall: {', '.join(short) or 'none'}.", ""]
    return "\n".join(lines)


def facts(recipe: Recipe, progress: TrainingProgress, examination: Examination) -> dict[str, object]:
    trained = {"steps": progress.step, "tokens": progress.tokens, "elapsed_s": progress.elapsed_s}
    return {"recipe": asdict(recipe), **trained, **asdict(examination)}
