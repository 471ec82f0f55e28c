"""Reading ``.npz`` files that may be damaged or malicious."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ssl_bench.errors import require
from ssl_bench.utils.files import Absent, Unreadable, load_bytes, load_json, reading, sha256_of

_LARGEST = 2**30
"""Bytes of all arrays of a file: features of 33 blocks, 1280 wide, of 2,000 images are a sixth."""
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_NUMBERS = "biuf"


def read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays in an ``.npz`` file; none if the file or one of these names is missing.

    Nothing is unpickled, and no more memory is allocated than the file has bytes for.

    Raises:
        UserError: it cannot be read, does not match the digest in the record beside it, or holds
            something other than numbers.
    """
    with suppress(Absent), reading(path):
        content = load_bytes(path, _LARGEST)
        with suppress(Unreadable):  # a damaged record is reported where records are read
            check_digest(path, load_json(path.with_name("scores.json")), content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if not set(names) <= set(_names(archive)):
                return {}
            _check(archive)
            arrays = (npy.read_array(archive.open(entry)) for entry in archive.infolist())
            return dict(zip(_names(archive), arrays, strict=True))
    return {}


def names(path: Path) -> frozenset[str]:
    """The names of the arrays in an ``.npz`` file, without reading them; none if it is missing.

    Raises:
        UserError: it cannot be read.
    """
    with suppress(Absent), reading(path):
        return frozenset(_names(zipfile.ZipFile(io.BytesIO(load_bytes(path, _LARGEST)))))
    return frozenset()


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _check(archive: zipfile.ZipFile) -> None:
    """Raise `Unreadable` if an archive's headers are wrong, before any memory is allocated."""
    entries = archive.infolist()
    if (total := sum(entry.file_size for entry in entries)) > _LARGEST:
        raise Unreadable(f"it unfolds to {total:,} bytes")
    for entry in entries:
        with archive.open(entry) as member:
            shape, _, dtype = _READERS[npy.read_magic(member)](member)
            if dtype.kind not in _NUMBERS:
                raise Unreadable(f"{entry.filename!r:.60} holds {str(dtype)!r:.60} and no numbers")
            if math.prod(shape) * dtype.itemsize != entry.file_size - member.tell():
                raise Unreadable(f"{entry.filename!r:.60} is not of the size that it says")


def check_digest(path: Path, record: Any, content: bytes | None = None) -> None:
    """Raise `UserError` unless a file matches its digest in the record beside it.

    Records of older versions have no digests; then nothing is checked.

    Args:
        content: of the file, if it has been read already.
    """
    digests = record.get("digests") if isinstance(record, dict) else None
    wanted = digests.get(path.name) if isinstance(digests, dict) else None
    if wanted is None:
        return
    require(path.is_file(), f"{str(path)!r} is missing")
    found = sha256_of(path) if content is None else hashlib.sha256(content).hexdigest()
    require(found == wanted, f"{str(path)!r} is damaged: its digest is not the one in scores.json")
