"""Checks of the digest's kernel, run by test_device_digest.py (triton_check_main.py)."""

from tests.triton_check_main import compiled, main

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


def check_compile(*architectures: str) -> list[dict]:
    from abkt.transfer.device.digest_kernels import STEP, WARPS, add_sums

    return compiled(add_sums, architectures, {"table": "*i64", "found": "*i64"}, {"STEP": STEP}, {"num_warps": WARPS})


if __name__ == "__main__":
    main(check_values, check_compile)
