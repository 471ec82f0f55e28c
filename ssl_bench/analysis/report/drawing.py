"""How the figures of the report look, and the files they become."""

from __future__ import annotations

import hashlib
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib import figure as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from ssl_bench.analysis.tables import as_csv

INK, FAINT = "#333333", "#8a8a8a"
_PALETTE = "colorblind"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
_LINES = ("-", "--", "-.", ":")
_DOTS_PER_INCH = 200
_LARGEST_SVG = 120_000
_DECADE = 10
_MOST_NAMES = 36


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure."""

    color: tuple[float, float, float]
    marker: str
    line: str


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers in it.

    Attributes:
        name: of its files, without an extension.
        theme: the heading it is shown under.
        alt: a description for people who cannot see it.
        data: may be empty.
        is_picture: whether it consists of pixels rather than of lines.
    """

    name: str
    theme: str
    title: str
    caption: str
    alt: str
    data: pd.DataFrame
    figure: mpl.Figure
    is_picture: bool = False


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn, and the command that would make it possible."""

    title: str
    reason: str
    command: str = ""

    def __str__(self) -> str:
        hint = f"; this makes it: {self.command}" if self.command else ""
        return f"{self.title}: {self.reason}{hint}"


Drawings = Iterator[Drawing | Missing]


def missing(title: str, evaluation: str, what: str = "arrays") -> Missing:
    """A figure for which no run has the arrays, or the scores, of an evaluation."""
    reason = f"no run has {what} of {evaluation}"
    return Missing(title, reason, f"ssl-bench eval RUN --evals {evaluation}")


def or_missing(substitute: Missing) -> Callable[[Callable[..., Iterator[Drawing]]], Any]:
    """Let a function that draws nothing yield what is missing instead."""

    def decorate(draw: Callable[..., Iterator[Drawing]]) -> Any:
        @wraps(draw)
        def call(source: Any) -> Drawings:
            drawings = draw(source)
            yield next(drawings, substitute)
            yield from drawings

        return call

    return decorate


@dataclass(frozen=True)
class Figure:
    """A drawing's files by extension, and the one that the page shows."""

    name: str
    drawing: Drawing
    contents: Mapping[str, bytes]
    shown: Literal["svg", "png"]
    width: int
    height: int


