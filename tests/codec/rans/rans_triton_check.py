"""Checks of the kernels of rANS, run by test_rans_kernels.py (triton_check_main.py)."""

import ctypes
import mmap
import os

from tests.triton_check_main import compiled, main

CASES = [  # streams, n, contexts, alphabet, flatness of the tables
    (19, 64, 2, 2, 0.05),
    (3, 37, 3, 5, 0.5),
    (2, 7, 1, 17, 1.0),
    (1, 1, 1, 1, 1.0),
    (17, 41, 2, 256, 1.0),
    (2, 0, 1, 3, 1.0),
    (0, 9, 1, 3, 1.0),
]


def check_values() -> None:
    import numpy as np
    import torch

    from abkt.codec.rans import launch as rans_launch
    from abkt.codec.rans import oracle as rans
    from abkt.codec.rans.launch import RansTables
    from tests.codec.rans.test_rans import sample

    def on_device(*arrays):
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]

    cpu = torch.device("cpu")
    for streams, n, *shape in CASES:
        symbols, contexts, shares = sample(n, streams, n, *shape)
        expected, tables = rans.encode(symbols, contexts, shares), RansTables.of(shares, cpu)
        done = rans_launch.encode(*on_device(symbols, contexts), tables)
        assert not done.failed.any()
        assert done.sizes.tolist() == [len(d) for d in expected], f"{streams} streams of {n}: sizes differ"
        joined = b"".join(expected)
        assert done.body[: len(joined)].numpy().tobytes() == joined, f"{streams} streams of {n}: bytes differ"
        gap = torch.from_numpy(np.frombuffer(b"\7" + b"\7".join([*expected, b""]), np.uint8).copy())  # no stream begins where words do
        offsets = done.ends - done.sizes + torch.arange(1, streams + 1)
        found, damaged = rans_launch.decode(gap, offsets, done.sizes, n, on_device(contexts)[0], tables)
        assert not damaged.any()
        assert np.array_equal(found.numpy(), symbols), f"{streams} streams of {n}: symbols differ"
    check_room(sample)
    check_absent()
    check_damage(sample)


def check_room(sample) -> None:
    """Only streams that are longer than their capacity fail; the others are unchanged."""
    import torch

    from abkt.codec.rans import launch as rans_launch
    from abkt.codec.rans import oracle as rans

    symbols, contexts, shares = sample(5, 6, 64, 2, 40)
    symbols[::2, :48] = 0  # likely and unlikely symbols give different lengths
    shares[:, 0] += shares[:, 1:].sum(1, dtype=shares.dtype) - 39
    shares[:, 1:] = 1
    expected = rans.encode(symbols, contexts, shares)
    capacity = (len(expected[0]) + len(expected[1])) // 2
    done = rans_launch.encode(
        torch.from_numpy(symbols), torch.from_numpy(contexts), rans_launch.RansTables.of(shares, torch.device("cpu")), capacity
    )
    assert done.failed.tolist() == [len(d) > capacity for d in expected] == [False, True] * 3
    whole = b"".join(d for d in expected if len(d) <= capacity)
    assert done.body[: int(done.ends[-1])].numpy().tobytes() == whole


def check_absent() -> None:
    """Symbols that the tables cannot code fail without reads out of bounds. A certain symbol takes no bytes beyond the states."""
    import numpy as np
    import torch

    from abkt.codec.rans import launch as rans_launch
    from abkt.codec.rans import oracle as rans

    shares = np.array([[4096, 0], [1, 4095]], dtype=np.uint16)
    tables = rans_launch.RansTables.of(shares, torch.device("cpu"))
    symbols, contexts = np.zeros((4, 9), dtype=np.uint8), np.zeros((4, 9), dtype=np.uint8)
    good = rans.encode(symbols[:1], contexts[:1], shares)[0]
    symbols[1, 4], symbols[2, 8], contexts[3, 0] = 1, 2, 2
    done = rans_launch.encode(torch.from_numpy(symbols), torch.from_numpy(contexts), tables)
    assert done.failed.tolist() == [False, True, True, True]
    assert done.sizes.tolist() == [rans.STATE_BYTES, 0, 0, 0]
    assert done.body[: rans.STATE_BYTES].numpy().tobytes() == good
    data, sizes = torch.from_numpy(np.frombuffer(good, np.uint8).copy()), torch.full((4,), rans.STATE_BYTES)
    found, damaged = rans_launch.decode(data, torch.zeros_like(sizes), sizes, 9, torch.from_numpy(contexts), tables)
    assert damaged.tolist() == [False, False, False, True]
    assert not found.any()
    # One symbol; by their last states, that a word of 0 makes 2**16, these would be whole: but a context is unknown, a state too low.
    for first, context, whole in ((2**16, 0, False), (2**28, 1, True), (2**16 + 1, 2, False), (1, 0, False)):
        data = np.array([first] + [2**16] * 7, dtype="<u4").tobytes() + b"\0\0" * (first != 2**28)
        given = torch.from_numpy(np.frombuffer(data, np.uint8).copy()), torch.tensor([0]), torch.tensor([len(data)])
        found, damaged = rans_launch.decode(*given, 1, torch.tensor([[context]], dtype=torch.uint8), tables)
        assert damaged.tolist() == [not whole], f"state {first} in context {context}"
        assert not found.any()


