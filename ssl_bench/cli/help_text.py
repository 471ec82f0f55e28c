"""The help of a command: the flags that matter, or every one of them, by what they are about.

Nothing here imports torch, nor what reads a command line.
"""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssl_bench.experiment.run_config import text_of

if TYPE_CHECKING:
    from ssl_bench.api.plugins import Plugin
    from ssl_bench.cli.parser import Flag

_MANY = 40
"""Flags of which the shorter help shows a choice."""
_OWN = 2
"""Flags that the shorter help shows of a method's own: the first ones in its ``Config``."""
_MATTERING = (
    "method preset backbone patch_size target weights config epochs budget_flops "
    "budget_time match batch_size base_lr seed data image_size evals devices log runs_dir"
)
_GROUPS = {
    "method and encoder": "method preset config target weights backbone patch_size num_heads grid "
    "branch",
    "training": "epochs budget_flops budget_time match batch_size seed",
    "data": "data eval_data image_size frames stride data_dir storage skip_broken",
    "evaluation": "evals eval_every eval_every_with test_clips test_crops keep_features",
}
_METHOD, _TRAINING, _, _EVALUATION = _GROUPS
_MACHINE = "machine and files"
"""Where the flags of a run are that stand in no other group."""
_WIDTH, _COLUMN = 100, 26
_VALUES = {int: "INT", float: "FLOAT", Path: "PATH"}


def text(
    command: str, flags: Sequence[Flag], about: str, plugins: Sequence[Plugin], is_whole: bool
) -> str:
    """The help of a command.

    Args:
        plugins: those whose settings are among the flags.
        is_whole: show all flags of a command that has many, too.
    """
    usage = [flag.metavar for flag in flags if flag.metavar]
    if any(flag.name == "weights" for flag in flags):
        usage = ["(TARGET | --weights FILE)"]
    usage += [_name(flag) for flag in flags if _is_required(flag) and not flag.metavar]
    lines = [" ".join(["usage: ssl-bench", command, *usage, "[FLAGS]"]), ""]
    lines += textwrap.wrap(about, _width())
    if len(flags) <= _MANY:
        return "\n".join([*lines, "", "flags:", *_entries(flags)]) + "\n"
    groups = _grouped(flags, plugins)
    if not is_whole:
        groups = _mattering(groups, plugins)
    for title, members in groups.items():
        lines += ["", f"{title}:", *_entries(members)]
    shown = sum(map(len, groups.values()))
    if shown < len(flags):
        lines += ["", f"`ssl-bench {command} --help-all` shows {len(flags) - shown} more flags."]
    return "\n".join(lines) + "\n"


def described(name: str, text: str, width: int = 18) -> list[str]:
    """Lines of help: a name in so many columns, and beside it what it means."""
    beside = textwrap.wrap(text, max(20, _width() - 2 - width), break_on_hyphens=False)
    first = [f"  {name:<{width}}{each}".rstrip() for each in beside[:1] if len(name) < width]
    rest = beside[len(first) :]
    return [*(first or [f"  {name}"]), *(" " * (2 + width) + each for each in rest)]


def entry(flag: Flag, width: int = _COLUMN) -> list[str]:
    """Lines of help about one flag."""
    is_nothing = flag.default is False or flag.default in (None, "", ())
    is_told = is_nothing or _is_required(flag) or "Default" in flag.help
    default = "" if is_told else f" Default: {text_of(flag.default)}."
    return described(_name(flag), flag.help + default, width)


def _width() -> int:
    return min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)


def _entries(flags: Iterable[Flag]) -> list[str]:
    return [line for flag in flags for line in entry(flag)]


def _grouped(flags: Sequence[Flag], plugins: Sequence[Plugin]) -> dict[str, list[Flag]]:
    """The flags by what they are about; of evaluations, those of each by themselves."""
    named = {name: title for title, names in _GROUPS.items() for name in names.split()}
    evals = {each.config: each for each in plugins if each.kind == "eval"}
    methods = [each.config for each in plugins if each.kind == "method"]
    groups: dict[str, list[Flag]] = {title: [] for title in _GROUPS}
    rest: dict[str, list[Flag]] = {}
    for flag in flags:
        if flag.owner in evals:
            rest.setdefault(f"{_EVALUATION} {evals[flag.owner].name}", []).append(flag)
        elif flag.owner in methods:
            groups[_METHOD if is_own(flag) else _TRAINING].append(flag)
        else:
            groups.setdefault(named.get(flag.name, _MACHINE), []).append(flag)
    machine = {_MACHINE: groups.pop(_MACHINE, [])}
    return {title: each for title, each in (groups | machine | rest).items() if each}


def _mattering(groups: dict[str, list[Flag]], plugins: Sequence[Plugin]) -> dict[str, list[Flag]]:
    methods = [each.config for each in plugins if each.kind == "method"]
    own = [flag for flag in groups.get(_METHOD, ()) if flag.owner in methods][:_OWN]
    chosen = {
        title: [flag for flag in each if flag.name in _MATTERING.split() or flag in own]
        for title, each in groups.items()
        if not title.startswith(f"{_EVALUATION} ")
    }
    return {title: each for title, each in chosen.items() if each}


def is_own(flag: Flag) -> bool:
    """Whether a flag is none that its owner has from a base class."""
    bases = [each for each in flag.owner.__mro__[1:] if dataclasses.is_dataclass(each)]
    return not any(flag.field in each.__dataclass_fields__ for each in bases)


def _is_required(flag: Flag) -> bool:
    return flag.default is dataclasses.MISSING


def _name(flag: Flag) -> str:
    """How a flag is given: ``--seed INT``, ``--wait``, ``--[no-]flip``, ``-o, --output PATH``."""
    if flag.metavar:
        return flag.metavar
    if flag.type is bool:
        return f"--[no-]{flag.option[2:]}" if flag.default else flag.option
    return f"{', '.join([*flag.short, flag.option])} {_value(flag.type)}"


def _value(type_: Any) -> str:
    origin, parts = typing.get_origin(type_), typing.get_args(type_)
    if origin is Literal:
        return f"{{{','.join(map(str, parts))}}}"
    if origin is tuple:
        return "A,B,..."
    kinds = [each for each in parts if each is not type(None)]
    return _VALUES.get(kinds[0] if kinds else type_, "STR")
