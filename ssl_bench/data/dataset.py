"""What a loaded data set is. Imports torch only when something is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images as squares of one size, and their labels.

    Here the images are decoded in memory. Those of a `stream.StreamedSplit` are not: what is to
    work with both asks for them by index and leaves ``images_NCHW`` alone.

    Attributes:
        images_NCHW: uint8 ``(N, C, S, S)``, in [0, 255], on the CPU.
        labels_N: int64 ``(N,)``, indices into the data set's classes.
    """

    images_NCHW: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.images_NCHW.shape[1]

    @property
    def side(self) -> int:
        """Height and width of the images in pixels."""
        return self.images_NCHW.shape[2]

    def images(self, index_B: Tensor) -> Tensor:
        """The images at those indices: uint8 ``(B, C, S, S)``, where the labels are."""
        images_BCSS = self.images_NCHW[index_B.to(self.images_NCHW.device, non_blocking=True)]
        return images_BCSS.to(self.labels_N.device, non_blocking=True)

    def read(self, indices: Iterable[Tensor]) -> Generator[Tensor]:
        """`images` of each of several index tensors; to be closed where it is not used up."""
        yield from map(self.images, indices)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All images in order, ``size`` at a time."""
        return iter(self.images_NCHW.split(size))

    def sample(self) -> Iterator[Tensor]:
        """Images that the mean and the deviation are taken of, in chunks: all."""
        return self.chunks(1024)

    def to(self, device: torch.device) -> Split:
        """The split on another device; itself where it is there already.

        Images that would take more than half of a GPU's free memory stay where they are.
        """
        import torch

        if self.labels_N.device == device:
            return self
        fits = device.type != "cuda" or self.images_NCHW.nbytes <= (
            torch.cuda.mem_get_info(device)[0] // 2
        )
        return Split(
            self.images_NCHW.to(device) if fits else self.images_NCHW, self.labels_N.to(device)
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split that share their classes.

    Attributes:
        name: what people call it: a known name, or the name of the folder or file.
        train: everything that may be learned from, and that any choice is made on.
        test: what the final score is measured on.
        classes: class names, by label; none where there are no labels.
        fingerprint: 16 hexadecimal digits; changes with any pixel, label or class name. That of a
            streamed data set is another one, see `stream`.
        note: a caveat to show beside every number, "" if there is none.
        view_size: height and width in pixels of the images that a model is meant to see.
        storage: where the images are, and why, for a person to read.
        broken: what is wrong with each image that was left out as it could not be read.
        left_out: in words how many files were not taken for images, by extension.
        notes: how the source was understood, to be said once.
        unlabelled: why there are no labels, all of which are 0 then; "" where there are.
        source: what was loaded, to be found from any working directory.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    note: str
    view_size: int
    storage: str = "in memory"
    broken: tuple[str, ...] = ()
    left_out: str = ""
    notes: tuple[str, ...] = ()
    unlabelled: str = ""
    source: str = ""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.channels

    @property
    def size(self) -> int:
        """Height and width of the stored images, in pixels."""
        return self.train.side

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the train pixels in [0, 1], by channel; of a streamed split, of a sample."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation of the same pixels, by channel."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        import torch

        # Counting the 256 values is exact, whatever the number of pixels.
        counts_CV = torch.zeros(self.channels, 256, dtype=torch.float64)
        for chunk_NCHW in self.train.sample():
            for channel in range(self.channels):
                pixels = chunk_NCHW[:, channel].flatten()
                counts_CV[channel] += torch.bincount(pixels, minlength=256)
        values_V = torch.arange(256, dtype=torch.float64) / 255
        share_CV = counts_CV / counts_CV.sum(dim=1, keepdim=True)
        mean_C = share_CV @ values_V
        variance_C = (share_CV * (values_V - mean_C[:, None]) ** 2).sum(dim=1)
        return tuple(mean_C.tolist()), tuple(variance_C.sqrt().tolist())


def fingerprint(train: Split, test: Split, classes: tuple[str, ...]) -> str:
    """16 hexadecimal digits of the SHA-256 of the pixels, the labels and the class names."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in (train, test):
        digest.update(repr(tuple(split.images_NCHW.shape)).encode())
        digest.update(split.images_NCHW.flatten().numpy().data)
        digest.update(split.labels_N.numpy().astype("<i8").data)
    return digest.hexdigest()[:16]
