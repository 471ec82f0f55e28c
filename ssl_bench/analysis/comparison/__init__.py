"""Which runs may be compared, and what the comparison is worth.

Runs that differ only in the seed form a group, which is a row. A column holds one score of one
evaluation under one protocol, and a table covers one version of a data set. Results that are not
comparable are kept apart, and a note says why. The headline scores are tested in pairs (see
`pairs`); the other scores are shown but not tested.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from ssl_bench.analysis.comparison import baselines, curves, fairness, grouping, pairs, statistics
from ssl_bench.analysis.comparison.curves import COSTS
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.analysis.comparison.pairs import Mark, Pair
from ssl_bench.analysis.comparison.statistics import Mean
from ssl_bench.api import registry
from ssl_bench.config import chosen
from ssl_bench.config.chosen import ChosenBy
from ssl_bench.config.command_settings import At, SelectionSettings, VerdictSettings
from ssl_bench.errors import no_choice, require
from ssl_bench.runs import index as runs_index
from ssl_bench.runs.index import Index
from ssl_bench.utils.formatting import listed

MOST_GROUPS = 40
"""Larger tables are not tested: the correction would leave nothing significant."""
ENDED = ("trained", "broken")
"""States of runs that nobody will resume."""
_DEVICE_COSTS = ("seconds", "peak_memory_mib")
_SIZES = ("peak_memory_mib", "encoder_parameters", "trained_parameters")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed and were evaluated alike: one row.

    Attributes:
        key: the same in every table.
        label: the method, and the settings in which its groups differ.
        seeds: by run, in ascending order.
        costs: means over the pre-trainings, up to the point where the table reads the scores, and
            sizes; None where they were not measured.
        choices: how the settings of its runs were chosen, each way once; None of a run that does
            not tell.
        is_baseline: whether it is what the evaluations have beside the runs, such as raw pixels;
            its runs are names for them alone, and it is not tested.
    """

    key: str
    label: str
    method: str
    seeds: Mapping[str, int]
    costs: Mapping[str, float | None]
    devices: tuple[str, ...]
    choices: tuple[ChosenBy | None, ...] = ()
    is_baseline: bool = False

    @property
    def chosen_by(self) -> str:
        """How its settings were chosen, as `chosen.in_words` has it."""
        return " / ".join(sorted({chosen.in_words(each) for each in self.choices}))

    @property
    def searches(self) -> list[ChosenBy]:
        """Those of its choices that a search has made."""
        return [each for each in self.choices if each and each.trials]


@dataclass(frozen=True)
class GroupScore:
    """A group's scores in one column: the values by run, NaN included, and their mean."""

    mean: Mean
    values: Mapping[str, float]
    mark: Mark = ""


@dataclass(frozen=True)
class ScoreTable:
    """Groups evaluated on one version of a data set.

    Attributes:
        title: includes the cost at which the scores are read.
        columns: headline scores first.
        cells: by the keys of group and column; absent where there is no score.
        pairs: headline scores of all groups, a before b in the order of the rows.
        interval_over: what the intervals of means count, in words, and which of them count less.
        family: what one correction covers.
        withheld: why nobody is called the best of a column, by its key.
    """

    evaluated_on: str
    test_fingerprint: str
    test_images: int
    title: str
    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str], GroupScore]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    interval_over: str = "seeds"
    family: str = "column"
    withheld: Mapping[str, str] = field(default_factory=dict)

    @property
    def headlines(self) -> tuple[Column, ...]:
        """The columns that are tested."""
        return tuple(column for column in self.columns if column.is_headline)

    @property
    def chosen_by(self) -> dict[str, list[str]]:
        """The methods whose settings were chosen in the same way, by that way in words."""
        found: dict[str, list[str]] = defaultdict(list)
        for group in self.groups:
            if group.chosen_by and group.method not in found[group.chosen_by]:
                found[group.chosen_by].append(group.method)
        return dict(found)

    def label(self, key: str) -> str:
        """A group's label by its key."""
        return next(group.label for group in self.groups if group.key == key)


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
    costs = {"images": "images_seen", **{name: name for name in (*COSTS, *_SIZES)}}
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
        _table(part, runs, keys, at, at_cost, versions, settings)
        for _, part in scores.groupby(table_keys, sort=False)
    )
    in_tables = set(scores["run"])
    is_shown = runs["run"].map(lambda run: duplicates.get(run, run) in in_tables)
    is_complete = (runs["state"] == "trained") & ~runs["error"].map(lambda e: bool(_text(e)))
    incomplete = tuple(_incomplete(row) for _, row in runs[~(is_shown & is_complete)].iterrows())
    return Comparison(tables, every, incomplete, tuple(notes), tuple(index.problems))


