"""Figures of representations: attention maps, embeddings, similarity."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.captions import left_out, measured
from ssl_bench.analysis.report.drawing import Drawing, missing, or_missing
from ssl_bench.analysis.report.source import Source, representatives, slug
from ssl_bench.evaluation.metrics import linear_cka
from ssl_bench.runs import schema

_BLOCK = re.compile(r"block_[0-9]{1,4}")
_IMAGES = 8
_GROUPS = 6
_RUNS = 24
_NAMED_CLASSES = 20
_POINTS = 4000
_SAME_LENGTH = (
    ("images", "attention", "rollout"),
    ("images", "masks", "predictions"),
    ("points", "labels", "index"),
)
"""Arrays that have a row for each image."""
_LARGEST_SIDE = {
    **{"images": 2048, "masks": 2048, "predictions": 2048},
    **{"attention": 256, "rollout": 256},
}
"""Pixels or patches, of arrays that are drawn as pictures."""
_MOST_CLASSES, _MOST_BLOCKS, _WIDEST_BLOCK, _MOST_ROWS = 5000, 128, 8192, 100_000
"""No encoder has larger ones."""
_CKA = (
    "Linear CKA of features of {} 1 means the same up to rotation and scale, 0 that nothing is "
    "shared."
)
Stored = list[tuple[pd.Series, dict[str, Any]]]
"""Runs, each with its arrays."""


@or_missing(missing("Attention maps", "attention"))
def attention(source: Source) -> Iterator[Drawing]:
    """Attention of the class token or the mean patch, one row for each method."""
    names = ("images", "attention")
    for number, (title, found) in enumerate(_comparable(source, names)):
        images = found[0][1]["images"][:_IMAGES]
        alike = [(row, a) for row, a in found if np.array_equal(a["images"][:_IMAGES], images)]
        alike = alike[:_GROUPS]
        cut = left_out(len(found) - len(alike), "method is", "methods are")
        kinds = [name for name in ("attention", "rollout") if all(name in a for _, a in alike)]
        found_maps = [(row, kind, a[kind][:_IMAGES]) for row, a in alike for kind in kinds]
        # The mean over heads, where there are any.
        maps = [(row, k, m.mean(axis=1) if m.ndim == 4 else m) for row, k, m in found_maps]
        pixels = images.transpose(0, 2, 3, 1)
        pixels = np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels
        labels = [f"{drawing.fold(row['label'], 26)}\n{kind}" for row, kind, _ in maps]
        figure, axes = drawing.picture_grid(["image", *labels], len(images), 1.5)
        for axis, image in zip(axes[0], pixels, strict=True):
            axis.imshow(image)
        for row_axes, (_, _, heat_NRC) in zip(axes[1:], maps, strict=True):
            for axis, image, heat in zip(row_axes, pixels, heat_NRC, strict=True):
                extent = axis.imshow(image, alpha=0.35).get_extent()
                axis.imshow(heat, cmap="magma", alpha=0.75, interpolation="nearest", extent=extent)
        rows = pd.DataFrame([row for row, _ in alike])
        yield Drawing(
            f"attention-{slug(title)}-{number}",
            "Attention",
            f"Attention maps: {title}",
            f'{measured(source, rows, len(images))} "attention" is the last block\'s, the mean '
            'over its heads; "rollout" multiplies the attention of all blocks. Each map is scaled '
            f"to its own range: bright is high.{cut}",
            f"Attention maps of {len(alike)} encoders for {len(images)} images.",
            pd.DataFrame(
                [
                    (row["run"], kind, image, y, x, value)
                    for row, kind, heat_NRC in maps
                    for image, heat in enumerate(heat_NRC)
                    for (y, x), value in np.ndenumerate(heat)
                ],
                columns=["run", "kind", "image", "row", "column", "attention"],
            ),
            figure,
            is_picture=True,
        )


@or_missing(missing("Segmentation", "segmentation"))
def segmentations(source: Source) -> Iterator[Drawing]:
    """Test images, their masks, and what each method predicts, one row for each."""
    names = ("images", "masks", "predictions")
    for number, (title, found) in enumerate(_comparable(source, names)):
        first = found[0][1]
        images, true = first["images"][:_IMAGES], first["masks"][:_IMAGES]
        alike = [(row, a) for row, a in found if np.array_equal(a["masks"][:_IMAGES], true)]
        alike = alike[:_GROUPS]
        cut = left_out(len(found) - len(alike), "method is", "methods are")
        classes = source.classes(found[0][0]["folder"])
        labels = [drawing.shorten(row["label"], 26) for row, _ in alike]
        rows = ["image", "mask", *labels]
        figure, axes = drawing.picture_grid(rows, len(images), 1.5)
        for axis, image in zip(axes[0], images.transpose(0, 2, 3, 1), strict=True):
            axis.imshow(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
        drawn = [true, *(a["predictions"][:_IMAGES] for _, a in alike)]
        palette = np.array(sns.color_palette("husl", max(1, len(classes) - 1)))
        colors = np.ones((256, 3))  # white where nothing counts
        colors[: len(palette) + 1] = [(0, 0, 0), *palette]
        for row_axes, masks in zip(axes[1:], drawn, strict=True):
            for axis, mask in zip(row_axes, masks, strict=True):
                axis.imshow(colors[mask], interpolation="nearest")
        seen = sorted({int(each) for masks in drawn for each in np.unique(masks)} - {255})
        if len(seen) <= _NAMED_CLASSES:
            drawing.legend(
                figure,
                {
                    drawing.shorten(classes[each] if each < len(classes) else str(each), 20): Patch(
                        facecolor=colors[each]
                    )
                    for each in seen
                },
            )
        frame = pd.DataFrame([row for row, _ in alike])
        yield Drawing(
            f"segmentation-{slug(title)}-{number}",
            "Segmentation",
            f"Predictions beside masks: {title}",
            f"{measured(source, frame, len(images))} Black is class 0; white does not "
            f"count.{cut}",
            f"Masks of {len(images)} images, and those that {len(alike)} encoders lead to.",
            pd.DataFrame(
                [
                    (row["run"], image, classes[k] if k < len(classes) else k, (p == k).sum(),
                     (t == k).sum(), ((p == k) & (t == k)).sum())
                    for row, a in alike
                    for image, (p, t) in enumerate(
                        zip(a["predictions"][:_IMAGES], true, strict=True)
                    )
                    for k in np.union1d(p, t).tolist()
                    if k != 255
                ],
                columns=["run", "image", "class", "predicted", "true", "both"],
            ),
            figure,
            is_picture=True,
        )  # fmt: skip


@or_missing(missing("2-D embeddings", "embedding"))
def embeddings(source: Source) -> Iterator[Drawing]:
    """Test features in two dimensions, colored by class, one panel for each method."""
    for title, found in _comparable(source, ("points", "labels")):
        cut = left_out(len(found) - _GROUPS, "method is", "methods are")
        found = found[:_GROUPS]
        figure, axes = drawing.panels(len(found), 3, 3.0, 3.1)
        classes = sorted({int(label) for _, a in found for label in np.unique(a["labels"])})
        folder = found[0][0]["folder"]
        record, names = source.record(folder), source.classes(folder)
        is_few = len(classes) <= 10
        palette = sns.color_palette("tab10" if is_few else sns.husl_palette(len(classes), l=0.6))
        colors = dict(zip(classes, palette, strict=False))
        handles: dict[str, Any] = {}
        frames = []
        for axis, (row, arrays) in zip(axes, found, strict=True):
            points, labels = arrays["points"], arrays["labels"]
            for label in classes:
                of_class = points[labels == label][: _POINTS // max(len(classes), 1)]
                dots = axis.scatter(
                    of_class[:, 0], of_class[:, 1], s=3, linewidths=0, color=colors[label],
                    alpha=0.7, rasterized=True,
                )  # fmt: skip
                name = names[label] if label < len(names) else str(label)
                handles[drawing.shorten(name, 20)] = dots
            axis.set(title=drawing.fold(row["label"], 32), xticks=[], yticks=[])
            axis.set_aspect("equal", adjustable="datalim")
            axis.grid(visible=False)
            index = {"index": arrays["index"]} if "index" in arrays else {}
            frame = {"x": points[:, 0], "y": points[:, 1], "label": labels, **index}
            frames.append(pd.DataFrame({"run": row["run"], **frame}))
        if len(classes) <= _NAMED_CLASSES:
            drawing.legend(figure, handles)
            for handle in figure.legends[0].legend_handles:
                handle.set_sizes([22])  # type: ignore[union-attr]
                handle.set_alpha(1)  # type: ignore[union-attr]
        rows = pd.DataFrame([row for row, _ in found])
        chosen = ", ".join(f"{k} {v}" for k, v in schema.mapping(record.get("chosen")).items())
        yield Drawing(
            f"embedding-{slug(title)}",
            "Embeddings",
            f"2-D embeddings of test features: {title}",
            f"{measured(source, rows, len(found[0][1]['points']))} One dot for each image, "
            f"colored by its class{f' ({chosen})' if chosen else ''}. Neighbourhoods mean "
            f"something; distances between clusters and their sizes do not.{cut}",
            f"Scatter plots of test images by {len(found)} encoders.",
            pd.concat(frames),
            figure,
        )


@or_missing(missing("CKA between runs", "cka"))
def similarities(source: Source) -> Iterator[Drawing]:
    """Linear CKA of the runs' last blocks, and of all blocks of two methods."""
    for title, scores in source.evaluations(source.with_arrays(("block_0", "index"))):
        scores = scores.sort_values(["method", "label", "seed"])
        found, last = _last_blocks(source, scores)
        if not found:
            continue
        if len(found) > 1:
            names = [f"{drawing.shorten(row['label'], 30)}, seed {row['seed']}" for row in found]
            cut = left_out(len(scores) - len(found), "run is", "runs are")
            caption = _CKA.format(measured(source, pd.DataFrame(found), len(last[0]))) + cut
            yield _draw_cka(
                f"cka-{slug(title)}", f"CKA of the last block: {title}", caption,
                last, last, names, names,
            )  # fmt: skip
        chosen = {row["method"]: row for row in reversed(found)}
        pairs = list(combinations(sorted(chosen), 2)) or [(m, m) for m in chosen]
        cut = left_out(len(pairs) - _GROUPS, "pair of methods is", "pairs of methods are")
        for first, second in pairs[:_GROUPS]:
            rows = [chosen[first], chosen[second]]
            blocks, others = (_blocks(_features(source, row)) for row in rows)
            caption = _CKA.format(measured(source, pd.DataFrame(rows), len(last[0]))) + cut
            yield _draw_cka(
                f"cka-layers-{slug(first)}-{slug(second)}-{slug(title)}",
                f"CKA by block: {first} and {second}", caption, blocks, others,
                [*map(str, range(len(blocks)))], [*map(str, range(len(others)))],
                *(f"block of {row['run']}" for row in rows),
            )  # fmt: skip


