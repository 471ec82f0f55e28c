"""Comparisons as tables, for a terminal and for a file."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from ssl_bench.analysis import marks
from ssl_bench.analysis.comparison import Cell, Comparison, Cost, Group
from ssl_bench.analysis.comparison import Table as Compared
from ssl_bench.analysis.comparison.grouping import Column
from ssl_bench.analysis.comparison.pairs import Pair
from ssl_bench.utils.formatting import count, digits, plain, share, time, whole

_MOST_PAIRS = 15
_MOST_ROWS = 50
_WRAP = 16
_BORDER = 3
_TRAINED_FROM = 80
"""Width of a terminal that has room for the number of trained parameters."""
_RUNS_FROM = 100
"""Width of a terminal that has room for the names of runs."""


def as_rich(comparison: Comparison, width: int) -> Iterator[Table]:
    """A comparison for a terminal of so many columns."""
    for table in filter(lambda table: table.groups, comparison.tables):
        yield from _scores(table, width)
        yield _costs(table, width)
        if table.pairs:
            yield _pairs(table)
    if comparison.pending:
        yield _pending(comparison)


def notes(comparison: Comparison) -> list[str]:
    """What to know: why tables and columns are apart, what is missing, what is wrong."""
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
    rows = []
    for table in comparison.tables:
        for group in table.groups:
            for column in table.columns:
                cell = table.cells.get((group.key, column.key))
                if cell:
                    rows.append(_flat(table, group, column, cell))
    return pd.DataFrame(rows)


def _flat(table: Compared, group: Group, column: Column, cell: Cell) -> dict[str, Any]:
    mean, cost = cell.mean, group.cost
    known = {member.run: member.seed for member in group.members if member.run in cell.values}
    return {
        "evaluated_on": table.evaluated_on,
        "test_fingerprint": table.test_fingerprint,
        "read": table.title,
        "method": group.method,
        "label": group.label,
        "evaluation": column.evaluation,
        "protocol": column.protocol,
        "variant": column.variant,
        "score": column.score,
        "unit": column.unit,
        "better": column.better,
        "n": mean.n,
        "mean": mean.mean,
        "half_width": mean.half_width,
        "mark": cell.mark,
        "mark_meaning": marks.meaning(cell.mark),
        "seeds": " ".join(map(str, known.values())),
        "runs": " ".join(known),
        **{name: value for name, value in vars(cost).items() if name != "devices"},
        "device": "; ".join(cost.devices),
    }


def _scores(table: Compared, width: int) -> Iterator[Table]:
    """The headline scores: those of one unit beside each other, the single ones after them."""
    units = Counter(column.unit for column in table.headlines)
    parts = [[c for c in table.headlines if c.unit == unit] for unit in units if units[unit] > 1]
    parts.append([column for column in table.headlines if units[column.unit] == 1])
    shown = [each for part in parts if part for each in _beside(table, part, width)]
    shown[-1].caption = _caption(table)
    yield from shown


def _beside(table: Compared, columns: Sequence[Column], width: int) -> Iterator[Table]:
    """Columns in as many tables as the width asks for."""
    groups, units = _rows(table), {column.unit for column in columns}
    texts = {column.key: [_cell(table, group, column) for group in groups] for column in columns}
    heads = {column.key: _head(column, with_unit=len(units) > 1) for column in columns}
    widths = [
        max(
            len(line)
            for text in (heads[c.key], *map(str, texts[c.key]))
            for line in text.split("\n")
        )
        + _BORDER
        for c in columns
    ]
    labels = min(max(len(group.label) for group in groups), 2 * _WRAP)
    room = width - labels - _BORDER - 1 - (len("runs") + _BORDER)
    what = f"{units.pop()}: " if len(units) == 1 else ""
    for number, part in enumerate(chunks := _chunks(columns, widths, room)):
        more = f" ({number + 1} of {len(chunks)})" if len(chunks) > 1 else ""
        shown = Table(title=plain(f"{what}{table.title}{more}"))
        shown.add_column("method", overflow="fold")
        shown.add_column("runs", justify="right", no_wrap=True)
        for column in part:
            shown.add_column(_text(heads[column.key]), justify="right", no_wrap=True)
        for row, group in enumerate(groups):
            cells = (texts[column.key][row] for column in part)
            shown.add_row(_text(group.label), str(len(group.members)), *cells)
        yield shown


def _rows(table: Compared) -> Sequence[Group]:
    """The groups to show: all, or as many as one reads, by the first column."""
    if len(table.groups) <= _MOST_ROWS:
        return table.groups
    first = table.headlines[0]
    sign = -1 if first.better == "lower" else 1
    means = {
        group.key: sign * cell.mean.mean
        for group in table.groups
        if (cell := table.cells.get((group.key, first.key))) and cell.mean.n
    }
    best = set(sorted(means, key=lambda key: -means[key])[:_MOST_ROWS])
    return [group for group in table.groups if group.key in best]


def _chunks(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[list[Column]]:
    """Columns that fit beside each other, at least one at a time."""
    chunks: list[list[Column]] = []
    left = 0
    for column, width in zip(columns, widths, strict=True):
        if not chunks or width > left:
            chunks.append([])
            left = room
        chunks[-1].append(column)
        left -= width
    return chunks


def _head(column: Column, with_unit: bool) -> str:
    """What stands above a column, in short lines."""
    lines = [column.evaluation, *textwrap.wrap(column.variant, _WRAP)]
    if with_unit:
        lines += textwrap.wrap(column.unit, _WRAP)
    if column.better == "lower":
        lines.append("lower is better")
    return "\n".join(lines)


def _cell(table: Compared, group: Group, column: Column) -> Text:
    cell = table.cells.get((group.key, column.key))
    if cell is None:
        return Text("-")
    mean = cell.mean
    if not mean.n:
        return Text("NaN")
    text = digits(mean.mean, column.unit)
    if mean.half_width is not None:
        text += f" ± {digits(mean.half_width, column.unit)}"
    if mean.n != len(group.members):
        text += f" (n={mean.n})"
    return _text(text + marks.sign(cell.mark), style="bold" if cell.mark == "best" else "")


def _caption(table: Compared) -> str:
    """What the signs in the scores mean, of those that are there."""
    has_intervals = any(cell.mean.half_width is not None for cell in table.cells.values())
    interval = ["mean ± half of its 95 % t interval over seeds"] * has_intervals
    return "\n".join([*interval, *marks.legend(table)])


def _costs(table: Compared, width: int) -> Table:
    devices = sorted({name for group in table.groups for name in group.cost.devices})
    has_runs = width >= _RUNS_FROM
    numbers = {name: f"[{number}]" for number, name in enumerate(devices, start=1)}
    caption = f"of one run, on average{'; runs by the end of their names' * has_runs}"
    several = len(devices) > 1
    told = [f"{numbers[name]} {name}" if several else name for name in devices]
    shown = Table(title="cost of pre-training", caption=plain("\n".join([caption, *told])))
    heads: dict[str, Callable[[Cost], str]] = {
        "images": lambda cost: count(cost.images_seen),
        "FLOP": lambda cost: count(cost.flops),
        "time": lambda cost: time(cost.seconds),
        "MiB": lambda cost: whole(cost.peak_memory_mib),
        "encoder": lambda cost: count(cost.encoder_parameters),
    }
    if width >= _TRAINED_FROM:
        heads["trained"] = lambda cost: count(cost.trained_parameters)
    if several:
        heads["on"] = lambda cost: "".join(numbers[name] for name in cost.devices)
    shown.add_column("method", overflow="fold")
    for head in heads:
        shown.add_column(head, justify="right", no_wrap=True)
    if has_runs:
        shown.add_column("runs", overflow="fold")
    for group in _rows(table):
        cells = [_text(cell(group.cost)) for cell in heads.values()]
        if has_runs:
            cells.append(Text(" ".join(m.run.rpartition("-")[2] for m in group.members)))
        shown.add_row(_text(group.label), *cells)
    return shown


def _pairs(table: Compared) -> Table:
    """All pairs, or those with the best mean of each column, which come first where they are many.

    The method's name is left out where all groups share it.
    """
    pairs = [(pair, pair.a, pair.b, 1) for pair in table.pairs]
    title = "differences"
    if len(pairs) > _MOST_PAIRS:
        tops = {column: _top(table, column) for column in table.headlines}
        turned = [(pair, pair.b, pair.a, -1) for pair in table.pairs]
        pairs = [each for each in [*pairs, *turned] if each[1] == tops[each[0].column]]
        pairs.sort(key=lambda each: table.headlines.index(each[0].column))
        title = "differences to the best mean"
    tested = sum(pair.p_adjusted is not None for pair in table.pairs)
    corrected = f"; p of Holm's correction for {tested} test{'s' * (tested > 1)}" * bool(tested)
    shown = Table(title=title, caption=f"difference and its own 95 % interval{corrected}")
    shown.add_column("evaluation", overflow="fold")
    shown.add_column("pair", overflow="fold")
    shown.add_column("difference", justify="right", no_wrap=True)
    shown.add_column("p", justify="right", no_wrap=True)
    shown.add_column("verdict", overflow="fold")
    names = {group.key: group.label for group in table.groups}
    if len({group.method for group in table.groups}) == 1:
        shared = table.groups[0].method
        names = {key: name.removeprefix(shared).strip() or name for key, name in names.items()}
    for pair, first, second, sign in pairs:
        shown.add_row(
            _text(pair.column.title),
            _text(f"{names[first]} -\n{names[second]}"),
            _difference(pair, sign),
            "-" if pair.p_adjusted is None else share(pair.p_adjusted),
            _text(_verdict(pair)),
        )
    return shown


def _top(table: Compared, column: Column) -> str | None:
    sign = -1 if column.better == "lower" else 1
    means = {
        key: sign * cell.mean.mean
        for (key, name), cell in table.cells.items()
        if name == column.key and cell.mean.n
    }
    return max(means, key=lambda key: means[key]) if means else None


def _difference(pair: Pair, sign: int) -> str:
    found, unit = pair.difference, pair.column.unit
    text = digits(sign * found.difference, unit, "+")
    if found.interval:
        low, high = sorted(sign * end for end in found.interval)
        text += f"\n{digits(low, unit, '+')} to {digits(high, unit, '+')}"
    return text


def _verdict(pair: Pair) -> str:
    if pair.p_adjusted is None:
        return "not tested"
    if pair.is_of_runs:
        return f"{'differs, these two runs' if pair.is_significant else 'tie'}\nMcNemar"
    return f"{'significant' if pair.is_significant else 'tie'}\n{pair.how}"


def _pending(comparison: Comparison) -> Table:
    shown = Table(title="runs to know of")
    shown.add_column("run", overflow="fold")
    shown.add_column("state", no_wrap=True)
    shown.add_column("why", overflow="fold")
    for run in comparison.pending:
        shown.add_row(_text(run.run), run.state, _text(run.why))
    return shown


def _text(text: str, style: str = "") -> Text:
    return Text(plain(text), style)
