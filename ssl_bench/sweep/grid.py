"""``ssl-bench sweep``: from its words, and its file, to the runs that it is made of.

Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_bench import flags
from ssl_bench.errors import UserError, require
from ssl_bench.plugins import Plugin
from ssl_bench.settings import ClusterSettings, SweepSettings
from ssl_bench.sweep import search, toml, usage
from ssl_bench.sweep.search import Final, Trials, final_words
from ssl_bench.sweep.toml import Layer, SweepFile
from ssl_bench.sweep.values import MOST_CELLS, Given, Words, choices, in_order, value_in

__all__ = ["Cell", "Final", "Grid", "cluster_settings", "final_words", "parse"]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        words: of ``ssl-bench run``, all of them, in an order that does not depend on the order in
            which flags were given.
        label: what varies between the cells of a method, for people.
        method: the method's name.
        trial: of a search, the number of the trial among the method's, from 1.
    """

    words: tuple[str, ...]
    label: str
    method: str
    trial: int | None = None


@dataclass(frozen=True)
class Grid:
    """A sweep to be done.

    Attributes:
        cells: no two of them the same run; of a search, the trials.
        settings: the flags of the sweep itself.
        runs_dir: folder that holds the run folders.
        finals: of a search, what is to be run once a method's trials are done.
        cluster_flags: fields of `ClusterSettings` that are given on the command line.
        file: what the sweep's file says.
    """

    cells: tuple[Cell, ...]
    settings: SweepSettings
    runs_dir: Path
    finals: tuple[Final, ...] = ()
    cluster_flags: Mapping[str, Any] = field(default_factory=dict)
    file: SweepFile = field(default_factory=SweepFile)


@dataclass(frozen=True)
class _Part:
    """A method's share of a sweep, or of a ``[[cells]]`` table.

    Attributes:
        given: the values of each flag by name, "method" among them if it is given.
        types: of the method's flags, by name.
    """

    method: Plugin
    given: Mapping[str, Sequence[Words]]
    types: Mapping[str, Any]


def parse(words: Sequence[str]) -> Grid | None:
    """What a command line asks for; ``None`` where that is help, which is printed.

    Raises:
        UserError: a flag, a value, a file or a cell makes no sense.
    """
    if {"-h", "--help"} & set(words):
        print(usage.text(), end="")
        return None
    require(bool(words), "say what to sweep, such as --method mae,mocov3 --seed 0..4; see --help")
    words = list(words)
    file = SweepFile() if words[0].startswith("-") else toml.read_sweep(Path(words.pop(0)))
    line, own, resources = _split(words)
    settings = _settings(file, own)
    cluster_flags = _cluster_flags(resources)
    if settings.cluster == "slurm" or cluster_flags or file.slurm or settings.profile:
        toml.cluster_settings(cluster_flags, file, settings.profile, settings.config)
    parts = _parts(file, line)
    finals: tuple[Final, ...] = ()
    if settings.search == "grid":
        cells = _unique(_product(parts))
    else:
        require(not file.cells, f"{file.where}: [[cells]] lists what to run; a search draws it")
        cells, finals = _searched(parts, settings)
    folders = {request.settings.runs_dir for _, request in cells}
    require(len(folders) == 1, "--runs-dir has several values; a sweep has one folder of runs")
    return Grid(
        tuple(cell for cell, _ in cells), settings, folders.pop(), finals, cluster_flags, file
    )


def cluster_settings(grid: Grid) -> ClusterSettings:
    """What the jobs of a sweep ask for: flags, else the sweep's file, else a config file.

    Raises:
        UserError: a file or the profile is not there, or a key or a value makes no sense.
    """
    settings = grid.settings
    return toml.cluster_settings(grid.cluster_flags, grid.file, settings.profile, settings.config)


def _split(words: Sequence[str]) -> tuple[Layer, dict[str, Given], list[tuple[str, Given]]]:
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


def _settings(file: SweepFile, own: Mapping[str, Given]) -> SweepSettings:
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


def _cluster_flags(resources: Sequence[tuple[str, Given]]) -> dict[str, Any]:
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


def _parts(file: SweepFile, line: Layer) -> list[_Part]:
    """What is given for each method, in each ``[[cells]]`` table.

    Raises:
        UserError: a method does not exist, or something is given for a flag or a method that is
            not here.
    """
    layers = [_merged(file.base, entry, line) for entry in file.cells or [{}]]
    methods = [_methods(layer) for layer in layers]
    types = {plugin: flags for each in methods for plugin, flags in each.items()}
    booleans = {n for each in types.values() for n, type_ in each.items() if type_ is bool}
    line = _without_negatives(line, booleans)
    for layer in (file.base, line):
        _refuse_unknown(layer, types)
    parts = []
    for entry, here in zip(file.cells or [{}], methods, strict=True):
        _refuse_unknown(entry, here)
        layer = _merged(file.base, entry, line)
        several = layer.get(("", "method"))
        names = choices("method", str, several) if several else [()]
        for method_words, (plugin, flags_here) in zip(names, here.items(), strict=True):
            own = {n: given for (scope, n), given in layer.items() if scope == plugin.name}
            everyone = {n: given for (scope, n), given in layer.items() if not scope}
            given = {
                name: choices(name, flags_here[name], value)
                for name, value in {**everyone, **own}.items()
                if name in flags_here and name != "method"
            }
            given |= {"method": [method_words]} if method_words else {}
            parts.append(_Part(plugin, given, flags_here))
    return parts