def _table(
    scores: pd.DataFrame,
    runs: pd.DataFrame,
    keys: Sequence[str],
    at: At,
    at_cost: float | None,
    versions: Mapping[str, str],
    settings: VerdictSettings,
) -> ScoreTable:
    first = scores.iloc[0]
    version = versions[first["test_fingerprint"]]
    title = f"{first['evaluated_on']}{version}, {int(first['test_images']):,} test images"
    notes: list[str] = []
    data_notes = {f"{first['evaluated_on']}: {note}" for note in scores["note"].dropna() if note}
    columns, column_notes = grouping.columns(scores)
    shown = scores
    if at != "end":
        shown, cost, notes = curves.scores_at(scores, at, at_cost)
        title = f"{title}, {cost}"
        if at == "equal-time":
            title += f", on {first['device']}"
        costs = shown.drop_duplicates("run").set_index("run")
        scores = scores.assign(**{name: scores["run"].map(costs[name]) for name in COSTS})
    groups = _groups(scores, runs, keys)
    by_cell: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for key, column, *score in shown[["key", "column", *Score._fields]].itertuples(index=False):
        by_cell[key, column].append(Score(*score))
    beside, beside_cells = _beside(scores, groups, by_cell)
    labels = {group.key: group.label for group in groups}
    tested: tuple[Pair, ...] = ()
    if len(groups) > MOST_GROUPS:
        notes.append(
            f"{len(groups)} groups are too many to test all pairs of them; no more than "
            f"{MOST_GROUPS} are tested, so name fewer runs"
        )
    else:
        tested, untested = pairs.test_pairs(
            [*labels], columns, by_cell, labels, at == "end", settings
        )
        notes += untested
        both = itertools.combinations(groups, 2)
        fair = {(a.key, b.key): fairness.tuned_alike([a, b]) for a, b in both}
        tested = tuple(replace(pair, is_fair=fair[pair.a, pair.b]) for pair in tested)
    unlabelled = [group for group in groups if not _uses_labels(group.method)]
    ahead: dict[str, list[str]] = defaultdict(list)
    withheld: dict[str, str] = {}
    cells = {**beside_cells}
    over_images: set[tuple[str, str]] = set()
    for column in columns:
        keys = [group.key for group in groups if (group.key, column.key) in by_cell]
        values = {key: {s.run: s.value for s in by_cell[key, column.key]} for key in keys}
        means = {key: statistics.mean_interval([*values[key].values()]) for key in keys}
        if settings.interval == "seeds+images" and column.is_headline and at == "end":
            wider = {key: _over_images(means[key], by_cell[key, column.key], notes) for key in keys}
            means |= {key: mean for key, mean in wider.items() if mean}
            over_images |= {(key, column.key) for key, mean in wider.items() if mean}
        marks = pairs.marks(column, {k: m.mean for k, m in means.items() if m.n}, tested)
        if "undecided" in marks.values():
            notes += filter(None, [pairs.what_would_decide(column, by_cell)])
        why = fairness.why_no_best([group for group in groups if group.key in means], marks, at)
        if why and column.is_headline and column.better != "neither":
            withheld[column.key] = why
            marks = {key: mark for key, mark in marks.items() if mark != "best"}
        for key in keys:
            cells[key, column.key] = GroupScore(means[key], values[key], marks.get(key, ""))
        alone = {g.key: means[g.key].mean for g in unlabelled if g.key in means and means[g.key].n}
        rivals = [pair for pair in tested if {pair.a, pair.b} <= alone.keys()]
        of_these = pairs.marks(column, alone, rivals)
        is_fair = not fairness.why_no_best([g for g in unlabelled if g.key in alone], of_these, at)
        for key, mark in of_these.items():
            if mark == "best" != marks.get(key) and is_fair:
                ahead[labels[key]].append(f"{column.title}{version}")
        if column.is_headline and column.better != "neither":
            what = f"{column.title}{version}"
            notes += _ahead(what, column, groups, beside, cells)
    notes += [
        f"of the methods that learn without labels, {label} is better than each of the others in "
        f"{listed(names)}"
        for label, names in ahead.items()
    ]
    notes += fairness.notes(groups)
    for why in dict.fromkeys(withheld.values()):
        names = [column.title for column in columns if withheld.get(column.key) == why]
        notes.append(f"no row is called the best in {listed(names)}: {why}")
    devices = sorted({device for group in groups for device in group.devices})
    if len(devices) > 1:
        notes.append(f"times and memory are of different devices: {', '.join(devices)}")
    notes += [
        f"{group.label}: its runs were on different devices, so that it has no mean time or memory"
        for group in groups
        if len(group.devices) > 1
    ]
    of_table = runs[runs["run"].isin(shown["run"])]
    notes += [
        f"{run} has collapsed: {why}"
        for run, why in of_table[["run", "collapsed"]].itertuples(index=False)
        if _text(why)
    ]
    return ScoreTable(
        evaluated_on=first["evaluated_on"],
        test_fingerprint=first["test_fingerprint"],
        test_images=int(first["test_images"]),
        title=title,
        groups=(*groups, *beside),
        columns=columns,
        cells=cells,
        pairs=tested,
        notes=(*notes, *column_notes, *sorted(data_notes)),
        interval_over=_interval_over((*groups, *beside), columns, cells, over_images),
        family=settings.family,
        withheld=withheld,
    )


