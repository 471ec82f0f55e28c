"""Standard output and error that never raise: not for closed pipes, full disks or encodings."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CLOSED = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET)
"""Errors from writing to a closed pipe or terminal."""
_ASCII = {"±": "+-", "≈": "~=", "…": "."}


class Stream:
    """A text stream that swallows output once it cannot be written any more.

    Characters that its encoding lacks are replaced.

    Attributes:
        lost: why it cannot be written any more, or None.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; does nothing once the stream is lost."""
        if self.lost is None:
            try:
                self._write(text)
            # A closed file raises ValueError.
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts in turn."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "ssl_bench.ascii").decode(encoding))

    def _lose(self, error: Exception) -> None:
        self.lost = self.lost or error
        # Buffered text must go somewhere, or Python complains when it exits.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextmanager
def lenient() -> Iterator[Stream]:
    """Replace standard output and error by a `Stream` each for the block.

    Yields:
        Standard output.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    output, errors = (Stream(stream or nowhere) for stream in before)
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
        nowhere.close()


def reason(stream: Stream) -> str:
    """Why the output is incomplete, or "" if it is not or its reader has closed it."""
    error = stream.lost
    if not isinstance(error, OSError) or error.errno in _CLOSED:
        return ""
    return error.strerror or str(error)


def _open_closed() -> None:
    """Open /dev/null for closed standard streams, or the next file opened takes their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in lacking), error.end


codecs.register_error("ssl_bench.ascii", _as_ascii)
