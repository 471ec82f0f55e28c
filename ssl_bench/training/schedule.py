"""Which images each step of a training takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_bench.api.step import Step
from ssl_bench.errors import require
from ssl_bench.utils import rng


@dataclass(frozen=True)
class Schedule:
    """Which images each step of a training takes.

    Attributes:
        images: how many there are to train on.
        batch_size: images in a step.
        epochs: passes over the images; not a whole number where a budget says so.

    Raises:
        UserError: there are fewer images than a batch takes.
    """

    images: int
    batch_size: int
    epochs: float

    def __post_init__(self) -> None:
        require(
            self.batch_size <= self.images,
            f"--batch-size {self.batch_size} is larger than the {self.images} training images; "
            f"--batch-size {self.images} or less would work",
        )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only; the rest of an epoch's images is left out."""
        return self.images // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps in all: the whole number nearest to what the epochs ask for, or 1."""
        return max(1, round(self.steps_per_epoch * self.epochs))

    def step(self, number: int) -> Step:
        """Where in the training a step is, counted from 0."""
        return Step(number, self.steps, self.steps_per_epoch, self.batch_size)

    def batch(self, step: int, *coordinates: str | int) -> Tensor:
        """Indices of a step's images, in an order made anew each epoch: int64 ``(batch_size,)``."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = rng.permutation(self.images, *coordinates, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]


def whole_epochs(epochs: float) -> float:
    """A number of epochs as an int where it is one: 8 and 8.0 must not be two runs."""
    return int(epochs) if epochs == int(epochs) else epochs
