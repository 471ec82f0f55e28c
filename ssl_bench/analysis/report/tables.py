"""The report's tables of scores, and of the tests between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ssl_bench.analysis import marks
from ssl_bench.analysis.comparison.pairs import LEVEL
from ssl_bench.analysis.report.captions import partial
from ssl_bench.analysis.report.source import Source, slug
from ssl_bench.utils.formatting import count, digits, share


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and what it is sorted by.

    Attributes:
        sort: a number or a text; None stands last in either direction.
        link: the name of an anchor on the page.
        mark: that of a score, or "bad" for what has failed.
        hint: more to know.
    """

    text: str
    sort: float | str | None = None
    link: str = ""
    mark: str = ""
    hint: str = ""

    @property
    def shown(self) -> str:
        """The text with its mark."""
        return self.text + marks.sign(self.mark)


@dataclass(frozen=True)
class Table:
    """Rows for people, and the same as numbers.

    Attributes:
        name: of its files, without an ending.
        columns: titles.
        numeric: places of the columns that hold numbers.
        notes: one line each.
        data: what the CSV file holds.
    """

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    numeric: frozenset[int]
    rows: tuple[tuple[Cell, ...], ...]
    data: pd.DataFrame
    notes: tuple[str, ...] = ()


def anchor(key: str) -> str:
    """The name on the page of a group's runs."""
    return f"runs-{slug(key)}"


_COSTS = (
    "runs", "images seen", "FLOPs", "device-seconds", "peak memory (MiB)", "encoder parameters",
    "trained parameters", "device",
)  # fmt: skip


def main_tables(source: Source) -> Iterator[Table]:
    """Headline scores and cost of each group, a table for each version of the data."""
    for table in source.comparison.tables:
        rows, data = _scores(table, table.headlines)
        for place, group in enumerate(table.groups):
            rows[place] += _cost(group, anchor(group.key))
        units = {column.unit for column in table.headlines}
        unit = f"Scores: {min(units)}. " if len(units) == 1 else ""
        columns = ("method", *(_head(c, len(units) > 1) for c in table.headlines), *_COSTS)
        legend = "; ".join(marks.legend(table))
        yield Table(
            name=_name("scores", table),
            title=table.title,
            caption=f"{unit}Mean ± half of the 95 % t interval over seeds, in brackets how many; "
            "of one run, or of equal scores, none is known. Cost is that of the pre-training, "
            f"the mean over seeds.{f' {legend}.' if legend else ''}",
            columns=columns,
            numeric=frozenset(range(1, len(columns) - 1)),
            rows=tuple(map(tuple, rows)),
            data=data,
            notes=(*_partial(source, table), *table.notes),
        )


def further_tables(source: Source) -> Iterator[tuple[str, Table]]:
    """All other scores, under the name of the table that they belong to."""
    for table in source.comparison.tables:
        others = [column for column in table.columns if not column.is_headline]
        if others:
            rows, data = _scores(table, others)
            yield (
                _name("scores", table),
                Table(
                    name=_name("further", table),
                    title=f"Further scores: {table.title}",
                    caption="Mean ± half of the 95 % t interval over seeds, in brackets how many. "
                    "These are not tested.",
                    columns=("method", *(column.title for column in others)),
                    numeric=frozenset(range(1, 1 + len(others))),
                    rows=tuple(map(tuple, rows)),
                    data=data,
                ),
            )


def pair_tables(source: Source) -> Iterator[Table]:
    """Every pair of groups that was tested, a table for each version of the data."""
    for table in source.comparison.tables:
        if not table.pairs:
            continue
        rows, data = [], []
        for pair in table.pairs:
            found, a, b = pair.difference, table.label(pair.a), table.label(pair.b)
            low, high = found.interval or (math.nan, math.nan)
            unit = "%" if found.test == "McNemar" else pair.column.unit
            between = f"{digits(low, unit, '+')} to {digits(high, unit, '+')}"
            verdict = "tie" if pair.p_adjusted is not None else "not tested"
            if pair.better:
                verdict = f"{table.label(pair.better)} is better"
                verdict += ", of these two runs" * pair.is_of_runs
            rows.append(
                (
                    Cell(pair.column.title, pair.column.title),
                    Cell(a, a, anchor(pair.a)),
                    Cell(b, b, anchor(pair.b)),
                    Cell(digits(found.difference, unit, "+"), known(found.difference)),
                    Cell(between if found.interval else "-", known(low)),
                    Cell(_p(found.p), found.p),
                    Cell(_p(pair.p_adjusted), pair.p_adjusted),
                    Cell(pair.how, pair.how),
                    Cell(verdict, verdict),
                )
            )
            data.append(
                {
                    "evaluation": pair.column.title,
                    "a": a,
                    "b": b,
                    "difference": found.difference,
                    "low": low,
                    "high": high,
                    "p": found.p,
                    "p_holm": pair.p_adjusted,
                    "test": found.test,
                    "n": found.n,
                    "verdict": verdict,
                }
            )
        yield Table(
            name=_name("pairs", table),
            title=f"Pairs: {table.title}",
            caption="Difference of a to b with its 95 % interval. Holm's correction is over all "
            f"tests of this table; below {LEVEL:g} a difference is called significant. "
            "McNemar's test speaks of that pair of runs only, not of other seeds.",
            columns=(
                "evaluation",
                "a",
                "b",
                "difference",
                "95 % interval",
                "p",
                "p (Holm)",
                "test",
                "verdict",
            ),
            numeric=frozenset({3, 4, 5, 6}),
            rows=tuple(rows),
            data=pd.DataFrame(data),
        )


