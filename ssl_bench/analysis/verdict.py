"""What a comparison shows, in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ssl_bench.analysis.comparison.grouping import Column
from ssl_bench.analysis.comparison.pairs import Pair, rivals
from ssl_bench.analysis.comparison.score_tables import ScoreTable
from ssl_bench.utils.formatting import digits, listed, many

_MOST_NAMED = 4


def summary(table: ScoreTable) -> str:
    """Who is the best in how many evaluations; "" where nothing is compared."""
    tested = [c for c in table.headlines if any(pair.column == c for pair in table.pairs)]
    if not tested:
        return ""
    won: dict[str, list[str]] = defaultdict(list)
    for column in tested:
        for key in _marked(table, column, "best"):
            won[table.label(key)].append(column.title)
    parts = [
        f"{label} is better than each of the others in {listed(columns)}"
        for label, columns in sorted(won.items(), key=lambda item: -len(item[1]))
    ]
    named = {title for titles in won.values() for title in titles}
    open_: dict[str, list[Column]] = defaultdict(list)
    for column in tested:
        if column.title not in named:
            open_[table.withheld.get(column.key, "")].append(column)
    for why, columns in open_.items():
        if why:
            parts.append(f"no method is called the best in {_any_of(columns)}: {why}")
        elif len(columns) == len(tested):
            parts.append(f"no method is better than each of the others in {_any_of(columns)}")
        else:
            parts.append(f"in {listed(column.title for column in columns)} no method is")
    return f"{'; '.join(parts)}."


def sentences(table: ScoreTable) -> Iterator[tuple[str, str]]:
    """For each tested evaluation its title, and what is decided in it."""
    for column in table.headlines:
        pairs = [pair for pair in table.pairs if pair.column == column]
        known = [
            (group, column.sign * score.mean.mean)
            for group in table.groups
            if (score := table.cells.get((group.key, column.key))) and score.mean.n
        ]
        means = {group.key: mean for group, mean in known if not group.is_baseline}
        if pairs and len(means) > 1:
            top = max(means, key=lambda key: means[key])
            ahead = [g.key for g, mean in known if g.is_baseline and mean > means[top]]
            above = f" Above all of them: {_names(table, column, ahead)}." if ahead else ""
            beside = rivals(top, means, pairs)
            yield column.title, _sentence(table, column, top, beside) + above


def _sentence(table: ScoreTable, column: Column, top: str, beside: dict[str, Pair]) -> str:
    named = f"{table.label(top)} ({_mean(table, column, top)})"
    means = {key: table.cells[key, column.key].mean.mean for key in beside}
    by_mean = sorted(beside, key=lambda key: -column.sign * means[key])
    if _marked(table, column, "best"):
        second = by_mean[0]
        lead = _lead(column, beside[second], top)
        others = f"each of the other {len(beside)}" if len(beside) > 1 else table.label(second)
        nearest = f", {table.label(second)} being the nearest" if len(beside) > 1 else ""
        return f"{named} is better than {others}{nearest}: {lead}."
    open_ = [key for key in by_mean if beside[key].verdict == "undecided"]
    alike = [key for key in by_mean if beside[key].verdict == "equivalent"]
    untested = [key for key in by_mean if beside[key].verdict == "not tested"]
    parts = [f"{named} has the highest mean" if column.sign > 0 else f"{named} has the lowest mean"]
    if alike:
        parts.append(f"{_names(table, column, alike)} is as good within the margin")
    if open_:
        parts.append(f"its lead over {_names(table, column, open_)} is not decided")
    if untested:
        parts.append(f"nothing tests it against {_names(table, column, untested)}")
    worse = [key for key in by_mean if beside[key].better == top]
    if worse:
        is_fair = all(beside[key].is_fair for key in worse)
        what = "worse" if is_fair else "behind, though settings were not chosen alike"
        parts.append(f"{many(len(worse), 'other')} {'is' if len(worse) == 1 else 'are'} {what}")
    return f"{'; '.join(parts)}."


def _lead(column: Column, pair: Pair, top: str) -> str:
    sign = column.sign if pair.a == top else -column.sign
    text = f"by {digits(sign * pair.difference.difference, column.unit)}"
    if pair.interval:
        low, high = sorted(sign * end for end in pair.interval)
        text += f" ({digits(low, column.unit)} to {digits(high, column.unit)})"
    return text


def _names(table: ScoreTable, column: Column, keys: Sequence[str]) -> str:
    named = [f"{table.label(key)} ({_mean(table, column, key)})" for key in keys[:_MOST_NAMED]]
    more = len(keys) - len(named)
    return listed([*named, *([f"{more} more"] if more else [])])


def _mean(table: ScoreTable, column: Column, key: str) -> str:
    return digits(table.cells[key, column.key].mean.mean, column.unit)


def _marked(table: ScoreTable, column: Column, mark: str) -> list[str]:
    cells = ((group.key, table.cells.get((group.key, column.key))) for group in table.groups)
    return [key for key, cell in cells if cell and cell.mark == mark]


def _any_of(columns: Sequence[Column]) -> str:
    return columns[0].title if len(columns) == 1 else f"any of the {len(columns)} evaluations"
