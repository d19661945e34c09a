"""The native sampler against the numpy reference, and its edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sampler_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_reference import make_batch

from trimtab._native import gumbel_noise, philox4x32_10, sample


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    scale = rng.choice([0.0, 0.3, 3.0, 10.0], size=(rows, 1))
    x = (rng.standard_normal((rows, vocab)) * scale).astype(np.float32)
    ties = rng.random(rows) < 0.3  # coarse logits: many equal ones
    x[ties] = np.round(x[ties])
    x[rng.random((rows, vocab)) < 0.05] = -np.inf
    x[:, 0] = np.maximum(x[:, 0], -3)  # never a row of -inf only
    return x


def random_batch(rng: np.random.Generator, rows: int, vocab: int):
    def ids(longest: int) -> list[list[int]]:
        return [rng.integers(0, vocab, rng.integers(0, longest + 1)).tolist() for _ in range(rows)]

    def some(values: list[float]) -> np.ndarray:
        return rng.choice(values, size=rows)

    allowed = [
        None if rng.random() < 0.6 else rng.choice(vocab, max(1, vocab // 3)).tolist()
        for _ in range(rows)
    ]
    banned = [[t for t in row if t != 0] for row in ids(4)]
    for row, kept in enumerate(allowed):  # leave something to choose from, nearly always
        if kept is not None:
            banned[row] = []
    return make_batch(
        rows,
        vocab,
        temperature=some([0.0, 0.2, 0.7, 1.0, 1.5, 50.0]),
        top_k=some([0, 0, 1, 2, 5, 40, 200, vocab]),
        top_p=some([1.0, 1.0, 0.99, 0.9, 0.5, 0.01]),
        min_p=some([0.0, 0.0, 0.001, 0.05, 0.5, 1.0]),
        repetition_penalty=some([1.0, 1.0, 1.2, 0.8]),
        presence_penalty=some([0.0, 0.0, 0.7, -1.0]),
        frequency_penalty=some([0.0, 0.0, 0.4, -0.3]),
        seeds=rng.integers(0, 2**64, rows, dtype=np.uint64),
        positions=rng.integers(0, 2**31 - 1, rows),
        num_logprobs=rng.integers(-1, 6, rows),
        bias=[{t: float(rng.normal() * 3) for t in row} for row in ids(5)],
        banned=banned,
        prompt=ids(20),
        output=ids(20),
        allowed=allowed,
    )


def check_against_reference(logits: np.ndarray, batch, targets: np.ndarray) -> None:
    tokens, logprobs, top_ids, top_logprobs, target_logprobs = sample(logits, batch, targets)
    assert tokens.dtype == top_ids.dtype == np.int32
    assert logprobs.dtype == top_logprobs.dtype == np.float32
    for row, x in enumerate(logits):
        assert tokens[row] == reference.choose(x, batch, row), row
        expected = reference.log_softmax(x)
        close = {"rtol": 1e-6, "atol": 2e-6}
        if targets[row] >= 0:
            np.testing.assert_allclose(target_logprobs[row], expected[targets[row]], **close)
        wanted = batch.num_logprobs[row]
        if wanted < 0 or tokens[row] < 0:
            assert logprobs[row] == 0
            wanted = 0
        else:
            np.testing.assert_allclose(logprobs[row], expected[tokens[row]], **close)
        order = np.lexsort((np.arange(len(x)), -x.astype(np.float64)))[:wanted]
        order = order[x[order] > -np.inf]
        assert top_ids[row, : len(order)].tolist() == order.tolist()
        np.testing.assert_allclose(top_logprobs[row, : len(order)], expected[order], **close)
        assert np.all(top_ids[row, len(order) :] == -1)
        assert np.all(top_logprobs[row, len(order) :] == 0)


@pytest.mark.parametrize("vocab", [1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 1000, 5003])
def test_equals_reference(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = 300 if vocab <= 1000 else 100
    logits = random_logits(rng, rows, vocab)
    batch = random_batch(rng, rows, vocab)
    targets = rng.integers(-1, vocab, rows).astype(np.int32)
    check_against_reference(logits, batch, targets)


def test_equals_reference_large_vocabulary() -> None:
    rng = np.random.default_rng(7)
    vocab = 151_936
    logits = (rng.standard_normal((8, vocab)) * [[0], [1], [1], [3], [3], [3], [1], [2]]).astype(
        np.float32
    )
    batch = make_batch(
        8,
        vocab,
        temperature=[1, 1, 0.8, 1, 0.6, 0, 1.3, 1],
        top_p=[0.9, 0.95, 1, 0.999, 0.9, 1, 1, 1],
        top_k=[0, 0, 50, 0, 5000, 0, 0, 0],
        seeds=np.arange(8),
        num_logprobs=20,
    )
    check_against_reference(logits, batch, np.full(8, 11, np.int32))


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, -5.0, float("-inf")]), min_size=1),
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([1.0, 0.7, 0.3]),
    temperature=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_ties_go_to_the_smaller_id(values, top_k, top_p, temperature, seed) -> None:
    logits = np.array([values], np.float32)
    batch = make_batch(
        1, len(values), top_k=top_k, top_p=top_p, temperature=temperature, seeds=[seed]
    )
    assert sample(logits, batch)[0][0] == reference.choose(logits[0], batch, 0)


def test_philox_known_answers() -> None:
    """The philox4x32 10 lines of Random123's kat_vectors."""
    ones = 0xFFFFFFFF
    vectors = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in vectors:
        assert tuple(philox4x32_10(counter, key)) == expected
        words = reference.philox([np.array([c]) for c in counter], key)
        assert tuple(int(word[0]) for word in words) == expected


