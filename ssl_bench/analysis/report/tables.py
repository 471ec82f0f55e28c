"""The report's tables of scores, and of the tests between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ssl_bench.analysis import marks
from ssl_bench.analysis.comparison.grouping import Column
from ssl_bench.analysis.comparison.rows import Group, GroupScore
from ssl_bench.analysis.comparison.score_tables import ScoreTable
from ssl_bench.analysis.report.captions import partial
from ssl_bench.analysis.report.source import Source, slug
from ssl_bench.analysis.tables import flat_score, format_mean
from ssl_bench.utils.formatting import count, digits, share

_COSTS = (
    *("runs", "images seen", "FLOPs", "device-seconds", "peak memory (MiB)"),
    *("encoder parameters", "trained parameters", "settings chosen by", "device"),
)
_TABLE = ("evaluated_on", "test_fingerprint", "test_images")
_CSV = (
    *(*_TABLE, "group", "method", "evaluation"),
    *("protocol", "score", "unit", "mean", "low", "high", "n", "mark", "mark_meaning"),
    *("images_seen", "flops", "seconds", "peak_memory_mib", "encoder_parameters"),
    *("trained_parameters", "settings_chosen_by", "devices", "runs"),
)


@dataclass(frozen=True)
class Cell:
    """The text of a table's cell, and the number or text it is sorted by.

    Attributes:
        sort: None comes last in either direction.
        link: an anchor on the page.
        mark: that of a score, or "bad" for a failure.
        hint: further information.
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
    """Rows to read, and the numbers for a CSV file.

    Attributes:
        name: of its files, without an extension.
        numeric: indices of the columns that hold numbers.
    """

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    numeric: frozenset[int]
    rows: tuple[tuple[Cell, ...], ...]
    data: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """The cells' texts, marks included, under the titles of the columns."""
        return [self.columns, *(tuple(cell.shown for cell in row) for row in self.rows)]


def anchor(key: str) -> str:
    """The page's anchor for a group's runs."""
    return f"runs-{slug(key)}"


def text_cell(text: str, link: str = "") -> Cell:
    """A text; a dash where it is empty."""
    return Cell(text or "-", text or None, link if text else "")


def number_cell(value: Any, whole: bool = False, link: str = "") -> Cell:
    """A number of three digits, or a whole one; a dash where it is missing."""
    number = known(value)
    if number is None:
        return Cell("-")
    return Cell(f"{number:.0f}" if whole else count(number), number, link)


def known(value: Any) -> float | None:
    """The number, or None where there is none."""
    number = pd.to_numeric(value, errors="coerce")
    return None if pd.isna(number) else float(number)


def main_tables(source: Source) -> Iterator[Table]:
    """Headline scores and cost of each group, a table for each version of the data."""
    for table in source.comparison.tables:
        rows, data = _scores(table, table.headlines)
        for row, group in zip(rows, table.groups, strict=True):
            row += _costs(group)
        units = {column.unit for column in table.headlines}
        unit = f"Scores: {min(units)}. " if len(units) == 1 else ""
        heads = [
            f"{c.title}, {c.unit}" if c.unit and len(units) > 1 else c.title
            for c in table.headlines
        ]
        legend = "; ".join(marks.legend(table))
        finals = source.finals
        is_here = [finals[name] == getattr(table, name) for name in _TABLE]
        parts = [
            f"{name} is measured on {images} of the test images"
            for name, images in partial(source, finals[np.logical_and.reduce(is_here)]).items()
        ]
        yield Table(
            name=_name("scores", table),
            title=table.title,
            caption=f"{unit}Mean ± half of the 95 % t interval over {table.interval_over}, "
            "in brackets how many runs; "
            "of one run, or of equal scores, none is known. Cost is that of the pre-training, "
            f"the mean over seeds.{f' {legend}.' if legend else ''}",
            columns=("method", *heads, *_COSTS),
            numeric=frozenset(range(1, len(heads) + len(_COSTS) - 1)),
            rows=tuple(map(tuple, rows)),
            data=data,
            notes=(*parts, *table.notes),
        )


def further_tables(source: Source) -> Iterator[tuple[str, Table]]:
    """All other scores, with the name of the table that they belong to."""
    for table in source.comparison.tables:
        others = [column for column in table.columns if not column.is_headline]
        if others:
            rows, data = _scores(table, others)
            further = Table(
                name=_name("further", table),
                title=f"Further scores: {table.title}",
                caption="Mean ± half of the 95 % t interval over seeds, in brackets how many. "
                "These are not tested.",
                columns=("method", *(column.title for column in others)),
                numeric=frozenset(range(1, 1 + len(others))),
                rows=tuple(map(tuple, rows)),
                data=data,
            )
            yield _name("scores", table), further


