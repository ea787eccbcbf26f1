"""Compiles the modules of abkt.compiled with mypyc and a C compiler, into the user's cache: `python -m abkt.compiler`.

It takes one or two minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from abkt.compiled import FLAGS, GROUP, ROOT, folder, sources

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
        for source in sources():
            copy = here / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            for parent in copy.relative_to(here).parents[:-1]:
                (here / parent / "__init__.py").touch()
        files = [str(source.relative_to(ROOT)) for source in sources()]
        environment = {**os.environ, "CFLAGS": FLAGS, "ABKT_COMPILED": "0"}
        done = subprocess.run(
            [sys.executable, "-c", BUILD, GROUP, *files], cwd=here, env=environment, capture_output=True, text=True, check=False
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