def looks(methods: Iterable[str], known: Iterable[str]) -> dict[str, Look]:
    """A look for each method; that of an installed one does not depend on what else is drawn.

    Args:
        methods: to be drawn. The name of one that is not installed (a file of the user's, or
            somebody's weights) is hashed to an index of the palette, or the next free one.
        known: the installed ones; each has an index of its own.
    """
    indices = {name: index for index, name in enumerate(sorted(known))}
    colors, installed = sns.color_palette(_PALETTE), len(indices)
    for name in sorted(set(methods) - indices.keys()):
        index = installed + int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(colors)
        while index in indices.values():
            index += 1
        indices[name] = index
    return {
        name: Look(
            colors[index % len(colors)],
            _MARKERS[(index + index // len(colors)) % len(_MARKERS)],
            _LINES[(index + index // len(colors)) % len(_LINES)],
        )
        for name, index in indices.items()
    }


def shades(color: Sequence[float], count: int) -> list[tuple[float, float, float]]:
    """Shades of a color, the color itself last."""
    ramp = sns.light_palette(color, n_colors=count + 2)[2:] if count > 1 else [color]
    return [(red, green, blue) for red, green, blue, *_ in ramp]


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures. Names are never read as formulas; files carry no date."""
    settings: Any = {
        **sns.axes_style("whitegrid"),
        "axes.edgecolor": "#bbbbbb",
        **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "text.color"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
        "axes.labelsize": 9,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "figure.constrained_layout.h_pad": 0.07,
        "figure.constrained_layout.w_pad": 0.07,
        "figure.facecolor": "white",
        "font.size": 9,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "svg.fonttype": "path",
        "svg.hashsalt": "ssl-bench",
        "text.parse_math": False,
        **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 8.5),
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panels(
    count: int, columns: int = 3, width: float = 3.1, height: float = 2.5, **options: Any
) -> tuple[mpl.Figure, list[Axes]]:
    """A figure of that many panels, row by row."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = mpl.Figure(figsize=(max(width * columns, 4.2), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for number, spare in enumerate(axes[count:], count):
        spare.set_visible(False)
        # With shared axes, the panel above shows the labels that the spare one would have.
        axes[number - columns].tick_params(labelbottom=True)
    return figure, axes[:count]


def picture_grid(titles: Sequence[str], columns: int, margin: float) -> tuple[mpl.Figure, Any]:
    """Axes for rows of pictures, each row with a title in the left margin."""
    size = (0.78 * columns + margin, 0.8 * len(titles))
    figure = mpl.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(titles), columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7.5)
    return figure, axes


def legend(figure: mpl.Figure, handles: Mapping[str, Any]) -> None:
    """One legend below all panels, for which the figure grows; of many names it lists the first."""
    left_out = len(handles) - _MOST_NAMES
    if left_out > 0:
        handles = dict(list(handles.items())[:_MOST_NAMES])
        handles[f"… and {left_out} more"] = Line2D([], [], linestyle="none")
    if handles:
        lines = [name.split("\n") for name in handles]
        inches = 0.55 + 0.085 * max(len(line) for each in lines for line in each)
        columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
        rows = math.ceil(len(handles) / columns) * max(map(len, lines))
        figure.set_figheight(figure.get_figheight() + 0.18 * rows)
        figure.legend(
            list(handles.values()),
            # matplotlib hides names that begin with an underscore
            [name if not name.startswith("_") else f"\u200b{name}" for name in handles],
            loc="outside lower left",
            ncols=columns,
        )


def scale(axis: Axes, values: Iterable[float]) -> None:
    """A logarithmic horizontal axis where the values need one; powers of ten with a letter (10G).

    matplotlib would write them as formulas, which `style` turns off.
    """
    known = [value for value in values if value > 0]
    ratio = max(known) / min(known) if known else 1.0
    if ratio >= _DECADE:
        axis.set_xscale("log")
        if ratio < 10 * _DECADE:  # powers of ten would be one or two ticks
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    if (known and max(known) >= 1e4) or axis.get_xscale() == "log":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axis.get_xscale() == "linear":
        axis.xaxis.set_major_locator(MaxNLocator(5))


def shorten(text: str, length: int = 28) -> str:
    """The text in one line of at most that many characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def fold(text: str, length: int) -> str:
    """All of the text, in lines of at most that many characters, such as a panel has room for."""
    return "\n".join(textwrap.wrap(" ".join(text.split()), length))


def draw_curve(axis: Axes, curve: pd.DataFrame, color: Any, look: Look, runs: pd.DataFrame) -> Any:
    """Draw means with their intervals over the first column, and the runs. Returns the line."""
    xs = curve.iloc[:, 0]
    [handle] = axis.plot(xs, curve["mean"], color=color, marker=look.marker, linestyle=look.line)
    half = (curve["high"] - curve["mean"]).fillna(0)
    axis.errorbar(xs, curve["mean"], half, color=color, linestyle="none", capsize=3)
    axis.plot(runs[xs.name], runs["value"], ".", color=color, alpha=0.4)
    return handle


def render(drawing: Drawing) -> Figure:
    """Render a drawing as SVG, PDF and PNG, and its numbers, if it has any, as CSV."""
    contents = {} if drawing.data.empty else {"csv": as_csv(drawing.data)}
    figure = drawing.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not once for each format
    for extension, options in (
        ("svg", {"metadata": {"Date": None, "Title": drawing.title}}),
        ("pdf", {"metadata": {"CreationDate": None, "Title": drawing.title}}),
        ("png", {"pil_kwargs": {"optimize": True}}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=extension, dpi=_DOTS_PER_INCH, **options)
        contents[extension] = buffer.getvalue()
    is_small = len(contents["svg"]) <= _LARGEST_SVG
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    shown: Any = "svg" if is_small and not drawing.is_picture else "png"
    return Figure(drawing.name, drawing, contents, shown, width, height)
