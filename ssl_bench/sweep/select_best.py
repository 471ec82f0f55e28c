"""The best trial of each method, by held-out images, and the runs that are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.sweep.grid import Cell, Final, Grid
from ssl_bench.sweep.status import CellStatus


def finals(
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
    told: set[str] = set()
    for final in wanted.finals:
        trials = [statuses[place] for place in final.trials]
        over = [each for each in trials if _is_over(each, retry_failed)]
        done = [each for each in over if each.state == "done"]
        if len(over) < len(trials) or not done:
            if final.method not in told:
                notes.append(_waiting(final, trials, over))
                told.add(final.method)
            continue
        best = _best(done, final.choose_by, wanted.runs_dir)
        config = final.configs[trials.index(best)].with_values({"seed": final.seed})
        label = f"{final.method}, best of {len(trials)} trials, seed {final.seed}"
        cells.append(Cell(config, label))
        if final.method not in told:
            told.add(final.method)
            score = best.scores[final.choose_by]
            failed = len(trials) - len(done)
            aside = f"; {failed} of its {len(trials)} trials failed" if failed else ""
            notes.append(
                f"{best.entry.label} is the best of {final.method} on held-out images "
                f"({final.choose_by} {score:.2f}){aside}"
            )
    return cells, notes


def _is_over(each: CellStatus, retry_failed: bool) -> bool:
    return each.state == "done" or (each.state == "failed" and not retry_failed)


def _best(done: Sequence[CellStatus], choose_by: str, runs_dir: Path) -> CellStatus:
    """The trial with the best score, the first of several; whether more is better, it says."""
    better = {_better(each, choose_by, runs_dir) for each in done}
    if "neither" in better:
        raise UserError(
            f"evaluation {choose_by!r} ranks nobody; --choose-by linear would choose the best trial"
        )
    sign = -1 if better == {"lower"} else 1
    return max(done, key=lambda each: sign * each.scores[choose_by])


def _better(each: CellStatus, choose_by: str, runs_dir: Path) -> str:
    home = runs_dir / each.entry.run / schema.EVALS / each.entry.evals[choose_by]
    return str(schema.load_object(home / schema.SCORES).get("better", "higher"))


def _waiting(final: Final, trials: Sequence[CellStatus], over: Sequence[CellStatus]) -> str:
    if len(over) < len(trials):
        return (
            f"{final.method}: {len(trials) - len(over)} of {len(trials)} trials are not over; once "
            "they are, the same command runs the best one on all training images"
        )
    return f"{final.method}: all {len(trials)} trials failed; --retry-failed does them again"
