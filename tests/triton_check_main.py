"""What the Triton checks share. A check is a module that runs in its own process, since Triton chooses between compiler and interpreter
when it is imported:

python -m tests.codec.rans.rans_triton_check values          kernels against the oracle, in the interpreter
python -m tests.codec.rans.rans_triton_check compile 80 90   kernels compiled ahead of time for these architectures: a report as JSON
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
    import re

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tests import sass

    given = {n: value for n, value in constants.items() if n in kernel.arg_names}
    signature = {n: "constexpr" if n in given else types.get(n, "i32") for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature=signature, constexprs=given, attrs=aligned)
    rows = []
    for architecture in architectures:
        made = triton.compile(source, target=GPUTarget("cuda", int(architecture), 32), options=dict(options)).asm
        row = {"kernel": f"{name or kernel.fn.__name__} sm_{architecture}", "fused": len(re.findall(r"\bfma\.rn\.f32\b", made["ptx"]))}
        rows.append(row | sass.counts(triton, made["cubin"]))
    return rows
