"""Compiles the modules of abkt.compiled with mypyc and a C compiler, into the user's cache: `python -m abkt.compiler`.

The sources are compiled as they are, but with the constructors of their dataclasses as code (abkt.constructors). It takes one or two
minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from abkt.compiled import FLAGS, GROUP, ROOT, folder, sources
from abkt.constructors import written_out

BUILD = """
import sys
from mypyc.build import mypycify
from setuptools import setup
group, *files = sys.argv[1:]
options = ["--ignore-missing-imports", "--follow-imports=skip", "--cache-dir=/dev/null", *files]
extensions = mypycify(options, group_name=group, target_dir="c", opt_level="1", debug_level="0")
command = ["-q", "build_ext", "--build-lib", "out", "--build-temp", "o"]
setup(name=group, packages=[], py_modules=[], ext_modules=extensions, script_args=command)
"""


def build() -> Path:
    """Build the modules, unless they are built already; returns their folder.

    Raises RuntimeError, one line, if there is no C compiler or no mypyc, or they fail.
    """
    made = folder()
    if made.is_dir():
        return made
    if shutil.which(os.environ.get("CC", "cc")) is None:
        raise RuntimeError("no C compiler is found; the simulator runs as plain Python")
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=".building-") as made_in:
        here = Path(made_in)
        texts = written_out({str(source.relative_to(ROOT)): source.read_text(encoding="utf-8") for source in sources()})
        for name, text in texts.items():
            copy = here / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")
            for parent in Path(name).parents[:-1]:
                (here / parent / "__init__.py").touch()
        environment = {**os.environ, "CFLAGS": FLAGS, "ABKT_COMPILED": "0"}
        done = subprocess.run(
            [sys.executable, "-c", BUILD, GROUP, *texts], cwd=here, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode or not (here / "out").is_dir():
            said = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            raise RuntimeError(f"the simulator's modules could not be compiled: {said[-1] if said else 'mypyc said nothing'}")
        (here / "out").replace(made)
    return made


def main() -> None:
    try:
        print(f"compiled: {build()}")
    except RuntimeError as error:
        print(f"abkt.compiler: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