def rows_of(table: Table) -> Iterable[tuple[str, ...]]:
    """The texts of a table, marks included."""
    for row in table.rows:
        yield tuple(cell.shown for cell in row)


def plain(value: Any, kind: str = "") -> Cell:
    """A count in three digits, or whole ("d"); a dash where it is missing."""
    number = known(value)
    if number is None:
        return Cell("-")
    return Cell(f"{number:.0f}" if kind == "d" else count(number), number)


def known(value: Any) -> float | None:
    """The number, or None where there is none."""
    number = pd.to_numeric(value, errors="coerce")
    return None if pd.isna(number) else float(number)


def _partial(source: Source, table: Any) -> list[str]:
    """Which columns are not of all the test images."""
    finals = source.finals
    is_own = (
        (finals["evaluated_on"] == table.evaluated_on)
        & (finals["test_fingerprint"] == table.test_fingerprint)
        & (finals["test_images"] == table.test_images)
    )
    parts = partial(source, finals[is_own])
    return [f"{name} is measured on {images} of the test images" for name, images in parts.items()]


def _name(kind: str, table: Any) -> str:
    """Of a table's files; versions of the data may differ in their number of test images alone."""
    return f"{kind}-{slug(table.evaluated_on)}-{table.test_fingerprint[:8]}-{table.test_images}"


def _scores(table: Any, columns: Sequence[Any]) -> tuple[list[list[Cell]], pd.DataFrame]:
    """A row for each group with its label and its scores, and the same as numbers."""
    rows, data = [], []
    for group in table.groups:
        link = anchor(group.key)
        row = [Cell(group.label, group.label, link)]
        for column in columns:
            cell = table.cells.get((group.key, column.key))
            row.append(_score(cell, column.unit, link))
            if cell:
                data.append(_numbers(table, group, column, cell))
        rows.append(row)
    return rows, pd.DataFrame(data)


def _head(column: Any, has_unit: bool) -> str:
    return f"{column.title}, {column.unit}" if column.unit and has_unit else column.title


def _score(cell: Any, unit: str, link: str) -> Cell:
    if cell is None or not cell.mean.n:
        return Cell("-" if cell is None else "NaN", None, link if cell else "")
    text = digits(cell.mean.mean, unit)
    if cell.mean.half_width is not None:
        text += f" ± {digits(cell.mean.half_width, unit)}"
    values = ", ".join(f"{run}: {digits(value, unit)}" for run, value in cell.values.items())
    return Cell(f"{text} ({cell.mean.n})", cell.mean.mean, link, cell.mark, values)


def _numbers(table: Any, group: Any, column: Any, cell: Any) -> dict[str, Any]:
    half = math.nan if cell.mean.half_width is None else cell.mean.half_width
    cost = {k: v for k, v in vars(group.cost).items() if k != "devices"}
    return {
        "evaluated_on": table.evaluated_on,
        "test_fingerprint": table.test_fingerprint,
        "test_images": table.test_images,
        "group": group.label,
        "method": group.method,
        "evaluation": column.evaluation,
        "protocol": column.protocol,
        "score": column.score,
        "unit": column.unit,
        "mean": cell.mean.mean,
        "low": cell.mean.mean - half,
        "high": cell.mean.mean + half,
        "n": cell.mean.n,
        "mark": cell.mark,
        "mark_meaning": marks.meaning(cell.mark),
        **cost,
        "devices": "; ".join(group.cost.devices),
        "runs": " ".join(member.run for member in group.members),
    }


def _cost(group: Any, link: str) -> list[Cell]:
    cost, seeds = group.cost, ", ".join(str(member.seed) for member in group.members)
    cells = [Cell(str(len(group.members)), len(group.members), link, hint=f"seeds {seeds}")]
    values = (
        cost.images_seen, cost.flops, cost.seconds, cost.peak_memory_mib,
        cost.encoder_parameters, cost.trained_parameters,
    )  # fmt: skip
    for value in values:
        cell = plain(value)
        cells.append(Cell(cell.text, cell.sort, link if cell.sort is not None else ""))
    devices = "; ".join(cost.devices)
    return [*cells, Cell(devices or "-", devices or None, link if devices else "")]


def _p(value: float | None) -> str:
    return "-" if value is None else share(value)
