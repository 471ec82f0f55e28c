"""Images that stay in their files until they are wanted.

What is wanted next is read and decoded in threads meanwhile: Pillow and torch let go of Python's
lock where they work. Nothing depends on how many threads there are.

A streamed data set has another fingerprint than the same one in memory, as training crops whole
photographs of it (`ssl_bench.transforms.loader`), and stored squares there. It is a hash of the
labels, the class names, the squares' size, and of each image's length and bytes; of the bytes of a
JPEG of more than 64 KiB, 16 KiB at the start, in the middle and at the end, as an edited one
is compressed into other bytes, of another number. The names of files do not count.

Before anything is trained on such a data set, all of its images are decoded once, see `survey`, so
that what is broken shows then; and as its images are known by the fingerprint, not again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_bench.data import depth
from ssl_bench.data.dataset import Dataset, Split
from ssl_bench.data.depth import Depths
from ssl_bench.data.images import header, naming, square_CSS
from ssl_bench.data.listing import Listing, Picture
from ssl_bench.data.survey import remembered, whole
from ssl_bench.distributed import collectives, environment
from ssl_bench.utils import rng

T = TypeVar("T")
Job = tuple[T, Sequence[Callable[[], None]]]
_LARGEST_PART = 32
_JOBS_AHEAD = 2
_SAMPLE = 1024
_SCANNED_AT_ONCE = 4096
_LONGEST_WHOLE, _STRETCH, _JPEG = 2**16, 2**14, b"\xff\xd8"


def cores() -> int:
    """How many cores this process may use: its share, where there are several ranks here."""
    return max(1, environment.cores() // collectives.local_world_size())


@dataclass(frozen=True, eq=False)
class StreamedSplit(Split):
    """Images that are decoded each time they are asked for; ``images_NCHW`` does not exist.

    Attributes:
        picture: the picture of an index; several threads may ask at once.
        shape_CSS: of the squares that it gives: 1 (grey) or 3 (RGB) channels, pixels.
        workers: threads that decode.
        depths: how images of more than 8 bits are read, see `depth`.
    """

    images_NCHW: Tensor = field(init=False, repr=False)
    picture: Callable[[int], Picture]
    shape_CSS: tuple[int, int, int]
    workers: int = field(default_factory=cores)
    depths: Depths = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.shape_CSS[0]

    @property
    def side(self) -> int:
        """Height and width of the squares in pixels."""
        return self.shape_CSS[1]

    def images(self, index_B: Tensor) -> Tensor:
        """The squares of the images at those indices: uint8 ``(B, C, S, S)`` on the CPU.

        Raises:
            UserError: an image cannot be read.
        """
        [images_BCSS] = self.read([index_B])
        return images_BCSS

    def read(self, indices: Iterable[Tensor]) -> Generator[Tensor]:
        """`images` of each of several index tensors, the next two decoded meanwhile.

        The same pixels as a split in memory has: the whole short side, resized, and the centre.

        Raises:
            UserError: an image cannot be read.
        """
        return ahead(map(self._job, indices), self.workers)

    def chunks(self, size: int) -> Generator[Tensor]:
        """All images in order, ``size`` at a time; three times as many are in memory at most."""
        return self.read(torch.arange(len(self)).split(size))

    def sample(self) -> Generator[Tensor]:
        """Images that the mean and the deviation are taken of: 1,024, always the same ones."""
        return self.read(rng.permutation(len(self), "moments")[:_SAMPLE].split(256))

    def to(self, device: torch.device) -> StreamedSplit:
        """The split whose labels are, and whose views are wanted, on another device."""
        return replace(self, labels_N=self.labels_N.to(device))

    def part_of(self, count: int) -> int:
        """How many of that many images a thread should take at once."""
        return max(4, min(_LARGEST_PART, count // self.workers))

    def _job(self, index_B: Tensor) -> Job[Tensor]:
        images_BCSS = torch.empty((len(index_B), *self.shape_CSS), dtype=torch.uint8)
        part = self.part_of(len(index_B))
        parts = zip(images_BCSS.split(part), index_B.split(part), strict=True)
        return images_BCSS, [partial(self._decode, *part) for part in parts]

    def _decode(self, images_PCSS: Tensor, index_P: Tensor) -> None:
        for image_CSS, index in zip(images_PCSS.numpy(), index_P.tolist(), strict=True):
            picture = self.picture(index)
            with reading(picture):
                image = header(picture)
                image_CSS[:] = square_CSS(image, self.side, self.channels, self.depths)


def ahead(jobs: Iterable[Job[T]], workers: int) -> Generator[T]:
    """Yield each job's result, in order, once its parts have run.

    Meanwhile the parts of the next two jobs run in threads, which end with the iteration, however
    it ends. No part waits for another.

    Args:
        jobs: a result, and functions that complete it, in any order.
        workers: how many threads.

    Raises:
        Exception: what the first part that failed has raised.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    under_way: deque[tuple[T, list[Future[None]]]] = deque()

    def oldest() -> T:
        result, parts = under_way.popleft()
        for part in parts:
            part.result()
        return result

    try:
        for result, parts in jobs:
            under_way.append((result, [pool.submit(part) for part in parts]))
            if len(under_way) > _JOBS_AHEAD:
                yield oldest()
        while under_way:
            yield oldest()
    finally:
        pool.shutdown(cancel_futures=True)


