"""Which runs may be compared, and what the comparison is worth.

Runs that differ only in the seed form a group, which is a row. A column holds one score of one
evaluation under one protocol, and a table covers one version of a data set. Results that are not
comparable are kept apart, and a note says why. The headline scores are tested in pairs (see
`pairs`); the other scores are shown but not tested.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from ssl_bench.analysis.comparison import curves, grouping, rows
from ssl_bench.analysis.comparison.curves import COSTS
from ssl_bench.analysis.comparison.rows import Group
from ssl_bench.analysis.comparison.score_tables import ScoreTable, score_table
from ssl_bench.config.command_settings import At, SelectionSettings, VerdictSettings
from ssl_bench.errors import no_choice, require
from ssl_bench.runs import index as runs_index
from ssl_bench.runs import schema
from ssl_bench.runs.index import Index

ENDED = ("trained", "broken")
"""States of runs that nobody will resume."""


@dataclass(frozen=True)
class IncompleteRun:
    """A run that is in no table, or that ended with an error; ``why`` is one line."""

    run: str
    state: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """The tables, and everything that is not in them; ``scores`` are as `grouping.group` says."""

    tables: tuple[ScoreTable, ...]
    scores: pd.DataFrame
    incomplete: tuple[IncompleteRun, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def load(settings: SelectionSettings) -> Index:
    """The runs and scores that these settings choose.

    Raises:
        UserError: something that is asked for is not there, or nothing is left.
    """
    found = runs_index.load(settings.runs_dir, settings.runs)
    return select(found, settings.method, settings.data, settings.evals, settings.tags)


def select(
    index: Index,
    methods: Collection[str],
    data: Collection[str],
    evals: Collection[str],
    tags: Collection[str] = (),
) -> Index:
    """The runs of these methods, and their scores of these evaluations on these data sets.

    Runs without such a score, and without any of the tags, are left out, too. What is empty selects
    everything.

    Raises:
        UserError: one of them is not there, or nothing is left.
    """
    runs, scores = index.runs, index.scores
    for wanted, frame, column, what in (
        (methods, runs, "method", "method"),
        (data, scores, "evaluated_on", "data set"),
        (evals, scores, "eval", "evaluation"),
    ):
        known = sorted(set(frame[column].dropna().astype(str)))
        for name in wanted:
            require(
                name in known, f"no run has {what} {name!r}; they have {', '.join(known) or 'none'}"
            )
    if methods:
        runs = runs[runs["method"].isin(methods)]
    if tags:
        have = {text: json.loads(text) for text in runs["tags"].dropna().unique()}
        known = sorted({str(tag) for each in have.values() for tag in each})
        for tag in tags:
            require(
                tag in known, f"no run has tag {tag!r}; their tags: {', '.join(known) or 'none'}"
            )
        wanted_texts = [text for text, each in have.items() if {*tags} & {*map(str, each)}]
        runs = runs[runs["tags"].isin(wanted_texts)]
    for wanted, column in ((data, "evaluated_on"), (evals, "eval")):
        if wanted:
            scores = scores[scores[column].isin(wanted)]
            runs = runs[runs["run"].isin(scores["run"])]
    scores = scores[scores["run"].isin(runs["run"])]
    require(len(runs) > 0, "no run is of all that was asked for")
    return Index(runs, scores, index.problems)


def ordered(comparison: Comparison, by: str) -> Comparison:
    """The same with the rows of each table by an evaluation, the best first, or by a cost.

    Raises:
        UserError: no table has it.
    """
    if not by:
        return comparison
    costs = {"images": "images_seen", **{name: name for name in (*COSTS, *rows.SIZES)}}
    heads = {column.evaluation for table in comparison.tables for column in table.headlines}
    if by not in heads and by not in costs:
        raise no_choice("--sort", by, [*sorted(heads), "images", "flops", "seconds"])

    def place(table: ScoreTable, group: Group) -> tuple[bool, bool, float]:
        value = group.costs[costs[by]] if by not in heads else None
        for column in table.headlines:
            score = table.cells.get((group.key, column.key))
            if column.evaluation == by and score and score.mean.n:
                value = -column.sign * score.mean.mean
                break
        return group.is_baseline, value is None, value or 0.0

    return replace(
        comparison,
        tables=tuple(
            replace(table, groups=tuple(sorted(table.groups, key=partial(place, table))))
            for table in comparison.tables
        ),
    )


def compare(
    index: Index,
    at: At = "end",
    at_cost: float | None = None,
    settings: VerdictSettings | None = None,
) -> Comparison:
    """Compare everything in an index.

    An evaluation in another precision, or with another seed than the run's, makes a group of its
    own, whose label says so.

    Args:
        at: read the scores at the "end" of each run, or at a cost that is equal for all; with
            "equal-costs" at each kind of cost, in tables of their own.
        at_cost: that cost, in images, FLOPs or seconds. Default: the largest that all ended runs
            reach.
        settings: how differences are judged.
    """
    settings = settings or VerdictSettings()
    if at == "equal-costs":
        first, *others = (compare(index, each, None, settings) for each in curves.AXES)
        return replace(
            first,
            tables=(*first.tables, *(table for each in others for table in each.tables)),
            notes=(*dict.fromkeys([*first.notes, *(n for each in others for n in each.notes)]),),
        )
    runs = index.runs.drop_duplicates("run")
    every, keys, duplicates, notes = grouping.group(runs, index.scores)
    scores = every
    if at == "end":
        scores = scores[scores["step"].isna()]
    else:
        scores = scores[scores["run"].isin(runs.loc[runs["state"].isin(ENDED), "run"])]
    notes += grouping.note_versions(scores)
    table_keys = ["evaluated_on", "test_fingerprint", "test_images"]
    if at == "equal-time":
        scores = scores.fillna({"device": "a device that is not known"})
        table_keys.append("device")
        names = sorted(scores["device"].unique())
        if len(names) > 1:
            notes.append(
                f"seconds of different devices are in tables of their own: {' / '.join(names)}"
            )
    versions = grouping.versions(scores)
    tables = tuple(
        score_table(part, runs, keys, at, at_cost, versions, settings)
        for _, part in scores.groupby(table_keys, sort=False)
    )
    in_tables = set(scores["run"])
    is_shown = runs["run"].map(lambda run: duplicates.get(run, run) in in_tables)
    is_complete = (runs["state"] == "trained") & ~runs["error"].map(lambda e: bool(schema.text(e)))
    incomplete = tuple(_incomplete(row) for _, row in runs[~(is_shown & is_complete)].iterrows())
    return Comparison(tables, every, incomplete, tuple(notes), tuple(index.problems))


def _incomplete(row: pd.Series) -> IncompleteRun:
    why = schema.text(row["error"])
    if not why and row["state"] == "trained":
        why = "not evaluated on anything"
    if not why and not pd.isna(row["step"]):
        why = f"at step {int(row['step']):,}"
    if row["state"] in ("unfinished", "failed") and schema.text(row["command"]):
        why = "; ".join(filter(None, [why, f"this resumes it: {row['command']}"]))
    return IncompleteRun(row["run"], row["state"], why)
