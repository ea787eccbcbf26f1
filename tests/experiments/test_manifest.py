"""A manifest names the origin of a result, and neither host nor user."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from experiments.lib.manifest import config_hash, git_state, manifest
from experiments.lib.paths import ROOT
from experiments.lib.verb import VerbCall


def run(out: Path, **config: object) -> VerbCall:
    return VerbCall("simulate", ("seed=3", f"curves={Path.home()}/curves.json"), {"seed": 3, "out": out, **config}, {"bitrate": "raw"}, out)


def test_inputs_seed_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"abc")
    found = manifest(run(tmp_path), [path])
    # SHA-256 of "abc" from FIPS 180-2
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found["inputs"] == [{"name": "trace.csv", "bytes": 3, "sha256": digest}]
    assert found["seed"] == 3
    assert found["choices"] == {"bitrate": "raw"}
    assert found["versions"]["numpy"] == __import__("numpy").__version__


def test_no_personal_path(tmp_path: Path) -> None:
    found = str(manifest(run(tmp_path, path=f"{Path.home()}/data/x", trace=f"{ROOT}/data/y"), []))
    assert f"{Path.home()}/" not in found
    assert str(ROOT) not in found
    assert "~/curves.json" in found


def test_the_hash_is_of_the_configuration_alone(tmp_path: Path) -> None:
    one, other = (manifest(run(tmp_path / name, gbps=10.0), [])["config_sha256"] for name in ("a", "b"))
    assert one == other
    assert one != manifest(run(tmp_path / "a", gbps=11.0), [])["config_sha256"]
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) == hashlib.sha256(b'{"a": 1, "b": 2}').hexdigest()


def test_git_state_of_a_checkout_and_outside_of_one(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"sha": None, "dirty": None}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    assert git_state(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path)["dirty"] is True


def test_git_that_is_not_installed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == {"sha": None, "dirty": None}
