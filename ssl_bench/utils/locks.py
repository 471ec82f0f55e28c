"""Locks on folders that a killed process releases: ``flock`` on a file ``.lock`` in them."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssl_bench.errors import require

_SECONDS_TO_LOOK = 0.5
"""How long to try for a lock, since `is_held` in another process takes it for an instant."""
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two tries, at first and at most: many processes may ask one file server."""
_ITSELF = os.O_NONBLOCK | os.O_NOFOLLOW
"""Open the lock file itself: follow no link, and do not wait for a pipe's writer."""
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a folder for the block, against processes on other machines too.

    The lock ends with this process, however that ends.

    Args:
        wait: wait for another process that holds the lock, instead of giving up.

    Raises:
        UserError: another process holds the lock, or the file system has no locks.
    """
    with _opened(folder / ".lock") as descriptor:
        if not _try(descriptor, folder, _SECONDS_TO_LOOK):
            require(
                wait,
                f"run {str(folder)!r} is in use by another process; wait for it, or let --wait do "
                "so",
            )
            note = f"waiting for another process, which works in {str(folder)!r}"
            from ssl_bench.utils import progress  # rich takes 0.1 s to import

            progress.console.print(note)
            _try(descriptor, folder, math.inf)
        yield


@contextmanager
def taken(path: Path, seconds: float) -> Iterator[bool]:
    """Try for some seconds to lock a file, made if need be; yields whether the block has the lock.

    Raises:
        UserError: the file system has no locks.
    """
    with _opened(path) as descriptor:
        yield _try(descriptor, path.parent, seconds)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a lock file, made if need be; a lock taken on it ends with the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _ITSELF, 0o666)
    try:
        yield descriptor
    finally:
        # Closing is not enough, as a process forked meanwhile has the file open, too.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try(descriptor: int, folder: Path, seconds: float) -> bool:
    """Try for some seconds, or for ever, to take the lock."""
    give_up, pause = time.monotonic() + seconds, _PAUSE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            require(
                error.errno not in _NO_LOCKS,
                f"the file system of {str(folder)!r} has no locks ({error.strerror}), which keep "
                "two processes from one run; a --runs-dir elsewhere would work",
            )
            if error.errno not in _HELD:
                raise
        if time.monotonic() > give_up:
            return False
        time.sleep(pause)
        if seconds == math.inf:
            pause = min(2 * pause, _LONGEST_PAUSE)


def is_locked(folder: Path) -> bool:
    """Whether another process has locked the folder. Needs no permission to write."""
    return is_held(folder / ".lock")


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on that file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _ITSELF)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(descriptor)
    return False
