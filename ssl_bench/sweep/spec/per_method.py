"""What a sweep is given for each of its methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_bench.api.registry import Plugin
from ssl_bench.cli import complaints, flags
from ssl_bench.cli.argv import joined
from ssl_bench.errors import UserError, require
from ssl_bench.sweep.spec import toml
from ssl_bench.sweep.spec.toml import Layer, SweepFile
from ssl_bench.sweep.spec.values import Given, Words, choices


@dataclass(frozen=True)
class Part:
    """A method's share of a sweep, or of a ``[[cells]]`` table.

    Attributes:
        given: the values of each flag by name, "method" among them if it is given.
        types: of the method's flags, by name.
    """

    method: Plugin
    given: Mapping[str, Sequence[Words]]
    types: Mapping[str, Any]


def parts_of(file: SweepFile, line: Layer) -> list[Part]:
    """What is given for each method, in each ``[[cells]]`` table.

    Raises:
        UserError: a method does not exist, or something is given for a flag or a method that is
            not here.
    """
    layers = [_merged(file.base, entry, line) for entry in file.cells or [{}]]
    methods = [_methods(layer) for layer in layers]
    everywhere = {plugin: types for each in methods for plugin, types in each.items()}
    booleans = {n for each in everywhere.values() for n, type_ in each.items() if type_ is bool}
    line = _without_negatives(line, booleans)
    for layer in (file.base, line):
        _refuse_unknown(layer, everywhere)
    parts = []
    for entry, here in zip(file.cells or [{}], methods, strict=True):
        _refuse_unknown(entry, here)
        layer = _merged(file.base, entry, line)
        several = layer.get(("", "method"))
        names = choices("method", str, several) if several else [()]
        for method_words, (plugin, types) in zip(names, here.items(), strict=True):
            own = {n: given for (scope, n), given in layer.items() if scope == plugin.name}
            everyone = {n: given for (scope, n), given in layer.items() if not scope}
            given = {
                name: choices(name, types[name], value)
                for name, value in {**everyone, **own}.items()
                if name in types and name != "method"
            }
            given |= {"method": [method_words]} if method_words else {}
            parts.append(Part(plugin, given, types))
    return parts


def _methods(layer: Layer) -> dict[Plugin, Mapping[str, Any]]:
    """The methods that a layer names, each with the types of its flags."""
    found: dict[Plugin, Mapping[str, Any]] = {}
    given = layer.get(("", "method"))
    for words in choices("method", str, given) if given else [()]:
        known = list(joined([words] if words else []))
        if not words and ("", "preset") in layer:
            known += joined(choices("preset", str, layer["", "preset"])[:1])
        plugin = flags.method_of(known)
        for name in ("evals", "eval_every_with"):
            each = [layer[scope, name] for scope in ("", plugin.name) if (scope, name) in layer]
            texts = [w[1] for one in each for w in choices(name, tuple[str, ...], one)]
            named = [text for text in ",".join(texts).split(",") if text and text != "none"]
            if named:
                known += joined([(f"--{name.replace('_', '-')}", ",".join(named))])
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
                own = [] if scope or given.where else [*toml.OWN, *toml.RESOURCES]
                everyone = [plugin for plugin, _ in meant.values()]
                complaints.refuse(f"--{flag}", [*names, *own], everyone)
            except UserError as error:
                raise UserError(f"{where}{error}") from None
