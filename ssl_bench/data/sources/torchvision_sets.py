"""Data sets that torchvision knows how to download and read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import datasets

from ssl_bench.data.listing import Listing, Part, Picture
from ssl_bench.data.names import EMBEDDED, TORCHVISION
from ssl_bench.errors import UserError, first_line, require


def find(name: str, data_dir: Path) -> Listing:
    """The data set of that name, downloaded to ``data_dir`` unless it is already there.

    Raises:
        UserError: the download failed, or a package that torchvision needs for it is missing.
    """
    known = TORCHVISION[name]
    train, test = _build(name, data_dir, known.train), _build(name, data_dir, known.test)
    if known.mask_classes or known.unlabelled:
        parts, masks = (_part(name, train), _part(name, test)), known.mask_classes
        unlabelled = known.unlabelled or "it has masks instead"
        return Listing(name, *parts, (), unlabelled=unlabelled, mask_classes=masks)
    named = [getattr(each, "classes", ()) for each in (train, test)]
    require(
        named[0] == named[1],
        f"data set {name!r} in {data_dir} is not whole: its splits name {len(named[0])} and "
        f"{len(named[1])} classes, which are not the same; a copy of all its files would work",
    )
    # Imagenette's classes are tuples of synonyms.
    classes = [c if isinstance(c, str) else c[0] for c in named[0]]
    return Listing(
        name=name,
        train=_part(name, train),
        test=_part(name, test),
        classes=tuple(classes) or tuple(str(c) for c in range(known.unnamed_classes)),
        channels=known.channels,
    )


def _build(name: str, data_dir: Path, arguments: Mapping[str, Any]) -> Any:
    build = getattr(datasets, TORCHVISION[name].class_name)
    # With this loader we get paths instead of images, and decode them ourselves in threads.
    loader = {"loader": Path} if "loader" in inspect.signature(build).parameters else {}
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with suppress(OSError, RuntimeError):  # some unpack what they have downloaded each time
            return build(root=data_dir, download=False, **loader, **arguments)
        return build(root=data_dir, download=True, **loader, **arguments)
    except ImportError as error:
        raise UserError(
            f"data set {name!r} needs {error.name}; run: pip install {error.name}"
        ) from error
    except (ValueError, LookupError) as error:
        raise UserError(
            f"data set {name!r} in {data_dir} is damaged ({first_line(error)}); another copy of "
            "its files would work"
        ) from error
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data set {name!r} is not in {data_dir} and could not be downloaded there ({reason}); "
            "connect to the internet, copy torchvision's files there, "
            f"or use {EMBEDDED}, which needs no download"
        ) from error


def _part(name: str, dataset: Any) -> Part:
    def picture(index: int) -> Picture:
        image, label = dataset[index]
        shown = f"{image if isinstance(image, Path) else f'{name} {index}'}"
        if isinstance(label, Image.Image):
            values = TORCHVISION[name].mask_values
            mask = label.point([values.get(value, value) for value in range(256)])
            return Picture(shown, image, 0, mask)
        return Picture(shown, image, 0 if TORCHVISION[name].unlabelled else label)

    count = len(dataset)
    return Part(count, lambda: map(picture, range(count)), lambda: picture)
