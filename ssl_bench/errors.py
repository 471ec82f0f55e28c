"""What a user did wrong, in one line."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from ssl_bench.utils.formatting import plain

_SHOWN = 12
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MORE_ROOM = "free some space, or name a folder on another disk"
_GPU = ("CUDA", "HIP")
_MEMORY = (
    *("DefaultCPUAllocator", "out of memory", "Cannot allocate memory", "not enough memory"),
    *("std::bad_alloc", "can't start new thread", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("Storage size calculation overflowed", "Overflow when unpacking long"),
)
_WRITING = (
    *("PytorchStreamWriter failed", "unexpected pos", "No space left on device", "os error 28"),
    *("I/O error", "File too large", "Disk quota exceeded"),
)


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit code 2, no traceback.

    The message says what was wrong, gives the value, and says what would work.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {told(self)}"]


class ToldElsewhere(BaseException):
    """Ends this process without a word: another one tells the user why.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def unknown(
    kind: str, name: str, choices: Iterable[str], meant: str = "", see: str = "`ssl-bench list`"
) -> UserError:
    """The error for a name that is not among the choices, with the one meant, or the nearest.

    Where none is near, some are told, and where to ``see`` them all.
    """
    known = sorted(choices)
    near = [meant] if meant else get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    hint = f"did you mean {near[0]!r}?" if near else f"known: {shown} (see {see})"
    return UserError(f"unknown {kind} {name!r}; {hint}")


def no_choice(flag: str, value: str, choices: Iterable[str]) -> UserError:
    """The error for a flag's value that is none of its few choices, all of which are told."""
    known = [*choices]
    near = get_close_matches(value.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(f"{flag} {value!r} is none of {', '.join(known)}{hint}")


def the_one(kind: str, name: str, known: Iterable[str], where: str) -> str:
    """The known name that is this one, or else the only one that it is a part of.

    Raises:
        UserError: there is none, or more than one.
    """
    every = list(known)
    matches = [each for each in every if each == name] or [e for e in every if name in e]
    if len(matches) == 1:
        return matches[0]
    problem = "is ambiguous" if matches else "does not exist"
    names = ", ".join(matches or every)
    raise UserError(f"{kind} {name!r} {problem}; {kind}s in {where!r}: {names}")


def of_system(error: OSError) -> str:
    """What the system says of a file, or of something else."""
    where = f" {error.filename!r}" if error.filename else ""
    return plain(f"{error.strerror or error}{where}")


def told(error: BaseException) -> str | None:
    """What a person is told of an error that he can mend; None where it is a bug.

    Torch and safetensors have no types of their own for a full disk or memory, and are not imported
    for that: they are known by what they say. The notes of an error of memory are flags that may be
    too large.
    """
    if isinstance(error, UserError):
        return plain(" ".join(str(error).split()))
    if isinstance(error, RuntimeError) and str(error) == "Could not determine home directory.":
        return "~ stands for a home folder that is not known; ./~ is a file of that name"
    if is_of_memory(error):
        of_gpu = "GPU " if any(sign in str(error) for sign in _GPU) else ""
        noted = "".join(f"{note}, " for note in getattr(error, "__notes__", ()))
        return f"out of {of_gpu}memory; a smaller {noted}--batch-size or --micro-batch-size may fit"
    if isinstance(error, OSError):
        hint = f"; {_MORE_ROOM}" if error.errno in _FULL else ""
        return f"{of_system(error)}{hint}"
    if any(sign in str(error) for sign in _WRITING):
        return f"a file cannot be written ({first_line(error)}); {_MORE_ROOM}"
    return None


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, the processor's or a GPU's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | TypeError) and any(s in str(error) for s in _MEMORY)


def in_one_line(error: BaseException) -> str | None:
    """What is `told` of an error, as the command line tells it."""
    message = told(error)
    return None if message is None else f"ssl-bench: {message}"


@contextmanager
def as_user_error() -> Iterator[None]:
    """Raise whatever a person can mend, such as a full disk, as `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = told(error)
        if message is None:
            raise
        raise UserError(message) from error


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def above(name: str, value: float, bound: float) -> None:
    """Require a finite number above a bound."""
    within(name, value, f"({bound:g}, inf)")


def within(name: str, value: float, interval: str) -> None:
    """Require a number inside an interval written as ``[0, 1)``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = low <= value <= high
    at_open_end = (value == low and interval[0] == "(") or (value == high and interval[-1] == ")")
    told = f"in {interval}"
    if high == math.inf:
        told = f"above {low:g}" if interval[0] == "(" else f"{low:g} or more"
        told = told if math.isfinite(value) else f"finite and {told}"
    require(inside and not at_open_end, f"{name} {value} is out of range; it must be {told}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's kind if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
