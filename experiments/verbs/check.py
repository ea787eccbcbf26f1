"""`abkt check`: what a model is, whether it can be served, and whether the workers' logits are those of transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from abkt.ranges import bound, check_seed
from experiments.lib.config import STRICT
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.serve.engine.agreement import Agreement
    from abkt.serve.engine.model_folder import ModelFolder

MARGIN = 48  # tokens compared beyond a window


@dataclass(frozen=True, slots=True)
class CheckConfig:
    """model_folder: a Hugging Face folder. tokens: length of the longer row that is compared; null: beyond the model's window. dtype: what
    is computed in."""

    model_folder: Path
    tokens: int | None
    dtype: Literal["float32", "bfloat16", "float16"]
    device: Literal["cpu", "cuda"]
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "tokens", least=64, most=1 << 24)
        check_seed(self)


@verb("check")
def main(config: CheckConfig, run: VerbCall) -> None:
    from abkt.serve.engine.model_folder import read_folder
    from experiments.lib.errors import RunError

    found = read_folder(config.model_folder)
    for line in described(found, config.model_folder):
        print(line)
    tokens = compared_tokens(found, config.tokens)
    print(f"compare: {tokens} random tokens, the workers' logits with transformers' eager ones, computed in {config.dtype}", flush=True)
    agrees = compared(config, found, tokens)
    print(
        f"logits: largest difference {agrees.alone:.1e} of their deviation alone, {agrees.batch:.1e} in a batch, {agrees.neighbours:.1e} "
        f"between the two; same most likely token at {agrees.argmax:.1%} of {agrees.tokens} positions"
    )
    if not agrees.right:
        raise RunError(f"model {found.spec.name} is WRONG on the workers: its logits are not those of transformers")
    print("check: right")


def described(found: ModelFolder, folder: Path) -> list[str]:
    """The model, its KV, its attention, and what each verb can do with it; a line each."""
    from abkt.codec.header import DTYPES

    spec, features = found.spec, found.features
    bound = f", because {features.why_longest}" if features.why_longest else ""
    shape = f"{spec.layers} layers, {spec.kv_heads} KV heads of {spec.head_dim}, {spec.dtype}, {spec.vocabulary} token ids"
    kept = (
        f"; at {spec.max_tokens:,} tokens {spec.kv_bytes(spec.max_tokens) / 2**20:,.1f} MiB, since windows keep less" if spec.window else ""
    )
    words = has_tokenizer(folder)
    recalls = (folder / "probe.json").is_file()
    can = {"profile, replay, validate, study, serve": "yes" if words else "yes, with token ids, since there is no tokenizer"}
    can["quality"] = "yes" if recalls or words else "no: it has no tokenizer"
    can["longbench"] = "yes" if words else "no: it has no tokenizer"
    coded = spec.dtype in DTYPES
    return [
        f"model: {spec.name} ({found.text.model_type}), {shape}, up to {spec.max_tokens:,} tokens{bound}",
        f"KV: {spec.kv_bytes_per_token:,} bytes a token{kept}" + ("" if coded else f"; KV of {spec.dtype} cannot be coded, only sent raw"),
        f"attention: {'; '.join(('causal', *features.names))}",
        f"verbs: {'; '.join(f'{verb}: {answer}' for verb, answer in can.items())}",
    ]


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a tokenizer that can be read."""
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)) > 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return False


def compared_tokens(found: ModelFolder, given: int | None) -> int:
    """Length of the longer row: beyond the longest window, as far as the model goes."""
    window = max(found.features.layer_windows, default=0)
    return min(given or max(96, window + MARGIN), found.spec.max_tokens)


def compared(config: CheckConfig, found: ModelFolder, tokens: int) -> Agreement:
    """The comparison. KV is kept in the dtype that is computed in, so that only the attention is compared and not the rounding of KV."""
    import numpy as np

    from abkt.serve.engine.agreement import agreement
    from abkt.serve.engine.engine import Engine
    from abkt.spec import KVLayout

    rng = np.random.default_rng(config.seed)
    shorter = max(32, tokens * 2 // 3)
    rows = [rng.integers(0, found.spec.vocabulary, count).tolist() for count in (tokens, shorter)]
    layout = KVLayout(replace(found.spec, dtype=config.dtype), blocks=sum(-(-len(row) // 16) for row in rows))
    return agreement(Engine(config.model_folder, layout, config.device), rows)