def _last_blocks(source: Source, rows: pd.DataFrame) -> tuple[list[pd.Series], list[torch.Tensor]]:
    """The first runs with features of the same images, and the features of their last blocks."""
    stored = ((row, _features(source, row)) for _, row in rows.iterrows())
    known = ((row, arrays) for row, arrays in stored if arrays)
    found: list[tuple[pd.Series, torch.Tensor]] = []
    index = None
    for row, arrays in known:
        index = arrays["index"] if index is None else index
        if np.array_equal(arrays["index"], index):
            found.append((row, _blocks(arrays)[-1]))
        if len(found) == _RUNS:
            break
    return [row for row, _ in found], [features for _, features in found]


def _features(source: Source, row: pd.Series) -> dict[str, Any]:
    arrays = source.arrays(row["folder"], ("block_0", "index"))
    return arrays if arrays and _is_drawable(source, row["folder"], arrays) else {}


def _comparable(source: Source, names: Sequence[str]) -> Iterator[tuple[str, Stored]]:
    """For each evaluation one run of each method: of its main group, the first seed."""
    for title, scores in source.evaluations(source.with_arrays(names)):
        found = []
        for _, of_method in representatives(scores).groupby("method", sort=True):
            for _, row in of_method.sort_values("seed").iterrows():
                arrays = source.arrays(row["folder"], names)
                if arrays and _is_drawable(source, row["folder"], arrays):
                    found.append((row, arrays))
                    break
        if found:
            yield title, found