def pair_tables(source: Source) -> Iterator[Table]:
    """Every pair of groups, a table for each version of the data."""
    for table in source.comparison.tables:
        if not table.pairs:
            continue
        rows, data = [], []
        for pair in table.pairs:
            found, a, b = pair.difference, table.label(pair.a), table.label(pair.b)
            low, high = pair.interval or (math.nan, math.nan)
            unit = "%" if found.test == "McNemar" else pair.column.unit
            interval = f"{digits(low, unit, '+')} to {digits(high, unit, '+')}"
            how = "better" if pair.is_fair else "ahead, settings not chosen alike"
            verdict = f"{table.label(pair.better)} is {how}" if pair.better else pair.verdict
            ps = [Cell("-" if p is None else share(p), p) for p in (found.p, pair.p_adjusted)]
            rows.append(
                (
                    text_cell(pair.column.title),
                    text_cell(a, anchor(pair.a)),
                    text_cell(b, anchor(pair.b)),
                    text_cell(verdict),
                    Cell(digits(found.difference, unit, "+"), known(found.difference)),
                    Cell(interval if pair.interval else "-", known(low)),
                    *ps,
                    text_cell(pair.test),
                )
            )
            data.append(
                {"evaluation": pair.column.title, "a": a, "b": b, "difference": found.difference,
                 "low": low, "high": high, "level": pair.level, "p": found.p,
                 "p_adjusted": pair.p_adjusted, "test": found.test, "n": found.n,
                 "verdict": verdict}
            )  # fmt: skip
        yield Table(
            name=_name("pairs", table),
            title=f"Pairs: {table.title}",
            caption=f"a less b: {marks.corrected(table)}.",
            columns=(
                *("evaluation", "a", "b", "verdict", "difference", "interval"),
                *("p", "p (corrected)", "test"),
            ),
            numeric=frozenset({4, 5, 6, 7}),
            rows=tuple(rows),
            data=pd.DataFrame(data),
        )


def _name(kind: str, table: ScoreTable) -> str:
    """The name of a table's files; versions may differ only in their number of test images."""
    return f"{kind}-{slug(table.evaluated_on)}-{table.test_fingerprint[:8]}-{table.test_images}"


def _scores(table: ScoreTable, columns: Sequence[Column]) -> tuple[list[list[Cell]], pd.DataFrame]:
    """A row for each group, with its label and its scores, and the numbers for a CSV file."""
    rows, data = [], []
    for group in table.groups:
        link = "" if group.is_baseline else anchor(group.key)
        row = [text_cell(group.label, link)]
        for column in columns:
            score = table.cells.get((group.key, column.key))
            row.append(_score(score, column.unit, link))
            if score:
                data.append(_csv_row(table, group, column, score))
        rows.append(row)
    return rows, pd.DataFrame(data)


def _score(score: GroupScore | None, unit: str, link: str) -> Cell:
    if score is None or not score.mean.n:
        return Cell("-" if score is None else "NaN", None, link if score else "")
    text = f"{format_mean(score.mean, unit)} ({score.mean.n})"
    values = ", ".join(f"{run}: {digits(value, unit)}" for run, value in score.values.items())
    return Cell(text, score.mean.mean, link, score.mark, values)


def _csv_row(table: ScoreTable, group: Group, column: Column, score: GroupScore) -> dict[str, Any]:
    flat = {**flat_score(group, column, score), **vars(table), "runs": " ".join(group.seeds)}
    flat |= {"group": flat["label"], "devices": flat["device"]}
    flat["low"], flat["high"] = score.mean.interval
    return {name: flat[name] for name in _CSV}


def _costs(group: Group) -> list[Cell]:
    if group.is_baseline:
        return [Cell("-")] * len(_COSTS)
    link, seeds = anchor(group.key), ", ".join(map(str, group.seeds.values()))
    return [
        Cell(str(len(group.seeds)), len(group.seeds), link, hint=f"seeds {seeds}"),
        *(number_cell(cost, link=link) for cost in group.costs.values()),
        text_cell(group.chosen_by, link),
        text_cell("; ".join(group.devices), link),
    ]
