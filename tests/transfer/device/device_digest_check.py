"""Run by test_device_digest.py in a process of its own, because Triton chooses between compiler and interpreter when it is imported.

python device_digest_check.py values          compare the kernel with the oracle, in the interpreter
python device_digest_check.py compile 80 90   compile for these architectures: registers, spills and widest access, as JSON
"""

import json
import os
import sys
from pathlib import Path

SIZES = [(16,), (16384,), (16384 + 32, 48, 65536), (80_000,), (16, 16, 32)]  # bytes of the parts


def check_values() -> None:
    import torch

    from abkt.transfer.device.digest_kernels import sums_of
    from abkt.transfer.device.digest_oracle import sums

    for sizes in SIZES:
        dice = torch.Generator().manual_seed(sum(sizes))
        memory = torch.randint(0, 256, (sum(sizes) + 16 * len(sizes),), dtype=torch.uint8, generator=dice)
        parts, at = [], -memory.data_ptr() % 16
        for size in sizes:  # parts are not adjacent
            parts.append(memory[at : at + size])
            at += size + 16
        assert torch.equal(sums_of(parts), sums(torch.cat(parts))), sizes


def check_compile(architectures: list[int]) -> None:
    import sass
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from abkt.transfer.device.digest_kernels import STEP, WARPS, add_sums

    report = []
    for architecture in architectures:
        signature = {"table": "*i64", "found": "*i64", "STEP": "constexpr"}
        attributes = {(index,): [["tt.divisibility", 16]] for index in (0, 1)}
        source = ASTSource(add_sums, signature=signature, constexprs={"STEP": STEP}, attrs=attributes)
        binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": WARPS}).asm["cubin"]
        report.append({"architecture": architecture, **sass.counts(triton, binary)})
    print(json.dumps(report))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]
    os.environ["TRITON_INTERPRET"] = "1" if sys.argv[1] == "values" else "0"
    if sys.argv[1] == "values":
        check_values()
    else:
        check_compile([int(a) for a in sys.argv[2:]])
