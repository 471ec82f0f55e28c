"""``ssl-bench sweep``: from its words, and its file, to the runs that it is made of.

Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.cli import flags
from ssl_bench.cli.commands import sweep_help
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.sweep import search
from ssl_bench.sweep.search import Final, Trials, final_args
from ssl_bench.sweep.spec import argv, toml
from ssl_bench.sweep.spec.per_method import Part, parts_of
from ssl_bench.sweep.spec.toml import SweepFile
from ssl_bench.sweep.spec.values import MOST_CELLS, Words, in_order, value_in


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        config: of the run.
        label: what varies between the cells of a method, for people.
        method: the method's name.
        trial: of a search, the number of the trial among the method's, from 1.
    """

    config: RunConfig
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
        resources: what its jobs ask Slurm for: flags, else the sweep's file, else a config file.
            For another cluster nothing is read, and nothing asked for.
    """

    cells: tuple[Cell, ...]
    settings: SweepSettings
    runs_dir: Path
    finals: tuple[Final, ...]
    resources: ClusterSettings


def parse(words: Sequence[str]) -> Grid | None:
    """What a command line asks for; ``None`` where that is help, which is printed.

    Raises:
        UserError: a flag, a value, a file or a cell makes no sense.
    """
    if {"-h", "--help"} & set(words):
        print(sweep_help.text(), end="")
        return None
    require(bool(words), "say what to sweep, such as --method mae,mocov3 --seed 0..4; see --help")
    words = list(words)
    file = SweepFile()
    if not words[0].startswith("-"):
        path = Path(words.pop(0))
        require(
            path.suffix == ".toml",
            f"unexpected argument {str(path)!r}; flags start with --, and a sweep's file ends in "
            ".toml",
        )
        file = toml.read_sweep(path)
    given, own, asked_for = argv.split(words)
    settings = argv.settings(file, own)
    cluster_flags = argv.cluster_flags(asked_for)
    # A file's [slurm] and profile may wait there for the cluster to be slurm; flags are for now.
    asked = [name for name, _ in asked_for] + [
        name for name in ("profile", "config") if name in own
    ]
    resources = ClusterSettings()
    if asked or settings.cluster == "slurm":
        resources = toml.cluster_settings(cluster_flags, file, settings.profile, settings.config)
    if asked and settings.cluster != "slurm":
        flag = asked[0].replace("_", "-")
        raise UserError(f"--{flag} asks Slurm for something; --cluster slurm would work")
    parts = parts_of(file, given)
    finals: tuple[Final, ...] = ()
    if settings.search == "grid":
        cells = _unique(_product(parts))
    else:
        require(not file.cells, f"{file.where}: [[cells]] lists what to run; a search draws it")
        cells, finals = _searched(parts, settings)
    folders = {cell.config.settings.runs_dir for cell in cells}
    require(len(folders) == 1, "--runs-dir has several values; a sweep has one folder of runs")
    nodes = max(cell.config.settings.nodes for cell in cells)
    require(
        nodes == 1 or settings.cluster == "slurm",
        f"nodes {nodes}: the {settings.cluster} cluster is this machine; --cluster slurm has more",
    )
    return Grid(tuple(cells), settings, folders.pop(), finals, resources)


def _product(parts: Sequence[Part]) -> list[tuple[Part, dict[str, Words]]]:
    """Every combination of the values of each part's flags, its seeds next to each other."""
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
    combinations: Sequence[tuple[Part, Mapping[str, Words]]],
) -> list[Cell]:
    """A cell for each combination that is not the same run as an earlier one."""
    values: dict[tuple[str, str], set[Words | None]] = {}
    names = {(part.method.name, name) for part, given in combinations for name in given}
    for part, given in combinations:
        for method, name in names:
            if method == part.method.name:
                values.setdefault((method, name), set()).add(given.get(name))
    asked = []
    for part, given in combinations:
        method = part.method.name
        shown = {n: w for n, w in given.items() if len(values[method, n]) > 1 and n != "method"}
        asked.append((_label(method, shown), in_order(given.values())))
    return [Cell(config, label, config.method.name) for label, config in _checked(asked)]


def _searched(
    parts: Sequence[Part], settings: SweepSettings
) -> tuple[list[Cell], tuple[Final, ...]]:
    """The trials of each method, and what to run once they are done."""
    assert settings.trials is not None
    _refuse_too_many(settings.trials * len(parts))
    cells: list[Cell] = []
    finals: list[Final] = []
    for part in parts:
        found: Trials = search.trials(part.method, part.given, part.types, settings)
        name, asked = part.method.name, {}
        for number, drawn in enumerate(found.drawn, start=1):
            label = _label(f"{name}, trial {number}", drawn, ": ")
            asked[label] = number, in_order([*found.fixed, *drawn.values()])
        checked = list(_checked([(label, args) for label, (_, args) in asked.items()]))
        places = tuple(range(len(cells), len(cells) + len(checked)))
        cells += [Cell(config, label, name, asked[label][0]) for label, config in checked]
        on_all = [final_args(asked[label][1], found.evals) for label, _ in checked]
        configs = tuple(flags.parse_runs(on_all))
        finals += [Final(name, places, configs, seed, found.choose_by) for seed in found.seeds]
    return cells, tuple(finals)


def _label(start: str, shown: Mapping[str, Words], between: str = ", ") -> str:
    items = [f"{name.replace('_', ' ')} {value_in(words)}" for name, words in shown.items()]
    return start + (between + ", ".join(items) if items else "")


def _checked(asked: Sequence[tuple[str, Words]]) -> Iterator[tuple[str, RunConfig]]:
    """The run that each label's arguments ask for, once, as long as none is impossible."""
    configs = flags.parse_runs(args for _, args in asked)
    seen = set()
    for label, _ in asked:
        try:
            config = next(configs)
        except UserError as error:
            raise UserError(f"cell {label!r} is impossible: {error}") from error
        # As text, because a plugin's Config need not be hashable.
        if repr(config) not in seen:
            seen.add(repr(config))
            yield label, config
