"""Comparisons as tables for a terminal and for CSV files."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table as RichTable
from rich.text import Text

from ssl_bench.analysis import marks
from ssl_bench.analysis.comparison import Comparison
from ssl_bench.analysis.comparison.grouping import Column
from ssl_bench.analysis.comparison.pairs import Pair
from ssl_bench.analysis.comparison.rows import Group, GroupScore
from ssl_bench.analysis.comparison.score_tables import ScoreTable
from ssl_bench.analysis.comparison.statistics import Mean
from ssl_bench.utils.formatting import cell as safe_cell
from ssl_bench.utils.formatting import count, digits, plain, share, time, whole

_MOST_PAIRS = 15
_MOST_ROWS = 50
_WRAP = 16
_BORDER = 3
_TRAINED_FROM, _RUNS_FROM = 80, 100
"""Widths of a terminal with room for the number of trained parameters and for names of runs."""


def as_rich(comparison: Comparison, width: int) -> Iterator[RichTable]:
    """A comparison for a terminal of that many columns."""
    for table in filter(lambda table: table.groups, comparison.tables):
        yield from _score_tables(table, width)
        yield _cost_table(table, width)
        if table.pairs:
            yield _pair_table(table)
    if comparison.incomplete:
        shown = _new_table("runs to know of", run="fold", state="", why="fold")
        for run in comparison.incomplete:
            shown.add_row(_text(run.run), run.state, _text(run.why))
        yield shown


def notes(comparison: Comparison) -> list[str]:
    """Why tables and columns are apart, and what is missing or wrong."""
    found = [*comparison.notes, *(note for table in comparison.tables for note in table.notes)]
    for table in comparison.tables:
        if len(table.groups) > _MOST_ROWS:
            found.append(
                f"{table.evaluated_on}: {_MOST_ROWS} of {len(table.groups):,} rows are shown, "
                f"those with the best {table.headlines[0].title}; --csv writes all"
            )
    return list(dict.fromkeys(map(plain, [*found, *comparison.problems])))


def flat(comparison: Comparison) -> pd.DataFrame:
    """One row for each group and score."""
    return pd.DataFrame(
        {"evaluated_on": table.evaluated_on, "test_fingerprint": table.test_fingerprint,
         "read": table.title, **flat_score(group, column, score)}
        for table in comparison.tables
        for group in table.groups
        for column in table.columns
        if (score := table.cells.get((group.key, column.key)))
    )  # fmt: skip


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What `flat` has, pairs, runs to know of and notes; numbers that are none are null."""
    pairs = [
        {
            "read": table.title,
            "evaluation": pair.column.title,
            "a": table.label(pair.a),
            "b": table.label(pair.b),
            "difference": pair.difference.difference,
            "interval": pair.interval,
            "level": pair.level,
            "p": pair.difference.p,
            "p_adjusted": pair.p_adjusted,
            "test": pair.test,
            "verdict": marks.verdict(pair),
        }
        for table in comparison.tables
        for pair in table.pairs
    ]
    incomplete = [vars(run) for run in comparison.incomplete]
    return {
        "scores": [_finite(row) for row in flat(comparison).to_dict("records")],
        "pairs": [_finite(pair) for pair in pairs],
        "incomplete": incomplete,
        "notes": notes(comparison),
    }


