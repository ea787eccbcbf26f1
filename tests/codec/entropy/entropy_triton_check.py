"""Checks of the entropy coder's kernels, run by test_entropy_kernels.py (triton_check_main.py).

python -m tests.codec.entropy.entropy_triton_check values others    the cases that take longer
python -m tests.codec.entropy.entropy_triton_check compile few 90   some kernels
python -m tests.codec.entropy.entropy_triton_check compile 2 80 90   all kernels, for strips with 2 levels of differences
"""

from dataclasses import replace
from typing import NamedTuple

from tests.triton_check_main import compiled, main


class BenchCase(NamedTuple):
    """KV of one layer and head to code. levels: Haar levels of K and V. rotates: whether K rotates with the position. edit: the change that
    `filled` makes to the values. streams: streams that one program of a pass codes. warps: warps of the other kernels, which set how
    many rows they visit at a time."""

    tokens: int
    head_dim: int
    block: int
    tile: int
    depth: int
    dtype: str = "bfloat16"
    kinds: int = 2
    levels: tuple[int, ...] = (0, 0)
    rotates: bool = False
    edit: str = ""
    streams: int = 16
    warps: int = 4


MANY = BenchCase(76, 8, 4, 8, 6, "float32", kinds=1, edit="outliers", streams=4)  # more cells than a program of a pass has
PARTS = BenchCase(24, 144, 6, 12, 1, kinds=1)  # three parts, no size a power of two, and visits of several chunks
CASES = [
    MANY,
    PARTS,
    BenchCase(80, 6, 4, 32, 8, levels=(1, 1), rotates=True, edit="outliers"),
]
OTHERS = [
    BenchCase(104, 6, 4, 32, 2, edit="verbatim"),
    BenchCase(80, 10, 4, 36, 8, "float16", rotates=True, edit="outliers"),
    BenchCase(96, 8, 8, 40, 6, levels=(2, 0), rotates=True, edit="outliers"),
    BenchCase(72, 4, 8, 64, 4, "float32", levels=(3, 3), rotates=True),
    BenchCase(600, 128, 8, 584, 1, kinds=1, edit="sparse", warps=64),  # the positions of outliers take 32 bits
]


