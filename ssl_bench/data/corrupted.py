"""Test images that were corrupted elsewhere: the files of ImageNet-C and of CIFAR-10-C.

ImageNet-C is folders, ``KIND/SEVERITY/CLASS/image.jpeg``, and CIFAR-10-C (CIFAR-100-C, too) arrays:
``KIND.npy``, uint8 ``(5 * N, S, S, 3)`` with the severities one after the other, beside
``labels.npy``, integers ``(5 * N,)``. Both are of Hendrycks and Dietterich, arXiv:1903.12261.
Arrays are read without pickle, so that nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ssl_bench.data.dataset import Split
from ssl_bench.data.listing import Picture
from ssl_bench.data.sources.folder import image_files
from ssl_bench.data.streaming import StreamedSplit
from ssl_bench.errors import UserError, require

SEVERITIES = 5
_LABELS = "labels"


def find(
    folder: Path, classes: Sequence[str], side: int, channels: int
) -> dict[str, Sequence[Split]]:
    """The images of each kind in a folder, one split for each severity, the slightest first.

    Nothing is decoded, and arrays stay on the disk, until images are asked for.

    Args:
        classes: of the data that was trained on; the labels are theirs.
        side, channels: of the squares that files are decoded to.

    Raises:
        UserError: it is neither of the two, or its labels are of other classes.
    """
    require(folder.is_dir(), f"corrupted images {str(folder)!r}: there is no such folder")
    if (folder / f"{_LABELS}.npy").exists():
        return _of_arrays(folder, classes)
    kinds = sorted(path for path in folder.iterdir() if (path / "1").is_dir())
    require(
        bool(kinds),
        f"corrupted images {str(folder)!r}: neither KIND/SEVERITY/CLASS folders as those of "
        "ImageNet-C, nor KIND.npy files beside labels.npy as those of CIFAR-10-C",
    )
    return {kind.name: _of_folders(kind, classes, (channels, side, side)) for kind in kinds}


def _of_arrays(folder: Path, classes: Sequence[str]) -> dict[str, Sequence[Split]]:
    labels = _array(folder / f"{_LABELS}.npy")
    require(
        labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) % SEVERITIES == 0,
        f"{str(folder / 'labels.npy')!r} holds no labels of five severities",
    )
    _require_classes(folder, labels.max(initial=0) < len(classes), len(classes))
    found: dict[str, Sequence[Split]] = {}
    for path in sorted(folder.glob("*.npy")):
        if path.stem == _LABELS:
            continue
        images_NSSC = _array(path)
        require(
            images_NSSC.dtype == np.uint8
            and images_NSSC.ndim == 4
            and images_NSSC.shape[3] in (1, 3)
            and len(images_NSSC) == len(labels),
            f"{str(path)!r} holds no uint8 images, {len(labels):,} as there are labels",
        )
        each = len(labels) // SEVERITIES
        found[path.stem] = [
            Split(
                torch.from_numpy(np.moveaxis(images_NSSC[start : start + each], 3, 1)),
                torch.from_numpy(labels[start : start + each].astype(np.int64)),
            )
            for start in range(0, len(labels), each)
        ]
    require(bool(found), f"corrupted images {str(folder)!r}: no KIND.npy beside labels.npy")
    return found


def _of_folders(
    kind: Path, classes: Sequence[str], shape_CSS: tuple[int, int, int]
) -> Sequence[Split]:
    places = {name: label for label, name in enumerate(classes)}
    found = []
    for severity in range(1, SEVERITIES + 1):
        home = kind / str(severity)
        require(home.is_dir(), f"corrupted images {str(kind)!r} have no severity {severity}")
        pictures = []
        for inner in sorted(path for path in home.iterdir() if path.is_dir()):
            _require_classes(kind.parent, inner.name in places, len(classes), inner.name)
            files, _ = image_files(inner)
            pictures += [Picture(str(path), path, places[inner.name]) for path in files]
        require(bool(pictures), f"corrupted images {str(home)!r}: no image is there")
        labels_N = torch.tensor([picture.label for picture in pictures])
        found.append(StreamedSplit(labels_N, pictures.__getitem__, shape_CSS))
    return found


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from error


def _require_classes(folder: Path, known: bool, count: int, name: str = "") -> None:
    what = f"class {name!r} is" if name else "labels are"
    require(
        known,
        f"corrupted images {str(folder)!r}: {what} none of the {count} classes of the data; "
        "the data that they were made of would work",
    )
