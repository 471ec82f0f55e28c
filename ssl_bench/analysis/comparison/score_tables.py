"""Tables: the groups evaluated on one version of a data set, with means, tests, marks and notes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from ssl_bench.analysis.comparison import curves, fairness, grouping, pairs, rows, statistics
from ssl_bench.analysis.comparison.curves import COSTS
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.analysis.comparison.pairs import Pair
from ssl_bench.analysis.comparison.rows import Group, GroupScore
from ssl_bench.analysis.comparison.statistics import Mean
from ssl_bench.api import registry
from ssl_bench.config.command_settings import At, VerdictSettings
from ssl_bench.runs import schema
from ssl_bench.utils.formatting import listed

MOST_GROUPS = 40
"""Larger tables are not tested: the correction would leave nothing significant."""
_Cells = Mapping[tuple[str, str], Sequence[Score]]


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


def score_table(
    scores: pd.DataFrame,
    runs: pd.DataFrame,
    keys: Sequence[str],
    at: At,
    at_cost: float | None,
    versions: Mapping[str, str],
    settings: VerdictSettings,
) -> ScoreTable:
    """The table of what was evaluated on one version of a data set.

    Args:
        scores: of that version alone, as `grouping.group` has them; where they are read at an equal
            time, of one device.
        keys: of all groups, in the order of the rows.
        versions: what tells versions of a data set apart, by the fingerprint of their test images.
    """
    first = scores.iloc[0]
    version = versions[first["test_fingerprint"]]
    title = f"{first['evaluated_on']}{version}, {int(first['test_images']):,} test images"
    columns, column_notes = grouping.columns(scores)
    shown = scores
    notes: list[str] = []
    if at != "end":
        shown, cost, notes = curves.scores_at(scores, at, at_cost)
        title = f"{title}, {cost}"
        if at == "equal-time":
            title += f", on {first['device']}"
        costs = shown.drop_duplicates("run").set_index("run")
        scores = scores.assign(**{name: scores["run"].map(costs[name]) for name in COSTS})
    groups = rows.groups(scores, runs, keys)
    by_cell: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for key, column, *score in shown[["key", "column", *Score._fields]].itertuples(index=False):
        by_cell[key, column].append(Score(*score))
    beside, cells = rows.beside(scores, groups, by_cell)
    tested, untested = _tests(groups, columns, by_cell, at, settings)
    judged = {column: _judge(column, groups, by_cell, tested, at, settings) for column in columns}
    for column, of_column in judged.items():
        cells |= {(key, column.key): score for key, score in of_column.scores.items()}
    withheld = {column: each.why_no_best for column, each in judged.items() if each.why_no_best}
    ahead: dict[str, list[str]] = defaultdict(list)
    notes += untested
    for column, of_column in judged.items():
        what = f"{column.title}{version}"
        notes += [*of_column.notes, *_ahead_of_methods(what, column, groups, beside, cells)]
        if of_column.best_without_labels:
            ahead[of_column.best_without_labels].append(what)
    notes += [
        f"of the methods that learn without labels, {label} is better than each of the others in "
        f"{listed(names)}"
        for label, names in ahead.items()
    ]
    notes += fairness.notes(groups)
    for why in dict.fromkeys(withheld.values()):
        names = [column.title for column in columns if withheld.get(column) == why]
        notes.append(f"no row is called the best in {listed(names)}: {why}")
    notes += _notes_of_runs(groups, runs[runs["run"].isin(shown["run"])])
    data_notes = {f"{first['evaluated_on']}: {note}" for note in scores["note"].dropna() if note}
    over_images = {(key, column.key) for column, each in judged.items() for key in each.over_images}
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
        withheld={column.key: why for column, why in withheld.items()},
    )


def _tests(
    groups: Sequence[Group],
    columns: Sequence[Column],
    by_cell: _Cells,
    at: At,
    settings: VerdictSettings,
) -> tuple[tuple[Pair, ...], list[str]]:
    """All pairs of groups, and why some are not tested."""
    if len(groups) > MOST_GROUPS:
        return (), [
            f"{len(groups)} groups are too many to test all pairs of them; no more than "
            f"{MOST_GROUPS} are tested, so name fewer runs"
        ]
    labels = {group.key: group.label for group in groups}
    tested, untested = pairs.test_pairs([*labels], columns, by_cell, labels, at == "end", settings)
    by_key = {group.key: group for group in groups}

    def is_fair(pair: Pair) -> bool:
        better = pair.better or pair.a
        return fairness.is_fair(by_key[better], by_key[pair.other(better)])

    return tuple(replace(pair, is_fair=is_fair(pair)) for pair in tested), untested


@dataclass(frozen=True)
class _Judged:
    """A column's scores by the keys of their groups, and what is to be said of them.

    Attributes:
        over_images: the keys of those whose interval counts test images, too.
        why_no_best: why nobody is called the best; "" where that is not withheld.
        best_without_labels: the label of the group that is better than all others that learn
            without labels, but not the best of all; "" if there is none.
    """

    scores: Mapping[str, GroupScore]
    over_images: Collection[str]
    why_no_best: str
    best_without_labels: str
    notes: Sequence[str]


def _judge(
    column: Column,
    groups: Sequence[Group],
    by_cell: _Cells,
    tested: Sequence[Pair],
    at: At,
    settings: VerdictSettings,
) -> _Judged:
    notes: list[str] = []
    groups = [group for group in groups if (group.key, column.key) in by_cell]
    values = {
        group.key: {score.run: score.value for score in by_cell[group.key, column.key]}
        for group in groups
    }
    means = {key: statistics.mean_interval([*of_runs.values()]) for key, of_runs in values.items()}
    over_images: dict[str, Mean] = {}
    if settings.interval == "seeds+images" and column.is_headline and at == "end":
        for key, mean in means.items():
            if wider := _over_images(mean, by_cell[key, column.key], notes):
                over_images[key] = wider
    means |= over_images
    known = {key: mean.mean for key, mean in means.items() if mean.n}
    marks = pairs.marks(column, known, tested)
    if "undecided" in marks.values():
        notes += filter(None, [pairs.what_would_decide(column, by_cell)])
    why_no_best = fairness.why_no_best(groups, marks, at) if column.is_ranked else ""
    if why_no_best:
        marks = {key: mark for key, mark in marks.items() if mark != "best"}
    unlabelled = [group for group in groups if not _uses_labels(group.method)]
    alone = {group.key: known[group.key] for group in unlabelled if group.key in known}
    rivals = [pair for pair in tested if {pair.a, pair.b} <= alone.keys()]
    of_these = pairs.marks(column, alone, rivals)
    best = next((group for group in unlabelled if of_these.get(group.key) == "best"), None)
    is_news = (
        best
        and marks.get(best.key) != "best"
        and not fairness.why_no_best([g for g in unlabelled if g.key in alone], of_these, at)
    )
    return _Judged(
        {key: GroupScore(means[key], values[key], marks.get(key, "")) for key in values},
        over_images.keys(),
        why_no_best,
        best.label if best and is_news else "",
        notes,
    )


def _notes_of_runs(groups: Sequence[Group], runs: pd.DataFrame) -> Iterator[str]:
    """Where devices differ, and which runs have collapsed."""
    devices = sorted({device for group in groups for device in group.devices})
    if len(devices) > 1:
        yield f"times and memory are of different devices: {', '.join(devices)}"
    for group in groups:
        if len(group.devices) > 1:
            yield (
                f"{group.label}: its runs were on different devices, so that it has no mean time "
                "or memory"
            )
    for run, why in runs[["run", "collapsed"]].itertuples(index=False):
        if schema.text(why):
            yield f"{run} has collapsed: {why}"


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


def _ahead_of_methods(
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
    if not of_runs or not column.is_ranked:
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
