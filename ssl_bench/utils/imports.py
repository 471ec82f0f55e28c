"""Importing what takes long."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """While modules are imported, Python does not look for what it could free of them.

    What a module defines stays, and looking through it again and again takes a seventh of the time
    in which torch and timm are imported (results/LOG.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
