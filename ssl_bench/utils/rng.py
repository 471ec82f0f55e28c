"""Random numbers that depend only on (seed, purpose, step, sample).

Each number is a hash of its coordinates, so there is no generator state to save: a run resumed at
step 1,000 draws the same numbers as without the interruption, and so does a sample on any device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
_GOLDEN_RATIO = 0x9E3779B9


def key(*coordinates: str | int) -> int:
    """A 63-bit hash of names and numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(coordinates).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*coordinates: str | int) -> torch.Generator:
    """A CPU generator for draws that are not per sample: a permutation, initial weights."""
    return torch.Generator().manual_seed(key(*coordinates))


@lru_cache(maxsize=4)
def permutation(count: int, *coordinates: str | int) -> Tensor:
    """A random order of ``range(count)``: int64 ``(count,)``, not to be written to."""
    return torch.randperm(count, generator=generator(*coordinates))


def _halves(bases: Sequence[int]) -> Tensor:
    """The lower and the upper 32 bits of some keys: int64 ``(2, P)``, on the CPU."""
    return torch.tensor([[base & _MASK_32 for base in bases], [base >> 32 for base in bases]])


class StaticKeys:
    """The keys of a step's draws, where a recorded sequence of operations finds them again.

    What draws with it draws in the same order at every step; `fill` puts a step's keys there.
    """

    def __init__(self, device: torch.device, most: int = 1024) -> None:
        self._table_2P = torch.zeros(2, most, dtype=torch.int64, device=device)
        self._drawn: list[tuple[int, str]] = []

    def rewind(self) -> None:
        """Begin to draw from the first key again."""
        self._drawn.clear()

    def take(self, seed: int, purposes: Sequence[str]) -> Tensor:
        """The place of the keys for these purposes: int64 ``(2, P)``."""
        first = len(self._drawn)
        self._drawn += [(seed, purpose) for purpose in purposes]
        place_2P = self._table_2P[:, first : len(self._drawn)]
        assert place_2P.shape[1] == len(purposes), "a step draws more often than there are keys"
        return place_2P

    def fill(self, step: int) -> None:
        """Put the keys of a step in their places."""
        bases = [key(seed, purpose, step) for seed, purpose in self._drawn]
        self._table_2P[:, : len(bases)].copy_(_halves(bases), non_blocking=True)


@dataclass(frozen=True)
class SampleRng:
    """Random numbers for one batch; each row belongs to one sample of the data set.

    Attributes:
        seed: the run's seed.
        step: the optimiser step, or the epoch, that the batch belongs to.
        samples_B: int64 indices of the samples in the whole data set, on the device for the
            numbers.
        scope: prefix of every purpose, so that two views of a sample differ.
        keys: where to find the keys of the draws, instead of making them for the step.
    """

    seed: int
    step: int
    samples_B: Tensor
    scope: str = ""
    keys: StaticKeys | None = None

    def within(self, scope: str) -> SampleRng:
        """The same coordinates with a longer prefix of the purpose."""
        return replace(self, scope=f"{self.scope}{scope}/")

    def rows(self, which: slice) -> SampleRng:
        """The numbers of some of the samples."""
        return replace(self, samples_B=self.samples_B[which])

    def to(self, device: torch.device) -> SampleRng:
        """The same numbers on another device."""
        return replace(self, samples_B=self.samples_B.to(device, non_blocking=True))

    def uniform(self, purpose: str, count: int) -> Tensor:
        """Uniform numbers in [0, 1): float32 ``(B, count)``, multiples of 2^-24."""
        return self.uniforms({purpose: count})[purpose]

    def uniforms(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """`uniform` for several purposes at once, which is faster."""
        bits_BN = self._bits(counts) >> 8
        uniform_BN = bits_BN.to(torch.float32).mul_(2.0**-24)
        return dict(zip(counts, uniform_BN.split(list(counts.values()), dim=1), strict=True))

    def normal(self, purpose: str, count: int) -> Tensor:
        """Standard normal numbers by the Box-Muller transform: float32 ``(B, count)``."""
        uniform = self.uniform(purpose, 2 * count)
        radius = (-2.0 * torch.log1p(-uniform[:, :count])).sqrt()
        return radius * torch.cos(2.0 * math.pi * uniform[:, count:])

    def _bits(self, counts: Mapping[str, int]) -> Tensor:
        """32 random bits each, as int64 ``(B, N)``, with the purposes' columns side by side."""
        purposes = [self.scope + purpose for purpose in counts]
        if self.keys:
            low_P, high_P = self.keys.take(self.seed, purposes)
        else:
            halves = _halves([key(self.seed, purpose, self.step) for purpose in purposes])
            low_P, high_P = halves.to(self.samples_B.device, non_blocking=True)
        row_BP = _mix(_mix((self.samples_B.long() & _MASK_32)[:, None] ^ low_P) + high_P)
        columns = list(counts.values())
        rows = zip(row_BP.split(1, dim=1), columns, strict=True)
        row_BN = torch.cat([row_B1.expand(-1, count) for row_B1, count in rows], dim=1)
        numbers = [torch.arange(count, device=row_BN.device) for count in columns]
        column_N = torch.cat(numbers) * _GOLDEN_RATIO
        return _mix(_mix((row_BN + column_N) & _MASK_32) ^ row_BN)


def _mix(bits: Tensor) -> Tensor:
    """The ``lowbias32`` integer hash (Chris Wellons, *Prospecting for Hash Functions*, 2018)."""
    bits = bits & _MASK_32
    bits = (bits ^ (bits >> 16)).mul_(0x7FEB352D).bitwise_and_(_MASK_32)
    bits = (bits ^ (bits >> 15)).mul_(0x846CA68B).bitwise_and_(_MASK_32)
    return bits ^ (bits >> 16)
