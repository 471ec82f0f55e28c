"""Parts of captions: what was measured on what, which runs are shown, what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ssl_bench.analysis.comparison import grouping
from ssl_bench.analysis.report.source import Source
from ssl_bench.utils.formatting import count, listed, many


def measured(source: Source, scores: pd.DataFrame, shown: int | None = None) -> str:
    """What was measured on what, and by which runs.

    Args:
        shown: how many of the test images a figure shows. Default: those that each evaluation
            takes.
    """
    data = listed(sorted(set(scores["evaluated_on"].astype(str))))
    whole = sorted({int(n) for n in scores["test_images"].dropna()})
    images = f"{listed(f'{n:,}' for n in whole)} test images of {data}"
    parts = partial(source, scores) if shown is None else {}
    if shown is not None:
        images = f"{shown:,} of the {images}" if [shown] != whole else images
    elif len(parts) == 1 == scores["eval"].nunique():
        [part] = parts.values()
        images = f"{part} of the {images}"
    elif parts:
        each = listed(f"{name} on {count}" for name, count in parts.items())
        images = f"{images} ({each} of them)"
    return f"{images}. {trained(source, scores)}"


def partial(source: Source, scores: pd.DataFrame) -> dict[str, str]:
    """How many test images each evaluation takes that does not take all of them."""
    sizes: dict[str, set[int]] = {}
    names = ["eval", "protocol", "test_images"]
    for name, protocol, whole in scores.drop_duplicates(names)[names].itertuples(index=False):
        taken = min(source.images.get((name, protocol), 0) or int(whole), int(whole))
        sizes.setdefault(str(name), set()).update([taken] * (taken < whole))
    return {
        name: listed(f"{number:,}" for number in sorted(numbers))
        for name, numbers in sorted(sizes.items())
        if numbers
    }


def trained(source: Source, rows: pd.DataFrame) -> str:
    """The runs behind these rows: seeds, encoder, data and cost of the pre-training."""
    runs = source.runs[source.runs["run"].isin(rows["run"].unique())]
    encoders = listed(dict.fromkeys(encoder(grouping.parse(text)) for text in runs["settings"]))
    seeds = sorted(set(runs["seed"].dropna().astype(int)))
    data = listed(sorted(set(runs["pretrained_on"].dropna().astype(str))))
    devices = listed(sorted(set(runs["device"].dropna())))
    parts = [
        many(len(runs), "run"),
        f"seed{'s' * (len(seeds) != 1)} {listed(seeds) or '-'}",
        f"encoder {encoders}" if encoders else "",
        f"pre-trained on {data}" if data else "",
        _range(runs["images_seen"], "images seen"),
        _range(runs["flops"], "FLOPs"),
        _range(runs["seconds"], "s"),
        f"on {devices}" if devices else "",
    ]
    return ", ".join(filter(None, parts)) + "."


def encoder(settings: Mapping[str, Any]) -> str:
    """The encoder of a run; "" where its settings do not say."""
    if "backbone" not in settings:
        return ""
    size, patch = settings.get("image_size"), settings.get("patch_size")
    patches = f", patches of {patch} px" if patch and not pd.isna(patch) else ""
    return f"{settings['backbone']}" + (f" ({size} px{patches})" if size else "")


def _range(values: pd.Series, unit: str) -> str:
    known = pd.to_numeric(values, errors="coerce").dropna()
    if known.empty:
        return ""
    low, high = count(float(known.min())), count(float(known.max()))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def left_out(number: int, one: str, several: str) -> str:
    """A sentence on what did not fit ("run is", "runs are"); "" where everything did."""
    return f" {number} more {one if number == 1 else several} not shown." if number > 0 else ""
