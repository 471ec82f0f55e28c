"""Images that stay in their files until they are needed.

Threads read and decode the next images in advance; Pillow and torch release Python's lock while
they work. Results do not depend on the number of threads.

A data set has another fingerprint streamed than in memory, because training then crops whole images
(`ssl_bench.transforms.loader`) instead of stored squares. It is a hash of the labels, the class
names, the squares' size, and each image's length and bytes. Of a JPEG of more than 64 KiB only
16 KiB at the start, in the middle and at the end are hashed, as any edit changes the compressed
bytes and their number. File names do not count.

Before the first training on such a data set all images are decoded once to find broken ones, see
`survey`; the result is stored under a hash of the images, so this happens only once.
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

from ssl_bench.data import masks
from ssl_bench.data.dataset import Dataset, Split
from ssl_bench.data.depth import Depths
from ssl_bench.data.images import header, naming, square_CSS
from ssl_bench.data.listing import Listing, Picture, Progress
from ssl_bench.data.survey import sound
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
    """How many cores this process may use: its share if several ranks run on this machine."""
    return max(1, environment.cores() // collectives.local_world_size())


@dataclass(frozen=True, eq=False)
class StreamedSplit(Split):
    """Images that are decoded each time they are asked for; ``images_NCHW`` does not exist.

    ``picture`` is a thread-safe function from an index to the picture, ``shape_CSS`` that of the
    squares, ``depths`` says how images of more than 8 bits are read.
    """

    images_NCHW: Tensor = field(init=False, repr=False)
    masks_NSS: None = field(init=False, repr=False, default=None)
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
        """The squares of the images at these indices: uint8 ``(B, C, S, S)`` on the CPU."""
        [images_BCSS] = self.read([index_B])
        return images_BCSS

    def masks(self, index_B: Tensor) -> Tensor:
        """The masks of the images at these indices: uint8 ``(B, S, S)``, on the CPU."""
        with ThreadPoolExecutor(self.workers) as pool:
            pictures = map(self.picture, index_B.tolist())
            squares = pool.map(partial(masks.square_SS, side=self.side), pictures)
            return torch.from_numpy(np.stack([*squares]))

    def subset(self, places: Sequence[int]) -> StreamedSplit:
        """The images at some places."""
        return replace(
            self, picture=lambda index: self.picture(places[index]), **self._told_of(places)
        )

    def read(self, indices: Iterable[Tensor]) -> Generator[Tensor]:
        """`images` of each of several index tensors; the next two are decoded in advance.

        The pixels are those of a split in memory: short side resized, centre cropped.
        """
        return ahead(map(self._job, indices), self.workers)

    def chunks(self, size: int) -> Generator[Tensor]:
        """All images in order, ``size`` at a time, with at most ``3 * size`` in memory."""
        return self.read(torch.arange(len(self)).split(size))

    def sample(self) -> Generator[Tensor]:
        """The images from which mean and deviation are computed: always the same 1,024."""
        return self.read(rng.permutation(len(self), "moments")[:_SAMPLE].split(256))

    def to(self, device: torch.device) -> StreamedSplit:
        """The split with its labels on another device; views follow them there."""
        return replace(self, labels_N=self.labels_N.to(device))

    def part_of(self, count: int) -> int:
        """How many of ``count`` images a thread should decode at a time."""
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
    """Yield each job's result, in order, once its parts have run, in any order.

    Meanwhile threads run the parts of the next two jobs; they end with the iteration, however that
    ends. The error of the first part that fails is raised.
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
    """`naming` for an image that could be read when the run began."""
    return naming(
        picture,
        "; it could be read when the run began. The run resumes from its checkpoint once the file "
        "is as it was; with --skip-broken, or a copy by `ssl-bench data prepare`, it is another "
        "run",
    )


