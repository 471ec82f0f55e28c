"""Stored arrays, which may be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_bench.errors import UserError, first_line


def read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Everything in an ``.npz`` file; nothing where the file or an array of these names is missing.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not set(names) <= set(stored.files):
                return {}
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return {}
    # One wrong byte, by where it is: zlib.error, BadZipFile, NotImplementedError, MemoryError, ...
    except Exception as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error
