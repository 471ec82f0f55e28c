"""``ssl-bench sweep``: from its arguments, and its file, to the runs that it is made of.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_bench.cli.sweep_args import argv, toml
from ssl_bench.cli.sweep_args.per_method import parts_of
from ssl_bench.cli.sweep_args.toml import SweepFile
from ssl_bench.config.sweep_settings import ClusterSettings
from ssl_bench.errors import UserError, require
from ssl_bench.sweep import grid, search
from ssl_bench.sweep.grid import Final, Grid


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
    given, own, asked_for = argv.split(args)
    settings = argv.settings(file, own)
    cluster_flags = argv.cluster_flags(asked_for)
    # A file's [slurm] and profile may wait there for the cluster to be slurm; flags are for now.
    asked = [name for name, _ in asked_for] + [n for n in ("profile", "config") if n in own]
    resources = ClusterSettings()
    if asked or settings.cluster == "slurm":
        resources = toml.cluster_settings(cluster_flags, file, settings.profile, settings.config)
    if asked and settings.cluster != "slurm":
        flag = asked[0].replace("_", "-")
        raise UserError(f"--{flag} asks Slurm for something; --cluster slurm would work")
    parts = parts_of(file, given, max(1, resources.gpus))
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
