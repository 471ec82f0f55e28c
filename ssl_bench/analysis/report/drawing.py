"""What a figure of the report is, how it looks, and the files it becomes."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from ssl_bench.analysis.report.numbers import as_csv

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
    """A figure, the numbers in it, and what it shows.

    Attributes:
        name: of its files, without an ending.
        theme: the heading it stands under.
        caption: what was measured on what.
        alt: the figure for those who cannot see it.
        data: may be empty.
        is_picture: whether it consists of pixels rather than of lines.
    """

    name: str
    theme: str
    title: str
    caption: str
    alt: str
    data: pd.DataFrame
    figure: Figure
    is_picture: bool = False


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn, and how it could be."""

    title: str
    reason: str
    command: str = ""

    def __str__(self) -> str:
        hint = f"; this makes it: {self.command}" if self.command else ""
        return f"{self.title}: {self.reason}{hint}"


def missing(title: str, evaluation: str) -> Missing:
    """A figure for which no run has the arrays that an evaluation stores."""
    return Missing(
        title,
        f"no run has stored what {evaluation} stores",
        f"ssl-bench eval RUN --evals {evaluation}",
    )


@dataclass(frozen=True)
class Files:
    """A drawing's files: ending to content, and which one a page should show."""

    contents: Mapping[str, bytes]
    shown: str
    width: int
    height: int


def looks(methods: Iterable[str], known: Iterable[str]) -> dict[str, Look]:
    """A look for each method; that of an installed one is the same whatever else is drawn.

    Args:
        methods: to be drawn. One that is not installed (a file of one's own, somebody's weights)
            takes the place in the palette that its name's hash says, or the next that is free.
        known: that are installed; each has a place of its own.
    """
    order = sorted(known)
    taken = {name: place for place, name in enumerate(order)}
    colors = sns.color_palette(_PALETTE)
    for name in sorted(set(methods) - set(order)):
        place = len(order) + int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(colors)
        while place in taken.values():
            place += 1
        taken[name] = place
    return {
        name: Look(
            colors[place % len(colors)],
            _MARKERS[(place + place // len(colors)) % len(_MARKERS)],
            _LINES[(place + place // len(colors)) % len(_LINES)],
        )
        for name, place in taken.items()
    }


def shades(color: Sequence[float], count: int) -> list[tuple[float, float, float]]:
    """Shades of a color, the color itself last."""
    ramp = sns.light_palette(color, n_colors=count + 2)[2:] if count > 1 else [color]
    return [(shade[0], shade[1], shade[2]) for shade in ramp]


@contextmanager
def style() -> Iterator[None]:
    """How all figures look. Names are never read as formulas; files do not tell the day."""
    settings: Any = {
        **sns.axes_style("whitegrid"),
        "axes.edgecolor": "#bbbbbb",
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlecolor": INK,
        "figure.constrained_layout.h_pad": 0.07,
        "figure.constrained_layout.w_pad": 0.07,
        "figure.facecolor": "white",
        "font.size": 9,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "svg.fonttype": "path",
        "svg.hashsalt": "ssl-bench",
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": INK,
        "xtick.labelsize": 8.5,
        "ytick.color": INK,
        "ytick.labelsize": 8.5,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever a person's matplotlibrc says
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panels(
    count: int, columns: int = 3, width: float = 3.1, height: float = 2.5, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of that many panels, row by row."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(width * columns, 4.2), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
        # With shared axes, the panel above shows what the spare one would have.
        above = axes[axes.index(spare) - columns]
        above.tick_params(labelbottom=True)
    return figure, axes[:count]


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """One legend below all panels, for which the figure grows.

    Beyond some dozen names it lists the first, and how many follow; a name may begin with an
    underscore.
    """
    left_out = len(handles) - _MOST_NAMES
    if left_out > 0:
        handles = dict(list(handles.items())[:_MOST_NAMES])
        handles[f"… and {left_out} more"] = Line2D([], [], linestyle="none")
    if handles:
        inches = 0.55 + 0.085 * max(map(len, handles))
        columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
        rows = math.ceil(len(handles) / columns)
        figure.set_figheight(figure.get_figheight() + 0.18 * rows)
        figure.legend(
            list(handles.values()),
            [name if not name.startswith("_") else f"\u200b{name}" for name in handles],
            loc="outside lower left",
            ncols=columns,
        )


def scale(axis: Axes, values: Iterable[float]) -> None:
    """A logarithmic horizontal axis where the values need one; powers of ten with a letter (10G).

    Formulas, which matplotlib would write them as, are never read (`style`).
    """
    known = [value for value in values if value > 0]
    if known and max(known) / min(known) >= _DECADE and len(known) > 1:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    if (known and max(known) >= 1e4) or axis.get_xscale() == "log":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axis.get_xscale() == "linear":
        axis.xaxis.set_major_locator(MaxNLocator(5))


def shorten(text: str, length: int = 28) -> str:
    """The text in one line of at most that many characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def files(drawing: Drawing) -> Files:
    """A drawing as PNG, SVG, PDF and its numbers, if it has any, as CSV."""
    contents = {} if drawing.data.empty else {"csv": as_csv(drawing.data)}
    figure = drawing.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not once for each format
    for ending, options in (
        ("svg", {"metadata": {"Date": None, "Title": drawing.title}}),
        ("pdf", {"metadata": {"CreationDate": None, "Title": drawing.title}}),
        ("png", {"pil_kwargs": {"optimize": True}}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=_DOTS_PER_INCH, **options)
        contents[ending] = buffer.getvalue()
    is_small = len(contents["svg"]) <= _LARGEST_SVG
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    shown = "svg" if is_small and not drawing.is_picture else "png"
    return Files(contents, shown, width, height)
