"""Trials of a search: values drawn from ranges, the best one chosen on held-out images.

A draw is a function of (search seed, method, trial) and of the space, never of the number of
trials, so that a longer search begins with a shorter one's trials. A random draw of a flag does not
depend on which other flags are drawn either.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_bench.api import registry
from ssl_bench.api.ranges import OneOf, Range
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import flags
from ssl_bench.cli.argv import by_flag
from ssl_bench.config.settings import Settings
from ssl_bench.config.sweep_settings import SweepSettings
from ssl_bench.data.names import VALIDATION
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import RunConfig, words_of
from ssl_bench.sweep.spec.values import Words, in_order

_ONE_ONLY = ("data", "eval_data", "evals", "preset")
_DATA = ("data", "eval_data")
"""Flags that trials, which are compared with each other, must share."""


@dataclass(frozen=True)
class Final:
    """A run with what the best trial of a method had, on all training images.

    Attributes:
        method: its name.
        trials: their places among the cells.
        configs: for each trial what would be run with its settings, the seed aside.
        seed: of the final run.
        choose_by: evaluation whose headline chooses the best trial.
    """

    method: str
    trials: tuple[int, ...]
    configs: tuple[RunConfig, ...]
    seed: int
    choose_by: str


@dataclass(frozen=True)
class Trials:
    """A method's trials, before they are cells.

    Attributes:
        drawn: of each trial, the words of each flag that is drawn, by the field's name.
        fixed: words that all trials have.
        seeds, choose_by: of the final runs, as in `Final`.
        evals: evaluations of the final runs, or nothing for those that run unasked.
    """

    drawn: Sequence[Mapping[str, Words]]
    fixed: Sequence[Words]
    seeds: tuple[int, ...]
    evals: tuple[str, ...]
    choose_by: str


def trials(
    method: Plugin,
    given: Mapping[str, Sequence[Words]],
    types: Mapping[str, Any],
    settings: SweepSettings,
) -> Trials:
    """The trials of a method.

    Args:
        given: the values given for flags by name, "method" among them if it is: one fixes the flag,
            several are drawn among.
        types: of the method's flags, by name.

    Raises:
        UserError: there is nothing to draw, or what is given fits no search.
    """
    for name in _ONE_ONLY:
        flag = name.replace("_", "-")
        require(
            len(given.get(name, ())) < 2,
            f"--{flag} has several values, and the trials of a search share one",
        )
    seeds = given.get("seed", ())
    fixed = {name: words[0] for name, words in given.items() if len(words) == 1 or name == "seed"}
    request = flags.parse_run(in_order(fixed.values()))
    data = {name: getattr(request.settings, name) or "" for name in _DATA}
    for name, value in data.items():
        flag = f"--{name.replace('_', '-')}"
        require(
            not value.endswith(VALIDATION),
            f"{flag} {value}: a search holds images out by itself; "
            f"{flag} {value.removesuffix(VALIDATION)} would work",
        )
        if value:
            fixed[name] = flag, value + VALIDATION
    asked = tuple(part for part in fixed.get("evals", ("", ""))[1].split(",") if part)
    names = [name for name in asked if name != "none"] or [plugin.name for plugin in request.evals]
    require(bool(settings.choose_by or names), "a search needs --choose-by or --evals to choose by")
    choose_by = settings.choose_by or names[0]
    registry.find("eval", choose_by)
    drawn = _drawn(method, given, types, settings)
    fixed["evals"] = "--evals", choose_by
    return Trials(
        drawn,
        list(fixed.values()),
        tuple(int(words[1]) for words in seeds) or (Settings.seed,),
        asked,
        choose_by,
    )


def final_args(trial: Sequence[str], evals: Sequence[str]) -> Words:
    """The arguments of ``ssl-bench run`` that do on all training images what a trial did on a part.

    Args:
        trial: the trial's arguments.
        evals: evaluations to run, or nothing for those that run unasked.
    """
    groups = {group[0]: group for group in by_flag(trial)}
    groups.pop("--evals", None)
    for flag in groups.keys() & {"--data", "--eval-data"}:
        groups[flag] = flag, groups[flag][1].removesuffix(VALIDATION)
    if evals:
        groups["--evals"] = "--evals", ",".join(evals)
    return in_order(groups.values())


def draw(
    how: str, space: Mapping[str, Range], count: int, *coordinates: str | int
) -> list[dict[str, Any]]:
    """Values from ranges: so many trials, with a value for each name.

    Args:
        how: "random", or "sobol" for a scrambled Sobol sequence, which spreads evenly.
        coordinates: what the draws are a function of, besides the names, the trial's number and,
            for Sobol, the number of names.
    """
    names = sorted(space)
    rows = (_sobol if how == "sobol" else _random)(names, count, coordinates)
    return [{name: space[name].at(u) for name, u in zip(names, row, strict=True)} for row in rows]


def _drawn(
    method: Plugin,
    given: Mapping[str, Sequence[Words]],
    types: Mapping[str, Any],
    settings: SweepSettings,
) -> list[dict[str, Words]]:
    """The words of each flag that is drawn, by trial; one trial where there is nothing to draw."""
    space: dict[str, Range] = {n: r for n, r in method.search().items() if n not in given}
    unknown = sorted(set(space) - set(types))
    require(
        not unknown, f"search_space in {method.path} names {', '.join(unknown)}, which is no flag"
    )
    several = {n: tuple(w) for n, w in given.items() if len(w) > 1 and n != "seed"}
    space |= {name: OneOf(words) for name, words in several.items()}
    if not space:
        if not method.search() and dataclasses.fields(method.config):
            raise UserError(
                f"method {method.name!r} declares no ranges to search (search_space in "
                f"{method.path}); several values for some of its flags would work, such as "
                f"--{method.name}.base-lr 1e-4,1e-3"
            )
        return [{}]
    assert settings.trials is not None
    rows = draw(settings.search, space, settings.trials, settings.search_seed, method.name)
    return [
        {n: each if n in several else words_of(n, each) for n, each in row.items()} for row in rows
    ]


def _random(
    names: Sequence[str], count: int, coordinates: Sequence[str | int]
) -> list[list[float]]:
    """Numbers in [0, 1), each a function of the coordinates, the trial and the name alone."""
    return [
        [(_key(*coordinates, trial, name) >> 11) / 2**53 for name in names]
        for trial in range(count)
    ]


def _sobol(names: Sequence[str], count: int, coordinates: Sequence[str | int]) -> Any:
    import numpy as np
    from scipy.stats import qmc

    # A power of two, as the sequence wants it; what comes first does not depend on it.
    engine = qmc.Sobol(len(names), scramble=True, seed=np.random.default_rng(_key(*coordinates)))
    return engine.random_base2((count - 1).bit_length())[:count]


def _key(*coordinates: str | int) -> int:
    """A 64-bit integer for names and numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(coordinates).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
