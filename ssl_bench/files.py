"""Files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError, first_line, require

_UMASK = os.umask(0)
os.umask(_UMASK)  # asked once, as asking sets it for a moment, for every thread
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")


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


def make_inside(home: Path, folder: Path) -> None:
    """Make a folder inside of a run's, but never the run's own, which may have been removed.

    Raises:
        UserError: the run's folder is not there.
    """
    require(home.is_dir(), f"run folder {str(home)!r} is not there any more")
    folder.mkdir(parents=True, exist_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below, where no other writes."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


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
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
