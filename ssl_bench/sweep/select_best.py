"""The best trial of each method, by held-out images, and the runs that are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.sweep.grid import Cell, Grid
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
            best = _best(done, final.choose_by, wanted.runs_dir)
            config = final.configs[trials.index(best)]
            label = f"{final.method}, best of {len(trials)} trials, seed"
            cells += [Cell(config.with_values({"seed": s}), f"{label} {s}") for s in final.seeds]
            failed = len(trials) - len(done)
            aside = f"; {failed} of its {len(trials)} trials failed" if failed else ""
            notes.append(
                f"{best.entry.label} is the best of {final.method} on held-out images "
                f"({final.choose_by} {best.scores[final.choose_by]:.2f}){aside}"
            )
    return cells, notes


def _best(done: Sequence[CellStatus], choose_by: str, runs_dir: Path) -> CellStatus:
    """The trial with the best score, the first of several; whether more is better, it says."""
    homes = (runs_dir / e.entry.run / schema.EVALS / e.entry.evals[choose_by] for e in done)
    better = {schema.load_object(home / schema.SCORES).get("better", "higher") for home in homes}
    if "neither" in better:
        raise UserError(
            f"evaluation {choose_by!r} ranks nobody; --choose-by linear would choose the best trial"
        )
    sign = -1 if better == {"lower"} else 1
    return max(done, key=lambda each: sign * each.scores[choose_by])
