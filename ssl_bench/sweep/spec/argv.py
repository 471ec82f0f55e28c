"""The words of ``ssl-bench sweep``: which are flags of runs, which the sweep's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_bench.cli import flags
from ssl_bench.cli.argv import by_flag, joined
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require
from ssl_bench.sweep.spec import toml
from ssl_bench.sweep.spec.toml import Layer, SweepFile
from ssl_bench.sweep.spec.values import Given, choices


def split(words: Sequence[str]) -> tuple[Layer, dict[str, Given], list[tuple[str, Given]]]:
    """The flags of runs, those of `SweepSettings`, and those of `ClusterSettings`."""
    line: Layer = {}
    own: dict[str, Given] = {}
    resources: list[tuple[str, Given]] = []
    booleans = {name for name, type_ in flags.types(SweepSettings).items() if type_ is bool}
    for group in by_flag(words):
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
    """The sweep's own flags; those of the command line win over those of its file.

    Raises:
        UserError: a value is wrong, or does not go with the others; it names where it is.
    """
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
    type_ = flags.types(SweepSettings)[name]
    if not given.where and type_ is not bool:
        words = joined([_as_given(name, given)])
    else:
        several = choices(name, type_, given)
        where = given.where or f"--{name.replace('_', '-')}"
        require(len(several) == 1, f"{where}: it takes one value")
        words = joined(several)
    try:
        return flags.value_of("sweep", SweepSettings, name, words)
    except UserError as error:
        raise UserError(f"{given.where}: {error}" if given.where else str(error)) from error


def cluster_flags(resources: Sequence[tuple[str, Given]]) -> dict[str, Any]:
    """The fields of `ClusterSettings` that the command line gives.

    Raises:
        UserError: one makes no sense.
    """
    single = [(name, given) for name, given in resources if name not in toml.LISTS]
    words = joined(_as_given(name, given) for name, given in single)
    parsed = flags.parse("sweep", ClusterSettings, words)
    found = {name: getattr(parsed, name) for name, _ in single}
    for name in toml.LISTS:
        # Neither is split at commas: a line of shell may well have some.
        items = [_as_given(*each)[1] for each in resources if each[0] == name]
        found |= {name: tuple(items)} if items else {}
    ClusterSettings(**found)
    return found


def _as_given(name: str, given: Given) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    require(given.value is not None, f"{flag}: it needs a value")
    return [flag, given.value]