def _over_images(over_seeds: Mean, scores: Sequence[Score], notes: list[str]) -> Mean | None:
    """The mean with an interval that counts test images, too, and is no narrower than without.

    None where the spread over seeds or the predictions are not known.
    """
    half_width = over_seeds.half_width
    right_SN = pairs.right_answers(scores, notes) if half_width is not None else None
    if right_SN is None:
        return None
    over_both = statistics.mean_over_seeds_and_images(right_SN).half_width
    return replace(over_seeds, half_width=max(half_width or 0, over_both or 0))


def _interval_over(
    groups: Sequence[Group],
    columns: Sequence[Column],
    cells: Mapping[tuple[str, str], GroupScore],
    over_images: Collection[tuple[str, str]],
) -> str:
    """What the intervals of the headline scores count, and the columns and rows that count less."""
    if not over_images:
        return "seeds"
    rows, heads = ({*keys} for keys in zip(*over_images, strict=True))
    alone = dict.fromkeys(
        column.title
        if column.key not in heads
        else group.label
        if group.key not in rows
        else f"{group.label} in {column.title}"
        for column in columns
        for group in groups
        if column.is_headline
        and (group.key, column.key) not in over_images
        and (score := cells.get((group.key, column.key)))
        and score.mean.half_width is not None
    )
    return f"seeds and test images{f' (over seeds alone: {listed(alone)})' if alone else ''}"


