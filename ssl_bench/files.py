"""Files that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ssl_bench import locks
from ssl_bench.errors import UserError, first_line

_UMASK = os.umask(0)
os.umask(_UMASK)  # asked once, as asking sets it for a moment, for every thread
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
_TEMPORARY_FOLDER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of ``path`` once the block has succeeded.

    A process killed at any moment leaves either the old file or the new one, and so does a power
    failure; after the block, the new one. Whoever may read a new file here may read this one,
    whatever its writer thinks (safetensors: nobody else).
    """
    # Processes on several machines may share a folder, and a number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below, where no other writes."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, for the block to rename to it; gone afterwards.

    Its name ends in ``.tmp``. What is in the way may be renamed to the same name with ``.old``,
    which is gone afterwards, too. What killed writers of the same path left is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    lock = new.with_suffix(".lock")
    with ExitStack() as stack:
        with suppress(UserError):  # without locks, what a killed writer leaves stays
            stack.enter_context(locks.taken(lock, 0))
        try:
            new.mkdir()
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(new.with_suffix(".old"), ignore_errors=True)
            lock.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove what killed writers of a `temporary_folder` left; those who live hold a lock.

    An older folder that one had moved out of the way comes back where nothing took its place.
    """
    with suppress(OSError):
        for left in list(path.parent.iterdir()):
            found = _TEMPORARY_FOLDER.fullmatch(left.name)
            if not found or found["name"] != path.name or left.is_symlink() or not left.is_dir():
                continue
            lock = left.with_suffix(".lock")
            with suppress(UserError), locks.taken(lock, 0) as is_abandoned:
                if not is_abandoned:
                    continue
                if found["kind"] == "old" and not path.exists():
                    left.rename(path)
                else:
                    shutil.rmtree(left, ignore_errors=True)
                lock.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder outlast a power failure.

    What a new file replaces, a checkpoint after the last weights, is deleted once it is there, and
    the order in which a file system stores two names is its own.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot, and do not need to.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write a file into the user's error."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(f"cannot write {str(path)!r}: {reason}") from error


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text())
