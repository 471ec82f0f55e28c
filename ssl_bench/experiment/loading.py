"""A run's data: read, and described to the user."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ssl_bench import data as datasets
from ssl_bench.api.method import Method
from ssl_bench.config.settings import BUDGETS, Storage
from ssl_bench.data import Dataset
from ssl_bench.data.listing import Listing
from ssl_bench.data.names import CAPTIONS, resolved, several
from ssl_bench.distributed import collectives
from ssl_bench.errors import require
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.training.schedule import Schedule
from ssl_bench.utils import progress
from ssl_bench.utils.files import readable
from ssl_bench.utils.formatting import many
from ssl_bench.utils.terminal import Console

_BROKEN_SHOWN = 10
_COARSE = 100
"""Fewer test images make coarse scores."""
console = Console()


class RunData(NamedTuple):
    """What a run is trained on, and what it is evaluated on: the same, but for ``--eval-data``."""

    training: Dataset
    evaluations: Sequence[Dataset]


@dataclass(frozen=True)
class StepCheck:
    """Requires that the steps of a run can be taken with so many training images.

    All checks are equal, so that a cache of data sets does not tell them apart.

    Raises:
        UserError: captions are wanted and not there, a batch is too small or too large, or the
            method refuses it.
    """

    config: RunConfig = field(compare=False)

    def __call__(self, images: int, uncaptioned: str, epochs: float | None = None) -> None:
        """Called before the images are decoded, and with the epochs once a budget has told them.

        Args:
            uncaptioned: why not each of them has a caption, or "".
        """
        settings, plugin = self.config.settings, self.config.method
        require(
            not uncaptioned or "caption" not in plugin.declared.columns,
            f"method {plugin.name} learns from captions, and data {readable(settings.data)} has "
            f"not one for each image ({uncaptioned}); data that has would work, such as --data "
            f"{CAPTIONS}, or a method that reads images alone, such as mae",
        )
        method, size = plugin.load_class(), self.config.batch_on(images)
        if method.loss is Method.loss and method.terms is Method.terms:
            return  # it trains nothing
        require(
            size >= method.smallest_batch,
            f"--batch-size {size} is too small for {plugin.name}, which needs at least "
            f"{method.smallest_batch} images in a step",
        )
        if epochs is None:
            has_budget = any(getattr(settings, name) for name in BUDGETS)
            epochs = math.inf if has_budget else self.config.epochs_on(images)
        Schedule(images, size, epochs)  # which refuses too few
        method_config = plugin.real_config(self.config.method_config)
        reason = method.refuses(method_config, size, images, epochs)
        require(reason is None, reason or "")


def load(
    source: str,
    image_size: int | None,
    data_dir: Path,
    storage: Storage = "auto",
    skip_broken: bool = False,
    check: Callable[[int, str], None] | None = None,
    frames: int | None = None,
    stride: int | None = None,
    views: tuple[int, int] = (1, 1),
) -> Dataset:
    """A data set by name or path, while a progress bar shows. Rank 0 comes first: it downloads."""

    def read() -> Dataset:
        with progress.bar(f"read {readable(source)}", 1) as bar:
            how = image_size, data_dir, bar.of, storage, skip_broken, check, frames, stride, views
            return datasets.load(source, *how)

    def read_first() -> None:
        found.append(read())
        name, broken = found[0].name, found[0].broken
        for line in filter(None, (found[0].left_out, *first_broken(broken))):
            note(f"{name}: {line}")

    found: list[Dataset] = []
    collectives.on_rank_zero(read_first)
    return found[0] if found else read()


def data_of(config: RunConfig, read: Callable[..., Dataset] = load) -> RunData:
    """What a run is trained on, and what it is evaluated on, if it is."""
    settings = config.settings
    how = settings.data_dir, settings.storage, settings.skip_broken
    check, clips = StepCheck(config), (settings.frames, settings.stride)
    views = settings.test_clips, settings.test_crops
    is_tested = not settings.eval_data or not (config.evals or settings.eval_every)
    own = (views,) if is_tested else ()
    data = read(settings.data, settings.image_size, *how, check, *clips, *own)
    if is_tested:
        return RunData(data, [data.as_tested()])
    found = [
        data
        if resolved(source) == data.source and views == (1, 1)
        else read(source, data.view_size, *how, None, data.frames, settings.stride, views)
        for source in several(settings.eval_data or "")
    ]
    require(bool(found), f"--eval-data {settings.eval_data!r} names no data set")
    return RunData(data, [each.as_tested() for each in found])


def say_images(data: Dataset | Listing) -> None:
    """What is in a data set, and how it was understood."""
    labels = "no labels" if data.unlabelled else f"{len(data.classes):,} classes"
    frames = getattr(data, "frames", 1)
    what = f"clips of {frames} frames" if frames > 1 else "images"
    what = "sentences" if getattr(data, "imageless", "") else what
    console.print(
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test {what}, {labels}",
        soft_wrap=True,
    )
    for line in data.notes:
        console.print(f"data {data.name}: {line}", soft_wrap=True)


def note(text: str) -> None:
    """Show a note to the user."""
    console.print(f"note: {text}", style="yellow", highlight=False, soft_wrap=True)


def note_coarse(data: Dataset) -> None:
    """Warn that scores of few test images can be of few values."""
    count = len(data.test)
    if count < _COARSE:
        of_each = f"of which each is {100 / count:.3g} points of accuracy"
        each = "" if data.unlabelled else f", {of_each}"
        note(
            f"{data.name}: {many(count, 'test image')}{each}: scores are coarse, and differences "
            f"mostly chance; {_COARSE} or more would tell more"
        )


def first_broken(broken: Sequence[str]) -> Iterator[str]:
    """The first images that were left out as they cannot be read, and the number of the others."""
    yield from broken[:_BROKEN_SHOWN]
    if broken[_BROKEN_SHOWN:]:
        yield f"{len(broken) - _BROKEN_SHOWN:,} more broken images"
