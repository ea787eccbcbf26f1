"""What a user writes after `model=`, as a Hugging Face folder on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from experiments.lib.paths import data_path
from experiments.models import gguf, named
from experiments.models.cache import cache_dir, made_once

PROBE = "probe"
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")  # of a model on the hub: no file that must be unpickled
ACCEPT = "ABKT_ACCEPT_TERMS"


def resolve_model(text: str, accept_terms: bool = False) -> Path:
    """A Hugging Face folder.

    Parameters
    ----------
    text : a folder; a .gguf file, or a folder that holds one; a name (probe, smollm2, gemma3); or an id on the hub (OWNER/NAME). What is
        there on the disk goes first. A GGUF file is converted once; the result stays in the cache.
    accept_terms : whether the user accepts the terms of a named model that has some. The environment variable ABKT_ACCEPT_TERMS=NAME
        says the same.

    Raises
    ------
    ValueError : one line that says what to do.
    """
    place = Path(text).expanduser()
    if place.is_file() and place.suffix == ".gguf":
        return _converted(place)
    if place.is_dir():
        if (place / "config.json").is_file() or not any(place.glob("*.gguf")):
            return place  # a folder without a config is reported by whoever reads it
        return _converted(gguf.gguf_in(place))
    if text == PROBE:
        return data_path(PROBE)
    if text in named.MODELS:
        return _named(text, accept_terms)
    if place.suffix == ".gguf" or place.is_absolute() or text.count("/") != 1 or text.startswith((".", "~")):
        raise ValueError(
            f"model={text} is neither a folder, nor a .gguf file, nor an id on the hub (OWNER/NAME), nor one of "
            f"{', '.join((PROBE, *named.MODELS))}"
        )
    return _from_hub(text)


def _converted(file: Path) -> Path:
    stand = file.resolve().stat()
    key = hashlib.sha256(f"{file.resolve()}|{stand.st_size}|{stand.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_dir() / "models" / key / file.stem
    if not folder.is_dir():
        gguf.check_readers()
        print(f"model: {file} is converted once, into {folder}", flush=True)
    return made_once(folder, lambda growing: gguf.convert(file, growing))


def _named(name: str, accept_terms: bool) -> Path:
    model = named.MODELS[name]
    folder = cache_dir() / "models" / model.sha256[:16] / name

    def make(growing: Path) -> None:
        file = named.fetch(model, growing)
        gguf.convert(file, growing)
        file.unlink()

    if not folder.is_dir():
        if model.terms and not accept_terms and name not in os.environ.get(ACCEPT, "").split(","):
            raise ValueError(f"{model.terms}. Read them; where you accept them, add accept_terms=true, or set {ACCEPT}={name}")
        gguf.check_readers()
        print(f"model: {model.what} is fetched once, into {folder}" + (f". {model.terms}." if model.terms else ""), flush=True)
    return made_once(folder, make)


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(WANTED), etag_timeout=named.TIMEOUT_S))
    except unreachable() as error:
        raise ValueError(f"model={model} is no folder, and the hub cannot give it: {str(error).splitlines()[0]}") from None
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"model={model} has no config.json and safetensors on the hub; download its .gguf file and give model=FILE.gguf")
    return folder


def unreachable() -> tuple[type[Exception], ...]:
    """Errors of the hub's client, for each HTTP library that it may use."""
    import huggingface_hub.errors as errors

    http = [kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError" and issubclass(kind, Exception)]
    return (OSError, ValueError, errors.EntryNotFoundError, *http)
