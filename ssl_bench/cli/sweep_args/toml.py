"""The TOML files of a sweep: the sweep itself, and the profiles of clusters."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ssl_bench.cli.sweep_args.values import Given, shown
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import load_toml

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

    own: Mapping[str, Given] = field(default_factory=dict)
    base: Layer = field(default_factory=dict)
    cells: Sequence[Layer] = ()
    slurm: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


def read_sweep(path: Path) -> SweepFile:
    """A sweep's file."""
    content = load_toml(path)
    slurm, cells = content.pop("slurm", {}), content.pop("cells", None)
    require(isinstance(slurm, dict), f"{path}: 'slurm' is a table, [slurm]")
    _profiles(slurm, str(path))
    tables = isinstance(cells, list) and bool(cells) and all(isinstance(c, dict) for c in cells)
    require(cells is None or tables, f"{path}: 'cells' is one table or more, each under [[cells]]")
    own: dict[str, Given] = {}
    for key in list(content):
        name, where = key.replace("-", "_"), f"{path}: key {key!r}"
        if name in OWN:
            own[name] = Given(content.pop(key), where)
        require(name not in RESOURCES, f"{where} belongs into the table [slurm]")
    layers = [_layer(each, f"{path}: ", f" in [[cells]] {n}") for n, each in _numbered(cells or [])]
    return SweepFile(own, _layer(content, f"{path}: ", ""), layers, slurm, str(path))


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
        require(isinstance(content.get("slurm", {}), dict), f"{found}: 'slurm' is a table, [slurm]")
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


def _profiles(table: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Fields of `ClusterSettings` of each profile of a ``[slurm]`` table; of itself as ""."""
    shared = {key: each for key, each in table.items() if not _is_profile(key, each)}
    found = {"": _fields(shared, f"{where}: [slurm]")}
    for key, each in table.items():
        if key not in shared:
            found[key] = _fields(each, f"{where}: [slurm.{key}]")
    return found


def _is_profile(key: str, value: Any) -> bool:
    return isinstance(value, dict) and key.replace("-", "_") != "slurm_options"


def _fields(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `ClusterSettings` from a table."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        known = ", ".join(sorted(each.replace("_", "-") for each in RESOURCES))
        require(name in RESOURCES, f"{where} has an unknown key {key!r}; known: {known}")
        if name in LISTS:
            if isinstance(value, dict):
                value = [f"{option}={each}" for option, each in value.items()]
            items = [value] if isinstance(value, str) else value
            fits = isinstance(items, list) and all(isinstance(item, str) for item in items)
            wanted, value = "a text, or an array of them", tuple(items) if fits else value
        elif name in ("gpus", "cpus"):
            fits, wanted = type(value) is int, "a whole number"
        else:
            if name == "time" and type(value) is int:
                value = str(value)
            elif name == "time" and isinstance(value, datetime.time):
                value = value.isoformat("seconds")  # 04:00:00 without quotes
            fits, wanted = isinstance(value, str), "a text in quotes"
        require(fits, f"{where}: {key} {shown(value)} is not {wanted}")
        try:
            ClusterSettings(**{name: value})
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        values[name] = value
    return values


def _layer(table: Mapping[str, Any], before: str, after: str) -> Layer:
    """The flags of a table, those of its own tables for one method each."""
    layer: Layer = {}
    for key, value in table.items():
        if isinstance(value, dict):
            for flag, each in value.items():
                where = f"{before}key {flag!r} in [{key}]{after}"
                layer[key, flag.replace("-", "_")] = Given(each, where)
        else:
            layer["", key.replace("-", "_")] = Given(value, f"{before}key {key!r}{after}")
    return layer


def _numbered(tables: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    return list(enumerate(tables, start=1))