def _finite(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """A row with None in place of each number that is not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def flat_score(group: Group, column: Column, score: GroupScore) -> dict[str, Any]:
    """A group's score, and everything known about it."""
    seeds = {run: seed for run, seed in group.seeds.items() if run in score.values}
    return {
        "method": group.method,
        "label": group.label,
        "evaluation": column.evaluation,
        "protocol": column.protocol,
        "variant": column.variant,
        "score": column.score,
        "unit": column.unit,
        "better": column.better,
        "n": score.mean.n,
        "mean": score.mean.mean,
        "half_width": score.mean.half_width,
        "mark": score.mark,
        "mark_meaning": marks.meaning(score.mark),
        "seeds": " ".join(map(str, seeds.values())),
        "runs": "" if group.is_baseline else " ".join(seeds),
        **group.costs,
        "settings_chosen_by": group.chosen_by,
        "device": "; ".join(group.devices),
    }


def as_csv(frame: pd.DataFrame) -> bytes:
    """All digits; missing numbers are empty; no text is run as a formula (`formatting.cell`)."""
    return frame.map(safe_cell).rename(columns=safe_cell).to_csv(index=False).encode()


def format_mean(mean: Mean, unit: str) -> str:
    """A mean and half of its interval, if it has one."""
    half = "" if mean.half_width is None else f" ± {digits(mean.half_width, unit)}"
    return f"{digits(mean.mean, unit)}{half}"


def _new_table(title: str, caption: str | None = None, **columns: str) -> RichTable:
    """A table with columns that fold, are aligned to the right ("right"), or neither ("")."""
    table = RichTable(title=title, caption=caption)
    for name, kind in columns.items():
        _add_column(table, name, kind)
    return table


def _add_column(table: RichTable, name: str | Text, kind: str) -> None:
    if kind == "fold":
        table.add_column(name, overflow="fold")
    else:
        table.add_column(name, justify="right" if kind == "right" else "left", no_wrap=True)


def _score_tables(table: ScoreTable, width: int) -> Iterator[RichTable]:
    """The headline scores: those of one unit beside each other, the others after them.

    Baselines stand below the runs.
    """
    units = Counter(column.unit for column in table.headlines)
    parts = [[c for c in table.headlines if c.unit == unit] for unit in units if units[unit] > 1]
    parts.append([column for column in table.headlines if units[column.unit] == 1])
    shown = [each for part in parts if part for each in _side_by_side(table, part, width)]
    has_intervals = any(score.mean.half_width is not None for score in table.cells.values())
    interval = [f"mean ± half of its 95 % t interval over {table.interval_over}"] * has_intervals
    shown[-1].caption = "\n".join([*interval, *marks.legend(table)])
    yield from shown


def _side_by_side(table: ScoreTable, columns: Sequence[Column], width: int) -> Iterator[RichTable]:
    """The columns in as many tables as the width requires."""
    groups, units = _best_groups(table), {column.unit for column in columns}
    texts = {c.key: [_score(table, group, c) for group in groups] for c in columns}
    heads = {c.key: _head(c, with_unit=len(units) > 1) for c in columns}
    labels = min(max(len(group.label) for group in groups), 2 * _WRAP)
    room = width - labels - _BORDER - 1 - (len("runs") + _BORDER)
    chunks: list[list[Column]] = []
    left = 0
    for column in columns:
        lines = "\n".join([heads[column.key], *map(str, texts[column.key])]).split("\n")
        needed = max(map(len, lines)) + _BORDER
        if not chunks or needed > left:
            chunks.append([])
            left = room
        chunks[-1].append(column)
        left -= needed
    unit = f"{units.pop()}: " if len(units) == 1 else ""
    for number, chunk in enumerate(chunks, 1):
        part = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
        shown = _new_table(plain(f"{unit}{table.title}{part}"), method="fold", runs="right")
        for column in chunk:
            _add_column(shown, _text(heads[column.key]), "right")
        for row, group in enumerate(groups):
            scores = [texts[column.key][row] for column in chunk]
            if group.is_baseline and all(str(score) == "-" for score in scores):
                continue
            runs = "-" if group.is_baseline else str(len(group.seeds))
            is_last_run = [each.is_baseline for each in groups[row : row + 2]] == [False, True]
            shown.add_row(_text(group.label), runs, *scores, end_section=is_last_run)
        yield shown


def _means(table: ScoreTable, column: Column) -> dict[str, float]:
    """The means in a column by the group's key, so that more is better."""
    return {
        group.key: column.sign * score.mean.mean
        for group in table.groups
        if (score := table.cells.get((group.key, column.key))) and score.mean.n
    }


def _best_groups(table: ScoreTable) -> Sequence[Group]:
    """The groups to show: all of them, or the best by the first column."""
    if len(table.groups) <= _MOST_ROWS:
        return table.groups
    means = _means(table, table.headlines[0])
    best = set(sorted(means, key=lambda key: -means[key])[:_MOST_ROWS])
    return [group for group in table.groups if group.key in best or group.is_baseline]


def _head(column: Column, with_unit: bool) -> str:
    """The head of a column, in short lines."""
    lines = [column.evaluation, *textwrap.wrap(column.variant, _WRAP)]
    if with_unit:
        lines += textwrap.wrap(column.unit, _WRAP)
    if column.better == "lower":
        lines.append("lower is better")
    return "\n".join(lines)


def _score(table: ScoreTable, group: Group, column: Column) -> Text:
    score = table.cells.get((group.key, column.key))
    if score is None or not score.mean.n:
        return Text("-" if score is None else "NaN")
    n = f" (n={score.mean.n})" if score.mean.n != len(group.seeds) else ""
    text = f"{format_mean(score.mean, column.unit)}{n}{marks.sign(score.mark)}"
    return _text(text, style="bold" if score.mark == "best" else "")


def _cost_table(table: ScoreTable, width: int) -> RichTable:
    devices = sorted({name for group in table.groups for name in group.devices})
    has_runs, several = width >= _RUNS_FROM, len(devices) > 1
    numbers = {name: f"[{number}]" for number, name in enumerate(devices, start=1)}
    caption = f"of one run, on average{'; runs by the end of their names' * has_runs}"
    legend = [f"{numbers[name]} {name}" if several else name for name in devices]
    heads: dict[str, Callable[[Group], str]] = {
        "images": lambda group: count(group.costs["images_seen"]),
        "FLOP": lambda group: count(group.costs["flops"]),
        "time": lambda group: time(group.costs["seconds"]),
        "MiB": lambda group: whole(group.costs["peak_memory_mib"]),
        "encoder": lambda group: count(group.costs["encoder_parameters"]),
    }
    if width >= _TRAINED_FROM:
        heads["trained"] = lambda group: count(group.costs["trained_parameters"])
    if several:
        heads["on"] = lambda group: "".join(numbers[name] for name in group.devices)
    if has_runs:
        heads["runs"] = lambda group: " ".join(run.rpartition("-")[2] for run in group.seeds)
    kinds = {head: "fold" if head == "runs" else "right" for head in heads}
    caption = plain("\n".join([caption, *legend]))
    shown = _new_table("cost of pre-training", caption, method="fold", **kinds)
    for group in _best_groups(table):
        if group.is_baseline:
            continue
        shown.add_row(_text(group.label), *(_text(show(group)) for show in heads.values()))
    return shown


def _pair_table(table: ScoreTable) -> RichTable:
    """All pairs; where they are many, those with the best mean of each column, which come first.

    What tested them stands below where it is the same for all. The method's name is left out where
    all groups share it.
    """
    pairs = [(pair, pair.a, pair.b, 1) for pair in table.pairs]
    title = "differences"
    if len(pairs) > _MOST_PAIRS:
        best = {
            column: max(means, key=lambda key: means[key])
            for column in table.headlines
            if (means := _means(table, column))
        }
        reversed_ = [(pair, pair.b, pair.a, -1) for pair in table.pairs]
        pairs = [each for each in [*pairs, *reversed_] if each[1] == best.get(each[0].column)]
        pairs.sort(key=lambda each: table.headlines.index(each[0].column))
        title = "differences to the best mean"
    tests = {pair.test for pair, *_ in pairs if pair.test != pair.verdict}
    shown = _new_table(
        title,
        "\n".join([*(tests if len(tests) == 1 else ()), marks.corrected(table)]),
        evaluation="fold", pair="fold", difference="right", p="right", verdict="fold",
    )  # fmt: skip
    names = {group.key: group.label for group in table.groups}
    if len({group.method for group in table.groups if not group.is_baseline}) == 1:
        shared = table.groups[0].method
        names = {key: name.removeprefix(shared).strip() or name for key, name in names.items()}
    for pair, first, second, sign in pairs:
        shown.add_row(
            _text(pair.column.title),
            _text(f"{names[first]} -\n{names[second]}"),
            _difference(pair, sign),
            "-" if pair.p_adjusted is None else share(pair.p_adjusted),
            _text(_verdict(pair, sign, has_test=len(tests) > 1)),
        )
    return shown


def _difference(pair: Pair, sign: int) -> str:
    unit, interval = pair.column.unit, pair.interval
    text = digits(sign * pair.difference.difference, unit, "+")
    if interval:
        low, high = sorted(sign * end for end in interval)
        text += f"\n{digits(low, unit, '+')} to {digits(high, unit, '+')}"
    return text


def _verdict(pair: Pair, sign: int, has_test: bool) -> str:
    verdict = marks.verdict(pair, sign)
    return f"{verdict}\n{pair.test}" if has_test and verdict != pair.test else verdict


def _text(text: str, style: str = "") -> Text:
    return Text(plain(text), style)
