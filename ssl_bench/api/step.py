"""What one training step is given: its number, and the views of its images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_bench.utils.rng import SampleRng


@dataclass(frozen=True)
class Step:
    """Where in the training a step is.

    Attributes:
        number: steps before this one.
        total: steps in all.
        per_epoch: steps in an epoch.
        batch_size: images in a step, those of all ranks.
    """

    number: int
    total: int
    per_epoch: int
    batch_size: int

    @property
    def fraction(self) -> float:
        """How much of the training is done before this step, in [0, 1)."""
        return self.number / self.total

    @property
    def epoch(self) -> int:
        """The epoch, from 0."""
        return self.number // self.per_epoch

    def epoch_ramp(self, first: float, last: float, share: float) -> float:
        """Changes in equal steps from epoch to epoch over a share of the epochs, then stays."""
        epochs = round(share * self.total / self.per_epoch)
        if self.epoch >= epochs:
            return last
        return first + (last - first) * self.epoch / max(1, epochs - 1)


@dataclass(frozen=True)
class Batch:
    """The images of a step, on this rank.

    Attributes:
        views: by the names of the method's transforms: normalised float32 ``(B, C, size, size)``,
            of a clip ``(B, frames * C, size, size)``.
        rng: the step's random numbers, for masks and the like.
        labels_B: int64 class indices where the method's ``columns`` ask for "label", else None.
        captions_BL: int64 ids of the tokens of one of each image's captions, where they ask for
            "caption", else None; see `vocabulary.tokenize`.
        is_next_B: whether the second text of each pair comes after the first, bool, where the
            method reads pairs, else None.
        part: which part of the step's images these are, where they are taken in parts, in any
            order; from 0.
    """

    views: Mapping[str, Tensor]
    rng: SampleRng
    labels_B: Tensor | None = None
    part: int = 0
    captions_BL: Tensor | None = None
    is_next_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rng.samples_B)

    def split(self, parts: int) -> Iterator[Batch]:
        """The batch in that many parts of nearly equal size."""
        for number, part in enumerate(torch.arange(len(self)).tensor_split(parts)):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            yield Batch(
                {name: view[rows] for name, view in self.views.items()},
                self.rng.rows(rows),
                None if self.labels_B is None else self.labels_B[rows],
                number,
                None if self.captions_BL is None else self.captions_BL[rows],
                None if self.is_next_B is None else self.is_next_B[rows],
            )
