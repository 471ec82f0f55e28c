"""Texts as arrays of bytes, for the figures of an evaluation: arrays hold numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MOST_BYTES = 200


def as_bytes(texts: Sequence[str]) -> Tensor:
    """Texts in UTF-8, uint8 ``(N, longest)``: long ones are cut after a whole character, the others
    filled with zeros."""
    rows = [text.encode()[:_MOST_BYTES].decode(errors="ignore").encode() for text in texts]
    found_NW = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.uint8)
    for row_W, row in zip(found_NW, rows, strict=True):
        row_W[: len(row)] = torch.tensor(list(row), dtype=torch.uint8)
    return found_NW


def as_texts(bytes_NW: np.ndarray) -> list[str]:
    """The texts in an array of `as_bytes`, of unknown origin: what is no text is replaced."""
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in bytes_NW]
