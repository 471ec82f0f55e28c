"""What a sweep is given for each of its methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ssl_bench.api.registry import Plugin
from ssl_bench.cli import complaints, flags, parser
from ssl_bench.cli.argv import joined
from ssl_bench.cli.parser import Flag
from ssl_bench.cli.sweep_args import toml
from ssl_bench.cli.sweep_args.toml import Layer, SweepFile
from ssl_bench.cli.sweep_args.values import Given, choices
from ssl_bench.config.settings import BUDGETS, Settings
from ssl_bench.errors import UserError, require
from ssl_bench.sweep.grid import Part

_SHARED = parser.flags_of(Settings)


@dataclass(frozen=True)
class _Method:
    """A method of a sweep.

    Attributes:
        named: as it is on the command line; nothing where it is not.
        flags: all that may be given for it, by name.
    """

    plugin: Plugin
    named: tuple[str, ...]
    flags: Mapping[str, Flag]


def parts_of(file: SweepFile, line: Layer, devices: int) -> list[Part]:
    """What is given for each method, in each ``[[cells]]`` table.

    Args:
        devices: of a run for which none are given.
    """
    entries = file.cells or [{}]
    methods = [list(_methods(_merged(file.base, entry, line))) for entry in entries]
    everyone = [method for each in methods for method in each]
    booleans = {n for each in everyone for n, flag in each.flags.items() if flag.type is bool}
    line = _without_negatives(line, booleans)
    for layer in (file.base, line):
        _refuse_unknown(layer, everyone)
    parts: list[Part] = []
    for entry, here in zip(entries, methods, strict=True):
        _refuse_unknown(entry, here)
        layer = _merged(file.base, entry, line)
        for method in here:
            parts += _parts(method, layer, devices)
    return parts


def _parts(method: _Method, layer: Layer, devices: int) -> Iterator[Part]:
    """What is given for a method, for each preset: it sets the defaults of all other flags."""
    here = {n: value for (scope, n), value in layer.items() if not scope}
    here |= {n: value for (scope, n), value in layer.items() if scope == method.plugin.name}
    given = {
        name: choices(method.flags[name], value)
        for name, value in here.items()
        if name in method.flags and name != "method"
    }
    for budget in BUDGETS:
        require(
            not ("epochs" in given and budget in given),
            f"--epochs and --{budget.replace('_', '-')} each fix the length of the training; one "
            "will do",
        )
    types = {name: flag.type for name, flag in method.flags.items()}
    first = {name: values[0] for name, values in given.items()}
    for preset in given.get("preset", [None]):
        named = joined([method.named, *([("--preset", preset)] if preset else [])])
        config = flags.defaults(named, first)
        own = given | ({"preset": [preset]} if preset else {})
        if "devices" not in given and config.settings.devices == Settings.devices:
            own |= {"devices": [devices]}
        yield Part(config, own, types)


def _methods(layer: Layer) -> Iterator[_Method]:
    """The methods that a layer names."""
    given = layer.get(("", "method"))
    for name in choices(_SHARED["method"], given) if given else [None]:
        named = ("--method", name) if name else ()
        known = list(joined([named] if named else []))
        if not name and ("", "preset") in layer:
            known += joined([("--preset", choices(_SHARED["preset"], layer["", "preset"])[0])])
        plugin = flags.method_of(known)
        for flag in (_SHARED["evals"], _SHARED["eval_every_with"]):
            each = [layer[s, flag.name] for s in ("", plugin.name) if (s, flag.name) in layer]
            names = [n for one in each for several in choices(flag, one) for n in several]
            if names := [name for name in names if name != "none"]:
                known += joined([(flag.option, ",".join(names))])
        yield _Method(plugin, named, flags.run_flags(known))


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


def _refuse_unknown(layer: Layer, methods: Sequence[_Method]) -> None:
    """Complain about a flag that none of the methods has, or about a method that is not there."""
    by_name = {method.plugin.name: method for method in methods}
    for (scope, name), given in layer.items():
        where = f"{given.where}: " if given.where else ""
        flag = name.replace("_", "-")
        if scope and scope not in by_name:
            what = where or f"--{scope}.{flag}: "
            raise UserError(f"{what}{scope!r} is no method of this sweep: {', '.join(by_name)}")
        meant = [by_name[scope]] if scope else list(by_name.values())
        if scope and name == "method":
            raise UserError(f"{where or f'--{scope}.method: '}a method has no method")
        names = [each for method in meant for each in method.flags]
        if name not in names:
            try:
                own = [] if scope or given.where else [*toml.OWN, *toml.RESOURCES]
                complaints.refuse(f"--{flag}", [*names, *own], [each.plugin for each in meant])
            except UserError as error:
                raise UserError(f"{where}{error}") from None
