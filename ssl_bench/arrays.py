"""Stored arrays, which may be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.errors import UserError, first_line, require
from ssl_bench.files import read_json, sha256_of


def read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Everything in an ``.npz`` file; nothing where the file or an array of these names is missing.

    Raises:
        UserError: it cannot be read, or is not what was stored, as the record beside it says.
    """
    try:
        record = read_json(path.with_name("scores.json"))
    except (OSError, ValueError, RecursionError):
        record = None  # which whoever reads records complains about
    try:
        if path.is_file():
            check_digest(path, record)
        with np.load(path, allow_pickle=False) as stored:
            if not set(names) <= set(stored.files):
                return {}
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    # One wrong byte, by where it is: zlib.error, BadZipFile, NotImplementedError, MemoryError, ...
    except Exception as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def check_digest(path: Path, record: Any) -> None:
    """Raise `UserError` unless a file is what the record beside it says that was stored.

    Records of older versions give no digests, and nothing is checked.
    """
    digests = record.get("digests") if isinstance(record, dict) else None
    wanted = digests.get(path.name) if isinstance(digests, dict) else None
    if wanted is not None:
        require(path.is_file(), f"{str(path)!r} is missing")
        require(
            sha256_of(path) == wanted,
            f"{str(path)!r} is damaged: its digest is not the one in scores.json",
        )
