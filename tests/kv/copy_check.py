"""Run by test_copy.py in a process of its own, since Triton chooses between compiler and interpreter when it is imported.

python copy_check.py values          the kernel against the oracle in the interpreter
python copy_check.py compile 80 90   ahead of time for these architectures: registers, spills and widest access, as JSON
"""

import json
import os
import sys
from pathlib import Path

SHAPES = [  # layers, kinds, kv_heads, head_dim, block tokens, dtype; and bytes of the words that a block and a piece of it allow
    (2, 2, 2, 16, 4, "bfloat16", 16, 16),
    (1, 2, 1, 20, 3, "bfloat16", 16, 8),
    (3, 1, 1, 9, 3, "float32", 4, 4),
    (1, 1, 1, 5, 1, "float16", 2, 2),
    (3, 2, 1, 5, 1, "float8_e4m3fn", 2, 1),
    (3, 1, 1, 7, 1, "float8_e4m3fn", 1, 1),
    (2, 1, 1, 1100, 8, "bfloat16", 16, 16),  # several chunks a piece, the last not full
]


def check_values() -> None:
    import torch
    from test_copy import memory, poisoned

    from abkt.kv import copy
    from abkt.kv.copy_kernels import launch
    from abkt.kv.layer_major import LayerMajorPool
    from abkt.kv.pool import Pool
    from abkt.kv.runs import aligned_runs
    from abkt.spec import KVLayout, ModelSpec

    widths: list[int] = []

    def kernel(*given):
        widths.append(copy.word_bytes(16, *copy.joined(*given[:2])))
        launch(*given)

    oracle, sent, received = copy.mover_on, [5, 1, 2, 3, 6, 0], [0, 3, 4, 5, 2, 6]
    for layers, kinds, heads, dim, tokens, dtype, *expected in SHAPES:
        layout = KVLayout(ModelSpec("any", layers, heads, dim, dtype, kv_kinds=kinds), 7, tokens)
        for make in (Pool, LayerMajorPool):
            results = []
            for mover in (oracle, lambda device: kernel):
                copy.mover_on = mover
                source, scattered = poisoned(make(layout), 1), poisoned(make(layout), 2)
                peers = [poisoned(other(layout), 3) for other in (Pool, LayerMajorPool)]
                staged = torch.full((len(sent) * layout.block_bytes,), 7, dtype=torch.uint8)
                copy.gather(source, sent, staged)
                copy.scatter(staged, scattered, received)
                for peer in peers:
                    copy.copy_runs(source, peer, aligned_runs(sent, received))
                results.append([staged, *(memory(pool) for pool in (source, scattered, *peers))])
            for ours, theirs in zip(*results, strict=True):
                assert torch.equal(ours, theirs), f"{make.__name__} {layout}: bytes differ"
            flat = [make is Pool, make is Pool, make is Pool, False]
            assert widths == [expected[0] if whole else expected[1] for whole in flat], f"{make.__name__} {layout}: {widths}"
            widths.clear()
    layout = KVLayout(ModelSpec("any", 1, 1, 16), 7, 2)
    pool, buffer = poisoned(Pool(layout), 1), torch.full((2 * 128 + 4,), 7, dtype=torch.uint8)
    copy.gather(pool, [4, 2], buffer[4:])
    assert widths == [4], "a buffer at an odd address is not written in words of 16 bytes"
    assert torch.equal(buffer[4:], memory(pool).view(7, 128)[[4, 2]].view(-1))
    assert (buffer[:4] == 7).all()


def check_compile(architectures: list[int]) -> None:
    import sass
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from abkt.kv.copy_kernels import constants, move_blocks
    from abkt.spec import KVLayout, ModelSpec

    layout = KVLayout(ModelSpec("llama-3.1-8b", layers=32, kv_heads=8, head_dim=128), 4096, 16)
    pointers = {"source": "*i32", "destination": "*i32", "source_blocks": "*i64", "destination_blocks": "*i64"}
    report = []
    for architecture in architectures:
        for name, piece_bytes, absent in (
            ("gather", layout.block_bytes, "destination_blocks"),
            ("scatter", layout.block_bytes, "source_blocks"),
            ("copy", layout.block_bytes, ""),
            ("layer-major copy", layout.block_bytes // 64, ""),
        ):
            options = constants(piece_bytes, 16)
            constant = {name: options.pop(name) for name in list(options) if name.isupper()} | ({absent: None} if absent else {})
            signature = {n: "constexpr" if n in constant else pointers.get(n, "i32") for n in move_blocks.arg_names}
            attributes = {
                (i,): [["tt.divisibility", 16]] for i, n in enumerate(move_blocks.arg_names) if n in pointers and n not in constant
            }
            source = ASTSource(move_blocks, signature=signature, constexprs=constant, attrs=attributes)
            binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["cubin"]
            report.append({"kernel": f"{name} sm_{architecture}", **sass.counts(triton, binary)})
    print(json.dumps(report))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    os.environ["TRITON_INTERPRET"] = "1" if sys.argv[1] == "values" else "0"
    if sys.argv[1] == "values":
        check_values()
    else:
        check_compile([int(a) for a in sys.argv[2:]])
