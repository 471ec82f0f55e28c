"""Videos decoded into memory, and the clips that are taken of them.

Of each video every frame whose number is a multiple of the stride is kept, as a square like an
image's; a clip is so many kept frames one after the other. Training draws where it begins, and
evaluation takes the one in the middle, or of a test video several and crops of them: clips that
begin at equal distances from the first place to the last, squares at both ends of the frame and in
its centre (``kinetics.py``, MCG-NJU/VideoMAE ``14ef8d8``). Of each square an encoder sees the inner
7/8, as it does of an image; the official code resizes frames to what it sees, and cuts nothing off.
A video that is too short for a clip repeats its last frame.

Files are decoded by PyAV, whose wheels bring ffmpeg's libraries, and GIFs by Pillow. Strides count
frames, whatever the frame rate.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from ssl_bench.config.settings import Storage
from ssl_bench.data import images, survey
from ssl_bench.data.dataset import Dataset, Split
from ssl_bench.data.images import UnreadableVideo, naming, square_CSS
from ssl_bench.data.in_memory import total_memory
from ssl_bench.data.listing import Listing, Picture, Progress, shown
from ssl_bench.data.sampling import Sampling
from ssl_bench.data.sources.videos import GIF
from ssl_bench.errors import require
from ssl_bench.utils.formatting import many
from ssl_bench.utils.rng import SampleRng

USUAL = Sampling(frames=16, stride=4)
_AT_ONCE = 16
_CUT = "it is damaged or cut short"
_EBML, _SEGMENT, _HEAD = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", 1024


@dataclass(frozen=True, eq=False)
class VideoSplit(Split):
    """Videos, of which clips are taken; ``images_NCHW`` does not exist.

    Attributes:
        frames_KCSS: uint8, the kept frames of all videos, one video after the other; of several
            crops, one crop's channels after the other's.
        first_N: int64, where each video's begin.
        counts_N: int64, how many each video has, 1 or more.
        views: clips, and crops of each, that a test averages over.
    """

    images_NCHW: Tensor = field(init=False, repr=False)
    masks_NSS: None = field(init=False, repr=False, default=None)
    frames_KCSS: Tensor = field(kw_only=True)
    first_N: Tensor = field(kw_only=True)
    counts_N: Tensor = field(kw_only=True)
    views: tuple[int, int] = field(default=(1, 1), kw_only=True)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.frames_KCSS.shape[1] // self.views[1]

    @property
    def side(self) -> int:
        """Height and width of the frames in pixels."""
        return self.frames_KCSS.shape[2]

    def images(self, index_B: Tensor) -> Tensor:
        """The clip in the middle of each video: uint8 ``(B, frames * C, S, S)``."""
        index_B = index_B.cpu()
        return self._clips(index_B, self._last_start(index_B) // 2)

    def drawn(self, draws: SampleRng) -> Tensor:
        """A clip from anywhere in each video, equally likely."""
        index_B = draws.samples_B.cpu()
        uniform_B = draws.uniform("clip start", 1)[:, 0].cpu()
        return self._clips(index_B, (uniform_B * (self._last_start(index_B) + 1)).long())

    def read_drawn(self, steps: Iterable[SampleRng]) -> Generator[Tensor]:
        """`drawn` of each of several training steps."""
        yield from map(self.drawn, steps)

    @property
    def several_views(self) -> str:
        """Which views of each video `seen` gives, in words; "" for the one of `read`."""
        clips, crops = self.views
        words = f"averaged over {many(clips, 'clip')} x {many(crops, 'crop')} of each test video"
        return "" if self.views == (1, 1) else words

    def seen(self, indices: Iterable[Tensor]) -> Generator[Iterable[Tensor]]:
        """Each video's clips and crops in turn, for each of several index tensors."""
        clips, crops = self.views
        if self.views == (1, 1):
            yield from super().seen(indices)
            return
        for index_B in indices:
            last_B = self._last_start(index_B.cpu())
            starts = [last_B * clip // (clips - 1) if clips > 1 else last_B // 2
                      for clip in range(clips)]  # fmt: skip
            yield (
                self._clips(index_B.cpu(), start_B, crop)
                for start_B in starts
                for crop in range(crops)
            )

    def subset(self, places: Sequence[int]) -> VideoSplit:
        """The videos at some places, their frames in the same memory."""
        first_N, counts_N = self.first_N[places], self.counts_N[places]
        return replace(self, first_N=first_N, counts_N=counts_N, **self._told_of(places))

    def chunks(self, size: int) -> Iterator[Tensor]:
        """The clips of all videos in order, ``size`` at a time."""
        return self.read(torch.arange(len(self)).split(size))

    def to(self, device: torch.device) -> VideoSplit:
        """The split with its labels on another device; clips follow them there."""
        return replace(self, labels_N=self.labels_N.to(device))

    def _last_start(self, index_B: Tensor) -> Tensor:
        return (self.counts_N[index_B] - self.frames).clamp(min=0)

    def _clips(self, index_B: Tensor, start_B: Tensor, crop: int | None = None) -> Tensor:
        """The clips that begin at these kept frames, of one of the crops or else the middle one."""
        first_B1, counts_B1 = self.first_N[index_B, None], self.counts_N[index_B, None]
        place_BF = (start_B[:, None] + torch.arange(self.frames)).minimum(counts_B1 - 1)
        first = self.channels * (self.views[1] // 2 if crop is None else crop)
        frames_KCSS = self.frames_KCSS[:, first : first + self.channels]
        clips_BCSS = frames_KCSS[first_B1 + place_BF].flatten(1, 2)
        return clips_BCSS.to(self.labels_N.device, non_blocking=True)


def load(
    listing: Listing,
    image_size: int,
    sampling: Sampling,
    storage: Storage,
    skip_broken: bool,
    progress: Progress,
    views: tuple[int, int] = (1, 1),
) -> Dataset:
    """Decode the videos of a listing.

    Args:
        views: clips, and crops of each, that a test averages over; the fingerprint does not depend
            on them.

    Raises:
        UserError: PyAV is missing, videos cannot be read, or their frames need too much memory.
    """
    require(
        storage != "stream",
        "videos are decoded into memory, and cannot be streamed; --storage memory would work",
    )
    pictures = [*listing.pictures()]
    _require_decoder(pictures)
    side = round(image_size * 8 / 7)
    crops = [1] * listing.train.count + [views[1]] * listing.test.count
    decoded, broken = _decoded(pictures, crops, side, sampling, progress)
    errors = [broken[place] for place in sorted(broken)]
    images.refuse(errors, skip_broken)
    if errors:
        listing = survey.without(listing, broken, "video")
    caveats: list[str] = []
    short = [place for place in sorted(decoded) if len(decoded[place]) < sampling.frames]
    if short:
        names = shown(Path(pictures[place].name).name for place in short)
        caveats.append(
            f"{many(len(short), 'video')} of {len(decoded):,} shorter than {sampling.frames} "
            f"frames of stride {sampling.stride}, the last one repeated: {names}"
        )
    digest = hashlib.sha256(json.dumps([*listing.classes, sampling.frames]).encode())
    places = iter(sorted(decoded))
    splits = []
    for part in (listing.train, listing.test):
        own = [*islice(places, part.count)]
        counts_N = torch.tensor([len(decoded[place]) for place in own])
        labels_N = torch.tensor(part.labels, dtype=torch.int64)
        shape = int(counts_N.sum()), *decoded[own[0]].shape[1:]
        frames_KCSS = torch.empty(shape, dtype=torch.uint8)
        first = shape[1] // 6 * 3  # the middle crop's
        for place, each_FCSS in zip(own, frames_KCSS.split(counts_N.tolist()), strict=True):
            # Nothing is in memory twice but this video.
            each_FCSS.copy_(torch.from_numpy(decoded.pop(place)))
            digest.update(each_FCSS[:, first : first + 3].contiguous().numpy().data)
        for each in (counts_N, labels_N):
            digest.update(each.numpy().data)
        split = VideoSplit(
            labels_N,
            frames=sampling.frames,
            frames_KCSS=frames_KCSS,
            first_N=counts_N.cumsum(0) - counts_N,
            counts_N=counts_N,
        )
        splits.append(replace(split, views=views) if part is listing.test else split)
    told = tuple(f"{error.name}: {error.reason}" for error in errors)
    train, test = splits
    return listing.as_dataset(train, test, digest.hexdigest()[:16], caveats, "in memory", told)


def middle(path: Path, image_size: int, sampling: Sampling) -> Tensor:
    """The clip in the middle of one video, as of a data set: uint8 ``(1, frames * 3, S, S)``.

    Raises:
        UserError: PyAV is missing, or the video cannot be read.
    """
    picture = Picture(str(path), path, 0)
    _require_decoder([picture])
    found = _video(picture, 1, round(image_size * 8 / 7), sampling)
    if isinstance(found, UnreadableVideo):
        raise found
    frames_KCSS, one = torch.from_numpy(found), torch.zeros(1, dtype=torch.int64)
    where: Any = {"frames_KCSS": frames_KCSS, "first_N": one, "counts_N": one + len(frames_KCSS)}
    return VideoSplit(one, frames=sampling.frames, **where).images(one)


def _require_decoder(pictures: list[Picture]) -> None:
    others = [p for p in pictures if Path(p.name).suffix.lower() != GIF]
    require(
        not others or importlib.util.find_spec("av") is not None,
        f"videos such as {others[0].name if others else ''} need PyAV; pip install "
        "'ssl-bench[video]' would work",
    )


def _decoded(
    pictures: list[Picture],
    crops: list[int],
    side: int,
    sampling: Sampling,
    progress: Progress,
) -> tuple[dict[int, np.ndarray], dict[int, UnreadableVideo]]:
    """The kept frames of each video that can be read, and the errors of the others, by place."""
    decoded: dict[int, np.ndarray] = {}
    broken: dict[int, UnreadableVideo] = {}
    room, used, lock = total_memory() // 2, 0, Lock()

    def take(size: int) -> None:
        nonlocal used
        with lock:
            used += size
        require(
            used <= room,
            f"the frames of {len(pictures):,} videos need more than {room / 2**30:.1f} GiB, half "
            f"of the memory ({len(decoded):,} were decoded); a larger --stride than "
            f"{sampling.stride} or a smaller --image-size would work",
        )

    numbered = iter(enumerate(pictures))
    read = partial(_video, side=side, sampling=sampling, take=take)
    with ThreadPoolExecutor() as pool:
        while batch := [*islice(numbered, _AT_ONCE)]:
            taken = [crops[place] for place, _ in batch]
            found = pool.map(read, [picture for _, picture in batch], taken)
            for (place, _), video in zip(batch, found, strict=True):
                if isinstance(video, UnreadableVideo):
                    broken[place] = video
                else:
                    decoded[place] = video
            progress(batch[-1][0] + 1, len(pictures))
    return decoded, broken


def _video(
    picture: Picture,
    crops: int,
    side: int,
    sampling: Sampling,
    take: Callable[[int], None] = lambda size: None,
) -> np.ndarray | UnreadableVideo:
    """The kept frames of a video as squares, uint8 ``(K, crops * 3, S, S)``, or why there are none.

    One crop is the centre; several are at equal distances from one end to the other.

    Args:
        take: told of the bytes of each frame that is kept, and of a broken video's, less than 0.
    """
    kept = list[np.ndarray]()
    places = [crop / (crops - 1) for crop in range(crops)] if crops > 1 else [0.5]
    assert isinstance(picture.encoded, Path)
    read = _gif if picture.encoded.suffix.lower() == GIF else _film
    try:
        with naming(picture, error_class=UnreadableVideo), closing(read(picture.encoded)) as frames:
            count = 0
            for count, frame in enumerate(frames, start=1):
                if (count - 1) % sampling.stride == 0:
                    image = frame()
                    squares = [square_CSS(image, side, 3, place=place) for place in places]
                    kept.append(np.concatenate(squares))
                    take(kept[-1].nbytes)
            if count < min(2, sampling.frames):
                raise ValueError(f"it has {['no frames', 'one frame'][count]}")
            return np.ascontiguousarray(np.stack(kept))
    except UnreadableVideo as error:
        take(-sum(each.nbytes for each in kept))
        return error


def _gif(path: Path) -> Generator[Callable[[], Image.Image]]:
    """What gives each frame, until the next one is asked for."""
    try:
        with Image.open(path, formats=["GIF"]) as film:
            for frame in ImageSequence.Iterator(film):
                yield frame.copy
    except IndexError as error:
        raise ValueError(_CUT) from error


def _film(path: Path) -> Generator[Callable[[], Image.Image]]:
    """What gives each frame, whose colours are converted only then."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise ValueError(_CUT)
                for frame in packet.decode():
                    yield partial(_upright, frame)
            # What is missing at the end ends the decoding without an error.
            ends = [entry.pos + entry.size for entry in stream.index_entries]
            if container.size < max([*ends, _matroska_end(path)]):
                raise ValueError(_CUT)
    except av.FFmpegError as error:
        # A file that is cut short may end in an error of input, or ask for too much memory.
        is_cut = isinstance(error, EOFError) or error.errno == errno.EIO
        if isinstance(error, OSError) and not is_cut:
            raise
        raise ValueError(_CUT if is_cut else error.strerror) from error


def _matroska_end(path: Path) -> int:
    """Where an mkv or webm file's header says that it ends (RFC 9559); 0 if it does not say."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    before, _, after = head.partition(_SEGMENT)
    if not (head.startswith(_EBML) and after):
        return 0
    length = 9 - after[0].bit_length()
    limit = 1 << 7 * length
    size = int.from_bytes(after[:length]) % limit
    return len(before) + len(_SEGMENT) + length + size if size < limit - 1 else 0


def _upright(frame: Any) -> Image.Image:
    """A frame of PyAV as it is to be shown: telephones store how they were held."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
