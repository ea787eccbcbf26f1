"""Checks of the kernels of the lossless code, run by test_lossless_kernels.py (triton_check_main.py).

python -m tests.codec.lossless.lossless_triton_check values N   the first N cases
"""

from tests.triton_check_main import compiled, main

CASES = [
    ("bfloat16", 512, 4),
    ("float16", 1936, 4),
    ("bfloat16", 2048, 2),
    ("bfloat16", 6160, 3),
    ("bfloat16", 4096, 3),
    ("float16", 4096, 3),
]


def check_values(count: str) -> None:
    import torch

    from abkt.codec.lossless import oracle as lossless
    from abkt.codec.lossless.launch import TritonLossless, UnitBuffers
    from abkt.codec.lossless.oracle import UnitLayout

    kernels = TritonLossless()
    for name, n, width in CASES[: int(count)]:
        dtype, generator = getattr(torch, name), torch.Generator().manual_seed(n)
        x = (torch.randn(7, n, generator=generator) * 2 ** (2 * torch.randn(7, 1, generator=generator))).to(dtype)
        x[0] *= 3
        x[1, ::7] = 0  # many escapes
        x[2] = torch.randint(-(2**15), 2**15, (n,), dtype=torch.int16, generator=generator).view(dtype)  # stored uncoded
        x[3, :16] = torch.tensor([0x7F80, 0x7FC1, -1, -0x8000, 1, 0x7FFF, -0x80, 0] * 2, dtype=torch.int16).view(dtype)
        windows = lossless.windows_for(x, 1, width)
        order = [5, 0, 3, 6, 2, 1, 4]
        pool = torch.full((9, n + 32), 7, dtype=torch.int16).view(dtype)
        places = torch.tensor([1, 8, 0, 3, 2, 7, 5])
        pool[places, 16 : n + 16] = x
        starts = places[order] * (n + 32) + 16
        a = lossless.encode(x[order], windows)
        buffers = UnitBuffers.of(UnitLayout(dtype, n, width), windows, len(x))
        buffers.body.fill_(170)
        buffers.slots.fill_(170)
        kernels.encode_into(buffers, pool, starts)
        b = buffers.units()
        assert torch.equal(a.sizes, b.sizes), f"{name} {n} {width}: sizes differ"
        assert torch.equal(a.body, b.body), f"{name} {n} {width}: bytes differ"
        assert 0 < int((a.sizes == 2 * n).sum()) < len(x)
        out = torch.full((9, n + 32), 7, dtype=torch.int16).view(dtype)
        assert not kernels.decode_into(b, out, starts).any()
        assert torch.equal(out.view(torch.int16), pool.view(torch.int16)), f"{name} {n} {width}: values differ"
        # a unit whose codes are all escapes, for which its tail has no room
        broken = b.body.clone()
        coded = int((b.sizes != 2 * n).nonzero()[0])
        begin = coded * b.layout.fixed_bytes
        broken[begin : begin + b.layout.fixed_bytes] = 255
        flags = kernels.decode_into(lossless.LosslessUnits(b.layout, b.windows, b.sizes, broken), out, starts)
        assert flags.nonzero().flatten().tolist() == [coded]
        counts = kernels.histograms(pool, starts, n, 7)
        assert torch.equal(counts, lossless.histograms(x[order][:, :2048], 7))
        assert torch.equal(kernels.windows(pool, starts, n, 7, width).bases, lossless.windows_of(counts, dtype, width).bases)


def check_compile(*architectures: str) -> list[dict]:
    import torch

    from abkt.codec.lossless import kernels as lossless_kernels
    from abkt.codec.lossless.launch import constants
    from abkt.codec.lossless.oracle import UnitLayout

    layout = UnitLayout(torch.bfloat16, 16_384, 3)
    options = constants(layout)
    fixed = {name: options.pop(name) for name in list(options) if name.isupper()}
    words = {"data": "*i32", "fixed": "*i32", "slots": "*i32", "tails": "*i32"}
    types = {**words, "starts": "*i64", "bases": "*u8", "sizes": "*i64", "ends": "*i64", "damaged": "*u8"}
    gathered = {"FIXED": layout.fixed_bytes, "SPARE": layout.raw_bytes - layout.fixed_bytes, "ROWS": 128}
    return [
        *compiled(lossless_kernels.encode_units, architectures, types, fixed, options),
        *compiled(lossless_kernels.decode_units, architectures, types, fixed, options),
        *compiled(lossless_kernels.gather_tails, architectures, types, gathered, {"num_warps": 4}),
    ]


if __name__ == "__main__":
    main(check_values, check_compile)
