"""What captions say alike: what was measured on what, which runs these are, what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ssl_bench.analysis.report.source import Source, settings
from ssl_bench.utils.formatting import count


def measured(source: Source, scores: pd.DataFrame, shown: int | None = None) -> str:
    """What was measured on what, for a caption.

    Args:
        shown: how many of the test images a figure is of. Default: those that each evaluation
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
        told = listed(f"{name} on {count}" for name, count in parts.items())
        images = f"{images} ({told} of them)"
    return f"{images}. {trained(source, scores)}"


def partial(source: Source, scores: pd.DataFrame) -> dict[str, str]:
    """On how many of the test images evaluations were made, where that is not all of them."""
    found: dict[str, set[int]] = {}
    is_whole = set()
    ways = scores.drop_duplicates(["eval", "protocol", "test_images"])
    for name, protocol, whole in ways[["eval", "protocol", "test_images"]].itertuples(index=False):
        wanted = source.images.get((name, protocol), 0)
        if not 0 < wanted < whole:
            is_whole.add(name)
        found.setdefault(name, set()).add(min(wanted or int(whole), int(whole)))
    return {
        str(name): listed(f"{number:,}" for number in sorted(numbers))
        for name, numbers in sorted(found.items())
        if name not in is_whole or len(numbers) > 1
    }


def trained(source: Source, rows: pd.DataFrame) -> str:
    """Which runs these are: seeds, encoder, data and cost of the pre-training."""
    runs = source.runs[source.runs["run"].isin(rows["run"].unique())]
    told = [settings(text) for text in runs["settings"]]
    encoders = listed(dict.fromkeys(map(encoder, told)))
    seeds = sorted(set(runs["seed"].dropna().astype(int)))
    data = listed(sorted(set(runs["pretrained_on"].dropna().astype(str))))
    parts = [
        f"{len(runs)} run{'s' * (len(runs) != 1)}",
        f"seed{'s' * (len(seeds) != 1)} {listed(seeds) or '-'}",
        f"encoder {encoders}" if encoders else "",
        f"pre-trained on {data}" if data else "",
        _range(runs["images_seen"], "images seen"),
        _range(runs["flops"], "FLOPs"),
        _range(runs["seconds"], "s"),
        f"on {listed(sorted(set(runs['device'].dropna())))}"
        if runs["device"].notna().any()
        else "",
    ]
    return ", ".join(part for part in parts if part) + "."


def encoder(told: Mapping[str, Any]) -> str:
    """The encoder of a run's settings; nothing where they do not tell."""
    if "backbone" not in told:
        return ""
    size, patch = told.get("image_size"), told.get("patch_size")
    patches = f", patches of {patch} px" if patch and not pd.isna(patch) else ""
    return f"{told['backbone']}" + (f" ({size} px{patches})" if size else "")


def _range(values: pd.Series, unit: str) -> str:
    known = pd.to_numeric(values, errors="coerce").dropna()
    if known.empty:
        return ""
    low, high = count(float(known.min())), count(float(known.max()))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def left_out(number: int, one: str, several: str) -> str:
    """A sentence for a caption on what did not fit; nothing where everything did.

    Args:
        one, several: what, and its verb: "run is", "runs are".
    """
    return f" {number} more {one if number == 1 else several} not shown." if number > 0 else ""


def listed(items: Iterable[Any]) -> str:
    """Words in a sentence: one, two and three."""
    found = [str(item) for item in items if str(item)]
    return (
        found[0]
        if len(found) == 1
        else ", ".join(found[:-1]) + " and " + found[-1]
        if found
        else ""
    )
