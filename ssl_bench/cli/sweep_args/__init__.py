"""``ssl-bench sweep``: from its arguments, and its file, to the runs that it is made of.

Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.api.registry import Plugin
from ssl_bench.cli import complaints, flags, parser
from ssl_bench.cli.argv import by_flag, joined
from ssl_bench.cli.parser import Flag
from ssl_bench.cli.sweep_args import toml
from ssl_bench.cli.sweep_args.toml import Layer, SweepFile
from ssl_bench.cli.sweep_args.values import Given, choices, only_value
from ssl_bench.config.settings import Settings
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require
from ssl_bench.sweep import grid, search
from ssl_bench.sweep.grid import Final, Grid, Part

_FLAGS = {**parser.flags_of(SweepSettings), **parser.flags_of(ClusterSettings)}
_SHARED = parser.flags_of(Settings)


@dataclass(frozen=True)
class _Method:
    """A method of a sweep.

    Attributes:
        named: as it is on the command line; nothing where it is not.
        flags: all that may be given for it, by name.
        offers: of each preset that is given, or of the usual one.
    """

    plugin: Plugin
    named: tuple[str, ...]
    flags: Mapping[str, Flag]
    offers: Sequence[flags.Offer]


def parse(args: Sequence[str]) -> Grid:
    """What a command line asks for."""
    require(bool(args), "say what to sweep, such as --method mae,mocov3 --seed 0..4; see --help")
    args = list(args)
    file = SweepFile()
    if not args[0].startswith("-"):
        path = Path(args.pop(0))
        require(
            path.suffix == ".toml",
            f"unexpected argument {str(path)!r}; flags start with --, and a sweep's file ends in "
            ".toml",
        )
        file = toml.read_sweep(path)
    line, values = _split(args)
    own = {name: value for name, value in values.items() if name in toml.OWN}
    settings = _settings(file, own)
    cluster_flags = {name: value for name, value in values.items() if name in toml.RESOURCES}
    ClusterSettings(**cluster_flags)
    # A file's [slurm] and profile may wait there for the cluster to be slurm; flags are for now.
    asked = [*cluster_flags, *(name for name in ("profile", "config") if name in own)]
    resources = ClusterSettings()
    if asked or settings.cluster == "slurm":
        resources = toml.cluster_settings(cluster_flags, file, settings.profile, settings.config)
    if asked and settings.cluster != "slurm":
        flag = asked[0].replace("_", "-")
        raise UserError(f"--{flag} asks Slurm for something; --cluster slurm would work")
    parts = _parts_of(file, line, max(1, resources.gpus))
    finals: list[Final] = []
    if settings.search == "grid":
        cells = grid.product(parts)
    else:
        require(not file.cells, f"{file.where}: [[cells]] lists what to run; a search draws it")
        cells, finals = search.trials(parts, settings)
    folders = {cell.config.settings.runs_dir for cell in cells}
    require(len(folders) == 1, "--runs-dir has several values; a sweep has one folder of runs")
    nodes = max(cell.config.settings.nodes for cell in cells)
    require(
        nodes == 1 or settings.cluster == "slurm",
        f"--nodes {nodes}: the {settings.cluster} cluster is this machine; --cluster slurm has "
        "more",
    )
    return Grid(tuple(cells), settings, folders.pop(), tuple(finals), resources)


def _split(args: Sequence[str]) -> tuple[Layer, dict[str, Any]]:
    """What the flags of runs are given, and the values of the sweep's and its jobs' own flags."""
    line: Layer = {}
    own: dict[str, Any] = {}
    for flag, *values in by_flag(args):
        require(flag.startswith("--"), f"unexpected argument {flag!r}; a sweep's file comes first")
        require(
            len(values) < 2,
            f"unexpected argument {(values or [''])[-1]!r} after {flag}; several values are "
            "separated by commas alone",
        )
        scope, dot, name = flag[2:].rpartition(".")
        name = name.replace("-", "_")
        is_negative = name.startswith("no_")
        require(not (is_negative and values), f"{flag} takes no value")
        name, given = name.removeprefix("no_"), Given(values[0] if values else not is_negative)
        is_own, is_list = not dot and name in _FLAGS, name in toml.LISTS
        require(
            (scope, name) not in line and (name not in own or not is_own or is_list),
            f"flag {flag!r} is given several times; once will do",
        )
        if is_own and is_list:  # not split at commas: a line of shell may well have some
            require(bool(values), f"{flag}: it needs a value")
            own[name] = (*own.get(name, ()), *values)
        elif is_own:
            own[name] = only_value(_FLAGS[name], given)
        else:
            line[scope, name] = given
    return line, own


def _settings(file: SweepFile, own: Mapping[str, Any]) -> SweepSettings:
    """The sweep's own flags; those of the command line win over those of its file."""
    try:
        return SweepSettings(**{**file.own, **own})
    except UserError as error:
        mistake = str(error)
    try:
        SweepSettings(**own)
        from_line = ""
    except UserError as error:
        from_line = str(error)
    # What the command line says by itself is no mistake of the file.
    raise UserError(mistake if from_line == mistake else f"{file.where}: {mistake}")


