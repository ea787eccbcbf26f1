"""The device digest equals its definition however the bytes are cut, and its kernel computes the same sums."""

import itertools
import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.transfer.device import digest_oracle
from abkt.transfer.device.digest import device_digest
from tests.triton_check_main import run as run_check

CHECK = "tests.transfer.device.device_digest_check"


def key(place):
    """MurmurHash3's 32-bit finaliser of a multiple of the golden ratio."""
    hashed = place * 0x9E3779B1 % 2**32
    hashed = (hashed ^ (hashed >> 16)) * 0x85EBCA6B % 2**32
    hashed = (hashed ^ (hashed >> 13)) * 0xC2B2AE35 % 2**32
    return hashed ^ (hashed >> 16)


def by_hand(data):
    """The digest in Python integers, word by word."""
    data += bytes(-len(data) % 16)
    sums = [0, 0]
    for index in range(len(data) // 8):
        low, high = (int.from_bytes(data[at : at + 4], "little") for at in (8 * index, 8 * index + 4))
        for number in (0, 1):
            place = 4 * index + 2 * number
            sums[number] += ((low + key(place)) % 2**32) * ((high + key(place + 1)) % 2**32)
    return b"".join((total % 2**64).to_bytes(8, "little") for total in sums)


def cut(data, stops, kinds):
    stops = sorted({min(stop, len(data)) for stop in stops} | {len(data)})
    pieces = [data[a:b] for a, b in zip([0, *stops], stops, strict=False) if a < b]
    return [torch.frombuffer(bytearray(p), dtype=torch.uint8) if kind else p for p, kind in zip(pieces, kinds * len(pieces), strict=False)]


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(0, 300), max_size=5), st.lists(st.booleans(), min_size=1, max_size=6))
def test_the_digest_equals_its_definition_however_the_bytes_are_cut(data, stops, kinds):
    assert device_digest(cut(data, stops, kinds)) == by_hand(data)


def test_a_payload_of_several_steps_has_the_digest_of_its_definition(monkeypatch):
    monkeypatch.setattr(digest_oracle, "STEP_WORDS", 8)
    data = random.Random(1).randbytes(1000)
    assert device_digest([data]) == by_hand(data)


@given(st.integers(0, 2**32), st.integers(1, 200), st.data())
@settings(max_examples=200)
def test_a_flipped_bit_a_lost_byte_and_exchanged_words_are_found(seed, words, data):
    payload = bytearray(random.Random(seed).randbytes(8 * words))
    right = device_digest([bytes(payload)])
    bit = data.draw(st.integers(0, 64 * words - 1))
    payload[bit // 8] ^= 1 << bit % 8
    assert device_digest([bytes(payload)]) != right
    payload[bit // 8] ^= 1 << bit % 8
    assert device_digest([bytes(payload[1:])]) != right
    here, there = data.draw(st.integers(0, words - 1)), data.draw(st.integers(0, words - 1))
    one, other = payload[8 * here : 8 * here + 8], payload[8 * there : 8 * there + 8]
    payload[8 * here : 8 * here + 8], payload[8 * there : 8 * there + 8] = other, one
    assert (device_digest([bytes(payload)]) != right) == (one != other)


def test_zero_bytes_change_the_digest():
    """Blocks that were never written are a payload like any other. The frame header states a payload's length."""
    assert device_digest([bytes(16)]) != device_digest([bytes(32)])
    assert device_digest([bytes(16)]) != bytes(16)


def run(*arguments):
    pytest.importorskip("triton")
    return run_check(CHECK, *arguments)


def test_the_kernel_computes_the_sums_of_the_oracle():
    run("values")


def test_the_kernel_compiles_ahead_of_time_and_reads_16_bytes_at_a_time():
    report = json.loads(run("compile", "80", "90"))
    assert [row["kernel"] for row in report] == ["add_sums sm_80", "add_sums sm_90"]
    for row in report:
        assert row["stack"] == row["local"] == 0, row
        assert row["wide_loads"] == 8, f"2048 words by 128 threads, two words a load: {row}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_digest_is_the_same_for_host_and_device_memory():
    data = random.Random(2).randbytes(5 << 20)
    there = torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda()
    right = device_digest([data])
    for stops in ([], [1 << 20], [64, 4096, 3 << 20], [17, 1000, 1001]):
        bounds = [0, *stops, len(data)]
        pieces = [there[a:b] for a, b in itertools.pairwise(bounds)]
        assert device_digest(pieces) == right
        assert device_digest([data[: bounds[1]], *pieces[1:]]) == right
