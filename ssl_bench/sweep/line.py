"""The words of ``ssl-bench sweep``: which are flags of runs, which the sweep's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_bench import flags
from ssl_bench.errors import UserError, require
from ssl_bench.settings import ClusterSettings, SweepSettings
from ssl_bench.sweep import toml
from ssl_bench.sweep.toml import Layer, SweepFile
from ssl_bench.sweep.values import Given, choices


def split(words: Sequence[str]) -> tuple[Layer, dict[str, Given], list[tuple[str, Given]]]:
    """The flags of runs, those of `SweepSettings`, and those of `ClusterSettings`."""
    line: Layer = {}
    own: dict[str, Given] = {}
    resources: list[tuple[str, Given]] = []
    for group in flags.by_flag(words):
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
        elif not dot and (name in toml.OWN or positive in toml.OWN):
            repeated = positive in own
            own[positive] = given if name in toml.OWN else Given("no")
        else:
            repeated = (scope, name) in line
            line[scope, name] = given
        require(not repeated, f"flag {flag!r} is given several times; once will do")
    return line, own, resources


def settings(file: SweepFile, own: Mapping[str, Given]) -> SweepSettings:
    """The sweep's own flags; those of the command line win over those of its file."""
    types = flags.types(SweepSettings)
    words: list[str] = []
    for name, given in {**file.own, **own}.items():
        if given.where or types[name] is bool:
            values = choices(name, types[name], given)
            require(len(values) == 1, f"{given.where or f'--{name}'}: it takes one value")
            words += values[0]
        else:
            words += _as_given(name, given)
    try:
        return flags.parse("sweep", SweepSettings, words)
    except UserError as error:
        raise UserError(f"{file.where}: {error}" if file.own else str(error)) from error


def cluster_flags(resources: Sequence[tuple[str, Given]]) -> dict[str, Any]:
    """The fields of `ClusterSettings` that the command line gives."""
    single = [(name, given) for name, given in resources if name not in toml.LISTS]
    words = [word for name, given in single for word in _as_given(name, given)]
    parsed = flags.parse("sweep", ClusterSettings, words)
    found = {name: getattr(parsed, name) for name, _ in single}
    for name in toml.LISTS:
        # Neither is split at commas: a line of shell may well have some.
        items = [_as_given(*each)[1] for each in resources if each[0] == name]
        found |= {name: tuple(items)} if items else {}
    return found


def _as_given(name: str, given: Given) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    require(given.value is not None, f"{flag}: it needs a value")
    return [flag, given.value]
