"""What a trace is: its unit, its hashes, its ties, its containers; and every format there and back."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload import inference
from sim.workload.requests import Request
from sim.workload.scaling import Scaling, scale
from sim.workload.trace_formats import LONGBENCH_OSL
from sim.workload.traces import load_trace, read_trace, spread

CASES = Path(__file__).parents[2] / ".." / "shared" / "cases"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def hashed(time: float, isl: int, osl: int, block: int, first: int = 0) -> dict[str, Any]:
    ids = [first + i for i in range(-(-isl // block))]
    return {"timestamp": time, "input_length": isl, "output_length": osl, "hash_ids": ids}


BAILIAN = lines([hashed(0.072, 358, 70, 16), hashed(0.135, 1941, 125, 16, 100), hashed(0.662, 959, 9, 16, 900)])
MOONCAKE = lines(
    [
        hashed(t, isl, 5, 512, t)
        for t, isl in (
            (
                0,
                6955,
            ),
            (700, 600),
            (1900, 1200),
            (2500, 3),
        )
    ]
)
SHAREGPT = '[{"id": "a_0", "conversations": [{"from": "human", "value": "hi there"}]}]'
# Small copies of the files in CASES, which the tests prefer where they are.
FILES = {
    "bailian_3.jsonl": BAILIAN,
    "array_mooncake.json": json.dumps([{"timestamp": 0, "input_length": 6955, "output_length": 52, "hash_ids": [46]}]),
    "moon_float_len.jsonl": lines([{"timestamp": 0, "input_length": 6955.0, "output_length": 52.0, "hash_ids": [46]}]),
    "moon_null_hash.jsonl": lines([{"timestamp": 0, "input_length": 6955, "output_length": 52, "hash_ids": None}]),
    "u2028.jsonl": '{"timestamp": 0, "input_length": 30, "output_length": 4, "hash_ids": [1], "note": "a\u2028b"}\n'
    + lines([hashed(10, 30, 4, 512)]),
    "vidur_proc.csv": "arrived_at,num_prefill_tokens,num_decode_tokens,pd_ratio\n0.0,512,128,4.0\n0.25,600,100,6.0\n",
    "ms_one_tie.jsonl": lines([hashed(t, 100, 10, 512) for t in (276166, 276967, 277008, 277008, 277799, 280058)]),
    "sharegpt.json": SHAREGPT,
}


@pytest.fixture
def case(tmp_path: Path) -> Callable[[str], Path]:
    def path(name: str) -> Path:
        if (CASES / name).is_file():
            return CASES / name
        (tmp_path / name).write_text(FILES[name])
        return tmp_path / name

    return path


@pytest.mark.parametrize(
    ("name", "kind", "isl"),
    [
        ("bailian_3.jsonl", ("bailian", "s", 16), [358, 1941, 959]),
        ("array_mooncake.json", ("mooncake", "ms", 0), [6955]),
        ("moon_float_len.jsonl", ("mooncake", "ms", 0), [6955]),
        ("moon_null_hash.jsonl", ("mooncake", "ms", 0), [6955]),
        ("u2028.jsonl", ("mooncake", "ms", 512), [30, 30]),
        ("vidur_proc.csv", ("vidur", "s", 0), [512, 600]),
    ],
)
def test_a_file_of_its_kind_is_read(name: str, kind: tuple[str, str, int], isl: list[int], case: Callable[[str], Path]) -> None:
    requests, found = load_trace(case(name))
    assert (found.format, found.unit, found.hash_tokens) == kind
    assert [r.isl for r in requests] == isl
    assert all(r.hash_tokens == (kind[2] if r.hash_ids else 0) for r in requests)


def test_bailians_seconds_are_seconds(case: Callable[[str], Path]) -> None:
    """Taken for milliseconds, these two requests a second would be two thousand."""
    times_s = [r.arrival_s for r in read_trace(case("bailian_3.jsonl"))]
    assert times_s == pytest.approx([0, 0.063, 0.59])


def test_conversations_are_refused_for_what_they_are(case: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="holds conversations as text; a trace needs their numbers of tokens"):
        read_trace(case("sharegpt.json"))


def test_one_tie_moves_nobody_else(case: Callable[[str], Path]) -> None:
    """A chance tie among milliseconds: only its two may move, and by less than a millisecond."""
    path = case("ms_one_tie.jsonl")
    raw = [json.loads(line)["timestamp"] for line in path.read_text().splitlines()]
    own_s = [(t - raw[0]) / 1000 for t in raw]
    moved = [now - own for now, own in zip((r.arrival_s for r in read_trace(path)), own_s)]
    tied = {i for i, t in enumerate(raw) if raw.count(t) > 1}
    assert len(tied) == 2
    assert all(move == 0 for i, move in enumerate(moved) if i not in tied)
    assert all(0 <= moved[i] < 1e-3 for i in tied)


@pytest.mark.parametrize(
    ("times", "hash_tokens", "unit"),
    [
        ([0, 0.3, 0.9], 0, "s"),  # 2 a second or 2,000
        ([0, 900, 1800], 0, "ms"),  # 1 a second or 4 an hour
        ([0, 10, 20], 0, ""),  # 100 a second or 6 a minute
        ([0, 10, 20], 512, "ms"),
        ([0, 10, 20], 16, "s"),
        ([0, 10, 20], 64, ""),
        ([5, 5], 0, "ms"),
    ],
)
def test_the_unit_of_times_by_hand(times: list[float], hash_tokens: int, unit: str) -> None:
    assert inference.time_unit(times, hash_tokens) == unit


@given(st.sampled_from([16, 32, 64, 128, 256, 512, 1024]), st.lists(st.integers(1, 200_000), min_size=1, max_size=40))
def test_the_tokens_of_a_hash_are_never_wrong(block: int, lengths: list[int]) -> None:
    """Whatever the numbers of hashes are, the answer explains all of them, and is the truth where the truth is the only size that does."""
    blocks = [(isl, -(-isl // block)) for isl in lengths]
    found = inference.hash_tokens(blocks)
    possible = [size for size in inference.POWERS if all(-(-isl // size) == count for isl, count in blocks)]
    assert found == 0 or found in possible
    if possible == [block]:
        assert found in (block, 0)  # 0: one hash a prompt, and then any larger size may do
    assert any(count > 1 for _, count in blocks) is False or len(possible) != 1 or found == block


def test_unclear_traces_ask_for_the_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{"timestamp": t, "input_length": 9, "output_length": 9} for t in (0, 10, 30)]))
    with pytest.raises(ValueError, match=r"give workload\.time_unit=s or workload\.time_unit=ms"):
        load_trace(path)
    for unit, last_s in (("s", 30), ("ms", 0.03)):
        requests, found = load_trace(path, unit=unit)
        assert requests[-1].arrival_s == last_s
        assert found.inferred == ()
    assert len(load_trace(path, arrivals=lambda n: [0.0] * n)[0]) == 3  # other times: the unit has no meaning
    assert read_trace(path, "mooncake")[-1].arrival_s == 0.03  # a format that is named says it all
    assert read_trace(path, "bailian")[-1].arrival_s == 30


def test_given_hashes_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(MOONCAKE)
    assert {r.hash_tokens for r in load_trace(path, hash_tokens=512)[0]} == {512}
    with pytest.raises(ValueError, match=r"line 1: 14 hash_ids for 6,955 tokens; workload\.hash_block=16 needs 435"):
        load_trace(path, hash_tokens=16)
    assert {r.hash_tokens for r in read_trace(path, "bailian")} == {0}  # named, and not true: nobody may use the hashes


def test_hashes_follow_the_scaling_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(MOONCAKE)
    scaled, _ = scale(read_trace(path), Scaling(isl_scale=0.25))
    assert {r.hash_tokens for r in scaled} == {128}


def test_rows_without_tokens_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n5,472,18\n6,0,0\n45,7,0\n46,8,3\n")
    requests, found = load_trace(path, skip_empty=True)
    assert [(r.arrival_s, r.isl, r.osl) for r in requests] == [(0, 472, 18), (41, 8, 3)]
    assert found.left_out == 2
    assert "2 rows without tokens left out" in found.words()
    with pytest.raises(ValueError, match=r"line 3: Request tokens is 0; .* \(workload.skip_empty=true leaves such rows out\)"):
        load_trace(path)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60).map(sorted), st.integers(0, 9))
def test_only_tied_times_move_and_none_leaves_its_step(steps: list[int], seed: int) -> None:
    times = [0.25 * step for step in steps]
    moved = spread(times, seed)
    assert moved == sorted(moved)
    for before, after in zip(times, moved):
        assert before <= after
        assert after == before or times.count(before) > 1
        assert not any(before < other <= after for other in times)


# -- every format, there and back --------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=20).map(sorted)


def table(names: tuple[str, str, str], form: Callable[[int], str]) -> Callable[[list[tuple[int, int, int]]], str]:
    return lambda rows: "\n".join([",".join((*names, "other"))] + [f"{form(t)},{isl},{osl},x" for t, isl, osl in rows]) + "\n"


def moment(ms: int) -> str:
    return (
        f"2024-05-{10 + ms // 86_400_000:02d} {ms // 3_600_000 % 24:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}0000"
    )


def objects(unit: float) -> Callable[[list[tuple[int, int, int]]], str]:
    return lambda rows: lines([{"timestamp": t / unit, "input_length": i, "output_length": o} for t, i, o in rows])


WRITERS: dict[str, Callable[[list[tuple[int, int, int]]], str]] = {
    "azure": table(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), moment),
    "burstgpt": table(("Timestamp", "Request tokens", "Response tokens"), lambda ms: f"{ms / 1000}"),
    "records": table(("arrival_s", "isl", "osl"), lambda ms: f"{ms / 1000}"),
    "vidur": table(("arrived_at", "num_prefill_tokens", "num_decode_tokens"), lambda ms: f"{ms / 1000}"),
    "mooncake": objects(1),
    "bailian": objects(1000),
}
PACKED: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "gzip": lambda text: gzip.compress(text.encode()),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "array": lambda text: f"[{','.join(text.splitlines())}]".encode() if text.startswith("{") else text.encode(),
}


@pytest.mark.parametrize("name", WRITERS)
@given(rows, st.sampled_from(sorted(PACKED)))
def test_each_format_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[tuple[int, int, int]], packed: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"trace-{name}"
    path.write_bytes(PACKED[packed](WRITERS[name](rows)))
    requests = read_trace(path, name)
    assert [(r.request_id, r.isl, r.osl) for r in requests] == [(i, isl, osl) for i, (_, isl, osl) in enumerate(rows)]
    tied = {t for t, _, _ in rows if sum(t == other for other, _, _ in rows) > 1}
    for request, (t, _, _) in zip(requests, rows):
        if t not in tied or name in ("azure", "burstgpt", "records", "vidur"):
            assert request.arrival_s == pytest.approx((t - rows[0][0]) / 1000, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.sampled_from(sorted(LONGBENCH_OSL))), min_size=1, max_size=9))
def test_longbench_and_lengths_there_and_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "lengths"
    expected = [(isl, LONGBENCH_OSL[task]) for isl, task in rows]
    path.write_text(lines([{"length": isl, "dataset": task} for isl, task in rows]))
    assert [(r.isl, r.osl) for r in read_trace(path, arrivals=lambda n: [0.0] * n)] == expected
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},{o}\n" for i, o in expected))
    assert [(r.isl, r.osl) for r in read_trace(path, arrivals=lambda n: [0.0] * n)] == expected
    pq.write_table(pa.table({"num_prefill_tokens": [float(i) for i, _ in expected], "num_decode_tokens": [o for _, o in expected]}), path)
    assert [(r.isl, r.osl) for r in read_trace(path, arrivals=lambda n: [0.0] * n)] == expected


MALFORMED = st.one_of(
    st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=60),
    st.sampled_from(
        ['{"timestamp": 1}', "[1]", "1,2", "a,b,c,d", "1,-2,3,x", "1,2.5,3,x", "nan,2,3,x", "1,99999999999999999999,3,x", "{", "null"]
    ),
    st.binary(min_size=1, max_size=40).map(lambda data: data.decode("latin-1")),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
    ).map(lambda value: json.dumps({"timestamp": 10**8, "input_length": value, "output_length": 3})),
)


@pytest.mark.parametrize("name", WRITERS)
@given(rows, MALFORMED)
def test_a_malformed_line_is_read_or_named_by_file_and_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[tuple[int, int, int]], wrong: str
) -> None:
    """Any line after good ones: either it happens to be a row, or one line of error says where it is."""
    path = tmp_path_factory.getbasetemp() / f"wrong-{name}"
    path.write_bytes((WRITERS[name](rows) + wrong + "\n").encode())
    found, said = [], ""
    try:
        found = read_trace(path, name)
    except ValueError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert said.startswith(f"trace {path}, line ")
        assert len(said) < 700 + len(str(path))
    else:
        assert len(found) >= len(rows)
        assert all(math.isfinite(r.arrival_s) for r in found)


def test_a_long_line_is_quoted_in_short(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{f"key_{i}": "x" * 30 for i in range(90)}]))
    with pytest.raises(ValueError, match="and 82 more are no trace's") as caught:
        read_trace(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "entry 1: 1 is not a JSON object"),
        ('[{"timestamp": 0, "input_length": 1, "output_length": 1}, {"timestamp": 5}]', "entry 2: input_length is missing"),
        ("[{", "line 1: not a JSON array"),
        ("[]", "is empty"),
        ("[" * 100_000, "not a JSON array"),
        ('{"timestamp": ' + "[" * 100_000 + "\n", "line 1: not JSON"),
        ('{"timestamp": 0, "input_length": ' + "9" * 5000 + ', "output_length": 1}\n', "line 1"),
    ],
)
def test_arrays_and_depths(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_trace(path, "mooncake")
    assert len(str(caught.value)) < 500


def test_a_request_keeps_its_hashes() -> None:
    assert Request(0, 0.0, 5, 5, (1,), 512).hash_tokens == 512
