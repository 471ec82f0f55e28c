"""The arguments of ``ssl-bench sweep``: which are flags of runs, which the sweep's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_bench.cli import parser
from ssl_bench.cli.argv import by_flag
from ssl_bench.cli.parser import Flag
from ssl_bench.cli.sweep_args import toml
from ssl_bench.cli.sweep_args.toml import Layer, SweepFile
from ssl_bench.cli.sweep_args.values import Given, choices
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require

_OWN = parser.flags_of(SweepSettings)


def split(args: Sequence[str]) -> tuple[Layer, dict[str, Given], list[tuple[str, Given]]]:
    """The flags of runs, those of `SweepSettings`, and those of `ClusterSettings`."""
    line: Layer = {}
    own: dict[str, Given] = {}
    resources: list[tuple[str, Given]] = []
    booleans = {name for name, flag in _OWN.items() if flag.type is bool}
    for group in by_flag(args):
        flag, *values = group
        require(flag.startswith("--"), f"unexpected argument {flag!r}; a sweep's file comes first")
        require(
            len(values) < 2,
            f"unexpected argument {(values or [''])[-1]!r} after {flag}; several values are "
            "separated by commas alone",
        )
        scope, dot, name = flag[2:].rpartition(".")
        name, given = name.replace("-", "_"), Given(values[0] if values else None)
        positive = name.removeprefix("no_")
        if not dot and name in toml.RESOURCES:
            resources.append((name, given))
            repeated = [each for each, _ in resources].count(name) > 1
            repeated = repeated and name not in toml.LISTS
        elif not dot and name in toml.OWN:
            repeated = name in own
            own[name] = given
        elif not dot and name != positive and positive in booleans:
            require(given.value is None, f"{flag} takes no value")
            repeated = positive in own
            own[positive] = Given("no")
        else:
            repeated = (scope, name) in line
            line[scope, name] = given
        require(not repeated, f"flag {flag!r} is given several times; once will do")
    return line, own, resources


def settings(file: SweepFile, own: Mapping[str, Given]) -> SweepSettings:
    """The sweep's own flags; those of the command line win over those of its file."""
    values = {name: _own_value(name, given) for name, given in {**file.own, **own}.items()}
    try:
        return SweepSettings(**values)
    except UserError as error:
        mistake = str(error)
    try:
        SweepSettings(**{name: values[name] for name in own})
        from_line = ""
    except UserError as error:
        from_line = str(error)
    # What the command line says by itself is no mistake of the file.
    raise UserError(mistake if from_line == mistake else f"{file.where}: {mistake}")


def _own_value(name: str, given: Given) -> Any:
    """The value of a field of `SweepSettings`."""
    flag = _OWN[name]
    if not given.where and flag.type is not bool:
        return parser.read(flag, _text(flag, given))
    several = choices(flag, given)
    require(len(several) == 1, f"{given.where or flag.option}: it takes one value")
    return several[0]


def cluster_flags(resources: Sequence[tuple[str, Given]]) -> dict[str, Any]:
    """The fields of `ClusterSettings` that the command line gives."""
    known = parser.flags_of(ClusterSettings)
    found: dict[str, Any] = {}
    for name, given in resources:
        text = _text(known[name], given)
        if name in toml.LISTS:  # not split at commas: a line of shell may well have some
            found[name] = (*found.get(name, ()), text)
        else:
            found[name] = parser.read(known[name], text)
    ClusterSettings(**found)
    return found


def _text(flag: Flag, given: Given) -> str:
    if given.value is None:
        raise UserError(f"{flag.option}: it needs a value")
    return str(given.value)
