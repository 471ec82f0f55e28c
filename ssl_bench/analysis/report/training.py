"""Figures of the training, and of reconstructed images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from safetensors import safe_open

from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.captions import trained
from ssl_bench.analysis.report.drawing import Drawing, Missing, or_missing
from ssl_bench.analysis.report.source import Source, slug
from ssl_bench.api import registry
from ssl_bench.data import Dataset, load
from ssl_bench.data.names import EMBEDDED, base
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.experiment.figures import to_pixels
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import schema
from ssl_bench.training import setup
from ssl_bench.utils.files import Absent, Unreadable, load_bytes, parse_json, reading

_POINTS = 300
_RATIOS = (0.5, 0.75, 0.9)
_IMAGES = 8
_LARGEST_LOSS = 1e30
"""Larger ones are not drawn: they would leave no room for the others."""
_MOST_PIXELS = 2**25


@or_missing(Missing("Training curves", "no run has metrics", "ssl-bench run"))
def curves(source: Source) -> Iterator[Drawing]:
    """The loss by epoch, one panel for each method: their losses cannot be compared."""
    metrics = [_metrics(source, run) for _, run in source.runs.iterrows()]
    found = [each for each in metrics if each is not None]
    if not found:
        return
    records = pd.concat(found)
    methods = sorted(records["method"].unique())
    figure, axes = drawing.panels(len(methods), 3, 2.9, 2.4)
    handles: dict[str, Any] = {}
    for axis, method in zip(axes, methods, strict=True):
        of_method = records[records["method"] == method]
        for label, color, _, group in source.styled_groups(of_method):
            for _, run in group.groupby("run", sort=False):
                [handle] = axis.plot(run["epoch"], run["loss"], color=color, linewidth=1.1,
                                     alpha=0.85)  # fmt: skip
            handles[drawing.fold(label, 44)] = handle
        axis.set(title=drawing.shorten(method), xlabel="epoch", ylabel="training loss")
    if len(handles) > len(methods):
        drawing.legend(figure, handles)
    yield Drawing(
        "training",
        "Training",
        "Training curves",
        f"The loss that each method minimises, on a scale of its own; one line for each run. "
        f"{trained(source, records)}",
        f"Training loss by epoch of {records['run'].nunique()} runs.",
        records.drop(columns="group"),
        figure,
    )


def _metrics(source: Source, run: pd.Series) -> pd.DataFrame | None:
    """Some hundred of a run's records."""
    path = source.file(run, schema.METRICS)
    try:
        text = load_bytes(path) if path else b""
        # Another process may be writing the last line.
        whole = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
        kept = [parse_json(line) for line in whole[:: max(1, len(whole) // _POINTS)]]
        if not kept:
            return None
        columns = [n for n in ("step", "epoch", "loss", "learning_rate") if n in kept[0]]
        records = pd.DataFrame([[each[name] for name in columns] for each in kept], columns=columns)
        records = records.astype(float)
        about = run[["run", "seed", "method", "group", "label"]]
        return records.where(records.abs() < _LARGEST_LOSS).assign(**about)
    except Absent:
        return None
    except (ValueError, KeyError, TypeError) as error:
        source.problem(f"run {run['run']!r}: metrics.jsonl cannot be read: {first_line(error)}")
        return None


@or_missing(
    Missing(
        "Reconstructions", "no run has pictures of hidden patches", "ssl-bench run --method mae"
    )
)
def reconstructions(source: Source) -> Iterator[Drawing]:
    """Test images as each method that hides patches reconstructs them, at several ratios."""
    complete = source.runs[source.runs["state"] == "trained"]
    for _, peers in complete.groupby("method", sort=True):
        for _, run in peers.sort_values(["group", "seed"]).iterrows():
            drawn = _reconstructed(source, run) or _stored_picture(source, run)
            if drawn:
                yield drawn
                break


def _reconstructed(source: Source, run: pd.Series) -> Drawing | None:
    """Computed again, where the run has its weights and its images are in the package."""
    folder = Path(run["folder"])
    files = [source.file(run, f"{name}.safetensors") for name in ("encoder", "method")]
    if not all(path and path.is_file() for path in files):
        return None
    try:
        plan = schema.load_plan(folder)
        # A method in a file of the run's author is never executed.
        plugin = None if plan.get("method_source") else registry.installed("method", plan["method"])
        if not plugin or "mask_ratio" not in {f.name for f in dataclasses.fields(plugin.config)}:
            return None
        spec = EncoderSpec.of(plan["encoder"])
        _check_sizes(plan["method_config"], folder / schema.METHOD_WEIGHTS)
        # Only embedded data: no path that a run names is opened.
        name = plan.get("data_source")
        data = load(name, spec.image_size) if name and base(name) == EMBEDDED else None
        if data is None or data.fingerprint != plan["data_fingerprint"]:
            return None
        rows: dict[str, Any] = {}
        for ratio in _RATIOS:
            stored = plugin.config_of({**plan["method_config"], "mask_ratio": ratio})
            config = plugin.real_config(stored)
            method = setup.build_method(
                plugin.load_class(), config, spec, len(data.classes), plan["seed"]
            )
            setup.restore(method, folder)
            pictures = setup.pictures(method, data, spec, plan["seed"], _IMAGES)
            for title, images in pictures.items():
                rows.setdefault(title if title == "original" else f"{title}\n{ratio:.0%}", images)
    except (UserError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        source.problem(f"run {run['run']!r}: no reconstruction: {first_line(error)}")
        return None
    return _draw_rows(source, run, rows, spec, data)


def _check_sizes(config: Mapping[str, Any], weights: Path) -> None:
    """Refuse settings larger than the weights they would have made, before anything is built."""
    with safe_open(weights, "pt") as stored:
        names = list(stored.keys())
        sides = [side for name in names for side in stored.get_slice(name).get_shape()]
    largest = max(len(names), *sides)
    for name, value in config.items():
        is_size = isinstance(value, int) and not isinstance(value, bool)
        require(
            not is_size or value <= largest,
            f"{name.replace('_', ' ')} {value} is more than its weights have",
        )


def _draw_rows(
    source: Source, run: pd.Series, rows: dict[str, Any], spec: EncoderSpec, data: Dataset
) -> Drawing:
    count = len(next(iter(rows.values())))
    figure, axes = drawing.picture_grid([*rows], count, 0.9)
    for row_axes, images in zip(axes, rows.values(), strict=True):
        for axis, image in zip(row_axes, to_pixels(images, spec), strict=True):
            axis.imshow(image, interpolation="nearest")
    ratios = " and ".join([", ".join(f"{r:.0%}" for r in _RATIOS[:-1]), f"{_RATIOS[-1]:.0%}"])
    return Drawing(
        f"reconstructions-{slug(run['method'])}",
        "Reconstructions",
        f"What {run['method']} makes of hidden patches",
        f"The first test images of {count} classes of {data.name}, with {ratios} of the patches "
        f"hidden; each pair of rows shows what is left and what is painted. The numbers are "
        f"mean squared errors over the pixels shown, from 0 to 1. Run {run['run']}: "
        f"{trained(source, pd.DataFrame({'run': [run['run']]}))}",
        f"Rows of {count} images: the original, then masked and reconstructed at {ratios}.",
        pd.DataFrame(_errors(rows, spec)).assign(run=run["run"]),
        figure,
        is_picture=True,
    )


def _errors(rows: dict[str, Any], spec: EncoderSpec) -> Iterator[dict[str, Any]]:
    """The mean squared error of each picture over the pixels that it shows, in [0, 1]."""
    original = to_pixels(rows["original"], spec) if "original" in rows else None
    for title, images in rows.items():
        pixels = to_pixels(images, spec)
        for number, image in enumerate(images):
            hidden = image.isnan().any(dim=0).cpu().numpy()
            shown = {"row": " ".join(title.split()), "image": number, "hidden": hidden.mean()}
            if original is not None and not hidden.all():
                shown["mse"] = float(((pixels[number] - original[number]) ** 2)[~hidden].mean())
            yield shown


def _open_picture(path: Path) -> Image.Image | None:
    with suppress(Absent), reading(path):
        image = Image.open(io.BytesIO(load_bytes(path)), formats=("PNG",))
        width, height = image.size
        if width * height > _MOST_PIXELS or not 0.1 < width / height < 10:
            raise Unreadable(f"{width} x {height} pixels are no pictures of ours")
        return image.convert("RGB")
    return None


def _stored_picture(source: Source, run: pd.Series) -> Drawing | None:
    """The picture that the run itself made at the end of its training."""
    path = source.file(run, "figures/pictures.png")
    pixels = source.tried(lambda: _open_picture(path), None) if path else None
    if pixels is None:
        return None
    figure = Figure(figsize=(7, 7 * pixels.height / pixels.width))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(pixels)
    axis.set_axis_off()
    return Drawing(
        f"pictures-{slug(run['method'])}",
        "Reconstructions",
        f"What {run['method']} makes of test images",
        f"As the run drew them itself, since its weights or its images are not here. Run "
        f"{run['run']}: {trained(source, pd.DataFrame({'run': [run['run']]}))}",
        f"Pictures that run {run['run']} made of test images.",
        pd.DataFrame(),
        figure,
        is_picture=True,
    )