def test_noise_is_finite_and_gumbel() -> None:
    seed, position = 0x0123456789ABCDEF, 77
    noise = np.array([gumbel_noise(seed, position, t) for t in range(20_000)])
    np.testing.assert_allclose(
        noise, reference.gumbel(seed, position, 20_000), rtol=1e-12, atol=1e-15
    )
    assert np.all(np.isfinite(noise))
    # Kolmogorov-Smirnov against exp(-exp(-x)); 2.2 / sqrt(n) is alpha = 1e-4.
    cdf = np.exp(-np.exp(-np.sort(noise)))
    steps = np.arange(1, 20_001) / 20_000
    assert np.max(np.abs(cdf - steps)) < 2.2 / np.sqrt(20_000)
    # The extremes of v = (bits + 1/2) / 2^52: neither 0 nor 1 after rounding to double.
    for bits in (0, 2**52 - 1):
        v = (bits + 0.5) * 2.0**-52
        assert 0 < v < 1
        assert np.isfinite(-np.log(-np.log1p(-v)))


def test_noise_depends_on_every_bit_of_its_key() -> None:
    base = gumbel_noise(5, 3, 9)
    others = [gumbel_noise(5 ^ (1 << bit), 3, 9) for bit in range(64)]
    others += [gumbel_noise(5, 3 ^ (1 << bit), 9) for bit in range(31)]
    others += [gumbel_noise(5, 3, 9 ^ (1 << bit)) for bit in range(31)]
    assert base not in others
    assert len(set(others)) == len(others)


def take(batch, rows: list[int], vocab: int):
    """The batch of some of its rows, in that order."""

    def lists(name: str, values: np.ndarray) -> list[list]:
        starts = getattr(batch, f"{name}_starts")
        return [values[starts[r] : starts[r + 1]].tolist() for r in rows]

    taken = make_batch(
        len(rows),
        vocab,
        **{name: getattr(batch, name)[rows] for name in reference.SCALARS},
        bias=[
            dict(zip(ids, values, strict=True))
            for ids, values in zip(
                lists("bias", batch.bias_ids), lists("bias", batch.bias_values), strict=True
            )
        ],
        **{name: lists(name, getattr(batch, f"{name}_ids")) for name in ("banned", "prompt")},
        output=lists("output", batch.output_ids),
    )
    return replace(taken, mask_rows=batch.mask_rows[rows], mask=batch.mask)


def test_a_row_does_not_depend_on_its_company() -> None:
    rng = np.random.default_rng(3)
    rows, vocab = 60, 777
    logits = random_logits(rng, rows, vocab)
    logits[5, 3] = np.nan  # a broken row must not disturb the others
    batch = random_batch(rng, rows, vocab)
    together = sample(logits, batch)
    again = sample(logits, batch)
    order = rng.permutation(rows).tolist()
    shuffled = sample(np.ascontiguousarray(logits[order]), take(batch, order, vocab))
    for first, second, third in zip(together[:4], again, shuffled, strict=False):
        assert np.array_equal(first, second)
        assert np.array_equal(first[order], third)
    for row in range(rows):
        alone = sample(logits[row : row + 1], take(batch, [row], vocab))
        assert alone[0][0] == together[0][row]
        assert alone[1][0] == together[1][row]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 17, 64, 99])
def test_logits_that_are_not_finite(bad: float, place: int) -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, place] = bad
    for temperature in (0.0, 1.0):
        batch = make_batch(1, 100, temperature=temperature, num_logprobs=2)
        tokens, logprobs, top_ids, top_logprobs, target = sample(
            logits, batch, np.array([1], np.int32)
        )
        assert tokens.tolist() == [-1]
        assert logprobs.tolist() == [0]
        assert top_ids.tolist() == [[-1, -1]]
        assert top_logprobs.tolist() == [[0, 0]]
        assert np.isnan(target[0])


