"""abkt's own processes are not led astray by files of the folder in which the user happens to be."""

import subprocess
from pathlib import Path

from abkt.module_process import module_command, module_environment


def test_a_foreign_module_in_the_current_folder_is_not_imported(tmp_path: Path) -> None:
    for name in ("json", "torch", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    (tmp_path / "abkt").mkdir()
    (tmp_path / "abkt" / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    command = module_command("abkt.bench", "nothing")
    ended = subprocess.run(command, cwd=tmp_path, env=module_environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "abkt.bench: " in ended.stderr
    assert "wrong" not in ended.stderr


def test_more_variables_are_set_and_the_path_is_kept(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    made = module_environment(OMP_NUM_THREADS="1")
    assert made["PYTHONPATH"].split(":")[-1] == "/elsewhere"
    assert made["OMP_NUM_THREADS"] == "1"
