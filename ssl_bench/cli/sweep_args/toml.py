"""The TOML files of a sweep: the sweep itself, and the profiles of clusters."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ssl_bench.cli import parser
from ssl_bench.cli.sweep_args.values import Given, only_value, shown
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable, load_toml

OWN = {each.name for each in fields(SweepSettings)}
RESOURCES = {each.name for each in fields(ClusterSettings)}
LISTS = ("setup", "slurm_options")
HERE = Path("ssl-bench.toml")
AT_HOME = Path("~/.config/ssl-bench/config.toml")

Layer = dict[tuple[str, str], Given]
"""What is given for flags, by the method that it is for ("" for all that have it), and name."""


@dataclass(frozen=True)
class SweepFile:
    """What a sweep's file says.

    Attributes:
        own: values of fields of `SweepSettings`.
        base: flags of every cell.
        cells: flags of each ``[[cells]]`` table.
        slurm: the ``[slurm]`` table as it is, and where it is.
    """

    own: Mapping[str, Any] = field(default_factory=dict)
    base: Layer = field(default_factory=dict)
    cells: Sequence[Layer] = ()
    slurm: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


def read_sweep(path: Path) -> SweepFile:
    """A sweep's file."""
    content = load_toml(path)
    slurm, cells = content.pop("slurm", {}), content.pop("cells", None)
    _profiles(slurm, str(path))
    tables = isinstance(cells, list) and bool(cells) and all(isinstance(c, dict) for c in cells)
    require(cells is None or tables, f"{path}: 'cells' is one table or more, each under [[cells]]")
    own: dict[str, Any] = {}
    flags = parser.flags_of(SweepSettings)
    for key in list(content):
        name, where = key.replace("-", "_"), f"{path}: key {key!r}"
        if name in OWN:
            own[name] = only_value(flags[name], Given(content.pop(key), where))
        require(name not in RESOURCES, f"{where} belongs into the table [slurm]")
    layers = [_layer(each, path, f" in [[cells]] {n}") for n, each in enumerate(cells or [], 1)]
    return SweepFile(own, _layer(content, path, ""), layers, slurm, str(path))


def cluster_settings(
    flags: Mapping[str, Any], sweep: SweepFile, profile: str, config: Path | None
) -> ClusterSettings:
    """What the jobs ask for: flags win over the sweep's file, it over the config file's profile.

    Args:
        flags: the fields given on the command line.
        profile: the name of the profile, or "".
        config: the config file; by default the one here, or else the user's.
    """
    files: list[tuple[str, Mapping[str, Any]]] = []
    found = config or next(
        (p for p in (HERE, AT_HOME) if os.path.exists(os.path.expanduser(p))), None
    )
    if found:
        content = load_toml(found)
        for key in content:
            require(key == "slurm", f"{found}: unknown key {key!r}; it has a table [slurm]")
        files.append((str(found), content.get("slurm", {})))
    files.append((sweep.where, sweep.slurm))
    profiles = [_profiles(table, where) for where, table in files]
    known = [name for each in profiles for name in each if name]
    if profile and profile not in known:
        looked = " and ".join(where for where, _ in files if where) or f"{HERE} or {AT_HOME}"
        has = f"has {', '.join(sorted(set(known)))}" if known else "has none"
        raise UserError(f"unknown profile {profile!r}: {looked} {has}, as [slurm.{profile}]")
    values: dict[str, Any] = {}
    for each in profiles:
        values |= each[""] | each.get(profile, {})
    return ClusterSettings(**{**values, **flags})


def _profiles(table: Any, where: str) -> dict[str, dict[str, Any]]:
    """Fields of `ClusterSettings` of each profile of a ``[slurm]`` table; of itself as ""."""
    require(isinstance(table, dict), f"{where}: 'slurm' is a table, [slurm]")
    profiles = {
        key: each
        for key, each in table.items()
        if isinstance(each, dict) and key.replace("-", "_") != "slurm_options"
    }
    shared = {key: each for key, each in table.items() if key not in profiles}
    named = {key: _fields(each, f"{where}: [slurm.{key}]") for key, each in profiles.items()}
    return {"": _fields(shared, f"{where}: [slurm]"), **named}


def _fields(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    flags = parser.flags_of(ClusterSettings)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        known = ", ".join(sorted(each.replace("_", "-") for each in RESOURCES))
        require(name in RESOURCES, f"{where} has an unknown key {key!r}; known: {known}")
        wanted = "a whole number" if name in ("gpus", "cpus") else "a text in quotes"
        if name in LISTS:
            wanted = "a text, or an array of them"
            if isinstance(value, dict):
                value = [f"{option}={each}" for option, each in value.items()]
            value = [value] if isinstance(value, str) else value
        elif name == "time" and type(value) is int:
            value = str(value)
        elif name == "time" and isinstance(value, datetime.time):
            value = value.isoformat("seconds")  # 04:00:00 without quotes
        try:
            values[name] = typed_json.of(flags[name].type, value)
            ClusterSettings(**{name: values[name]})
        except Unreadable:
            raise UserError(f"{where}: {key} {shown(value)} is not {wanted}") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return values


def _layer(table: Mapping[str, Any], path: Path, after: str) -> Layer:
    """The flags of a table, those of its own tables for one method each."""
    layer: Layer = {}
    for scope, tables in [("", table), *table.items()]:
        if isinstance(tables, dict):
            inside = f" in [{scope}]" if scope else ""
            layer |= {
                (scope, key.replace("-", "_")): Given(value, f"{path}: key {key!r}{inside}{after}")
                for key, value in tables.items()
                if scope or not isinstance(value, dict)
            }
    return layer
