"""What a Hugging Face model folder says of its model: shapes, attention, dtype, tokens that end an answer. Nothing in it is run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from abkt.serve.engine.features import AttentionFeatures, Unsupported, attention_features
from abkt.spec import ModelSpec

CHUNKS = 32  # places of a file of weights that its fingerprint is made of
SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn"}
HEADER_CAP_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder that was read. text: the config of the language model; in a multimodal model it is a part of `config`."""

    spec: ModelSpec
    config: Any
    text: Any
    features: AttentionFeatures


def read_config(folder: Path) -> Any:
    """The folder's config. Raises ValueError, one line, if it cannot be read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ValueError(f"model folder {folder} has no config.json; give a Hugging Face folder, or make one with `abkt train-probe`")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"model folder {folder}: its config cannot be read: {_first_line(error)}") from None
    except StrictDataclassError as error:
        raise ValueError(f"model folder {folder}: its config cannot be read: {' '.join(str(error).split())}") from None


def read_folder(folder: Path) -> ModelFolder:
    """Read a model folder.

    Raises
    ------
    ValueError : one line, if the config cannot be read, or if the model's attention has a feature that the workers do not compute; that one
        is named.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = read_config(folder)
    try:
        text = config.get_text_config(decoder=True)
    except ValueError as error:
        raise ValueError(f"model folder {folder}: its config cannot be read: {_first_line(error)}") from None
    kind, name = getattr(text, "model_type", "unknown"), folder.resolve().name
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unsupported(f"model {name} ({config.model_type}) is not a causal language model of transformers; it cannot be served here")
    try:
        features = attention_features(text)
    except Unsupported as error:
        raise Unsupported(f"model {name} ({kind}) has {error}; it cannot be served here") from None
    heads, layers, longest = (_size(text, key) for key in ("num_attention_heads", "num_hidden_layers", "max_position_embeddings"))
    for what, size in (("attention heads", heads), ("layers", layers), ("positions", longest)):
        if size < 1:
            raise Unsupported(f"model {name} ({kind}) does not say how many {what} it has; it cannot be served here")
    kv_heads = _size(text, "num_key_value_heads") or heads
    head_dim = _size(text, "head_dim") or text.hidden_size // heads
    if min(kv_heads, head_dim) < 0:
        raise Unsupported(f"model {name} ({kind}) has layers of different KV shapes; it cannot be served here")
    windows = features.layer_windows
    sizes = {window for window in windows if window}
    spec = ModelSpec(
        name=name,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=_dtype(folder, config, text),
        hidden=text.hidden_size,
        heads=heads,
        max_tokens=min(longest, features.longest or longest),
        vocabulary=text.vocab_size,
        window=max(sizes, default=0),
        window_layers=sum(window > 0 for window in windows),
        layer_windows=windows if sizes else (),
    )
    return ModelFolder(spec, config, text, features)


def _size(config: Any, key: str) -> int:
    """A size in a config: 0 if it says none, -1 if it says several, one for each layer."""
    try:
        said = getattr(config, key, None)
    except (AttributeError, ValueError, RuntimeError):  # transformers refuses to name one where layers differ
        return -1
    return -1 if isinstance(said, list | tuple | dict) else int(said or 0)


def read_spec(folder: Path) -> ModelSpec:
    """The shapes of a model and its KV.

    Parameters
    ----------
    folder : a Hugging Face model folder.

    Raises
    ------
    ValueError : one line, as read_folder.
    """
    return _read_spec(folder, (folder / "config.json").stat().st_mtime_ns if (folder / "config.json").is_file() else 0)


@lru_cache(maxsize=8)
def _read_spec(folder: Path, changed_ns: int) -> ModelSpec:
    return read_folder(folder).spec


def rope_theta(folder: Path) -> float | None:
    """Base of the rotary embedding (RoPE); None if the model has no RoPE, a scaled one, or bases that differ from layer to layer."""
    text = read_config(folder).get_text_config(decoder=True)
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    theta = scaling.get("rope_theta") or getattr(text, "rope_theta", None)
    plain = scaling.get("rope_type", "default") == "default" and not any(isinstance(value, dict) for value in scaling.values())
    return float(theta) if theta and plain else None


def eos_tokens(folder: Path) -> tuple[int, ...]:
    """All tokens that end an answer: those of generation_config.json, then those of the config. Llama 3 lists three."""
    config = read_config(folder)
    found: list[Any] = []
    generation = folder / "generation_config.json"
    if generation.is_file():
        try:
            said = json.loads(generation.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"model folder {folder}: its generation_config.json cannot be read: {_first_line(error)}") from None
        found.append(said.get("eos_token_id") if isinstance(said, dict) else None)
    found += [getattr(part, "eos_token_id", None) for part in (config, config.get_text_config(decoder=True))]
    ids = [one for each in found for one in (each if isinstance(each, list | tuple) else [each])]
    return tuple(dict.fromkeys(one for one in ids if type(one) is int and one >= 0))


def _dtype(folder: Path, config: Any, text: Any) -> str:
    """The dtype of the KV: the config's, or where it says none that of the checkpoint."""
    said = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return str(said).removeprefix("torch.") if said else checkpoint_dtype(folder)


def checkpoint_dtype(folder: Path) -> str:
    """The dtype of most values of the checkpoint, from the headers of its safetensors files. Raises ValueError, one line, if there are none
    that can be read."""
    values: Counter[str] = Counter()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        for name, entry in _header(file).items():
            if name != "__metadata__" and entry["dtype"] in SAFETENSORS_DTYPES:
                values[entry["dtype"]] += prod(entry["shape"])
    if not values:
        raise ValueError(f"model folder {folder}: its config names no dtype, and there is no safetensors file that does; add dtype to it")
    return SAFETENSORS_DTYPES[values.most_common(1)[0][0]]


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that name the weights of a model folder: from the headers of its safetensors files, and from CHUNKS places in
    each. Empty if it has no such file."""
    digest, files = hashlib.sha256(), sorted(folder.glob("*.safetensors"))
    for file in files:
        digest.update(json.dumps(_header(file), sort_keys=True).encode())
        size = file.stat().st_size
        with file.open("rb") as opened:
            for i in range(CHUNKS):
                opened.seek(size * i // CHUNKS)
                digest.update(opened.read(4096))
    return digest.hexdigest()[:16] if files else ""


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        data = opened.read(size) if size <= HEADER_CAP_BYTES else b""
    try:
        header = json.loads(data)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is not a safetensors file, or it is damaged")
    return header


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
