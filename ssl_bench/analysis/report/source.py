"""What the report's figures are drawn from."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssl_bench.analysis.comparison import Comparison, grouping
from ssl_bench.analysis.comparison.statistics import mean_interval
from ssl_bench.analysis.report.drawing import Look, shades
from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.runs.index import Index
from ssl_bench.runs.schema import digest
from ssl_bench.utils import arrays
from ssl_bench.utils.files import leads_out
from ssl_bench.utils.formatting import plain

_LONGEST = 60
UNKNOWN = "unknown"
"""The method of a run that does not say."""
_COLUMN = ["evaluated_on", "test_fingerprint", "test_images", "eval", "protocol"]


@dataclass(frozen=True)
class Source:
    """The index, how it is compared, and what every figure says alike.

    Attributes:
        looks: by method.
        problems: what could not be read, one line each, as keys; figures add to it.
    """

    index: Index
    comparison: Comparison
    looks: Mapping[str, Look]
    problems: dict[str, None] = field(default_factory=dict)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The index's runs by name, with a label each; a seed may be missing."""
        found = self.index.runs.drop_duplicates("run")
        found = found.assign(
            method=found["method"].fillna(UNKNOWN), seed=found["seed"].astype("Int64")
        )
        labels = {
            member.run: group.label
            for table in self.comparison.tables
            for group in table.groups
            for member in group.members
        }
        fallback = found["method"].astype(str) + " [" + found["group"].fillna("?").str[:8] + "]"
        names = [labels.get(run, other) for run, other in zip(found["run"], fallback, strict=True)]
        return found.assign(label=names, key=found["group"])

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score that is a number, with the row of the comparison that it belongs to."""
        found = self.index.runs.drop_duplicates("run")
        scores = grouping.rows(found, self.index.scores).rows
        scores = scores.assign(
            device=scores["run"].map(found.set_index("run")["device"]),
            seed=scores["seed"].astype(int),
        )
        return scores.dropna(subset=["value"])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The groups' labels in the order of the tables, numbers as numbers; then those left."""
        tables = self.comparison.tables
        own = (group.label for table in tables for group in table.groups)
        return tuple(dict.fromkeys([*own, *self.runs["label"]]))

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each of these labels."""
        return {label: place for place, label in enumerate(self.labels)}

    @cached_property
    def finals(self) -> pd.DataFrame:
        """The scores of encoders whose training is over."""
        return self.scores[self.scores["step"].isna()] if len(self.scores) else self.scores

    @cached_property
    def headlines(self) -> pd.DataFrame:
        """Of these, the first score of each evaluation."""
        finals = self.finals
        return finals[finals["is_headline"].astype(bool)] if len(finals) else finals

    def look(self, method: str) -> Look:
        """How the method is drawn."""
        return self.looks[method]

    def arrays(
        self, folder: str, names: Sequence[str], file: str = schema.ARRAYS
    ) -> dict[str, Any]:
        """An evaluation's arrays, or nothing where one of them is missing or cannot be read."""
        try:
            return arrays.read(Path(folder) / file, names)
        except UserError as error:
            self.problem(str(error))
            return {}

    def record(self, folder: str) -> dict[str, Any]:
        """An evaluation's record."""
        try:
            return schema.facts(Path(folder) / schema.SCORES)
        except UserError as error:
            self.problem(str(error))
            return {}

    def classes(self, folder: str) -> list[str]:
        """The names of an evaluation's classes."""
        names = self.record(folder).get("classes")
        return [plain(str(name)) for name in names] if isinstance(names, list) else []

    def file(self, run: pd.Series, name: str) -> Path | None:
        """A file of a run, there or not; None, and a problem, where it is one of elsewhere."""
        path = Path(run["folder"]) / name
        if not leads_out(path, run["folder"]):
            return path
        self.problem(
            f"run {run['run']!r}: {name} leads out of the run's folder by a link: not read"
        )
        return None

    def problem(self, line: str) -> None:
        """Remember what could not be read, once."""
        self.problems[plain(line)] = None

    def having(self, names: Collection[str]) -> pd.DataFrame:
        """Evaluations of finished encoders that stored arrays of these names, which are not read.

        Returns:
            A row of `finals` for each.
        """
        if self.finals.empty:
            return self.finals
        rows = self.finals.drop_duplicates("folder")
        return rows[[self._stored.get(f, frozenset()).issuperset(names) for f in rows["folder"]]]

    @cached_property
    def images(self) -> dict[tuple[str, str], int]:
        """How many test images each evaluation wants, by its name and protocol; 0 for all.

        Evaluations of a part of them call its size ``sample`` or ``images``.
        """
        found = {}
        if len(self.scores):
            ways = self.scores.drop_duplicates(["eval", "protocol"])
            for name, protocol, folder in ways[["eval", "protocol", "folder"]].itertuples(
                index=False
            ):
                config = schema.mapping(self.record(folder).get("config"))
                wanted = config.get("sample", config.get("images"))
                found[name, protocol] = wanted if isinstance(wanted, int) and wanted > 0 else 0
        return found

    @cached_property
    def _stored(self) -> dict[str, frozenset[str]]:
        """The names of the arrays that each evaluation of a finished encoder stored, by folder."""
        found = {}
        for folder in self.finals["folder"].unique():
            try:
                found[folder] = arrays.names(Path(folder) / schema.ARRAYS)
            except UserError as error:
                self.problem(str(error))
        return found


