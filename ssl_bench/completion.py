"""``ssl-bench completion SHELL``: a script that completes commands, flags and names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from ssl_bench import data, flags, plugins
from ssl_bench.errors import require, unknown
from ssl_bench.settings import BACKBONES, PRESETS, CompareSettings, EvalSettings, Settings

_SHELLS = ("bash", "zsh")


@dataclass(frozen=True)
class _Nothing:
    """A command without flags."""


def show(words: Sequence[str]) -> None:
    """Print the completion script of a shell.

    Raises:
        UserError: there is no such shell.
    """
    require(len(words) == 1, f"say which shell: ssl-bench completion {'|'.join(_SHELLS)}")
    if words[0] not in _SHELLS:
        raise unknown("shell", words[0], _SHELLS)
    names: dict[str, Iterable[str]] = {
        "method": plugins.discover("method"),
        "evals": plugins.discover("eval"),
        "data": data.names(),
        "backbone": BACKBONES,
        "preset": PRESETS,
    }
    choices: dict[str, Any] = {flag: Literal[tuple(known)] | None for flag, known in names.items()}
    choices["evals"] = tuple[Literal[tuple(names["evals"])], ...]  # type: ignore[misc]
    commands: dict[str, type] = {
        "run": flags.every_flag("run", Settings, ["method", "eval"], choices),
        "eval": flags.every_flag("eval", EvalSettings, ["eval"], choices),
        "compare": flags.every_flag("compare", CompareSettings, [], choices),
        "list": flags.every_flag("list", _Nothing, [], {}),
        "completion": flags.every_flag("completion", _Nothing, [], {}),
    }
    union: Any = Union[  # noqa: UP007  built from a variable number of types
        tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in commands.items())
    ]
    tyro.cli(union, prog="ssl-bench", args=["--tyro-print-completion", words[0]])
