"""What the report's figures are drawn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ssl_bench.analysis.comparison import Comparison, grouping
from ssl_bench.analysis.comparison.statistics import Mean, mean_interval
from ssl_bench.analysis.report.drawing import Look, shades
from ssl_bench.config.command_settings import VerdictSettings
from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.runs.index import Index
from ssl_bench.runs.schema import digest
from ssl_bench.utils import arrays
from ssl_bench.utils.files import leads_out
from ssl_bench.utils.formatting import plain

T = TypeVar("T")
_LONGEST = 60
UNKNOWN = "unknown"
"""The method of a run that does not name one."""
MEAN_OF = ["evaluated_on", "test_fingerprint", "test_images", "key", "column"]
_COLUMN = ["evaluated_on", "test_fingerprint", "test_images", "eval", "protocol"]


@dataclass(frozen=True)
class Source:
    """The index, its comparison, and the look of each method.

    Attributes:
        settings: how differences are judged.
        problems: what could not be read, one line each, as keys; figures add to it.
    """

    index: Index
    comparison: Comparison
    looks: Mapping[str, Look]
    problems: dict[str, None] = field(default_factory=dict)
    settings: VerdictSettings = field(default_factory=VerdictSettings)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The index's runs, each with the label of its group; a seed may be missing."""
        runs = self.index.runs.drop_duplicates("run")
        runs = runs.assign(
            method=runs["method"].fillna(UNKNOWN),
            seed=runs["seed"].astype("Int64"),
            key=runs["group"],
        )
        labels = {
            run: group.label
            for table in self.comparison.tables
            for group in table.groups
            for run in group.seeds
        }
        fallback = runs["method"].astype(str) + " [" + runs["group"].fillna("?").str[:8] + "]"
        names = [labels.get(run, other) for run, other in zip(runs["run"], fallback, strict=True)]
        return runs.assign(label=names)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score that is a number, with its group and the settings of its run."""
        scores = self.comparison.scores
        scores = scores.assign(
            seed=scores["seed"].astype(int),
            is_headline=scores["is_headline"].astype(bool),
        )
        return scores.dropna(subset=["value"])

    @cached_property
    def labels(self) -> dict[str, int]:
        """The groups' labels in the order of the tables, then the others; each with its index."""
        groups = (group.label for table in self.comparison.tables for group in table.groups)
        labels = dict.fromkeys([*groups, *self.runs["label"]])
        return {label: index for index, label in enumerate(labels)}

    @cached_property
    def finals(self) -> pd.DataFrame:
        """The scores of encoders whose training is over."""
        return self.scores[self.scores["step"].isna()]

    @cached_property
    def headlines(self) -> pd.DataFrame:
        """The first score of each evaluation of these encoders."""
        return self.finals[self.finals["is_headline"]]

    @cached_property
    def means(self) -> dict[tuple[Any, ...], Mean]:
        """Each mean with the interval that its table shows, by what `MEAN_OF` names of a score."""
        return {
            (*(getattr(table, name) for name in MEAN_OF[:3]), *place): cell.mean
            for table in self.comparison.tables
            for place, cell in table.cells.items()
        }

    def tried(self, read: Callable[[], T], nothing: T) -> T:
        """What the function reads; nothing, and a problem, where it cannot."""
        try:
            return read()
        except UserError as error:
            self.problem(str(error))
            return nothing

    def arrays(self, folder: str, names: Sequence[str]) -> dict[str, Any]:
        """An evaluation's arrays; nothing where one of them is missing or cannot be read."""
        return self.tried(partial(arrays.read, Path(folder) / schema.ARRAYS, names), {})

    def record(self, folder: str) -> dict[str, Any]:
        """An evaluation's record."""
        return self.tried(partial(schema.load_object, Path(folder) / schema.SCORES), {})

    def classes(self, folder: str) -> list[str]:
        """The names of an evaluation's classes."""
        names = self.record(folder).get("classes")
        return [plain(str(name)) for name in names] if isinstance(names, list) else []

    def file(self, run: pd.Series, name: str) -> Path | None:
        """The path of a run's file; None, and a problem, where it leads out by a link."""
        path = Path(run["folder"]) / name
        if not leads_out(path, run["folder"]):
            return path
        self.problem(
            f"run {run['run']!r}: {name} leads out of the run's folder by a link: not read"
        )
        return None

    def problem(self, line: str) -> None:
        """Note what could not be read, once."""
        self.problems[plain(line)] = None

    def with_arrays(self, names: Collection[str]) -> pd.DataFrame:
        """The rows of `finals` whose evaluations stored arrays of these names, one for each."""
        rows = self.finals.drop_duplicates("folder")
        has_all = [self._stored[folder].issuperset(names) for folder in rows["folder"]]
        return rows.loc[pd.Series(has_all, rows.index, bool)]

    @cached_property
    def images(self) -> dict[tuple[str, str], int]:
        """How many test images each evaluation and protocol takes; 0 for all.

        Evaluations on a part of them call its size ``sample`` or ``images``.
        """
        found = {}
        protocols = self.scores.drop_duplicates(["eval", "protocol"])
        for row in protocols[["eval", "protocol", "folder"]].itertuples(index=False):
            config = schema.mapping(self.record(row.folder).get("config"))
            wanted = config.get("sample", config.get("images"))
            count = wanted if isinstance(wanted, int) and wanted > 0 else 0
            found[str(row.eval), str(row.protocol)] = count
        return found

    @cached_property
    def _stored(self) -> dict[str, frozenset[str]]:
        """The names of the arrays in each evaluation's folder."""
        return {
            folder: self.tried(partial(arrays.names, Path(folder) / schema.ARRAYS), frozenset())
            for folder in self.finals["folder"].unique()
        }

    def evaluations(self, scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
        """Scores that may be compared, with the evaluation, its protocol and its data in words."""
        variants = {
            (column.evaluation, column.protocol): column.variant
            for table in self.comparison.tables
            for column in table.columns
        }
        versions = grouping.versions(self.finals)
        for (data, fingerprint, _, name, protocol), part in scores.groupby(_COLUMN, sort=False):
            title = f"{name} {variants.get((name, protocol), protocol)}".rstrip()
            yield f"{title} on {data}{versions.get(str(fingerprint), '')}", part

    def styled_groups(
        self, scores: pd.DataFrame
    ) -> Iterator[tuple[str, tuple[float, float, float], Look, pd.DataFrame]]:
        """Each group's label, color (a shade of its method's), look and scores."""
        for method, of_method in scores.groupby("method", sort=True):
            look, labels = self.looks[str(method)], self._labels_of[str(method)]
            colors = dict(zip(labels, shades(look.color, len(labels)), strict=True))
            for label, group in sorted(
                of_method.groupby("label"), key=lambda each: self.labels[str(each[0])]
            ):
                yield str(label), colors[str(label)], look, group

    @cached_property
    def _labels_of(self) -> dict[str, list[str]]:
        """The labels of a method's groups, so that each has one shade in every figure."""
        pairs = pd.concat([self.runs[["method", "label"]], self.scores[["method", "label"]]])
        return {
            str(method): sorted(peers["label"], key=lambda label: self.labels.get(label, 0))
            for method, peers in pairs.astype(str).drop_duplicates().groupby("method")
        }


def mean_curve(scores: pd.DataFrame, x: str) -> pd.DataFrame:
    """Mean and interval of ``value`` at each x: columns x, mean, low, high and n."""
    groups = [(at, mean_interval(part["value"])) for at, part in scores.groupby(x, sort=True)]
    rows = [(at, mean.mean, *mean.interval, mean.n) for at, mean in groups]
    return pd.DataFrame(rows, columns=[x, "mean", "low", "high", "n"])


def representatives(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of one group for each method: the first of those with most seeds."""
    seeds = scores.groupby(["method", "key"], sort=False)["seed"].nunique()
    chosen = {method: counts.idxmax()[1] for method, counts in seeds.groupby(level=0, sort=False)}
    return scores[scores["key"] == scores["method"].map(chosen)]


def slug(text: str) -> str:
    """The text as part of a file's name; a long one ends with its hash."""
    found = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return found if 0 < len(found) <= _LONGEST else f"{found[:_LONGEST]}-{digest(text)}"
