"""Trials of a search: values drawn from ranges, the best one chosen on held-out images.

A draw is a function of (search seed, method, trial) and of the space, never of the number of
trials, so that a longer search begins with a shorter one's trials. A random draw of a flag does not
depend on which other flags are drawn either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.api import registry
from ssl_bench.api.ranges import OneOf, Range, draw
from ssl_bench.config.chosen import Better, ChosenBy
from ssl_bench.config.settings import BUDGETS, Settings
from ssl_bench.config.sweep_settings import SweepSettings
from ssl_bench.data.names import VALIDATION, several
from ssl_bench.errors import UserError, require
from ssl_bench.runs import schema
from ssl_bench.sweep.grid import Cell, Final, Grid, Part, label_of, possible, refuse_too_many
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable

if TYPE_CHECKING:
    from ssl_bench.sweep.status import CellStatus

_DATA = ("data", "eval_data")
"""Flags that name data, of which trials hold images out."""
_LENGTHS = ("epochs", *BUDGETS)
"""Flags of the training's length. Trials, which are judged at equal lengths, take the first value
of several; what has won is run under each."""
_ONE_ONLY = (*_DATA, "evals", "preset")
"""Flags that trials, which are compared with each other, must share."""


def trials(parts: Sequence[Part], settings: SweepSettings) -> tuple[list[Cell], list[Final]]:
    """The trials of each method, and what to run once they are done.

    One value given for a flag fixes it, and of several each trial draws one; but of seeds and of
    lengths trials take the first, and the runs after them take all.

    Raises:
        UserError: there is nothing to draw, or what is given fits no search.
    """
    assert settings.trials is not None
    refuse_too_many(settings.trials * len(parts))
    cells: list[Cell] = []
    finals: list[Final] = []
    for name in _ONE_ONLY:
        for method in {part.method for part in parts}:
            own = [part.given.get(name, ()) for part in parts if part.method == method]
            require(
                len({str(value) for values in own for value in values}) < 2,
                f"--{name.replace('_', '-')} has several values; the trials of a search share one",
            )
    for part in parts:
        fixed = {n: v[0] for n, v in part.given.items() if len(v) == 1 or n in ("seed", *_LENGTHS)}
        base = part.config.with_values(fixed)
        held_out: dict[str, str] = {}
        for name in filter(lambda name: getattr(base.settings, name), _DATA):
            flag, data = f"--{name.replace('_', '-')}", getattr(base.settings, name)
            require(
                not data.endswith(VALIDATION),
                f"{flag} {data}: a search holds images out by itself; "
                f"{flag} {data.removesuffix(VALIDATION)} would work",
            )
            held_out[name] = ",".join(each + VALIDATION for each in several(data))
        evals = [plugin.source or plugin.name for plugin in base.evals]
        require(
            bool(settings.choose_by or evals), "a search needs --choose-by or --evals to choose by"
        )
        chooses = settings.choose_by or evals[0]
        choose_by = registry.find("eval", chooses).name
        shorter = _shorter(base.settings, settings.trial_length)
        of_trials = fixed | held_out | shorter | {"evals": (chooses,)}
        drawn = {
            label_of(f"{part.method}, trial {number}", values, ": "): (number, values)
            for number, values in enumerate(_drawn(part, settings), start=1)
        }
        asked = ((label, part.config, of_trials | each) for label, (_, each) in drawn.items())
        found = list(possible(asked))
        places = tuple(range(len(cells), len(cells) + len(found)))
        search = _search(part, base.settings.preset, settings, held_out["data"], choose_by)
        for label, config in found:
            number = drawn[label][0]
            of_search = dataclasses.replace(search, trial=number)
            cells.append(Cell(config.chosen_by_search(of_search), label, number))
        configs = tuple(part.config.with_values(fixed | drawn[label][1]) for label, _ in found)
        finals.append(
            Final(
                method=part.method,
                trials=places,
                configs=configs,
                seeds=tuple(part.given.get("seed") or (Settings.seed,)),
                choose_by=choose_by,
                search=search,
                lengths=tuple(
                    {name: value}
                    for name in _LENGTHS
                    if len(part.given.get(name, ())) > 1
                    for value in part.given[name]
                )
                or ({},),
            )
        )
    return cells, finals


def _search(
    part: Part, preset: str, settings: SweepSettings, judged_on: str, judged_by: str
) -> ChosenBy:
    """What is known of a method's search before it begins."""
    method, space = part.config.method, _space(part)
    given = {field.name for field in dataclasses.fields(method.config)} & part.given.keys()
    return ChosenBy(
        preset=preset,
        tuned=method.declared.tuned.get(preset, ""),
        flags=tuple(sorted(given - space.keys())),
        trial_length=settings.trial_length,
        space={name: str(each) for name, each in sorted(space.items())},
        draws=settings.search,
        search_seed=settings.search_seed,
        judged_on=judged_on,
        judged_by=judged_by,
    )


