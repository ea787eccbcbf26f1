"""A GGUF file as a Hugging Face folder: read by transformers, its weights dequantised, and saved as safetensors.

The weights keep the file's own dtype if they are not quantised; else they become bfloat16, so that KV has two bytes a value.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

NEEDED = ("gguf", "accelerate")
PLAIN = {0: "float32", 1: "float16", 32: "bfloat16"}  # general.file_type of files that are not quantised
UNREADABLE = (OSError, ValueError, KeyError, NotImplementedError, TypeError, RuntimeError, IndexError, AttributeError, ImportError)


def check_readers() -> None:
    """Raises ValueError, one line, where a package that reads GGUF is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"a GGUF file needs {' and '.join(missing)}: pip install 'abkt[models]'")


def gguf_in(place: Path) -> Path:
    """The .gguf file itself, or the only one of a folder. Raises ValueError, one line, if there are several."""
    if place.is_file():
        return place
    found = sorted(place.glob("*.gguf"))
    if len(found) != 1:
        raise ValueError(f"{place} holds {len(found)} GGUF files; give one of them, such as model={found[0]}")
    return found[0]


def convert(file: Path, folder: Path) -> None:
    """Write the model, its tokenizer and its chat template into an empty folder.

    Raises
    ------
    ValueError : one line, where the file cannot be read, or transformers does not know its architecture.
    """
    check_readers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        dtype = getattr(torch, dtype_of(file))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
        )
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.name_or_path = ""
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
    except UNREADABLE as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"transformers cannot read {file}: {first}") from None
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def dtype_of(file: Path) -> str:
    """The dtype that a file's weights get in the folder."""
    from gguf import GGUFReader

    kind = GGUFReader(file).fields.get("general.file_type")
    return PLAIN.get(int(kind.contents()), "bfloat16") if kind is not None else "bfloat16"
