"""Writing files atomically, and reading files that may be damaged or malicious."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError, first_line, require
from ssl_bench.utils import locks

_UMASK = os.umask(0)
os.umask(_UMASK)  # asked once, as asking sets it for a moment, for every thread
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
_TEMPORARY_FOLDER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
LARGEST = 64 * 2**20
"""Bytes of the largest text file that is read, a thousand times what is written here."""
_PAGE = 4096
_LONGEST_NAME = 255
_MOST_DIGITS = 300
_DEEPEST = 64
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Unreadable(ValueError):
    """A file cannot be used; the message gives the reason without the file's name."""


class Absent(Unreadable, FileNotFoundError):
    """There is no such file."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` once the block has succeeded.

    A killed process or a power failure leaves either the old file or the new one; after the block,
    the new one. Its permissions follow the umask, even if its writer sets others, as safetensors
    does.
    """
    # Processes on several machines may share a folder, and have the same number.
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
    """Make a folder inside a run's folder, but not that itself, which may have been removed.

    Raises:
        UserError: the run's folder does not exist.
    """
    require(home.is_dir(), f"run folder {str(home)!r} is not there any more")
    folder.mkdir(parents=True, exist_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove leftovers of killed writers below a folder; nobody else may be writing there."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, alone: bool = False) -> Iterator[Path]:
    """Yield a folder beside ``path`` that takes its place once the block has succeeded.

    Replacing an older folder takes two renames: a process killed between them leaves that beside
    its place, where the next one finds it. Leftovers of killed writers are removed first.

    Args:
        alone: nothing may be there, and no other process may be writing it.

    Raises:
        UserError: another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_written = _remove_abandoned(path)
    require(
        not (alone and is_written),
        f"output {str(path)!r} is being written by another process; another folder would work",
    )
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    lock, old = new.with_suffix(".lock"), new.with_suffix(".old")
    with ExitStack() as stack:
        with suppress(UserError):  # without locks, leftovers of killed writers stay
            stack.enter_context(locks.taken(lock, 0))
        try:
            new.mkdir()
            yield new
            if path.exists() and not alone:
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> bool:
    """Remove leftovers of killed writers of a `new_folder`; living ones hold a lock.

    An older folder that was moved away is moved back if nothing has replaced it.

    Returns:
        Whether there is a living writer.
    """
    is_written = False
    with suppress(OSError):
        for left in list(path.parent.iterdir()):
            found = _TEMPORARY_FOLDER.fullmatch(left.name)
            if not found or found["name"] != path.name or left.is_symlink() or not left.is_dir():
                continue
            lock = left.with_suffix(".lock")
            with suppress(UserError), locks.taken(lock, 0) as is_abandoned:
                if not is_abandoned:
                    is_written = True
                    continue
                if found["kind"] == "old" and not path.exists():
                    left.rename(path)
                else:
                    shutil.rmtree(left, ignore_errors=True)
                lock.unlink(missing_ok=True)
    return is_written


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure.

    Old files are deleted once new ones replace them, and file systems may store the two changes in
    either order.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support this, and do not need it.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` from writing a file into a `UserError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(f"cannot write {str(path)!r}: {reason}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error from reading a file, but not `Absent`, into a `UserError`.

    One wrong byte may raise zlib.error, BadZipFile, NotImplementedError, MemoryError, ...
    """
    try:
        yield
    except (UserError, Absent):
        raise
    except Exception as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def readable(path: str | Path) -> str:
    """A path as text that is safe in any file, archive and terminal.

    Control characters, and bytes that are not UTF-8, are escaped: ``caf\\xe9.png``.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_json(path: Path | str) -> Any:
    """Read an untrusted JSON file.

    Values are not checked: floats may be infinite or NaN, and texts may hold control characters
    (see `formatting.plain`).

    Raises:
        Unreadable: it is not a regular file, too large, not UTF-8 or JSON, nested too deep, or has
            a duplicate name in an object or a gigantic integer.
        Absent: it does not exist.
    """
    return parse_json(load_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON with the checks and errors of `load_json`."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        content = _DECODER.decode(text)
    except RecursionError:
        raise Unreadable("it is nested too deep") from None
    except UnicodeDecodeError:
        raise Unreadable("it is no text in UTF-8") from None
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(first_line(error)) from None
    if text.count("[") + text.count("{") > _DEEPEST and _depth(content) > _DEEPEST:
        raise Unreadable("it is nested too deep")
    return content


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    import tomllib

    try:
        content = load_bytes(os.path.expanduser(path))
    except Unreadable as error:
        raise UserError(f"cannot read {str(path)!r}: {error}") from error
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML: {first_line(error)}") from error


def load_bytes(path: Path | str, most: int = LARGEST, tail: int | None = None) -> bytes:
    """Read a regular file; never waits for pipes and the like.

    Args:
        most: the largest size allowed, in bytes.
        tail: read only that many bytes at the end.

    Raises:
        Unreadable: it is not a regular file, too large, or the system refuses.
        Absent: it does not exist.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("it is no regular file")
            if tail is not None:
                most = min(tail, status.st_size)
                os.lseek(descriptor, -most, os.SEEK_END)
            content = bytearray()
            # The size may be wrong (/proc), and the file may grow meanwhile.
            while part := os.read(descriptor, min(max(status.st_size, _PAGE), most) + 1):
                content += part
                if len(content) > most:
                    break
        finally:
            os.close(descriptor)
    except OSError as error:
        kind = Absent if error.errno in _ABSENT else Unreadable
        raise kind(error.strerror or first_line(error)) from None
    except ValueError as error:  # a name with a null character
        raise error if isinstance(error, Unreadable) else Absent(first_line(error)) from None
    if len(content) > most and tail is None:
        raise Unreadable(f"it has more than {most:,} bytes")
    return bytes(content[:most])


def require_regular(path: Path | str) -> None:
    """Check that a path, or the target of a link, is a regular file, as pipes may block a reader.

    Raises:
        Unreadable: it is something else.
        OSError: it does not exist, or the system refuses.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unreadable("it is no regular file")


def leads_out(path: Path | str, home: Path | str) -> bool:
    """Whether a path below a folder leads out of it through links."""
    below = os.path.realpath(path)
    return os.path.commonpath([below, real := os.path.realpath(home)]) != real


def strange(home: Path) -> list[str]:
    """One line for each thing below a folder that is never read: links that lead out, pipes, ..."""
    found = []
    for folder, folders, names in os.walk(home):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            below = os.path.relpath(path, home)
            try:
                mode = os.lstat(path).st_mode
            except OSError:  # another process has renamed it meanwhile
                continue
            if stat.S_ISLNK(mode) and leads_out(path, home):
                found.append(f"{below} leads out of the folder by a link")
            elif not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                found.append(f"{below} is no regular file")
    return sorted(found)


def checked_name(name: str) -> str:
    """The name, checked to be a valid name of a file or folder rather than a path elsewhere.

    Raises:
        UserError: it is not.
    """
    is_one = os.path.basename(name) == name and name not in ("", ".", "..") and "\0" not in name
    size = len(os.fsencode(name)) if is_one else 0
    if not 0 < size <= _LONGEST_NAME:
        raise UserError(f"{name!r:.300} cannot be the name of a folder")
    return name


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name in found if sum(name == each for each, _ in pairs) > 1)
        raise Unreadable(f"it has {twice!r:.60} twice")
    return found


def _depth(content: Any) -> int:
    """The nesting depth of parsed JSON, found without recursion."""
    depth, level = 0, [content]
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
    return depth


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise Unreadable(f"it holds a number of {len(digits):,} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole)  # made once: it is slow


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