def check_damage(sample) -> None:
    """Bytes are changed, cut, added or moved. The flags equal the oracle's. A read beyond the data would end the process."""
    import numpy as np
    import torch

    from abkt.codec.rans import launch as rans_launch
    from abkt.codec.rans import oracle as rans

    n, rng = 30, np.random.default_rng(1)
    symbols, contexts, shares = sample(3, 1, n, 2, 5)
    good = rans.encode(symbols, contexts, shares)[0]
    streams = [good, good[:-2], good[:-1], good[:32], good[:31], good[:2], b"", good + b"\0\0", good + b"\7", b"\0" * len(good)]
    for _ in range(30):
        damaged = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        streams.append(bytes(damaged))
    answers = []
    for stream in streams:
        try:
            answers.append(rans.decode([stream], n, contexts, shares)[0].tolist())
        except ValueError:
            answers.append(None)
    assert 1 < sum(answer is not None for answer in answers) < 12, "no damage that says nothing was tried, or nothing else"
    assert answers[0] == symbols[0].tolist()
    sizes = np.array([len(stream) for stream in streams])
    offsets = sizes.cumsum() - sizes
    total = int(sizes.sum())
    outside = [(-1, 40), (-(2**40), 40), (total - 39, 40), (total, 40), (2**40, 40), (0, -2), (0, 2**62), (2**62, 2**62), (-2, -2)]
    offsets, sizes = (np.concatenate((held, [pair[i] for pair in outside])) for i, held in enumerate((offsets, sizes)))
    data = torch.from_numpy(guarded(b"".join(streams)))
    all_contexts = torch.from_numpy(np.repeat(contexts, len(sizes), 0))
    tables = rans_launch.RansTables.of(shares, torch.device("cpu"))
    found, flags = rans_launch.decode(data, torch.from_numpy(offsets), torch.from_numpy(sizes), n, all_contexts, tables)
    assert flags.tolist() == [answer is None for answer in answers] + [True] * len(outside)
    assert found.max() < 5
    for row, answer in zip(found.tolist(), answers, strict=False):
        assert answer is None or row == answer


def guarded(data: bytes):
    """A copy of `data` that ends at the end of mapped memory. A read beyond it, or before its page, ends the process."""
    import numpy as np

    page = mmap.PAGESIZE
    pages = -(-len(data) // page)
    memory = np.frombuffer(mmap.mmap(-1, (pages + 2) * page), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for first in (0, pages + 1):
        start = memory.ctypes.data + first * page
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(page), ctypes.c_int(0)) == 0, os.strerror(ctypes.get_errno())
    held = memory[(pages + 1) * page - len(data) : (pages + 1) * page]
    held[:] = np.frombuffer(data, np.uint8)
    return held


def check_compile(*architectures: str) -> list[dict]:
    from abkt.codec.rans import kernels as rans_kernels
    from abkt.codec.rans import launch as rans_launch

    types = {
        "symbols": "*u8", "contexts": "*u8", "data": "*u8", "owner": "*u8", "damaged": "*u8", "body": "*u8",
        "sizes": "*i64", "offsets": "*i64", "ends": "*i64",
    }  # fmt: skip
    report = []
    for kernel, launch, own in (
        (rans_kernels.encode_streams, rans_launch.LAUNCH, {"table": "*i64", "slots": "*i16"}),
        (rans_kernels.decode_streams, rans_launch.LAUNCH, {"table": "*i32", "length": "i64"}),
        (rans_kernels.join_streams, rans_launch.COPIED, {"slots": "*u8"}),
    ):
        options = {name: value for name, value in launch.items() if not name.isupper()}
        report += compiled(kernel, architectures, types | own, launch, options)
    return report


if __name__ == "__main__":
    main(check_values, check_compile)
