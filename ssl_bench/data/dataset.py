"""A loaded data set and its splits. Imports torch only when something is computed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssl_bench.utils.rng import SampleRng


NO_CAPTIONS = "it has images alone"


@dataclass(frozen=True, eq=False)
class Split:
    """Images as squares of one size, and their labels.

    A clip is an image whose channels are those of its frames, one frame after the other: what is
    done to an image is done to all frames of a clip alike.

    Here the images are decoded in memory. Code that must also work with a
    `streaming.StreamedSplit` asks for images by index and does not touch ``images_NCHW``.

    Attributes:
        images_NCHW: uint8 ``(N, frames * C, S, S)``, in [0, 255], on the CPU.
        labels_N: int64 ``(N,)``, indices into the data set's classes.
        masks_NSS: uint8 ``(N, S, S)``, the class of each pixel, 255 where none counts, or None.
        frames: of each clip; 1 for images.
        captions: one or several texts of each image, or None.
        documents: of sentences, the number of the document of each; sentences of one follow each
            other. None of captions.
    """

    images_NCHW: Tensor
    labels_N: Tensor
    masks_NSS: Tensor | None = None
    frames: int = field(default=1, kw_only=True)
    captions: tuple[tuple[str, ...], ...] | None = field(default=None, kw_only=True, repr=False)
    documents: tuple[int, ...] | None = field(default=None, kw_only=True, repr=False)

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.images_NCHW.shape[1] // self.frames

    @property
    def side(self) -> int:
        """Height and width of the images in pixels."""
        return self.images_NCHW.shape[2]

    def images(self, index_B: Tensor) -> Tensor:
        """The images at these indices: uint8 ``(B, frames * C, S, S)``, where the labels are."""
        images_BCSS = self.images_NCHW[index_B.to(self.images_NCHW.device, non_blocking=True)]
        return images_BCSS.to(self.labels_N.device, non_blocking=True)

    def drawn(self, draws: SampleRng) -> Tensor:
        """`images` of the samples of a training step, of which a video may give any clip."""
        return self.images(draws.samples_B)

    def read_drawn(self, steps: Iterable[SampleRng]) -> Generator[Tensor]:
        """`drawn` of each of several training steps; close it if you stop early."""
        yield from self.read(draws.samples_B for draws in steps)

    @property
    def several_views(self) -> str:
        """Which views of each image `seen` gives, in words; "" for the one of `read`."""
        return ""

    def seen(self, indices: Iterable[Tensor]) -> Generator[Iterable[Tensor]]:
        """What a test averages over: the views of the images at each of several index tensors.

        They are those of `read`; of a video there may be several, see `clips.VideoSplit`.
        """
        for images_BCSS in self.read(indices):
            yield (images_BCSS,)

    def masks(self, index_B: Tensor) -> Tensor:
        """The masks of the images at these indices: uint8 ``(B, S, S)``, on the CPU."""
        assert self.masks_NSS is not None
        return self.masks_NSS[index_B.cpu()]

    @property
    def first_captions(self) -> tuple[str, ...]:
        """The first text of each image, which stands for it where only one is taken."""
        assert self.captions is not None
        return tuple(each[0] for each in self.captions)

    def subset(self, places: Sequence[int]) -> Split:
        """The images at some places."""
        masks = None if self.masks_NSS is None else self.masks_NSS[places]
        return replace(
            self, images_NCHW=self.images_NCHW[places], masks_NSS=masks, **self._told_of(places)
        )

    def _told_of(self, places: Sequence[int]) -> dict[str, Any]:
        """The labels and texts at some places: the fields of every `subset`."""
        return {
            "labels_N": self.labels_N[places],
            "captions": self.captions and tuple(self.captions[place] for place in places),
            "documents": self.documents and _divided(self.documents, places),
        }

    def read(self, indices: Iterable[Tensor]) -> Generator[Tensor]:
        """`images` of each of several index tensors; close it if you stop early."""
        yield from map(self.images, indices)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All images in order, ``size`` at a time."""
        return iter(self.images_NCHW.split(size))

    def sample(self) -> Iterator[Tensor]:
        """The images from which mean and deviation are computed, in chunks: all of them."""
        return self.chunks(1024)

    def to(self, device: torch.device) -> Split:
        """The split on another device.

        Images that would take more than half of a GPU's free memory stay where they are.
        """
        import torch

        if self.labels_N.device == device:
            return self
        fits = device.type != "cuda" or self.images_NCHW.nbytes <= (
            torch.cuda.mem_get_info(device)[0] // 2
        )
        images_NCHW = self.images_NCHW.to(device) if fits else self.images_NCHW
        return replace(self, images_NCHW=images_NCHW, labels_N=self.labels_N.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split that share their classes.

    Attributes:
        name: a known name, or the name of the folder or file.
        train: for training and for every choice of settings.
        test: for the final score.
        classes: class names, by label; empty without labels.
        fingerprint: 16 hexadecimal digits that change with any pixel, label or class name; those of
            a streamed data set are computed differently, see `streaming`.
        note: a caveat to show beside every number, or "".
        view_size: height and width in pixels of the images that a model is meant to see.
        storage: where the images are, and why, in words.
        broken: one line for each unreadable image that was left out.
        left_out: how many files are not images, by extension, in words.
        notes: how the source was understood, to be shown once.
        unlabelled: why there are no labels (all are 0 then), or "".
        source: the source, valid in any working directory.
        mask_classes: names of the classes in the masks; empty without masks.
        uncaptioned: why the splits have no captions, where they have none.
        imageless: why there are no images (each is one black pixel then), or "".
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
    mask_classes: tuple[str, ...] = ()
    uncaptioned: str = NO_CAPTIONS
    imageless: str = ""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.channels

    @property
    def frames(self) -> int:
        """Frames of each clip; 1 for images."""
        return self.train.frames

    def as_tested(self) -> Dataset:
        """The same, to be evaluated on: its fingerprint tells which views a test averages over."""
        views = self.test.several_views
        if not views:
            return self
        digest = hashlib.sha256(f"{self.fingerprint} {views}".encode()).hexdigest()[:16]
        return replace(self, fingerprint=digest, note="; ".join(filter(None, (self.note, views))))

    @property
    def size(self) -> int:
        """Height and width of the stored images, in pixels."""
        return self.train.side

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel of the train pixels in [0, 1]; of a sample if the split is streamed."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation per channel of the same pixels."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        import torch

        if self.imageless:
            return (0.0,), (1.0,)
        # Counting the 256 values is exact, whatever the number of pixels.
        counts_CV = torch.zeros(self.channels, 256, dtype=torch.float64)
        for chunk_NCHW in self.train.sample():
            for channel in range(self.channels):
                pixels = chunk_NCHW[:, channel :: self.channels].flatten()
                counts_CV[channel] += torch.bincount(pixels, minlength=256)
        values_V = torch.arange(256, dtype=torch.float64) / 255
        share_CV = counts_CV / counts_CV.sum(dim=1, keepdim=True)
        # Both are part of a run's name, to the last digit, so that they are computed in an order
        # and with a root that are the same on every processor, as a matrix product's are not.
        parts = (share_CV * values_V).view(self.channels, 32, 8).unbind(dim=1)
        sums_CE = reduce(torch.add, parts)
        while sums_CE.shape[1] > 1:
            sums_CE = reduce(torch.add, sums_CE.chunk(2, dim=1))
        variance_C = (share_CV * (values_V - sums_CE) ** 2).sum(dim=1)
        return tuple(sums_CE[:, 0].tolist()), tuple(map(math.sqrt, variance_C.tolist()))


def _divided(documents: Sequence[int], places: Sequence[int]) -> tuple[int, ...]:
    """The documents of some texts: where one is missing between two, another document begins."""
    found, number = list[int](), -1
    for before, place in zip((-1, *places), places, strict=False):
        number += not found or place != before + 1 or documents[place] != documents[before]
        found.append(number)
    return tuple(found)


def fingerprint(train: Split, test: Split, classes: tuple[str, ...]) -> str:
    """16 hexadecimal digits of the SHA-256 of pixels, labels, masks, captions and class names."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in (train, test):
        digest.update(repr(tuple(split.images_NCHW.shape)).encode())
        digest.update(split.images_NCHW.flatten().numpy().data)
        digest.update(split.labels_N.numpy().astype("<i8").data)
        if split.masks_NSS is not None:
            digest.update(split.masks_NSS.numpy().data)
        if split.captions is not None:
            digest.update(json.dumps(split.captions).encode())
        if split.documents is not None:
            digest.update(json.dumps(split.documents).encode())
    return digest.hexdigest()[:16]
