"""Error messages for command lines that cannot be accepted."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from ssl_bench.api import registry
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import habits
from ssl_bench.cli.argv import by_flag
from ssl_bench.errors import UserError, no_choice, require
from ssl_bench.utils.formatting import listed


def without_box(message: str) -> str:
    """The message inside tyro's box."""
    lines = [re.sub(r"[│╭╮╰╯─]|--{5,}", " ", line).strip() for line in message.splitlines()]
    lines = [line for line in lines if line and not set(line) <= {"-"}]
    end = next(
        (i for i, line in enumerate(lines) if line.startswith(("Argument help", "For full"))),
        len(lines),
    )
    return " ".join(lines[1:end]) or "the command line cannot be understood; see --help"


def refuse_no_number(types: Mapping[str, Any], args: Sequence[str]) -> None:
    """Reject values that are not numbers, in better words than tyro's.

    Args:
        types: of the flags there are, by their fields' names.
    """
    of_flags = {f"--{name.replace('_', '-')}": type_ for name, type_ in types.items()}
    for flag, *values in by_flag(args):
        type_ = of_flags.get(flag.replace("_", "-"))
        is_sequence = typing.get_origin(type_) is tuple
        kinds = set(typing.get_args(type_) or [type_]) - {...}
        numbers = kinds - {type(None)}
        if numbers not in ({int}, {float}) or not values:
            continue
        [number] = numbers
        for text in filter(None, values[0].split(",")) if is_sequence else values[:1]:
            try:
                number(text)
            except ValueError:
                is_none = text == "None" and len(kinds) > 1
                wanted = "a whole number" if number is int else "a number"
                hint = _several(flag, text) if "method" in types else ""
                hint = hint or _written_out(number, text)
                require(is_none, f"{flag} {text!r} is not {wanted}{hint}")


def refuse_no_choice(types: Mapping[str, Any], args: Sequence[str]) -> None:
    """Reject values that are none of a flag's few choices, in better words than tyro's.

    Args:
        types: of the flags there are, by their fields' names.
    """
    for flag, *values in by_flag(args):
        type_ = types.get(flag[2:].replace("-", "_"))
        kinds = [type_, *get_args(type_)]
        known = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
        if known and values and values[0] not in known:
            raise no_choice(flag, values[0], known)


def _several(flag: str, text: str) -> str:
    """What to do with several values, where a run takes one."""
    is_several = re.fullmatch(r"\s*[\d.e+-]+(\s*(,|\.\.)\s*[\d.e+-]+)+\s*", text)
    values = "".join(text.split())
    return f"; `ssl-bench sweep {flag} {values}` makes a run of each" if is_several else ""


def refuse_several(arg: str, types: Mapping[str, Any], args: Sequence[str]) -> None:
    """Reject values that are separated by spaces, where commas would do: ``--evals knn linear``.

    Args:
        arg: an argument that no flag takes.
        types: of the flags there are, by the flags.
    """
    for flag, *values in by_flag(args):
        if arg in values[1:] and typing.get_origin(types.get(flag)) is tuple:
            together = ",".join(each.strip(",") for each in values)
            raise UserError(
                f"unexpected argument {arg!r}; several values are separated by commas: "
                f"{flag} {together}"
            )


def _written_out(number: type, text: str) -> str:
    """The number that is meant by "1e3" or "2k", where that is one."""
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:e\+?\d{1,2})?)\s*([kmgt]?)\s*", text, re.IGNORECASE)
    if not found:
        return ""
    value = float(found[1]) * 1000.0 ** " kmgt".index(found[2].lower() or " ")
    if number is int:
        return f"; {int(value)} would work" if value == int(value) < 2**53 else ""
    return f"; {value:g} would work"


def refuse(args: Sequence[str], names: Sequence[str], everyone: Sequence[Plugin]) -> None:
    """Complain about arguments that no flag takes, of which the first decides what is said.

    Args:
        names: of the flags there are.
        everyone: the plugins that they are of.
    """
    if not args[0].startswith("--"):
        habit = habits.advice(args[0].lstrip("-"), names) if args[0].startswith("-") else ""
        hint = habit or "flags start with --, see --help"
        raise UserError(f"unexpected argument {args[0]!r}; {hint}")
    flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
    refuse_unknown([("", flag, meant(flag, names, everyone)) for flag in dict.fromkeys(flags)])


def refuse_unknown(flags: Sequence[tuple[str, str, str]]) -> None:
    """Complain about flags that nobody takes, all at once.

    Args:
        flags: the place in a file where each was given, or ""; the flag; what it may be meant for.
    """
    if len(flags) == 1:
        [(where, flag, hint)] = flags
        raise UserError(f"{where and f'{where}: '}unknown flag {flag!r}; {hint}")
    every = ", ".join(f"{where or repr(flag)} ({hint})" for where, flag, hint in flags)
    require(not flags, f"unknown flags {every}")


def refuse_idle(idle: Mapping[str, Plugin], chosen: Iterable[Plugin]) -> None:
    """Complain about flags whose evaluation is not run.

    Args:
        idle: each such flag's evaluation, by the flag or the place in a file where it was given.
        chosen: the evaluations that are run.
    """
    missing = dict.fromkeys(each.source or each.name for each in idle.values())
    verb = "is" if len(missing) == 1 else "are"
    every = ",".join([*(each.source or each.name for each in chosen), *missing])
    require(
        not idle,
        f"{', '.join(idle)}: {listed(missing)} {verb} not among the evaluations of this run; "
        f"--evals {every} would work",
    )


def meant(flag: str, names: Sequence[str], everyone: Sequence[Plugin]) -> str:
    """What a flag that nobody takes may be meant for."""
    name = flag[2:].replace("-", "_")
    owners = [
        plugin.name
        for plugin in registry.discover("method").values()
        if plugin not in everyone
        and name in {field.name for field in dataclasses.fields(plugin.config)}
    ]
    method = next((plugin.name for plugin in everyone if plugin.kind == "method"), None)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if owners and method:
        have = f"method {owners[0]!r} has" if len(owners) == 1 else f"{listed(owners)} have"
        return f"{have} it, {method!r} does not"
    if habit := habits.advice(name, names):
        return habit
    return f"did you mean --{near[0].replace('_', '-')}?" if near else "see --help"
