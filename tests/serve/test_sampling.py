"""Draws have the probabilities of softmax, top-k and top-p, and a request's tokens do not depend on its batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkt.serve.engine.generation import GREEDY, Generation, Sampling
from abkt.serve.engine.sampling import Choice, choose

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))


def draws(sampling: Sampling, n: int = 4000) -> list[float]:
    """The share of draws that each of the four tokens gets over n positions."""
    tokens = [c.token for c in choose(LOGITS.expand(n, 4), [sampling] * n, range(n))]
    return [tokens.count(t) / n for t in range(4)]


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(1.0, seed=1), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1.0, top_k=2, seed=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(1.0, top_p=0.5, seed=3), [1, 0, 0, 0]),  # the first token alone has this share
        (Sampling(1.0, top_p=0.76, seed=4), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        (Sampling(1.0, top_k=3, top_p=0.8, seed=5), [2 / 3, 1 / 3, 0, 0]),  # of the 0.9 that top_k leaves, the first two have 0.83
        (Sampling(0.5, seed=6), [p * p / 0.345 for p in (0.5, 0.25, 0.15, 0.1)]),
    ],
    ids=["all", "top_k", "top_p", "top_p of three", "both", "cold"],
)
def test_draws_have_the_probabilities_of_the_softmax(sampling: Sampling, shares: list[float]) -> None:
    for found, expected in zip(draws(sampling), shares, strict=True):
        assert abs(found - expected) <= 4.5 * math.sqrt(expected * (1 - expected) / 4000)  # 4.5 standard deviations


def test_greedy_sampling_takes_the_likeliest_token_and_gives_its_margin() -> None:
    (choice,) = choose(torch.tensor([[1.0, 3.5, 3.0]]), [GREEDY], [7])
    assert choice == Choice(1, 0.5)


@given(
    st.lists(
        st.tuples(st.just(0.0) | st.floats(0.01, 3), st.integers(0, 5), st.floats(0.1, 1), st.integers(0, 9), st.integers(0, 50)),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_gets_the_same_token_alone_and_in_any_batch(rows: list[tuple[float, int, float, int, int]]) -> None:
    samplings = [Sampling(t, k, p, seed) for t, k, p, seed, _ in rows]
    logits = torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(1))
    together = choose(logits, samplings, [position for *_, position in rows])
    for i, (sampling, row) in enumerate(zip(samplings, rows, strict=True)):
        assert choose(logits[i : i + 1], [sampling], [row[-1]]) == [together[i]]


def test_a_draw_depends_on_the_seed_and_the_position() -> None:
    flat = torch.zeros(200, 1024)
    one = [c.token for c in choose(flat, [Sampling(1.0, seed=1)] * 200, range(200))]
    two = [c.token for c in choose(flat, [Sampling(1.0, seed=2)] * 200, range(200))]
    assert sum(a == b for a, b in zip(one, two, strict=True)) < 10
    assert sum(a == b for a, b in zip(one[1:], two, strict=False)) < 10  # no shifted copy either
    assert len(set(one)) > 150


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": 1 << 31}, "seed is 2147483648"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a number"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a number"),
        ({"seed": True}, "seed is True; it must be a number"),
        ({"seed": 10**400}, "seed is 1000"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"logprobs": 21}, "logprobs is 21; it must be -1"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(members: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling.of(members)


def test_the_fields_of_a_sampling_are_read_back() -> None:
    sampling = Sampling(0.7, 40, 0.9, 123, 5)
    assert Sampling.of({**sampling.fields(), "osl": 5}) == sampling
    assert Sampling.of({"osl": 5}) == GREEDY
    generation = Generation(5, (7, 9), True, sampling)
    assert Generation.of({**generation.fields(), "expected_bytes": 9.0}) == generation
    assert Generation.of({"osl": 5}) == Generation(5)


@pytest.mark.parametrize(
    "members", [{}, {"osl": "5"}, {"osl": True}, {"osl": 5, "stop": "1.5"}, {"osl": 5, "stop": 3}, {"osl": 5, "stream": 1}]
)
def test_an_offer_without_valid_generation_fields_is_refused(members: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="they must be an integer, a text of integers and a boolean"):
        Generation.of(members)


def test_logprobs_are_those_of_the_model_before_temperature() -> None:
    """The shares are 0.5, 0.25, 0.15 and 0.1, whatever the draw."""
    (choice,) = choose(LOGITS[None], [Sampling(5.0, seed=3, logprobs=2)], [0])
    chosen, *top = choice.logprobs
    assert chosen == (choice.token, pytest.approx(math.log([0.5, 0.25, 0.15, 0.1][choice.token])))
    assert top == [(0, pytest.approx(math.log(0.5))), (1, pytest.approx(math.log(0.25)))]
    assert choose(LOGITS[None], [Sampling(logprobs=0)], [0])[0].logprobs == ((0, pytest.approx(math.log(0.5))),)
    assert choose(LOGITS[None], [GREEDY], [0])[0].logprobs == ()


def test_any_of_the_stop_tokens_ends_the_output() -> None:
    generation = Generation(5, (7, 9))
    assert [generation.ends(tokens) for tokens in ([1], [7], [1, 9], [7, 1], [1] * 5)] == [False, True, True, False, True]
