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
from ssl_bench.sweep import search
from ssl_bench.sweep.search import Final, Trials
from ssl_bench.sweep.spec import argv, toml
from ssl_bench.sweep.spec.per_method import Part, parts_of
from ssl_bench.sweep.spec.toml import SweepFile
from ssl_bench.sweep.spec.values import MOST_CELLS, Words, in_order, value_in


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
    folders = {request.settings.runs_dir for _, request in cells}
    require(len(folders) == 1, "--runs-dir has several values; a sweep has one folder of runs")
    nodes = max(request.settings.nodes for _, request in cells)
    require(
        nodes == 1 or settings.cluster == "slurm",
        f"nodes {nodes}: the {settings.cluster} cluster is this machine; --cluster slurm has more",
    )
    return Grid(tuple(cell for cell, _ in cells), settings, folders.pop(), finals, resources)


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
    parts: Sequence[Part], settings: SweepSettings
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
