"""``ssl-bench sweep``: from its arguments, and its file, to the runs that it is made of.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_bench.cli import parser
from ssl_bench.cli.argv import by_flag
from ssl_bench.cli.sweep_args import toml
from ssl_bench.cli.sweep_args.per_method import parts_of
from ssl_bench.cli.sweep_args.toml import Layer, SweepFile
from ssl_bench.cli.sweep_args.values import Given, only_value
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require
from ssl_bench.sweep import grid, search
from ssl_bench.sweep.grid import Final, Grid

_FLAGS = {**parser.flags_of(SweepSettings), **parser.flags_of(ClusterSettings)}


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
    parts = parts_of(file, line, max(1, resources.gpus))
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
        f"nodes {nodes}: the {settings.cluster} cluster is this machine; --cluster slurm has more",
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