def test_nothing_left_to_choose() -> None:
    logits = np.zeros((3, 40), np.float32)
    logits[0] = -np.inf
    batch = make_batch(
        3, 40, allowed=[None, [], [3]], banned=[[], [], [3]], temperature=[0, 1, 1], num_logprobs=1
    )
    tokens, logprobs, _, _, target = sample(logits, batch, np.array([-1, 5, 5], np.int32))
    assert tokens.tolist() == [-1, -1, -1]
    assert logprobs.tolist() == [0, 0, 0]
    np.testing.assert_allclose(target[1:], -np.log(40), rtol=1e-6)  # the logits themselves are fine


def test_impossible_tokens_are_ordinary() -> None:
    logits = np.full((2, 70), -np.inf, np.float32)
    logits[:, 66] = 1.0
    logits[:, 69] = 1.0
    batch = make_batch(2, 70, temperature=[0, 1], num_logprobs=5)
    tokens, logprobs, top_ids, _, target = sample(logits, batch, np.array([66, 0], np.int32))
    assert tokens[0] == 66
    assert tokens[1] in (66, 69)
    np.testing.assert_allclose(logprobs, -np.log(2), rtol=1e-6)
    assert top_ids.tolist() == [[66, 69, -1, -1, -1]] * 2
    assert target[1] == -np.inf


@pytest.mark.parametrize("temperature", [1e-38, 1e-30, 1e-3])
def test_tiny_temperatures_approach_greedy(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((50, 300)) * 5).astype(np.float32)
    for fields in ({}, {"top_p": 0.9}, {"top_k": 10}, {"min_p": 0.1}):
        batch = make_batch(50, 300, temperature=temperature, seeds=np.arange(50), **fields)
        assert np.array_equal(sample(logits, batch)[0], logits.argmax(axis=1))


def test_extreme_logits() -> None:
    largest = np.finfo(np.float32).max
    logits = np.array([[largest, -largest, 0.0], [largest, largest, -largest]], np.float32)
    batch = make_batch(2, 3, temperature=[1, 0], num_logprobs=2)
    tokens, logprobs, _, top_logprobs, _ = sample(logits, batch)
    assert tokens.tolist() == [0, 0]
    np.testing.assert_allclose(logprobs, [0, -np.log(2)], atol=1e-6)
    assert not np.any(np.isnan(top_logprobs))
    # A penalty that overflows to +inf is not a finite row.
    batch = make_batch(1, 3, repetition_penalty=0.5, prompt=[[0]])
    assert sample(logits[:1], batch)[0][0] == -1


def test_mask_with_stray_bits_beyond_the_vocabulary() -> None:
    logits = np.zeros((1, 33), np.float32)
    batch = make_batch(1, 33, allowed=[[32]])
    batch.mask[0, 1] |= np.uint32(0xFFFFFFFE)
    assert sample(logits, batch)[0][0] == 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", np.nan),
        ("temperature", np.inf),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", np.nan),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", np.inf),
        ("frequency_penalty", np.nan),
        ("num_logprobs", -2),
        ("mask_rows", 0),
        ("banned_starts", 1),
        ("output_starts", 1),
        ("prompt_starts", -1),
    ],
)
def test_border_refuses_values(field: str, value: float) -> None:
    batch = make_batch(2, 10)
    array = getattr(batch, field).copy()
    array[-1] = value
    with pytest.raises(ValueError, match=field.removesuffix("_starts")):
        sample(np.zeros((2, 10), np.float32), replace(batch, **{field: array}))


def test_border_refuses_ids_shapes_and_dtypes() -> None:
    logits = np.zeros((2, 10), np.float32)
    for fields in (
        {"banned": [[10], []]},
        {"prompt": [[], [-1]]},
        {"output": [[99], []]},
        {"bias": [{10: 1.0}, {}]},
        {"bias": [{1: np.nan}, {}]},
    ):
        with pytest.raises(ValueError, match=next(iter(fields))):
            sample(logits, make_batch(2, 10, **fields))
    with pytest.raises(ValueError, match="temperature"):
        sample(logits, make_batch(3, 10))
    with pytest.raises(ValueError, match="mask"):
        sample(logits, make_batch(2, 70, allowed=[[1], None]))
    batch = make_batch(2, 10)
    signed = replace(batch, seeds=batch.seeds.astype(np.int64))
    with pytest.raises(ValueError, match="seeds"):
        sample(logits, signed)
    with pytest.raises(ValueError, match="targets"):
        sample(logits, make_batch(2, 10), np.array([1, 10], np.int32))
    with pytest.raises(TypeError):
        sample(logits.astype(np.float64), make_batch(2, 10))


def test_no_rows() -> None:
    tokens, _, top_ids, _, targets = sample(np.zeros((0, 10), np.float32), make_batch(0, 10))
    assert tokens.shape == (0,)
    assert top_ids.shape == (0, 0)
    assert targets is None
