"""The runs that a sweep is made of: a grid over typed values, or the trials of a search.

Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.config.chosen import ChosenBy
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import RunConfig, text_of

MOST_CELLS = 10_000


@dataclass(frozen=True)
class Part:
    """What a sweep is given for one method, or for one of its ``[[cells]]`` tables.

    Attributes:
        config: a run with nothing but defaults.
        given: the values given for flags, by the names of their fields: one fixes a flag.
        types: of all flags that may be given.
    """

    config: RunConfig
    given: Mapping[str, Sequence[Any]]
    types: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Its name."""
        return self.config.method.name


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        label: what varies between the cells of a method, for people.
        trial: of a search, the number of the trial among the method's, from 1.
    """

    config: RunConfig
    label: str
    trial: int | None = None

    @property
    def method(self) -> str:
        """Its name."""
        return self.config.method.name


@dataclass(frozen=True)
class Final:
    """The runs with what the best trial of a method had, on all training images.

    Attributes:
        method: its name.
        trials: their places among the cells.
        configs: for each trial what would be run with its settings, the seed aside.
        seeds: of the runs.
        choose_by: evaluation whose headline chooses the best trial.
        search: what is known of the search before it is over.
        lengths: flags of the lengths of the trainings, each of which is run with each seed.
    """

    method: str
    trials: tuple[int, ...]
    configs: tuple[RunConfig, ...]
    seeds: tuple[int, ...]
    choose_by: str
    search: ChosenBy
    lengths: tuple[Mapping[str, Any], ...] = ({},)


@dataclass(frozen=True)
class Grid:
    """A sweep to be done.

    Attributes:
        cells: no two of them the same run; of a search, the trials.
        settings: the flags of the sweep itself.
        runs_dir: folder that holds the run folders.
        finals: of a search, what is to be run once each method's trials are done.
        resources: what its jobs ask Slurm for: flags, else the sweep's file, else a config file.
            For another cluster nothing is read, and nothing asked for.
    """

    cells: tuple[Cell, ...]
    settings: SweepSettings
    runs_dir: Path
    finals: tuple[Final, ...]
    resources: ClusterSettings


def product(parts: Sequence[Part]) -> list[Cell]:
    """Every combination of the values of each part's flags, its seeds next to each other.

    Raises:
        UserError: one is impossible, or there are too many.
    """
    refuse_too_many(sum(math.prod(map(len, part.given.values())) for part in parts))
    combinations: list[tuple[Part, Mapping[str, Any]]] = []
    for part in parts:
        names = sorted(part.given, key=lambda name: name == "seed")
        for values in itertools.product(*(part.given[name] for name in names)):
            combinations.append((part, dict(zip(names, values, strict=True))))
    different: dict[tuple[str, str], set[str]] = {}
    names_of = {(part.method, name) for part, given in combinations for name in given}
    for part, given in combinations:
        for method, name in names_of:
            if method == part.method:
                shown = text_of(given[name]) if name in given else ""
                different.setdefault((method, name), set()).add(shown)
    asked = []
    for part, given in combinations:
        varied = {n: v for n, v in given.items() if len(different[part.method, n]) > 1}
        asked.append((label_of(part.method, varied), part.config, given))
    return [Cell(config, label) for label, config in possible(asked)]


def refuse_too_many(count: int) -> None:
    """Raise `UserError` where there are more cells than a sweep may have."""
    require(count <= MOST_CELLS, f"a sweep of {count:,} cells; {MOST_CELLS:,} are possible at most")


def label_of(start: str, values: Mapping[str, Any], between: str = ", ") -> str:
    """What a person sees of a cell: "mae, mask ratio 0.5, seed 1"."""
    items = [f"{name.replace('_', ' ')} {text_of(value)}" for name, value in values.items()]
    return start + (between + ", ".join(items) if items else "")


def possible(
    asked: Iterable[tuple[str, RunConfig, Mapping[str, Any]]],
) -> Iterator[tuple[str, RunConfig]]:
    """Each label with its config, changed by the values beside it; the same run is told once.

    Raises:
        UserError: one of them cannot be.
    """
    seen = set()
    for label, config, values in asked:
        try:
            config = config.with_values(values)
        except UserError as error:
            raise UserError(f"cell {label!r} is impossible: {error}") from error
        # As text, because a plugin's Config need not be hashable.
        if repr(config) not in seen:
            seen.add(repr(config))
            yield label, config
