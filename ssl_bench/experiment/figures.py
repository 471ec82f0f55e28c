"""Pictures of a run, as PNG files."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from ssl_bench.evaluation.texts import as_texts
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import index, schema
from ssl_bench.utils import arrays as stored_arrays
from ssl_bench.utils.files import atomic

if TYPE_CHECKING:
    from pandas.core.groupby import SeriesGroupBy

_DOTS_PER_INCH = 150
_MASKED = 0.55
_ABREAST = 12
_INCHES_OF_LETTER, _NARROWEST = 0.085, 3.4
_OURS, _PAPER = "C0", "0.6"
_RIGHT, _WRONG = "tab:green", "0.75"
_LARGEST_SIDE, _MOST_PICTURES = 2048, 4000
_WORDS_DRAWN = 20


@dataclass(frozen=True)
class Kind:
    """A figure that is drawn of an evaluation's arrays.

    Attributes:
        what: for people, and the name of its file.
        shapes: the sizes of each array by name; equal letters are equal, C is 1 or 3.
        bytes: arrays of images and texts, which are uint8.
    """

    what: str
    shapes: Mapping[str, str]
    bytes: tuple[str, ...]

    def fits(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether arrays of unknown origin are what is drawn, and no larger than we draw."""
        if any(len(shape) != arrays[name].ndim for name, shape in self.shapes.items()):
            return False
        pairs = {
            pair
            for name, shape in self.shapes.items()
            for pair in zip(shape, arrays[name].shape, strict=True)
        }
        sizes = dict(pairs)
        return (
            len(sizes) == len(pairs)
            and all(0 < size <= _LARGEST_SIDE for size in sizes.values())
            and sizes["C"] in (1, 3)
            and sizes["Q"] * sizes["K"] <= _MOST_PICTURES
            and all(arrays[name].dtype == np.uint8 for name in self.bytes)
        )


RETRIEVED = Kind(
    "retrieved images",
    {"queries": "QB", "answers": "QKCHW", "is_right": "QK"},
    ("queries", "answers"),
)
WORDS = Kind(
    "words over images",
    {"word_images": "QCHW", "words": "QKB", "word_maps": "QKRS"},
    ("word_images", "words"),
)


@contextmanager
def _default_style() -> Iterator[None]:
    """matplotlib's own settings: a person's may ask for LaTeX, which need not be here."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _subplots(rows: int, columns: int, figsize: tuple[float, float], **options: Any) -> Any:
    """pyplot's ``subplots`` without pyplot, whose backend is the person's, as in a notebook."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


@_default_style()
def loss_curve(metrics: Path, title: str, output: Path) -> None:
    """The training loss and the learning rate by epoch, from a run's ``metrics.jsonl``."""
    records = index.load_metrics(metrics)
    with sns.axes_style("whitegrid"):
        figure, (top, bottom) = _subplots(2, 1, figsize=(6, 4.5), sharex=True, height_ratios=(3, 1))
        sns.lineplot(records, x="epoch", y="loss", ax=top)
        sns.lineplot(records, x="epoch", y="learning_rate", ax=bottom, color="0.4")
    top.set(title=title, ylabel="training loss")
    bottom.set(xlabel="epoch", ylabel="learning rate")
    _save(figure, output)


@_default_style()
def picture_rows(rows: Mapping[str, Tensor], spec: EncoderSpec, title: str, output: Path) -> None:
    """Rows of images under their titles, `_ABREAST` beside each other, the rest of them below.

    Of strips of frames each is a row of its own.

    Args:
        rows: normalised float ``(B, C, H, W)`` by title; NaN pixels are drawn grey.
        spec: whose mean and standard deviation undo the normalisation.
    """
    pixels = {name: to_pixels(each, spec) for name, each in rows.items()}
    if spec.frames > 1:
        _strips(pixels, spec.frames, title, output)
        return
    count = len(next(iter(pixels.values())))
    columns = min(count, _ABREAST)
    bands = range(0, count, columns)
    lines = [(name, each[at : at + columns]) for at in bands for name, each in pixels.items()]
    inches = max(1.0, spec.image_size / _DOTS_PER_INCH)
    longest = max(len(line) for name in rows for line in name.split("\n"))
    width = max(columns * inches + _INCHES_OF_LETTER * longest, _NARROWEST)
    title = textwrap.fill(title, int(width / (1.1 * _INCHES_OF_LETTER)))
    height = len(lines) * inches * 1.08 + 0.22 * (1 + title.count("\n")) + 0.1
    figure, axes = _subplots(len(lines), columns, figsize=(width, height), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for row_axes, (name, line) in zip(axes, lines, strict=True):
        for axis, image in zip(row_axes, line, strict=False):
            axis.imshow(image, interpolation="nearest")
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize="medium")
    _save(figure, output)