def _methods(layer: Layer) -> dict[Plugin, Mapping[str, Any]]:
    """The methods that a layer names, each with the types of its flags."""
    found: dict[Plugin, Mapping[str, Any]] = {}
    given = layer.get(("", "method"))
    for words in choices("method", str, given) if given else [()]:
        known = list(words)
        if not words and ("", "preset") in layer:
            known += choices("preset", str, layer["", "preset"])[0]
        plugin = flags.method_of(known)
        for name in ("evals", "eval_every_with"):
            each = [layer[scope, name] for scope in ("", plugin.name) if (scope, name) in layer]
            texts = [w[1] for one in each for w in choices(name, tuple[str, ...], one)]
            named = [text for text in ",".join(texts).split(",") if text and text != "none"]
            if named:
                known += [f"--{name.replace('_', '-')}", ",".join(named)]
        found[plugin] = flags.run_flags(known)
    return found


def _merged(*layers: Layer) -> Layer:
    """The layers together: a later one wins, whichever method an earlier one is for."""
    merged: Layer = {}
    for layer in layers:
        for scope, name in layer:
            if not scope:
                merged = {key: v for key, v in merged.items() if key[1] != name or not key[0]}
        merged |= layer
    return merged


def _without_negatives(line: Layer, booleans: set[str]) -> Layer:
    """``--no-flip`` as what it says of ``--flip``."""
    found: Layer = {}
    for (scope, name), given in line.items():
        positive = name.removeprefix("no_")
        if positive != name and positive in booleans and name not in booleans:
            flag = name.replace("_", "-")
            require(given.value is None, f"--{flag} takes no value")
            require((scope, positive) not in line, f"--{flag} is given beside its opposite")
            name, given = positive, Given("no")
        found[scope, name] = given
    return found


def _refuse_unknown(layer: Layer, methods: Mapping[Plugin, Mapping[str, Any]]) -> None:
    """Complain about a flag that none of the methods has, or about a method that is not there."""
    by_name = {plugin.name: (plugin, types) for plugin, types in methods.items()}
    for (scope, name), given in layer.items():
        where = f"{given.where}: " if given.where else ""
        flag = name.replace("_", "-")
        if scope and scope not in by_name:
            what = where or f"--{scope}.{flag}: "
            raise UserError(f"{what}{scope!r} is no method of this sweep: {', '.join(by_name)}")
        meant = {scope: by_name[scope]} if scope else by_name
        if scope and name == "method":
            raise UserError(f"{where or f'--{scope}.method: '}a method has no method")
        names = [each for _, types in meant.values() for each in types]
        if name not in names:
            try:
                flags.refuse(f"--{flag}", names, [plugin for plugin, _ in meant.values()])
            except UserError as error:
                raise UserError(f"{where}{error}") from None


def _product(parts: Iterable[_Part]) -> list[tuple[_Part, dict[str, Words]]]:
    """Every combination of the values of each part's flags, its seeds next to each other."""
    parts = list(parts)
    _refuse_too_many(sum(math.prod(map(len, part.given.values())) for part in parts))
    found = []
    for part in parts:
        names = sorted(part.given, key=lambda name: name == "seed")
        for values in itertools.product(*(part.given[name] for name in names)):
            found.append((part, dict(zip(names, values, strict=True))))
    return found


def _refuse_too_many(count: int) -> None:
    require(count <= MOST_CELLS, f"a sweep of {count:,} cells; {MOST_CELLS:,} are possible at most")


def _unique(
    combinations: Sequence[tuple[_Part, Mapping[str, Words]]],
) -> list[tuple[Cell, flags.Request]]:
    """A cell for each combination that is not the same run as an earlier one."""
    values: dict[tuple[str, str], set[Words | None]] = {}
    names = {(part.method.name, name) for part, given in combinations for name in given}
    for part, given in combinations:
        for method, name in names:
            if method == part.method.name:
                values.setdefault((method, name), set()).add(given.get(name))
    cells = []
    for part, given in combinations:
        method = part.method.name
        shown = {n: w for n, w in given.items() if len(values[method, n]) > 1 and n != "method"}
        cells.append(Cell(in_order(given.values()), _label(method, shown), method))
    return list(_checked(cells))


def _searched(
    parts: Sequence[_Part], settings: SweepSettings
) -> tuple[list[tuple[Cell, flags.Request]], tuple[Final, ...]]:
    """The trials of each method, and what to run once they are done."""
    assert settings.trials is not None
    _refuse_too_many(settings.trials * len(parts))
    cells: list[tuple[Cell, flags.Request]] = []
    finals: list[Final] = []
    for part in parts:
        found: Trials = search.trials(part.method, part.given, part.types, settings)
        trials = []
        for number, drawn in enumerate(found.drawn, start=1):
            words = in_order([*found.fixed, *drawn.values()])
            label = _label(f"{part.method.name}, trial {number}", drawn, ": ")
            trials.append(Cell(words, label, part.method.name, number))
        checked = list(_checked(trials))
        places = tuple(range(len(cells), len(cells) + len(checked)))
        cells += checked
        for seed in found.seeds:
            finals.append(Final(part.method.name, places, seed, found.evals, found.choose_by))
    return cells, tuple(finals)


def _label(start: str, shown: Mapping[str, Words], between: str = ", ") -> str:
    items = [f"{name.replace('_', ' ')} {value_in(words)}" for name, words in shown.items()]
    return start + (between + ", ".join(items) if items else "")


def _checked(cells: Sequence[Cell]) -> Iterator[tuple[Cell, flags.Request]]:
    """Each cell with its request, once, as long as no cell is impossible."""
    requests = flags.parse_runs(cell.words for cell in cells)
    seen = set()
    for cell in cells:
        try:
            request = next(requests)
        except UserError as error:
            raise UserError(f"cell {cell.label!r} is impossible: {error}") from error
        # As text, because a plugin's Config need not be hashable.
        if repr(request) not in seen:
            seen.add(repr(request))
            yield cell, request