def open_stream(
    listing: Listing,
    look: Callable[[Listing], tuple[int, tuple[str, ...]]],
    skip_broken: bool,
    folder: Path,
    progress: Progress,
) -> Dataset:
    """The streamed data set of a listing, once all its images have been decoded at some time.

    Args:
        look: returns the squares' side, and caveats about the images.
        skip_broken: leave out images that cannot be decoded.
        folder: for the results of checks that took seconds.

    Raises:
        UserError: an image cannot be read, or the source has no random access.
    """
    side, noticed = look(listing)
    labels, captions, digest, content = _scanned(listing, side, progress)
    path = folder / f"{content}.json"
    listing, depths, said, broken = sound(listing, skip_broken, progress, path)
    if broken:
        side, noticed = look(listing)
        labels, captions, digest, _ = _scanned(listing, side, progress)
    if unusual := [(kind, bits) for kind, bits in sorted(depths.items()) if bits != 16]:
        digest = hashlib.sha256(json.dumps([digest, unusual]).encode()).hexdigest()[:16]
    train, test = (
        StreamedSplit(
            *(labels_N, part.open(), (listing.channels, side, side)),
            depths=depths,
            captions=None if listing.uncaptioned else texts,
        )
        for labels_N, texts, part in zip(
            labels, captions, (listing.train, listing.test), strict=True
        )
    )
    caveats = (*said, *noticed)
    return listing.as_dataset(train, test, digest, caveats, "streamed from their files", broken)


def _scanned(
    listing: Listing, side: int, progress: Progress
) -> tuple[list[Tensor], list[tuple[tuple[str, ...], ...]], str, str]:
    """Labels and captions of both splits, the fingerprint, and a hash of the images alone."""
    content = hashlib.sha256()
    digest = hashlib.sha256(
        json.dumps(["streamed", side, *listing.classes, *listing.mask_classes]).encode()
    )
    by_split, captions = list[Tensor](), list[tuple[tuple[str, ...], ...]]()
    done = 0
    with ThreadPoolExecutor(cores()) as pool:
        for part in (listing.train, listing.test):
            picture = part.open()
            labels, texts = list[int](), list[tuple[str, ...]]()
            for numbers in torch.arange(part.count).split(_SCANNED_AT_ONCE):
                pictures = map(picture, numbers.tolist())
                for label, own, identity in pool.map(_scan, pictures):
                    labels.append(label)
                    texts.append(own)
                    digest.update(b"%d " % label + identity)
                    content.update(identity)
                progress(done + len(labels), listing.count)
            done += part.count
            digest.update(b"end of split")
            by_split.append(torch.tensor(labels, dtype=torch.int64))
            captions.append(tuple(texts))
    if not listing.uncaptioned:
        digest.update(json.dumps(captions).encode())
    return by_split, captions, digest.hexdigest()[:16], content.hexdigest()


def _scan(picture: Picture) -> tuple[int, tuple[str, ...], bytes]:
    """What is wanted of an image, whose bytes are not kept: label, captions and identity."""
    return picture.label, picture.captions, _identity(picture)


def _identity(picture: Picture) -> bytes:
    """A 32-byte hash of the image's length and bytes, and of its mask's."""
    if picture.mask is not None:
        parts = [replace(picture, mask=None, encoded=e) for e in (picture.encoded, picture.mask)]
        whole = b"".join(_identity(part) for part in parts)
        return hashlib.sha256(whole).digest()
    encoded = picture.encoded
    if isinstance(encoded, Image.Image):
        content = encoded.mode.encode() + np.asarray(encoded).data.tobytes()
        return hashlib.sha256(content).digest()
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
    return hashlib.sha256(b"%d " % length + b"".join(stretches)).digest()


def _stretches(length: int, first: bytes) -> list[tuple[int, int]]:
    """Which bytes of a file to hash, given its length and first two bytes: (count, start) each."""
    if length <= _LONGEST_WHOLE or first != _JPEG:
        return [(length, 0)]
    return [(_STRETCH, place) for place in (0, length // 2, length - _STRETCH)]
