"""What the report's figures are drawn from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssl_bench import arrays, grouping
from ssl_bench.comparison import Comparison
from ssl_bench.errors import UserError, first_line
from ssl_bench.files import read_json
from ssl_bench.index import Index
from ssl_bench.report.drawing import Look, shades
from ssl_bench.runs import digest
from ssl_bench.statistics import mean_interval
from ssl_bench.units import count

_LONGEST = 60
UNKNOWN = "unknown"
"""The method of a run that does not say."""
_COLUMN = ["evaluated_on", "test_fingerprint", "test_images", "eval", "protocol"]


@dataclass(frozen=True)
class Source:
    """The index, how it is compared, and what every figure says alike.

    Attributes:
        looks: by method.
        problems: what could not be read, one line each; figures add to it.
    """

    index: Index
    comparison: Comparison
    looks: Mapping[str, Look]
    problems: list[str] = field(default_factory=list)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The index's runs by name, with a label each."""
        runs = self.index.runs.drop_duplicates("run")
        runs = runs.assign(method=runs["method"].fillna(UNKNOWN), seed=runs["seed"].fillna(-1))
        labels = {
            member.run: group.label
            for table in self.comparison.tables
            for group in table.groups
            for member in group.members
        }
        fallback = runs["method"].astype(str) + " [" + runs["group"].fillna("?").str[:8] + "]"
        names = [labels.get(run, other) for run, other in zip(runs["run"], fallback, strict=True)]
        return runs.assign(label=names, key=runs["group"])

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score that is a number, with the row of the comparison that it belongs to."""
        runs = self.index.runs.drop_duplicates("run")
        scores = grouping.rows(runs, self.index.scores).rows
        scores = scores.assign(device=scores["run"].map(runs.set_index("run")["device"]))
        return scores.dropna(subset=["value"])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The groups' labels in the order of the tables, numbers as numbers; then those left."""
        tables = self.comparison.tables
        own = (group.label for table in tables for group in table.groups)
        return tuple(dict.fromkeys([*own, *self.runs["label"]]))

    @property
    def finals(self) -> pd.DataFrame:
        """The scores of encoders whose training is over."""
        return self.scores[self.scores["step"].isna()] if len(self.scores) else self.scores

    @property
    def headlines(self) -> pd.DataFrame:
        """Of these, the first score of each evaluation."""
        finals = self.finals
        return finals[finals["is_headline"].astype(bool)] if len(finals) else finals

    def look(self, method: str) -> Look:
        """How the method is drawn."""
        return self.looks[method]

    def arrays(self, folder: str, names: Sequence[str], file: str = "arrays.npz") -> dict[str, Any]:
        """An evaluation's arrays, or nothing where one of them is missing or cannot be read."""
        try:
            return arrays.read(Path(folder) / file, names)
        except UserError as error:
            self.problem(str(error))
            return {}

    def record(self, folder: str) -> dict[str, Any]:
        """An evaluation's record."""
        try:
            return read_json(Path(folder) / "scores.json")
        except (OSError, ValueError) as error:
            self.problem(f"{folder!r} cannot be read: {first_line(error)}")
            return {}

    def problem(self, line: str) -> None:
        """Remember what could not be read, once."""
        if line not in self.problems:
            self.problems.append(line)

    def with_arrays(self, names: Sequence[str]) -> Iterator[tuple[pd.Series, dict[str, Any]]]:
        """Each evaluation of a finished encoder that stored arrays of these names."""
        if self.finals.empty:
            return
        for _, row in self.finals.drop_duplicates("folder").iterrows():
            found = self.arrays(row["folder"], names)
            if found:
                yield row, found


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
        groups = sorted(of_method.groupby("label"), key=lambda g: source.labels.index(str(g[0])))
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


def measured(source: Source, scores: pd.DataFrame) -> str:
    """What was measured on what, in one sentence for a caption."""
    images = _listed(f"{int(n):,}" for n in sorted(scores["test_images"].dropna().unique()))
    data = _listed(sorted(set(scores["evaluated_on"].astype(str))))
    return f"{images} test images of {data}. {trained(source, scores)}"


def trained(source: Source, rows: pd.DataFrame) -> str:
    """Which runs these are: seeds, encoder, data and cost of the pre-training."""
    runs = source.runs[source.runs["run"].isin(rows["run"].unique())]
    told = [settings(text) for text in runs["settings"]]
    encoders = _listed(dict.fromkeys(map(_encoder, told)))
    seeds = sorted(set(runs["seed"].dropna().astype(int)))
    data = _listed(sorted(set(runs["pretrained_on"].dropna().astype(str))))
    parts = [
        f"{len(runs)} run{'s' * (len(runs) != 1)}, seed{'s' * (len(seeds) != 1)} {_listed(seeds)}",
        f"encoder {encoders}" if encoders else "",
        f"pre-trained on {data}" if data else "",
        _range(runs["images_seen"], "images seen"),
        _range(runs["flops"], "FLOPs"),
        _range(runs["seconds"], "s"),
        f"on {_listed(sorted(set(runs['device'].dropna())))}"
        if runs["device"].notna().any()
        else "",
    ]
    return ", ".join(part for part in parts if part) + "."


def _encoder(told: Mapping[str, Any]) -> str:
    if "backbone" not in told:
        return ""
    size, patch = told.get("image_size"), told.get("patch_size")
    return f"{told['backbone']}" + (f" ({size} px, patches of {patch} px)" if size else "")


def _range(values: pd.Series, unit: str) -> str:
    known = pd.to_numeric(values, errors="coerce").dropna()
    if known.empty:
        return ""
    low, high = count(float(known.min())), count(float(known.max()))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def slug(text: str) -> str:
    """The text as a part of a file's name; a long one ends with its hash."""
    found = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return found if 0 < len(found) <= _LONGEST else f"{found[:_LONGEST]}-{digest(text)}"


def _listed(items: Any) -> str:
    found = [str(item) for item in items if str(item)]
    return (
        found[0]
        if len(found) == 1
        else ", ".join(found[:-1]) + " and " + found[-1]
        if found
        else ""
    )