def filled(case: BenchCase):
    """A pool, the blocks of its coded tokens, and their cells."""
    import numpy as np
    import torch

    from abkt.codec.cells import Cells
    from abkt.codec.entropy.stats import rotation_of
    from abkt.kv.pool import Pool
    from abkt.spec import KVLayout, ModelSpec

    blocks = -(-case.tokens // case.block)
    layout = KVLayout(ModelSpec("m", 1, 1, case.head_dim, case.dtype, kv_kinds=case.kinds), blocks + 2, case.block)
    pool, cells = Pool(layout), Cells(layout, case.tokens, case.tile, case.depth)
    table = cells.coded_table(torch.randperm(layout.blocks, generator=torch.Generator().manual_seed(1))[:blocks].tolist())
    rng, coded = np.random.default_rng(case.tokens), sum(cells.tile_lengths)
    scale = np.exp(rng.standard_normal((case.kinds, 1, case.head_dim)))
    x = scale * (rng.standard_normal((case.kinds, coded, case.head_dim)) + 2 * rng.standard_normal(scale.shape))
    if case.rotates:
        angles, half = rotation_of(coded, case.head_dim), case.head_dim // 2
        a, b = np.split(8 * rng.standard_normal(case.head_dim), 2)
        x[0] -= x[0].mean(0)
        x[0, :, :half] += a * angles[:, 0] - b * angles[:, 1]
        x[0, :, half:] += b * angles[:, 0] + a * angles[:, 1]
    if case.edit == "outliers":
        x[-1, :, 5] = 3.25
        x[0, 1, 2], x[-1, 10, 3], x[0, 20, 4], x[-1, -1, 0] = 15e3, -15e3, 15e3, 15e3
    elif case.edit == "verbatim":  # not finite; too large; more outliers than allowed
        x[0, 3, 1], x[0, 40, 2], x[1, 64] = np.nan, 2.0**50, 1e6
    elif case.edit == "sparse":
        x[..., 1:] = x[..., :1, 1:]
        x[0, 580, 127], x[0, 3, 1] = 1e6, -1e6
        x[0, 20, 40:80] += 2.0 ** np.arange(-5, 5, 0.25)  # some values are beyond the range of a channel that does not vary
    pool.data.fill_(-7.0)
    shaped = torch.from_numpy(x).view(case.kinds, len(table), case.block, case.head_dim).transpose(0, 1)
    pool.data[table, 0, :, 0] = shaped.to(pool.data.dtype)
    return pool, table, cells


def coded_by_oracle(case: BenchCase, pool, table, cells):
    """The oracle's stream of a case, and the strips as the kernels read them."""
    import numpy as np

    from abkt.codec.entropy.coder import EntropyCoder
    from abkt.codec.entropy.gpu import launch as entropy_launch
    from abkt.codec.entropy.gpu import strips as entropy_strips

    entropy_launch.STREAMS, entropy_launch.WARPS = case.streams, case.warps
    levels = np.array(case.levels[: case.kinds])[None, :, None]
    done = EntropyCoder(10_000.0 if case.rotates else None, levels).encode(pool.data, table, cells)
    return done, *entropy_strips.strips_of(done.statistics, done.levels, cells, pool.dtype, pool.data.device)


def expanded(expansion, pool, table, wire, **arrived):
    """Expand into a pool; returns which cells are damaged."""
    import torch

    expansion.table.copy_(torch.tensor(table))
    for name, array in arrived.items():
        getattr(expansion, name).copy_(torch.from_numpy(array))
    expansion.enqueue(torch.from_numpy(wire), pool.data)
    return expansion.damaged.numpy()


def check_values(cases: list[BenchCase]) -> None:
    import numpy as np
    import torch

    from abkt.codec.coder import VERBATIM, StreamPrefix
    from abkt.codec.entropy.coder import EntropyCoder
    from abkt.codec.entropy.gpu.launch import EntropyEncoding, EntropyExpansion
    from abkt.codec.header import slot_offsets
    from abkt.kv.pool import Pool

    seen = {"outliers": 0, "verbatim": 0, "plain": 0, "rotating": 0, "still": 0}
    for case in cases:
        pool, table, cells = filled(case)
        expected, groups, rotation = coded_by_oracle(case, pool, table, cells)
        coded, total = expected.cells, len(expected.cells.body)
        work = EntropyEncoding(cells, groups, rotation, pool.data.device)
        work.table.copy_(torch.tensor(table))
        if case is PARTS:  # buffers that are used again behave like new ones
            before = pool.data.clone()
            before[table[0], 0, 0, 0, 1, [3, 60]] = torch.tensor([torch.nan, 1e6]).to(before)
            work.enqueue(before)
            assert work.report.classes.any()
        work.enqueue(pool.data)
        work.copy_report()
        assert np.array_equal(work.host.classes.numpy(), coded.classes), f"{case}: classes differ"
        assert np.array_equal(work.host_lengths.numpy(), expected.sizes[1:]), f"{case}: lengths differ"
        assert torch.equal(work.body[:total], coded.body), f"{case}: bytes differ"
        assert np.allclose(work.host.errors, coded.errors, rtol=1e-4, atol=1e-9), f"{case}: errors differ"
        assert np.allclose(work.host.deviation, coded.deviation, rtol=1e-4), f"{case}: deviations differ"

        sizes, offsets = expected.sizes, slot_offsets(expected.sizes)
        present = (cells.passes - np.arange(cells.count) % (cells.passes + 1)).astype(np.int8)
        theirs, ours = Pool(pool.layout), Pool(pool.layout)
        given = (offsets, sizes, present, coded.classes)
        prefix = StreamPrefix(coded.body.numpy(), *given, expected.levels, expected.statistics)
        EntropyCoder(None).expand(prefix, theirs.data, table, cells)
        arrived = dict(zip(("offsets", "sizes", "present", "classes"), given))
        expansion = EntropyExpansion(cells, groups, rotation, pool.data.device)
        assert not expanded(expansion, ours, table, coded.body.numpy(), **arrived).any()
        assert torch.equal(theirs.data, ours.data), f"{case}: values differ"
        seen["outliers"] += int((coded.body[offsets[1][(coded.classes != VERBATIM) & (present > 0)]] & 32 > 0).sum())
        seen["verbatim"] += int((coded.classes == VERBATIM).sum())
        seen["plain"] += int(sum((group.coded == 0)[:, : cells.passes].sum() for group in groups))
        seen["rotating"] += int(sum(group.rotates.sum() for group in groups))
        seen["still"] += int(sum((group.rotates == 0).sum() for group in groups if group.any_rotates))
    assert min(seen.values()) >= 1 or cases is not CASES, f"a path was not taken: {seen}"


def check_statistics() -> None:
    """Cells that vary differently from their strip's statistics. In one, pass 1 is longer than its capacity although no value is an
    outlier. One varies too much for the classes that its channels start with. A strip without passes has no room for a single byte."""
    import numpy as np
    import torch

    from abkt.codec.cells import Cells
    from abkt.codec.coder import VERBATIM
    from abkt.codec.entropy import oracle as entropy
    from abkt.codec.entropy.gpu import launch as entropy_launch
    from abkt.codec.entropy.gpu.launch import EntropyEncoding, EntropyExpansion
    from abkt.codec.entropy.gpu.strips import Strips
    from abkt.codec.entropy.stats import Stats
    from abkt.kv.pool import Pool
    from abkt.spec import KVLayout, ModelSpec

    entropy_launch.WARPS = 4
    layout, rng = KVLayout(ModelSpec("m", 3, 1, 8, kv_kinds=1), 18, 4), np.random.default_rng(2)
    pool, cells, table = Pool(layout), Cells(layout, 72, 32, 2), list(range(16, 0, -1))
    scales = np.full((3, 8), 110, np.uint8)
    scales[1, 3], scales[2] = 150, 0
    deviation = 2.0 ** ((scales[1].astype(np.float64) - 128) / 4)
    x = np.zeros((3, 2, 32, 8))
    x[0] = rng.choice([-1.0, 1.0], (32, 8)), 0.03 * rng.standard_normal((32, 8))
    x[1] = deviation * rng.standard_normal((2, 32, 8)) * np.array([3, 1])[:, None, None]
    pool.data[table, :, 0, 0] = torch.from_numpy(x).to(pool.dtype).view(3, 16, 4, 8).transpose(0, 1)
    x = pool.data[table, :, 0, 0].transpose(0, 1).float().reshape(6, 32, 8).numpy()
    stats, strip = Stats(np.zeros((3, 8), np.float32), scales, np.zeros(3, dtype=bool)), np.arange(3).repeat(2)
    done = entropy.encode_cells(x, strip, stats, 2, pool.dtype)
    assert done.fallback.tolist() == [True] + [False] * 5
    assert [len(d) for row in done.slots for d in row[4:]] == [1, 1, 0, 0]
    groups = [Strips.of([0, 1, 2], stats, pool.data.device)]
    work = EntropyEncoding(cells, groups, None, pool.data.device)
    work.table.copy_(torch.tensor(table))
    work.enqueue(pool.data)
    lengths, body = work.lengths.numpy(), b"".join(d for row in done.slots for d in row)
    assert work.report.classes.tolist() == [VERBATIM, 0, 0, 0, 0, 0]
    assert lengths.tolist() == [[len(d) for d in row] for row in done.slots]
    assert work.body[: len(body)].numpy().tobytes() == body
    assert not work.report.errors[:, 0].any()

    y = entropy.decode_cells([row[1:] for row in done.slots], strip[1:], stats, 32, pool.dtype)
    offsets, sizes = (np.concatenate((0 * part[:1], part)) for part in (work.ends.numpy() - lengths, lengths))
    sizes[2, 4] = 2
    given = {"offsets": offsets, "sizes": sizes, "present": np.full(6, 2, np.int8), "classes": work.report.classes.numpy()}
    expansion, wire = EntropyExpansion(cells, groups, None, pool.data.device), np.frombuffer(bytearray(body + b"\0\0"), np.uint8)
    assert expanded(expansion, pool, table, wire, **given).tolist() == [0, 0, 0, 0, 1, 0]
    assert np.array_equal(pool.data[table, :, 0, 0].transpose(0, 1).float().reshape(6, 32, 8).numpy()[1:], y)


def check_damage() -> None:
    """Slots are changed, cut, extended or moved. Flags and values equal the oracle's, and nothing beyond the wire is read."""
    import numpy as np
    import torch

    from abkt.codec.coder import VERBATIM, StreamPrefix
    from abkt.codec.entropy.coder import EntropyCoder
    from abkt.codec.entropy.gpu.launch import EntropyExpansion
    from abkt.codec.header import slot_offsets
    from abkt.kv.pool import Pool
    from tests.codec.rans.rans_triton_check import guarded

    pool, table, cells = filled(MANY)
    done, *strips = coded_by_oracle(MANY, pool, table, cells)
    body, lengths = done.cells.body.numpy().tobytes(), done.sizes[1:]
    ends = lengths.cumsum().reshape(lengths.shape)
    expansion, rng, classes, said = EntropyExpansion(cells, *strips, pool.data.device), np.random.default_rng(3), done.cells.classes, []
    every, none = np.full(cells.count, cells.passes, dtype=np.int8), np.zeros(cells.count, dtype=np.int8)
    nowhere, infinite, unknown = (3, 5, b"\xff\xff"), (5, 9, b"\0\0\x80\x7f"), (0, 1, None)
    too_many, none_at_all = (1, 3, b"\xff\xff"), (1, 9, b"\0\0")
    for attempt, lists in enumerate(((nowhere, infinite, unknown), (unknown, too_many, none_at_all))):
        slots = [[bytearray(body[e - n : e]) for e, n in zip(*rows, strict=True)] for rows in zip(ends.tolist(), lengths.tolist())]
        listing = [cell for cell, slot in enumerate(slots[0]) if slot and slot[0] & 32]
        for cell, (start, stop, changed) in zip(listing, lists, strict=True):
            assert slots[0][cell][1:3] == b"\1\0"
            slots[0][cell][start:stop] = changed or [slots[0][cell][0] | 64]  # a bit without a meaning
        others = [cell for cell in np.flatnonzero(classes != VERBATIM).tolist() if cell not in listing]
        for cell, way in zip(others, rng.permutation(len(others)).tolist()):
            slot = slots[-1 if way == 2 else rng.integers(cells.passes)][cell]  # the last is plain
            if way == 0:
                slot[rng.integers(len(slot))] ^= 1 << rng.integers(8)
            elif way == 1:
                del slot[-rng.integers(1, len(slot)) :]
            elif way == 2:
                slot += bytes(rng.integers(1, 3))
            elif way == 3:
                outside = cell
        sizes = np.array([[0] * cells.count, *([len(slot) for slot in row] for row in slots)])
        offsets = slot_offsets(sizes)
        wire = guarded(b"".join(bytes(slot) for row in slots for slot in row))
        where = rng.integers(1, cells.passes + 1), outside
        offsets[where], sizes[where] = ((-3, 40), (len(wire) - 3, 40))[attempt]
        ours, theirs = Pool(pool.layout), Pool(pool.layout)
        flags = expanded(expansion, ours, table, wire, offsets=offsets, sizes=sizes, present=every, classes=classes)
        for cell in range(cells.count):
            alone = np.where(np.arange(cells.count) == cell, classes, VERBATIM).astype(np.uint8)
            try:
                if cell == outside:
                    raise ValueError("a slot that the oracle is never given")
                prefix = StreamPrefix(wire, offsets, sizes, every, alone, done.levels, done.statistics)
                EntropyCoder(None).expand(prefix, theirs.data, table, cells)
            except ValueError:
                said.append(cell)
                assert flags[cell], f"damage in cell {cell} is not said"
            else:
                assert not flags[cell], f"cell {cell} is not damaged"
        assert torch.equal(ours.data, theirs.data), "a damaged cell was written, or another has other values"
    good = slot_offsets(done.sizes), done.sizes
    for present in (every, none):  # a cell without a pass has no outliers, though it had some before
        arrived = dict(zip(("offsets", "sizes", "present", "classes"), (*good, present, classes)))
        assert not expanded(expansion, ours, table, done.cells.body.numpy(), **arrived).any()
    prefix = StreamPrefix(wire, *good, none, classes, done.levels, done.statistics)
    EntropyCoder(None).expand(prefix, theirs.data, table, cells)
    assert torch.equal(ours.data, theirs.data), "what was there before is still told"
    assert 2 * 5 <= len(said) < 2 * cells.count - 2


def check_bench() -> None:
    from abkt.bench import arguments, entropy
    from abkt.bench.case import BenchCase as Benched

    assert entropy.check(Benched(arguments.parse(["kv_heads=1", "head_dim=8"]), 34, 16)) == 2


def check_compile(which: str, *architectures: str) -> list[dict]:
    """which: number of levels of differences of the strips, or "few" for the kernels that take longest, without differences."""
    from types import SimpleNamespace

    from abkt.codec.cells import Cells
    from abkt.codec.entropy.gpu import encode_kernels as encode
    from abkt.codec.entropy.gpu import expand_kernels as expand
    from abkt.codec.entropy.gpu import launch
    from abkt.codec.entropy.gpu import pass_kernels as passes
    from abkt.spec import KVLayout, ModelSpec

    few, levels = which == "few", 0 if which == "few" else int(which)
    cells = Cells(KVLayout(ModelSpec("any", layers=6, kv_heads=2, head_dim=128), 126), 2003, 128, 8)
    names = {
        "*i64": "table head_sizes ends offsets sizes", "*i32": "numbers kinds starts deviations rules listed counts outliers",
        "*u8": "rotates heads metas classes points coded skew body owner wire damaged", "*i8": "present", "*i16": "codes",
        "*bf16": "data", "*fp32": "centres rotation steps sums spreads errors", "i64": "length",
    }  # fmt: skip
    types = {name: kind for kind, of_kind in names.items() for name in of_kind.split()}
    report = []

    def add(kernel, constant: dict, **own: str) -> None:
        options = {name: value for name, value in constant.items() if not name.isupper()}
        report.extend(compiled(kernel, architectures, types | own, constant, options))

    group = SimpleNamespace(levels=levels, any_rotates=levels > 0)
    shared = {"STREAMS": launch.STREAMS, "BYTES": launch.BYTES}
    of_pass = [constant | shared for constant in launch.passes_of(group, cells)]
    constant = launch.constants(group, cells) | {"PASSES": cells.passes, "BOUND": 2.0**48, "LAST": 4}
    for kernel in (encode.code_cells, expand.fill_cells):
        add(kernel, constant)
    for number in (2,) if few else (1, 3, 5) if not levels else ():
        add(passes.encode_pass, of_pass[number - 1], slots="*i16", table="*i64")
        add(passes.decode_pass, of_pass[number - 1], table="*i32")
    for kernel in () if few else (encode.measure_cells, encode.list_outliers, encode.measure_errors, expand.read_heads):
        add(kernel, constant)
    for number in () if few or levels else (3, 5):
        add(passes.pack_pass, of_pass[number - 1], slots="*u8")
        add(passes.unpack_pass, of_pass[number - 1])
    if not few and not levels:
        add(passes.join_passes, shared | {"num_warps": launch.WARPS}, slots="*u8")
    return report


def check(which: str = "") -> None:
    """Check bytes, values and refusals; with "others", the cases that take longer."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)  # the checks that do not run on a GPU take half of the time
    if which == "others":
        check_values(OTHERS)
        check_bench()
    else:
        check_values(CASES)
        check_statistics()
        check_damage()


if __name__ == "__main__":
    main(check, check_compile)