def columns(source: Source, scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Scores that may be compared, under the name of their evaluation.

    Where an evaluation was made in several ways, its name carries what tells them apart.
    """
    if scores.empty:
        return
    variants = {
        (column.evaluation, column.protocol): column.variant
        for table in source.comparison.tables
        for column in table.columns
    }
    prints = source.finals.groupby("evaluated_on")["test_fingerprint"].nunique()
    for (data, fingerprint, _, name, protocol), part in scores.groupby(_COLUMN, sort=False):
        version = f", version {fingerprint[:8]}" if prints.get(data, 1) > 1 else ""
        title = f"{name} {variants.get((name, protocol), protocol)}".rstrip()
        yield f"{title} on {data}{version}", part


def shades_of(
    source: Source, scores: pd.DataFrame
) -> Iterator[tuple[str, tuple[float, float, float], Look, pd.DataFrame]]:
    """Each group's label, color, look and scores; groups of a method are shades of its color."""
    for method, of_method in scores.groupby("method", sort=True):
        look = source.look(str(method))
        groups = sorted(of_method.groupby("label"), key=lambda g: source.places[str(g[0])])
        for (label, group), color in zip(groups, shades(look.color, len(groups)), strict=True):
            yield str(label), color, look, group


def settings(text: str) -> dict[str, Any]:
    """A run's settings, flat."""
    found = json.loads(text) if isinstance(text, str) and text else {}
    return found if isinstance(found, dict) else {}


def spread(values: pd.Series) -> tuple[float, float, float, int]:
    """Mean, and the ends of its 95 % interval over seeds (NaN for one value), and how many."""
    mean = mean_interval([float(value) for value in values])
    half = np.nan if mean.half_width is None else mean.half_width
    return mean.mean, mean.mean - half, mean.mean + half, mean.n


def representatives(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of one group for each method: the one with most seeds, then the first."""
    seeds = scores.groupby(["method", "key"], sort=False)["seed"].nunique()
    chosen = {method: counts.idxmax()[1] for method, counts in seeds.groupby(level=0, sort=False)}
    return scores[scores["key"] == scores["method"].map(chosen)]


def slug(text: str) -> str:
    """The text as a part of a file's name; a long one ends with its hash."""
    found = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return found if 0 < len(found) <= _LONGEST else f"{found[:_LONGEST]}-{digest(text)}"