def _shorter(run: Settings, share: float) -> dict[str, Any]:
    """The length of a trial of such a run, by flag; nothing where it is the run's own."""
    if share == 1:
        return {}
    if run.budget_flops:
        return {"budget_flops": share * run.budget_flops}
    if run.epochs and not (run.match or run.budget_time):
        return {"epochs": share * run.epochs}
    raise UserError(
        "--trial-length is a share of a length that is given; --budget-flops or --epochs would "
        "work beside it"
    )


def best_on_all_images(
    wanted: Grid, statuses: Sequence[CellStatus], retry_failed: bool
) -> tuple[list[Cell], list[str]]:
    """The runs on all training images that can be told by now, and what a person should know.

    A method's trials must all be over: done, or failed where these are not to be done again.

    Args:
        statuses: of the trials, in the order of the cells.

    Raises:
        UserError: a result cannot be read.
    """
    cells: list[Cell] = []
    notes: list[str] = []
    for final in wanted.finals:
        trials = [statuses[place] for place in final.trials]
        done = [each for each in trials if each.state == "done"]
        over = [] if retry_failed else [each for each in trials if each.state == "failed"]
        over += done
        if len(over) < len(trials):
            notes.append(
                f"{final.method}: {len(trials) - len(over)} of {len(trials)} trials are not over; "
                "once they are, the same command runs the best one on all training images"
            )
        elif not done:
            all_failed = f"all {len(trials)} trials failed; --retry-failed does them again"
            notes.append(f"{final.method}: {all_failed}")
        else:
            better = _better(done, final.choose_by, wanted.runs_dir)
            best = _best(done, final.choose_by, better)
            config = final.configs[trials.index(best)]
            flops = sum(each.entry.flops for each in done)
            search = dataclasses.replace(
                final.search,
                trials=len(done),
                tried=len(trials),
                flops=flops,
                better=better,
                scores=tuple(each.scores[final.choose_by] for each in done),
            )
            label = f"{final.method}, best of {len(trials)} trials"
            for length in final.lengths:
                share = search.trial_length * _times_shorter(length, config.settings)
                of_length = config.with_values(length).chosen_by_search(
                    dataclasses.replace(search, trial_length=share)
                )
                for seed in final.seeds:
                    cell_label = label_of(label, {**length, "seed": seed})
                    cells.append(Cell(of_length.with_values({"seed": seed}), cell_label))
            failed = len(trials) - len(done)
            aside = f"; {failed} of its {len(trials)} trials failed" if failed else ""
            notes.append(
                f"{best.entry.label} is the best of {final.method} on held-out images "
                f"({final.choose_by} {best.scores[final.choose_by]:.2f}){aside}"
            )
    return cells, notes


def _times_shorter(length: Mapping[str, Any], run: Settings) -> float:
    """How many times shorter than the run a run of that length is."""
    return math.prod(getattr(run, name) / value for name, value in length.items())


def _better(done: Sequence[CellStatus], choose_by: str, runs_dir: Path) -> Better:
    """Which scores the evaluation that chooses calls better."""
    homes = (runs_dir / e.entry.run / schema.EVALS / e.entry.evals[choose_by] for e in done)
    better = {schema.load_object(home / schema.SCORES).get("better", "higher") for home in homes}
    if "neither" in better:
        raise UserError(
            f"evaluation {choose_by!r} ranks nobody; --choose-by linear would choose the best trial"
        )
    return "lower" if better == {"lower"} else "higher"


def _best(done: Sequence[CellStatus], choose_by: str, better: Better) -> CellStatus:
    """The trial with the best score, the first of several."""
    sign = -1 if better == "lower" else 1
    return max(done, key=lambda each: sign * each.scores[choose_by])


def _drawn(part: Part, settings: SweepSettings) -> list[dict[str, Any]]:
    """What each trial draws, by flag; one trial without anything where nothing is to be drawn."""
    method, space = part.config.method, _space(part)
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
    for row in rows:
        for name in row.keys() - part.given.keys():
            where = f"search_space in {method.path}: {name}"
            row[name] = _typed(part.types[name], row[name], where)
    return rows


def _space(part: Part) -> dict[str, Range]:
    """What each trial draws from, by flag."""
    ranges = part.config.method.search()
    space: dict[str, Range] = {n: r for n, r in ranges.items() if n not in part.given}
    several = {n: v for n, v in part.given.items() if len(v) > 1 and n not in ("seed", *_LENGTHS)}
    return space | {name: OneOf(tuple(values)) for name, values in several.items()}


def _typed(type_: Any, value: Any, where: str) -> Any:
    """What a method's range holds as a value of the flag, such as 1 where it takes fractions."""
    if type_ is float and type(value) is int:
        return float(value)
    try:
        return typed_json.of(type_, list(value) if isinstance(value, tuple) else value, where)
    except Unreadable as error:
        raise UserError(f"{error}, which is no value for it") from None