def _strips(rows: Mapping[str, np.ndarray], frames: int, title: str, output: Path) -> None:
    """Strips ``(B, H, W, 3)`` in [0, 1] below each other: the first of each title, and so on."""
    count, height, width, _ = next(iter(rows.values())).shape
    high = max(0.6, height / _DOTS_PER_INCH)
    letters = _INCHES_OF_LETTER * max(len(line) for name in rows for line in name.split("\n"))
    wide = high * width / height + letters + 0.2
    title = textwrap.fill(title, int(wide / (1.1 * _INCHES_OF_LETTER)))
    size = wide, count * len(rows) * high * 1.15 + 0.22 * (1 + title.count("\n")) + 0.1
    figure, axes = _subplots(count * len(rows), 1, figsize=size, squeeze=False)
    for number, axis in enumerate(axes[:, 0]):
        name = [*rows][number % len(rows)]
        axis.imshow(rows[name][number // len(rows)], interpolation="nearest")
        for frame in range(1, frames):
            axis.axvline(frame * width / frames - 0.5, color="white", linewidth=1.5)
        axis.set(xticks=[], yticks=[], frame_on=False, anchor="E")  # room at the left for titles
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize="medium")
    _save(figure, output)


@_default_style()
def ablation(
    scores: pd.DataFrame,
    title: str,
    varied: str,
    legend: tuple[str, str],
    note: str,
    is_numeric: bool,
    output: Path,
    ours_at: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Our scores over the values of an ablation, the paper's beside them on an axis of their own.

    One panel for each evaluation, whose two axes span as many points, so that no curve is steeper
    than the other by scaling alone. Several runs of a value are drawn as their mean and its 95 % t
    interval, and each as a dot.

    Args:
        scores: what `ablation_results.collect` returns.
        varied: the name of the horizontal axis.
        legend: what our scores and the paper's were measured on.
        note: to stand above the legend beside what axes and bars are, or "".
        is_numeric: whether values are numbers, to be joined by a line; on a logarithmic axis, if
            they are counts.
        ours_at: where our scores of a value stand, if not at the value itself.
    """
    evaluations = list(scores.loc[scores["source"] == "ours", "evaluation"].unique())
    labels = list(scores["value"].unique())
    places = [float(label) for label in labels] if is_numeric else list(range(len(labels)))
    place = dict(zip(labels, places, strict=True))
    our_place = place | {**ours_at}
    line, paper_line, apart = ("-", "--", 0.0) if is_numeric else ("none", "none", 0.06)
    with sns.axes_style("white"):
        figure, rows = _subplots(
            len(evaluations),
            1,
            figsize=(7, 2.6 * len(evaluations) + 1),
            sharex=True,
            squeeze=False,
        )
    for left, evaluation in zip(rows[:, 0], evaluations, strict=True):
        here = scores[scores["evaluation"] == evaluation]
        ours, paper = (here[here["source"] == source] for source in ("ours", "paper"))
        if len(paper):
            right = left.twinx()
            right.plot(
                paper["value"].map(place) + apart,
                paper["score"],
                color=_PAPER,
                linestyle=paper_line,
                marker="s",
                markerfacecolor="none",
                label=legend[1],
            )
            right.set_ylabel("paper: top-1 (%)", color="0.4")
            right.tick_params(axis="y", colors="0.4")
            right.margins(y=0.15)
            left.set_zorder(right.get_zorder() + 1)
            left.patch.set_visible(False)
        groups = ours.groupby("value", sort=False)["score"]
        left.errorbar(
            groups.mean().index.map(our_place) - apart,
            groups.mean(),
            half_widths(groups).fillna(0),
            color=_OURS,
            linestyle=line,
            marker="o",
            capsize=3,
            label=legend[0],
        )
        at = ours["value"].map(our_place) - apart
        left.plot(at, ours["score"], ".", color=_OURS, alpha=0.4)
        left.set_title(evaluation, loc="left", fontsize="medium")
        left.set_ylabel("ours: top-1 (%)", color=_OURS)
        left.tick_params(axis="y", colors=_OURS)
        left.margins(y=0.15)
        if len(paper):
            _span_alike(left, right)
    if is_numeric and min(places) >= 1:
        left.set_xscale("log")
    left.set_xticks(places, labels)
    left.set_xlabel(varied)
    left.minorticks_off()
    handles = [axis.get_legend_handles_labels() for axis in figure.axes]
    unique = {label: handle for hs, ls in handles for handle, label in zip(hs, ls, strict=True)}
    several = scores[scores["source"] == "ours"].groupby(["evaluation", "value"]).size().max() > 1
    bars = "Bars are 95 % t intervals over seeds." if several else "One run each: no intervals."
    spans = "Both axes of a panel span as many points." * ("paper" in set(scores["source"]))
    figure.legend(
        unique.values(),
        unique.keys(),
        title=textwrap.fill(" ".join(filter(None, (note, bars, spans))), 100),
        loc="outside lower left",
        alignment="left",
        frameon=False,
        fontsize="small",
        title_fontsize="small",
    )
    figure.suptitle(title)
    _save(figure, output)


def _span_alike(*axes: Axes) -> None:
    """Let vertical axes span as much as the largest, each around the middle of its own."""
    ends = [axis.get_ylim() for axis in axes]
    half = max(high - low for low, high in ends) / 2
    for axis, (low, high) in zip(axes, ends, strict=True):
        axis.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)


@_default_style()
def retrieved(arrays: Mapping[str, np.ndarray]) -> Figure:
    """The best images of each caption, in a row under it; right ones have a green frame."""
    queries, answers, is_right = as_texts(arrays["queries"]), arrays["answers"], arrays["is_right"]
    count, most = is_right.shape
    width = max(most * 1.1, _NARROWEST)
    figure = Figure(figsize=(width, count * 1.5), layout="constrained")
    rows = figure.subfigures(count, 1, squeeze=False)[:, 0]
    for row, query, images, rights in zip(rows, queries, answers, is_right, strict=True):
        title = textwrap.fill(query, int(width / (0.8 * _INCHES_OF_LETTER)))
        row.suptitle(title, x=0.01, ha="left", fontsize="small", parse_math=False)
        for axis, image, right in zip(
            row.subplots(1, most, squeeze=False)[0], images, rights, strict=True
        ):
            axis.imshow(_as_rgb(image), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set(color=_RIGHT if right else _WRONG, linewidth=3 if right else 1)
    return figure


@_default_style()
def words(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Each image, and a map over it for each word of its caption: bright is where it looks."""
    images, maps = arrays["word_images"], arrays["word_maps"]
    named = [as_texts(each) for each in arrays["words"]]
    columns = 1 + min(_WORDS_DRAWN, max(sum(map(bool, own)) for own in named))
    figure, axes = _subplots(
        len(images), columns, figsize=(columns * 0.95, len(images) * 1.15), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for row_axes, image, own, heats in zip(axes, images, named, maps, strict=True):
        extent = row_axes[0].imshow(_as_rgb(image), interpolation="nearest").get_extent()
        shown = [(word, heat) for word, heat in zip(own, heats, strict=True) if word]
        for axis, (word, heat) in zip(row_axes[1:], shown, strict=False):
            axis.imshow(_as_rgb(image), alpha=0.35)
            axis.imshow(heat, cmap="magma", alpha=0.75, interpolation="nearest", extent=extent)
            axis.set_title(word, fontsize="small", parse_math=False)
    return figure


def _as_rgb(image_CHW: np.ndarray) -> np.ndarray:
    """An image as matplotlib takes it: uint8 ``(H, W, 3)``."""
    return np.broadcast_to(image_CHW, (3, *image_CHW.shape[1:])).transpose(1, 2, 0)


_DRAWN = ((RETRIEVED, retrieved), (WORDS, words))


def of_evaluations(folder: Path) -> list[Path]:
    """Draw what the evaluations in a run's folder have kept for figures, beside their scores.

    Returns:
        The files that are new.
    """
    new = []
    for scores in schema.score_files(folder):
        for kind, draw in _DRAWN:
            output = scores.with_name(f"{kind.what.replace(' ', '-')}.png")
            path = scores.with_name(schema.ARRAYS)
            if not stored_arrays.names(path).issuperset(kind.shapes):
                continue
            if output.exists() and output.stat().st_mtime >= path.stat().st_mtime:
                continue
            found = stored_arrays.read(path, [*kind.shapes])
            if kind.fits(found):
                _save(draw(found), output)
                new.append(output)
    return new


def half_widths(groups: SeriesGroupBy) -> pd.Series:
    """Half of each group's 95 % t interval; NaN where it has one number."""
    freedoms = groups.count() - 1
    return groups.sem() * stats.t.ppf(0.975, freedoms.where(freedoms > 0))


def to_pixels(images_BCHW: Tensor, spec: EncoderSpec) -> np.ndarray:
    """Undo the normalisation: float ``(B, H, W, 3)`` in [0, 1], grey where a pixel is NaN."""
    images = images_BCHW.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    images = images * np.array(spec.std, dtype=np.float32) + np.array(spec.mean, dtype=np.float32)
    images = np.where(np.isnan(images), _MASKED, images).clip(0, 1)
    return np.broadcast_to(images, (*images.shape[:3], 3)) if spec.channels == 1 else images


def _save(figure: Figure, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")