def _groups(scores: pd.DataFrame, runs: pd.DataFrame, keys: Sequence[str]) -> tuple[Group, ...]:
    """The rows of a table, in the order of the keys, with the mean costs of their runs."""
    names = ["key", "label", "method", "run", "seed", *COSTS]
    members = scores.drop_duplicates(["key", "run"]).sort_values("seed")[names]
    members = members.merge(runs[["run", "device", "chosen_by", *_SIZES]], on="run")
    numbers = members[[*COSTS, *_SIZES]].apply(pd.to_numeric, errors="coerce")
    means = numbers.groupby(members["key"]).mean()
    means.loc[members.groupby("key")["device"].nunique() > 1, list(_DEVICE_COSTS)] = math.nan
    means = means.astype(object)
    costs = means.where(means.notna(), None).to_dict("index")
    by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in members.to_dict("records"):
        by_key[row["key"]].append(row)
    return tuple(
        Group(
            key=key,
            label=rows[0]["label"],
            method=rows[0]["method"],
            seeds={row["run"]: int(row["seed"]) for row in rows},
            costs=costs[key],
            devices=tuple(sorted({_text(row["device"]) for row in rows} - {""})),
            choices=tuple(map(_choice, dict.fromkeys(_text(row["chosen_by"]) for row in rows))),
        )
        for key in keys
        if (rows := by_key.get(key))
    )


def _beside(
    scores: pd.DataFrame,
    groups: Sequence[Group],
    by_cell: Mapping[tuple[str, str], Sequence[Score]],
) -> tuple[tuple[Group, ...], dict[tuple[str, str], GroupScore]]:
    """The baselines of these scores as groups, and their cells.

    Where untrained encoders are a group of their own, they are not shown again as a baseline.
    """
    beside, cells = [], {}
    untrained = [group.key for group in groups if group.method == baselines.UNTRAINED_METHOD]
    for label, values in baselines.found(scores).items():
        by_column: dict[str, dict[int, float]] = defaultdict(dict)
        for (seed, column), value in values.items():
            by_column[column][seed] = value
        if label.startswith(baselines.UNTRAINED):
            for key, column in itertools.product(untrained, [*by_column]):
                of_group = {s.seed: s.value for s in by_cell.get((key, column), ())}
                if of_group == by_column.get(column):
                    del by_column[column]
        if not by_column:
            continue
        key = f"baseline {label}"
        runs = {f"{label} seed {seed}": seed for seed in sorted({seed for seed, _ in values})}
        costs = dict.fromkeys((*COSTS, *_SIZES))
        beside.append(Group(key, label, label, runs, costs, (), is_baseline=True))
        for column, of_column in by_column.items():
            of_runs = {f"{label} seed {seed}": value for seed, value in of_column.items()}
            cells[key, column] = GroupScore(statistics.mean_interval([*of_runs.values()]), of_runs)
    return tuple(beside), cells


def _ahead(
    what: str,
    column: Column,
    groups: Sequence[Group],
    beside: Sequence[Group],
    cells: Mapping[tuple[str, str], GroupScore],
) -> list[str]:
    """A line for each baseline whose mean is better than that of every method."""

    def means(of: Sequence[Group]) -> dict[str, float]:
        known = {each.label: cells.get((each.key, column.key)) for each in of}
        return {label: score.mean.mean for label, score in known.items() if score and score.mean.n}

    of_runs = means(groups)
    if not of_runs:
        return []
    best = max(of_runs, key=lambda label: column.sign * of_runs[label])
    return [
        f"{what}: {label} ({mean:.2f}) has a {'higher' if column.sign > 0 else 'lower'} mean than "
        f"every method, the best of which is {best} ({of_runs[best]:.2f})"
        for label, mean in means(beside).items()
        if column.sign * mean > column.sign * of_runs[best]
    ]


def _uses_labels(method: str) -> bool:
    """Whether a method that is known here asks for them."""
    plugin = registry.installed("method", method)
    return plugin is not None and "label" in plugin.declared.columns


def _choice(text: str) -> ChosenBy | None:
    return chosen.read(json.loads(text)) if text else None


def _incomplete(row: pd.Series) -> IncompleteRun:
    why = _text(row["error"])
    if not why and row["state"] == "trained":
        why = "not evaluated on anything"
    if not why and not pd.isna(row["step"]):
        why = f"at step {int(row['step']):,}"
    if row["state"] in ("unfinished", "failed") and _text(row["command"]):
        why = "; ".join(filter(None, [why, f"this resumes it: {row['command']}"]))
    return IncompleteRun(row["run"], row["state"], why)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