def _is_drawable(source: Source, folder: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays have the shapes that their names imply; a problem where they have not."""
    shapes = {name: array.shape for name, array in arrays.items()}
    wrong = [
        name
        for name, side in _LARGEST_SIDE.items()
        if len(shape := shapes.get(name, (1, 1, 1))) not in (3, 4)
        or not 0 < min(shape) <= max(shape[-2:]) <= side
    ]
    for names in _SAME_LENGTH:
        if len({shapes[name][:1] for name in names if name in shapes}) > 1:
            wrong.append(" and ".join(names))
    if "masks" in arrays:
        wrong += [
            name
            for name in ("masks", "predictions")
            if arrays[name].dtype != np.uint8 or shapes[name] != shapes["masks"]
        ]
    if "points" in arrays:
        if shapes["points"][1:] != (2,) or shapes["points"][0] > _MOST_ROWS:
            wrong.append("points")
        labels = arrays["labels"]
        is_labels = labels.dtype.kind in "iu" and labels.ndim == 1
        if not is_labels or len(np.unique(labels)) > _MOST_CLASSES:
            wrong.append("labels")
    if "block_0" in arrays:
        blocks = [shape for name, shape in shapes.items() if _BLOCK.fullmatch(name)]
        rows, width = blocks[0] if len(blocks[0]) == 2 else (0, 0)
        is_alike = {*blocks} == {(rows, width)} and shapes["index"] == (rows,)
        is_small = rows <= _MOST_ROWS and width <= _WIDEST_BLOCK and len(blocks) <= _MOST_BLOCKS
        if not (is_alike and is_small and rows * width):
            wrong.append("blocks")
    if wrong:
        source.problem(f"{folder!r}: its {', '.join(wrong)} cannot be drawn")
    return not wrong


def _blocks(arrays: dict[str, Any]) -> list[torch.Tensor]:
    names = sorted(filter(_BLOCK.fullmatch, arrays), key=lambda n: int(n[6:]))
    return [torch.from_numpy(arrays[name].astype(np.float32)) for name in names]


def _draw_cka(
    name: str, title: str, caption: str, first: list[torch.Tensor], second: list[torch.Tensor],
    rows: list[str], columns: list[str], y: str = "", x: str = "",
) -> Drawing:  # fmt: skip
    values = np.array([[float(linear_cka(a, b)) for b in second] for a in first])
    side = max(2.6, 0.42 * len(rows))
    figure = Figure(figsize=(side + 2.4, side + 1.0), layout="constrained")
    axis = figure.subplots()
    sns.heatmap(
        values, ax=axis, vmin=0, vmax=1, cmap="Greys", square=True, cbar=False, fmt=".2f",
        annot=len(rows) <= 14, annot_kws={"size": 7.5}, xticklabels=columns, yticklabels=rows,
        linewidths=0.4, linecolor="#eeeeee",
    )  # fmt: skip
    axis.tick_params(axis="y", rotation=0)
    axis.set(ylabel=y, xlabel=x)
    if y:
        axis.invert_yaxis()
    frame = pd.DataFrame(
        [(a, b, values[i, j]) for i, a in enumerate(rows) for j, b in enumerate(columns)],
        columns=["row", "column", "cka"],
    )
    return Drawing(name, "Similarity", title, caption, f"Heat map. {title}.", frame, figure)
