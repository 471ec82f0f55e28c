"""Figures of the training itself, and of what a method paints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from ssl_bench import plugins, pretrain, runs
from ssl_bench.data import Dataset, load
from ssl_bench.data.names import EMBEDDED, base
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError, first_line
from ssl_bench.figures import to_pixels
from ssl_bench.report.captions import trained
from ssl_bench.report.drawing import Drawing, Missing, legend, panels, shorten
from ssl_bench.report.source import Source, shades_of, slug

_POINTS = 300
_RATIOS = (0.5, 0.75, 0.9)
_IMAGES = 8


def curves(source: Source) -> Iterator[Drawing | Missing]:
    """The loss by epoch, one panel for each method: losses of two methods cannot be compared."""
    found = []
    for _, run in source.runs.iterrows():
        metrics = _metrics(source, run)
        if metrics is not None:
            found.append(metrics)
    if not found:
        yield Missing("Training curves", "no run has metrics", "ssl-bench run")
        return
    records = pd.concat(found)
    methods = sorted(records["method"].unique())
    figure, axes = panels(len(methods), 3, 2.9, 2.4)
    handles: dict[str, Any] = {}
    for axis, method in zip(axes, methods, strict=True):
        of_method = records[records["method"] == method]
        for label, color, _, group in shades_of(source, of_method):
            for _, run in group.groupby("run", sort=False):
                [handle] = axis.plot(run["epoch"], run["loss"], color=color, linewidth=1.1,
                                     alpha=0.85)  # fmt: skip
            handles[shorten(label, 44)] = handle
        axis.set(title=shorten(method), xlabel="epoch", ylabel="training loss")
    if len(handles) > len(methods):
        legend(figure, handles)
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
    """A run's records, some hundred of them, up to the last whole line."""
    path = Path(run["folder"]) / "metrics.jsonl"
    try:
        # Another process may be at its last line.
        whole = [
            line
            for line in path.read_text("utf-8").splitlines(keepends=True)
            if line.endswith("\n")
        ]
        records = pd.DataFrame([json.loads(line) for line in whole])
        if records.empty:
            return None
        kept = records.iloc[:: max(1, len(records) // _POINTS)]
        columns = [n for n in ("step", "epoch", "loss", "learning_rate") if n in kept]
        return kept[columns].astype(float).assign(
            run=run["run"], seed=run["seed"], method=run["method"], group=run["group"],
            label=run["label"],
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        source.problem(f"run {run['run']!r}: metrics.jsonl cannot be read: {first_line(error)}")
        return None


def reconstructions(source: Source) -> Iterator[Drawing | Missing]:
    """What each method that hides patches makes of test images at several ratios."""
    is_any = False
    complete = source.runs[source.runs["state"] == "trained"]
    for _, peers in complete.groupby("method", sort=True):
        for _, run in peers.sort_values(["group", "seed"]).iterrows():
            drawing = _painted(source, run) or _kept_picture(source, run)
            if drawing:
                is_any = True
                yield drawing
                break
    if not is_any:
        yield Missing(
            "Reconstructions",
            "no run has pictures of hidden patches",
            "ssl-bench run --method mae",
        )


def _painted(source: Source, run: pd.Series) -> Drawing | None:
    """Painted anew, where the run has its weights and its images are here."""
    folder = Path(run["folder"])
    if not all((folder / f"{n}.safetensors").exists() for n in ("encoder", "method")):
        return None
    try:
        plan = runs.plan_of(folder)
        config_class = plugins.find("method", plan["method"]).config
        if "mask_ratio" not in {field.name for field in dataclasses.fields(config_class)}:
            return None
        spec = EncoderSpec.of(plan["encoder"])
        data = _data_of(plan, spec)
        if data is None:
            return None
        module = plugins.find("method", plan["method"]).load()
        rows: dict[str, Any] = {}
        for ratio in _RATIOS:
            config = config_class(**{**plan["method_config"], "mask_ratio": ratio})
            method = pretrain.build_method(
                module.Pretraining, config, spec, len(data.classes), plan["seed"]
            )
            pretrain.restore(method, folder)
            pictures = pretrain.pictures(method, data, spec, plan["seed"], _IMAGES)
            for title, images in pictures.items():
                rows.setdefault(title if title == "original" else f"{title}\n{ratio:.0%}", images)
    except (UserError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        source.problem(f"run {run['run']!r}: no reconstruction: {first_line(error)}")
        return None
    return _picture_rows(source, run, rows, spec, data)


def _data_of(plan: dict[str, Any], spec: EncoderSpec) -> Dataset | None:
    """The run's data where they are at hand, and nothing has to be downloaded."""
    place = plan.get("data_source")
    if place and (base(place) == EMBEDDED or Path(base(place)).exists()):
        data = load(place, spec.image_size)
        return data if data.fingerprint == plan["data_fingerprint"] else None
    return None


def _picture_rows(
    source: Source, run: pd.Series, rows: dict[str, Any], spec: EncoderSpec, data: Dataset
) -> Drawing:
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(0.78 * count + 0.9, 0.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row_axes, (title, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row_axes, to_pixels(images, spec), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[], frame_on=False)
        row_axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7.5)
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
    """How far each picture is from the original, over the pixels that it shows, in [0, 1]."""
    original = to_pixels(rows["original"], spec) if "original" in rows else None
    for title, images in rows.items():
        pixels = to_pixels(images, spec)
        for number, image in enumerate(images):
            hidden = image.isnan().any(dim=0).cpu().numpy()
            shown = {"row": " ".join(title.split()), "image": number, "hidden": hidden.mean()}
            if original is not None and not hidden.all():
                shown["mse"] = float(((pixels[number] - original[number]) ** 2)[~hidden].mean())
            yield shown


def _kept_picture(source: Source, run: pd.Series) -> Drawing | None:
    """The picture that the run itself made when it was trained."""
    path = Path(run["folder"]) / "figures/pictures.png"
    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        source.problem(f"{str(path)!r} cannot be read: {first_line(error)}")
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