def reading(picture: Picture) -> AbstractContextManager[None]:
    """`naming` for an image that could be read before."""
    return naming(
        picture,
        "; as the run began it could be read. The run goes on from its checkpoint with the file as "
        "it was; with --skip-broken, or a copy by `ssl-bench data prepare`, it is another run",
    )


def open_stream(
    listing: Listing,
    look: Callable[[Listing], tuple[int, tuple[str, ...]]],
    skip_broken: bool,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set of a listing, whose images have been decoded at some time.

    Args:
        look: tells the squares' side, and what is to be said of the images.
        skip_broken: leave out images that cannot be decoded.
        folder: keeps what is known of data sets that took seconds to decode.

    Raises:
        UserError: an image cannot be read, or not at any place.
    """
    side, noticed = look(listing)
    labels, digest, content = _scanned(listing, side, progress)
    found = remembered(folder / f"{content}.json", listing, progress)
    listing, broken = whole(listing, found.broken, skip_broken)
    if broken:
        side, noticed = look(listing)
        labels, digest, _ = _scanned(listing, side, progress)
    depths = depth.decide(found.deep)
    said = depth.in_words(found.deep, depths, listing.count)
    if unusual := depth.differing(depths):
        digest = hashlib.sha256(json.dumps([digest, unusual]).encode()).hexdigest()[:16]
    train, test = (
        StreamedSplit(labels_N, part.open(), (listing.channels, side, side), depths=depths)
        for labels_N, part in zip(labels, (listing.train, listing.test), strict=True)
    )
    where = "streamed from their files"
    return listing.as_dataset(train, test, digest, (*said, *noticed), where, broken)


def _scanned(
    listing: Listing, side: int, progress: Callable[[int, int], None] | None
) -> tuple[list[Tensor], str, str]:
    """The labels of both splits, the fingerprint, and the like of it for the images alone."""
    content = hashlib.sha256()
    digest = hashlib.sha256(json.dumps(["streamed", side, *listing.classes]).encode())
    by_split: list[Tensor] = []
    done = 0
    with ThreadPoolExecutor(cores()) as pool:
        for part in (listing.train, listing.test):
            picture = part.open()
            labels: list[int] = []
            for numbers in torch.arange(part.count).split(_SCANNED_AT_ONCE):
                pictures = map(picture, numbers.tolist())
                for label, identity in pool.map(_identity, pictures):
                    labels.append(label)
                    digest.update(b"%d " % label + identity)
                    content.update(identity)
                if progress:
                    progress(done + len(labels), listing.count)
            done += part.count
            digest.update(b"end of split")
            by_split.append(torch.tensor(labels, dtype=torch.int64))
    return by_split, digest.hexdigest()[:16], content.hexdigest()


def _identity(picture: Picture) -> tuple[int, bytes]:
    """The label, and 32 bytes that stand for the image's length and bytes."""
    encoded = picture.encoded
    if isinstance(encoded, Image.Image):
        content = encoded.mode.encode() + np.asarray(encoded).data.tobytes()
        return picture.label, hashlib.sha256(content).digest()
    length = len(encoded) if isinstance(encoded, bytes) else 0
    with naming(picture):
        if isinstance(encoded, Path):
            with encoded.open("rb", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size
                wanted = _stretches(length, os.pread(file.fileno(), 2, 0))
                stretches = [os.pread(file.fileno(), *where) for where in wanted]
        else:
            wanted = _stretches(length, encoded[:2])
            stretches = [encoded[start : start + count] for count, start in wanted]
    return picture.label, hashlib.sha256(b"%d " % length + b"".join(stretches)).digest()


def _stretches(length: int, first: bytes) -> list[tuple[int, int]]:
    """Which bytes of that many, of which the first two are given, count: numbers and places."""
    if length <= _LONGEST_WHOLE or first != _JPEG:
        return [(length, 0)]
    return [(_STRETCH, place) for place in (0, length // 2, length - _STRETCH)]
