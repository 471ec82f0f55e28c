"""Random draws: they look random along every coordinate, and depend on nothing else."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench.utils.rng import SampleRng, generator, key, permutation

COUNT = 20_000
BINS = 16

examples = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(-(2**63), 2**63)
steps = st.integers(0, 2**40)
purposes = st.text(max_size=12)
samples = st.lists(st.integers(0, 2**31), min_size=1, max_size=20, unique=True)


def uniform(
    purpose: str = "mask",
    seed: int = 0,
    step: int = 0,
    first: int = 0,
    count: int = COUNT,
    columns: int = 1,
) -> Tensor:
    return SampleRng(seed, step, torch.arange(first, first + count)).uniform(purpose, columns)


def standardised_chi_square(observed: Tensor) -> float:
    """Chi-square of equal expected counts, in standard deviations from its mean."""
    observed = observed.double()
    expected = observed.mean()
    freedom = observed.numel() - 1
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    return (statistic - freedom) / math.sqrt(2 * freedom)


def histogram(*numbers: Tensor) -> Tensor:
    """Counts in a grid of ``BINS`` along each of the coordinates."""
    cell = torch.zeros(numbers[0].numel(), dtype=torch.int64)
    for values in numbers:
        cell = cell * BINS + (values.flatten() * BINS).long()
    return torch.bincount(cell, minlength=BINS ** len(numbers))


LINES = {
    "samples": uniform().flatten(),
    "far samples": uniform(first=2**31).flatten(),
    "sparse samples": SampleRng(0, 0, torch.arange(COUNT) * 1024).uniform("mask", 1).flatten(),
    "columns": uniform(count=1, columns=COUNT).flatten(),
    "rows by columns": uniform(count=200, columns=100).flatten(),
    "steps": torch.cat([uniform(step=step, count=8) for step in range(COUNT // 8)]).flatten(),
    "seeds": torch.cat([uniform(seed=seed, count=8) for seed in range(COUNT // 8)]).flatten(),
    "purposes": torch.cat(
        [uniform(purpose=str(index), count=8) for index in range(COUNT // 8)]
    ).flatten(),
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_uniform_along_each_coordinate(line: Tensor) -> None:
    assert abs(standardised_chi_square(histogram(line))) < 4
    # Kolmogorov and Smirnov's statistic: 2.2 is exceeded once in ten thousand times.
    ranks = (torch.arange(len(line)) + 1) / len(line)
    assert (line.sort().values - ranks).abs().max() * math.sqrt(len(line)) < 2.2


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_neighbours_are_independent(line: Tensor) -> None:
    pairs = line[: len(line) // 2 * 2].view(-1, 2)
    assert abs(standardised_chi_square(histogram(pairs[:, 0], pairs[:, 1]))) < 4
    for lag in (1, 2, 8, 100, 256):
        correlation = torch.corrcoef(torch.stack([line[:-lag], line[lag:]]))[0, 1]
        assert abs(correlation) * math.sqrt(len(line) - lag) < 4


STREAMS = {
    "base": uniform(),
    "purpose": uniform(purpose="crop"),
    "scoped": SampleRng(0, 0, torch.arange(COUNT), "view 0/").uniform("mask", 1),
    "step": uniform(step=1),
    "later step": uniform(step=2**20),
    "seed": uniform(seed=1),
    "next sample": uniform(first=1),
    "column 1": uniform(columns=2)[:, 1:],
    "column 195": uniform(columns=196)[:, 195:],
}


@pytest.mark.parametrize(("left", "right"), list(itertools.combinations(STREAMS, 2)))
def test_streams_are_independent(left: str, right: str) -> None:
    counts = histogram(STREAMS[left], STREAMS[right])
    assert abs(standardised_chi_square(counts)) < 4


def test_every_bit_is_fair() -> None:
    bits = (uniform(count=COUNT, columns=4) * 2**24).long().flatten()
    for position in range(24):
        share = ((bits >> position) & 1).float().mean().item()
        assert abs(share - 0.5) * 2 * math.sqrt(bits.numel()) < 4


def test_each_sample_masks_its_own_patches() -> None:
    kept = uniform(count=2000, columns=64).argsort(1)[:, :16]
    counts = torch.bincount(kept.flatten(), minlength=64)
    # Without replacement within a row, counts vary by the factor 1 - 16/64 of a multinomial's.
    freedom = 63 * (1 - 16 / 64)
    statistic = ((counts - 500.0) ** 2 / 500).sum().item()
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * 63) * (1 - 16 / 64)
    assert len(kept.sort(1).values.unique(dim=0)) == 2000


@examples
@given(seeds, steps, purposes, samples, st.integers(1, 30))
def test_uniform_is_in_the_half_open_interval(
    seed: int, step: int, purpose: str, rows: list[int], count: int
) -> None:
    numbers = SampleRng(seed, step, torch.tensor(rows)).uniform(purpose, count)
    assert numbers.shape == (len(rows), count) and numbers.dtype == torch.float32
    assert (numbers >= 0).all() and (numbers < 1).all()
    assert torch.equal(numbers * 2**24, (numbers * 2**24).round())


@examples
@given(seeds, steps, purposes, samples, st.randoms(use_true_random=False))
def test_rows_follow_their_samples(
    seed: int, step: int, purpose: str, rows: list[int], random: object
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    samples_B = torch.tensor(rows)
    together = SampleRng(seed, step, samples_B, "view/")
    shuffled = SampleRng(seed, step, samples_B[order], "view/")
    assert torch.equal(shuffled.uniform(purpose, 5), together.uniform(purpose, 5)[order])
    assert torch.equal(shuffled.normal(purpose, 5), together.normal(purpose, 5)[order])
    for row, sample in enumerate(rows):
        alone = SampleRng(seed, step, torch.tensor([sample]), "view/")
        assert torch.equal(alone.uniform(purpose, 5)[0], together.uniform(purpose, 5)[row])


def test_draws_repeat_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = uniform()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, uniform())


def test_scopes_nest() -> None:
    draws = SampleRng(0, 0, torch.arange(4))
    nested = draws.within("view 0").within("crop").uniform("area", 2)
    assert torch.equal(nested, SampleRng(0, 0, torch.arange(4), "view 0/crop/").uniform("area", 2))
    assert not torch.equal(nested, draws.within("view 1").within("crop").uniform("area", 2))


def test_normal_moments_and_distribution() -> None:
    numbers = SampleRng(0, 0, torch.arange(COUNT)).normal("noise", 4).double()
    flat, root = numbers.flatten(), math.sqrt(numbers.numel())
    assert abs(flat.mean().item()) * root < 4
    assert abs(flat.var().item() - 1) * root < 4 * math.sqrt(2)
    assert abs((flat**3).mean().item()) * root < 4 * math.sqrt(15)
    assert abs((flat**4).mean().item() - 3) * root < 4 * math.sqrt(96)
    correlations = torch.corrcoef(numbers.T) - torch.eye(4)
    assert correlations.abs().max() * math.sqrt(COUNT) < 4
    ranks = (torch.arange(flat.numel()) + 1) / flat.numel()
    assert (torch.special.ndtr(flat.sort().values) - ranks).abs().max() * root < 2.2


def test_normal_is_box_and_mullers() -> None:
    """Radii of the first half of the uniform numbers, angles of the other, all around the circle.

    Half a circle would give the same distribution, but other numbers.
    """
    draws = SampleRng(0, 0, torch.arange(100))
    uniform = draws.uniform("noise", 6).tolist()
    expected = [
        [math.sqrt(-2 * math.log1p(-row[n])) * math.cos(2 * math.pi * row[3 + n]) for n in range(3)]
        for row in uniform
    ]
    torch.testing.assert_close(draws.normal("noise", 3), torch.tensor(expected))


def test_normal_is_finite_at_the_ends_of_the_uniform() -> None:
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    assert (-2 * torch.log1p(-ends)).sqrt().isfinite().all()


def test_values_are_pinned() -> None:
    """A run that resumes under another version must draw what it would have drawn."""
    draws = SampleRng(seed=1, step=2, samples_B=torch.tensor([3, 59_999]), scope="view 0/")
    assert key("a", 1) == 5566339428396816726
    assert (draws.uniform("mask", 3) * 2**24).long().tolist() == [
        [8062158, 3046001, 3182287],
        [5992806, 15250329, 6443964],
    ]
    expected = torch.tensor([[0.347037, 0.587767, -0.274675], [-0.311842, -0.418833, 0.535475]])
    torch.testing.assert_close(draws.normal("noise", 3), expected)
    assert permutation(5, "order", 0).tolist() == [2, 0, 4, 1, 3]


@examples
@given(st.integers(0, 50), seeds, purposes)
def test_permutation(count: int, seed: int, purpose: str) -> None:
    order = permutation(count, purpose, seed)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, permutation(count, purpose, seed))


def test_permutations_differ_by_coordinate() -> None:
    orders = [permutation(100, "order", seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9


@examples
@given(st.lists(st.one_of(purposes, seeds), max_size=4), st.lists(st.one_of(purposes, seeds)))
def test_keys_tell_coordinates_apart(left: list[str | int], right: list[str | int]) -> None:
    assert 0 <= key(*left) < 2**63
    assert (key(*left) == key(*right)) == (left == right)
    assert torch.equal(
        torch.rand(2, generator=generator(*left)), torch.rand(2, generator=generator(*left))
    )


@examples
@given(seeds, steps, samples, st.dictionaries(purposes, st.integers(1, 5), min_size=1, max_size=4))
def test_numbers_drawn_together_are_those_of_plain_integers(
    seed: int, step: int, chosen: list[int], counts: dict[str, int]
) -> None:
    """However many purposes at once: against the hash in Python's own integers."""

    def mix(bits: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            bits = (bits ^ bits >> shift) * factor & 0xFFFFFFFF
        return bits ^ bits >> 16

    def expected(purpose: str, sample: int, column: int) -> float:
        base = key(seed, "view/" + purpose, step)
        row = mix((mix((sample ^ base) & 0xFFFFFFFF) + (base >> 32)) & 0xFFFFFFFF)
        bits = mix(mix((row + column * 0x9E3779B9) & 0xFFFFFFFF) ^ row)
        return (bits >> 8) / 2**24

    drawn = SampleRng(seed, step, torch.tensor(chosen)).within("view").uniforms(counts)
    assert list(drawn) == list(counts)
    for purpose, count in counts.items():
        rows = [[expected(purpose, sample, n) for n in range(count)] for sample in chosen]
        assert drawn[purpose].tolist() == rows