def _parts_of(file: SweepFile, line: Layer, devices: int) -> list[Part]:
    """What is given for each method, in each ``[[cells]]`` table.

    Args:
        devices: of a run for which none are given.
    """
    layers = [_merged(file.base, entry, line) for entry in file.cells or [{}]]
    methods = [list(_methods(layer)) for layer in layers]
    everyone = [method for each in methods for method in each]
    scopes = [({**file.base, **line}, everyone), *zip(file.cells, methods, strict=False)]
    complaints.refuse_unknown([each for scope in scopes for each in _unknown(*scope)])
    for scope in scopes:
        _refuse_idle(*scope)
    return [
        part
        for layer, own in zip(layers, methods, strict=True)
        for method in own
        for part in _parts(method, layer, devices)
    ]


def _parts(method: _Method, layer: Layer, devices: int) -> Iterator[Part]:
    """What is given for a method, for each preset: it sets the defaults of all other flags."""
    here = {n: value for (scope, n), value in layer.items() if not scope}
    here |= {n: value for (scope, n), value in layer.items() if scope == method.plugin.name}
    given = {
        name: choices(method.flags[name], value)
        for name, value in here.items()
        if name in method.flags and name != "method"
    }
    flags.refuse_two_lengths(given)
    types = {name: flag.type for name, flag in method.flags.items()}
    for preset in given.get("preset", [None]):
        offer = flags.offer([*method.named, *(joined([("--preset", preset)]) if preset else ())])
        values = {flag.name: flag.default for flag in offer.flags}
        for name in (name for name, each in values.items() if each is dataclasses.MISSING):
            require(name in given, f"--{name.replace('_', '-')} needs a value")
            values[name] = given[name][0]
        config = offer.run_config(values)
        own = given | ({"preset": [preset]} if preset else {})
        if "devices" not in given and config.settings.devices == Settings.devices:
            own |= {"devices": [devices]}
        yield Part(config, own, types)


def _methods(layer: Layer) -> Iterator[_Method]:
    given = layer.get(("", "method"))
    for name in choices(_SHARED["method"], given) if given else [None]:
        named = joined([("--method", name)] if name else [])
        known = list(named)
        presets = layer.get(("", "preset"))
        if not name and presets:
            known += joined([("--preset", choices(_SHARED["preset"], presets)[0])])
        plugin, known = flags.method_of(known), list(named)
        presets = layer.get((plugin.name, "preset"), presets)
        for flag in (_SHARED["evals"], _SHARED["eval_every_with"]):
            each = [layer[s, flag.name] for s in ("", plugin.name) if (s, flag.name) in layer]
            names = [n for one in each for several in choices(flag, one) for n in several]
            if names := [name for name in names if name != "none"] or names[:1]:
                known += joined([(flag.option, ",".join(names))])
        if any((scope, "eval_every") in layer for scope in ("", plugin.name)):
            known += ["--eval-every", "1"]
        each_preset = choices(_SHARED["preset"], presets) if presets else []
        more = [joined([("--preset", preset)]) for preset in each_preset] or [()]
        offers = [flags.offer([*known, *preset]) for preset in more]
        yield _Method(plugin, named, {flag.name: flag for flag in offers[0].flags}, offers)


def _merged(*layers: Layer) -> Layer:
    """The layers together: a later one wins, whichever method an earlier one is for."""
    merged: Layer = {}
    for layer in layers:
        everywhere = {name for scope, name in layer if not scope}
        merged = {key: v for key, v in merged.items() if key[1] not in everywhere or not key[0]}
        merged |= layer
    return merged


def _unknown(layer: Layer, methods: Sequence[_Method]) -> Iterator[tuple[str, str, str]]:
    """The flags that none of the methods has, as `complaints.refuse_unknown` takes them.

    Raises:
        UserError: a flag is for a method that is not there, or names a method's own method.
    """
    by_name = {method.plugin.name: method for method in methods}
    for (scope, name), given in layer.items():
        flag = name.replace("_", "-")
        where = f"{given.where or f'--{scope}.{flag}'}: "
        if scope and scope not in by_name:
            raise UserError(f"{where}{scope!r} is no method of this sweep: {', '.join(by_name)}")
        require(not scope or name != "method", f"{where}a method has no method")
        asked = [by_name[scope]] if scope else methods
        if not any(name in method.flags for method in asked):
            names = [each for method in asked for each in method.flags]
            of_sweep = [] if scope or given.where else [*toml.OWN, *toml.RESOURCES]
            plugins = [method.plugin for method in asked]
            hint = complaints.meant(f"--{flag}", [*names, *of_sweep], plugins)
            yield given.where, f"--{flag}", hint


def _refuse_idle(layer: Layer, methods: Sequence[_Method]) -> None:
    """Complain about flags of evaluations that none of the methods runs."""
    offers = [offer for method in methods for offer in method.offers]
    chosen = dict.fromkeys(plugin for offer in offers for plugin in offer.chosen)
    idle = {
        given.where or f"--{name.replace('_', '-')}": offers[0].idle[name]
        for (_, name), given in layer.items()
        if all(name in offer.idle for offer in offers)
    }
    complaints.refuse_idle(idle, chosen)
