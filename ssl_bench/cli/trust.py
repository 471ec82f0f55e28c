"""Whether a file that somebody's settings name as a method or an evaluation may be run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_bench.errors import UserError
from ssl_bench.utils.terminal import Console

_console = Console()


def ask(what: str, files: Sequence[Path], inside: Path, is_trusted: bool) -> None:
    """Name the files that would be run and are no part of the installation; ask a person for leave.

    Args:
        what: who names them, such as "run 'a' was made with".
        inside: the folder that holds the run or the config.
    """
    if not files:
        return
    home = inside.resolve()
    named = ", ".join(
        f"{str(path)!r}{f' (inside {inside.name!r} itself)' * path.is_relative_to(home)}"
        for path in sorted(files)
    )
    told = f"{what} {named}, which is no part of the installation"
    if is_trusted:
        _console.print(f"{told}, and is run as --trust says")
        return
    if sys.stdin.isatty() and sys.stdout.isatty():
        _console.print(f"{told}. Whatever it holds would be run. Run it? [y/N]")
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise UserError(f"{told}, and is not run unasked; look into it, then --trust runs it")
