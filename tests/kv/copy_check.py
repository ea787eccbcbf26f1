"""Checks of the copy kernel, run by test_copy.py (triton_check_main.py)."""

from tests.triton_check_main import compiled, main

SHAPES = [  # layers, kinds, kv_heads, head_dim, block tokens, dtype; then the word sizes in bytes that a block and a piece of it allow
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

    from abkt.kv import copy
    from abkt.kv.copy_kernels import launch
    from abkt.kv.layer_major import LayerMajorPool
    from abkt.kv.pool import Pool
    from abkt.kv.runs import aligned_runs
    from abkt.kv.words import joined, word_bytes
    from abkt.spec import KVLayout, ModelSpec
    from tests.kv.test_copy import memory, poisoned

    widths: list[int] = []

    def kernel(*given):
        widths.append(word_bytes(16, *joined(*given[:2])))
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


def check_compile(*architectures: str) -> list[dict]:
    from abkt.kv.copy_kernels import constants, move_blocks
    from abkt.spec import KVLayout, ModelSpec

    layout = KVLayout(ModelSpec("llama-3.1-8b", layers=32, kv_heads=8, head_dim=128), 4096, 16)
    types = {"source": "*i32", "destination": "*i32", "source_blocks": "*i64", "destination_blocks": "*i64"}
    report = []
    for name, piece_bytes, absent in (
        ("gather", layout.block_bytes, "destination_blocks"),
        ("scatter", layout.block_bytes, "source_blocks"),
        ("copy", layout.block_bytes, ""),
        ("layer-major copy", layout.block_bytes // 64, ""),
    ):
        options = constants(piece_bytes, 16)
        given = {name: options.pop(name) for name in list(options) if name.isupper()} | ({absent: None} if absent else {})
        report += compiled(move_blocks, architectures, types, given, options, name)
    return report


if __name__ == "__main__":
    main(check_values, check_compile)
