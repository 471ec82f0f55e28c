"""Scenes of garments with captions that say what is where: image-text data with no download.

A scene of 56 x 56 pixels has a large garment of Fashion-MNIST, as it is, and one or two small ones,
halved, each left or right of it, above or below. Two captions describe it; its label is the large
garment's class. A fifth of the compositions (a large class, a small one and where it is), chosen by
a hash, are in no scene of the training split and in each scene of the test split, whose scenes all
differ: who recognises garments and places, but not which belongs where, fails there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data import embedded
from ssl_bench.data.dataset import Split
from ssl_bench.utils import rng

CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag"),
    "boot",
)
"""The classes of Fashion-MNIST in a word that a sentence takes."""
COUNTS = {"train": 10000, "test": 1000}
PLACES = ("left of", "right of", "above", "below")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIDE, _LARGE, _SMALL = 56, 28, 14
_UNSEEN = 5
"""One composition of so many is in the test split alone."""


class Small(NamedTuple):
    """A small garment: its class and its place, both as numbers."""

    label: int
    place: int


class Scene(NamedTuple):
    """What is in a scene: the large garment's class, and one or two small ones."""

    label: int
    small: tuple[Small, ...]


def is_unseen(label: int, small: Small) -> bool:
    """Whether this composition is in no scene of the training split."""
    return rng.key("scenes", label, *small) % _UNSEEN == 0


def read(split: str) -> Split:
    """The scenes of split "train" or "test", the same ones on every machine."""
    images_NCHW, labels_N = embedded.read(split)
    scenes, generator = _scenes(split), rng.generator("scenes", split)
    by_class = [(labels_N == label).nonzero()[:, 0] for label in range(len(CLASSES))]
    canvases_NSS = torch.zeros(len(scenes), _SIDE, _SIDE, dtype=torch.uint8)
    halves_NHW = F.avg_pool2d(images_NCHW.float(), 2).round().to(torch.uint8)[:, 0]
    drawn_N12 = torch.rand(len(scenes), 12, generator=generator, dtype=torch.float64).tolist()

    def garment(label: int, number: float) -> int:
        return int(by_class[label][int(number * len(by_class[label]))])

    for canvas_SS, scene, drawn in zip(canvases_NSS, scenes, drawn_N12, strict=True):
        numbers = iter(drawn)
        corner = [_between(*_room(scene, axis), next(numbers)) for axis in (0, 1)]
        _paste(canvas_SS, images_NCHW[garment(scene.label, next(numbers)), 0], corner)
        for small in scene.small:
            at = [_place(small.place, axis, corner[axis], next(numbers)) for axis in (0, 1)]
            _paste(canvas_SS, halves_NHW[garment(small.label, next(numbers))], at)
    captions = tuple(_captions(scene, split, number) for number, scene in enumerate(scenes))
    labels = torch.tensor([scene.label for scene in scenes])
    return Split(canvases_NSS[:, None], labels, captions=captions)


def _scenes(split: str) -> list[Scene]:
    """Scenes of the training split, drawn with replacement, or the different ones of the other."""
    every = [Small(*each) for each in itertools.product(range(len(CLASSES)), range(len(PLACES)))]
    single = [(each,) for each in every]
    pairs = [pair for pair in itertools.combinations(every, 2) if pair[0].place != pair[1].place]
    fitting = [
        Scene(label, small)
        for label in range(len(CLASSES))
        for small in (*single, *pairs)
        if any(is_unseen(label, each) for each in small) == (split == "test")
    ]
    ones = [scene for scene in fitting if len(scene.small) == 1]
    twos = [scene for scene in fitting if len(scene.small) == 2]
    count, generator = COUNTS[split], rng.generator("scenes", split, "which")
    if split == "train":
        groups = [twos if number % 2 else ones for number in range(count)]
        return [group[int(torch.randint(len(group), (), generator=generator))] for group in groups]
    order = torch.randperm(len(twos), generator=generator).tolist()
    chosen = [*ones, *(twos[place] for place in order)][:count]
    return [chosen[place] for place in torch.randperm(count, generator=generator).tolist()]


def _room(scene: Scene, axis: int) -> tuple[int, int]:
    """Where the large garment may begin, so that the small ones fit beside it; axis 0 is down."""
    names = {PLACES[small.place] for small in scene.small}
    before, after = (("above", "below"), ("left of", "right of"))[axis]
    low = _SMALL if before in names else 0
    return low, _SIDE - _LARGE - (_SMALL if after in names else 0)


def _place(place: int, axis: int, corner: int, number: float) -> int:
    """Where a small garment begins along an axis, beside a large one that begins at ``corner``."""
    before, after = (("above", "below"), ("left of", "right of"))[axis]
    if PLACES[place] == before:
        return _between(0, corner - _SMALL, number)
    if PLACES[place] == after:
        return _between(corner + _LARGE, _SIDE - _SMALL, number)
    return _between(corner, corner + _LARGE - _SMALL, number)


def _between(low: int, high: int, number: float) -> int:
    return low + int(number * (high - low + 1))


def _paste(canvas_SS: Tensor, image_HW: Tensor, corner: Sequence[int]) -> None:
    (top, left), (height, width) = corner, image_HW.shape
    canvas_SS[top : top + height, left : left + width] = image_HW


def _captions(scene: Scene, split: str, number: int) -> tuple[str, ...]:
    """Two of the sentences that are true of a scene."""
    large = CLASSES[scene.label]
    parts = [(CLASSES[small.label], PLACES[small.place]) for small in scene.small]
    if rng.key("scenes", split, number, "order") % 2:
        parts.reverse()
    beside = " and ".join(f"a small {name} {place} it" for name, place in parts)
    listed = " and ".join(f"a small {name} {place}" for name, place in parts)
    first, *rest = [(name, _OPPOSITE[place]) for name, place in parts]
    turned = f"a large {large} {first[1]} a small {first[0]}"
    turned += "".join(f" and {place} a small {name}" for name, place in rest)
    sentences = (
        f"{listed} a large {large}",
        turned,
        f"a large {large} with {beside}",
        f"there is a large {large}, with {beside}",
    )
    start = rng.key("scenes", split, number) % len(sentences)
    return sentences[start], sentences[(start + 1) % len(sentences)]
