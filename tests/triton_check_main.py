"""What the Triton checks share. A check is a module that runs in its own process, since Triton chooses between compiler and interpreter
when it is imported:

python -m tests.codec.lossless.lossless_triton_check values         kernels against the oracle, in the interpreter
python -m tests.codec.lossless.lossless_triton_check compile 80 90  compiled ahead of time for these architectures: a report as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main(check_values: Callable[..., None], check_compile: Callable[..., list[dict[str, Any]]]) -> None:
    """Run what the command line names. Its other arguments go to `check_values`, or to `check_compile`, whose rows are printed."""
    verb, *arguments = sys.argv[1:]
    os.environ["TRITON_INTERPRET"] = "0" if verb == "compile" else "1"
    if verb == "compile":
        print(json.dumps(check_compile(*arguments)))
    elif verb == "values":
        check_values(*arguments)
    else:
        sys.exit(f"{verb}: values or compile is possible")


def run(module: str, *arguments: str) -> str:
    """What a check prints. Fails the calling test, with the end of its errors, unless it ends with 0."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-4000:]}"
    return done.stdout


def compiled(
    kernel: Any,
    architectures: Iterable[str],
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    name: str = "",
) -> list[dict[str, Any]]:
    """Compile a kernel for each architecture, with all pointers aligned to 16 bytes: what ptxas made of it, and how many float32
    multiplications and additions were fused.

    types: types of the arguments by name; the others are i32. constants: values of compile-time arguments; those that the kernel lacks
    are left out. name: the kernel's name in the report; its own if empty.
    """
    from abkt.bench import sass

    rows = []
    for architecture in architectures:
        code = sass.compiled(kernel, int(architecture), types, constants, options)
        row = {"kernel": f"{name or kernel.fn.__name__} sm_{architecture}", "fused": code.fused, "registers": code.registers}
        local = code.count("LDL|STL")
        looped = max((code.count("LDL|STL", loop) for loop in code.inner_loops()), default=0)
        wide = {"wide_loads": code.count(r"LDG\.E\.128\b"), "wide_stores": code.count(r"STG\.E\.128\b")}
        rows.append(row | {"stack": code.stack, "local": local, "local_in_loops": looped} | wide)
    return rows
