"""The report's figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import augmenting
from benchmarks.cases import GROWTH
from benchmarks.contestants import CONTESTANTS
from benchmarks.results import Measured
from benchmarks.rounds import spread
from ssl_bench.utils.files import atomic, writing

matplotlib.use("Agg")
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_OURS, _OTHER = sns.color_palette("colorblind")[0], "0.65"
_THEME: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
}


def training(subjects: Mapping[str, Measured], path: Path, part: str) -> Path:
    """Images a second of every contestant, a panel for each case."""
    titles = {name: contestant.title for name, contestant in CONTESTANTS.items()}
    ours = {name for name, contestant in CONTESTANTS.items() if contestant.is_ours}
    return _bars(subjects, titles, ours, path, part)


def augment(subjects: Mapping[str, Measured], path: Path) -> Path:
    """Images a second of both ways to make views, a panel for each recipe."""
    titles = {"ours": "ssl-bench", "torchvision": "torchvision"}
    assert titles.keys() == augmenting.NAMES.keys()
    return _bars(subjects, titles, {"ours"}, path, "augment")


def growth(subjects: Mapping[str, Measured], path: Path) -> Path:
    """Milliseconds an image above, peak memory below, a column for each thing that grows."""
    series = {
        name: {value: subjects[case.name] for value, case in cases.items() if case.name in subjects}
        for name, cases in GROWTH.items()
    }
    series = {name: points for name, points in series.items() if points}
    with plt.rc_context({**sns.axes_style("ticks"), **_THEME}):
        figure, panels = plt.subplots(
            2, len(series), figsize=(2.7 * len(series) + 0.6, 5), squeeze=False,
            layout="constrained", sharey="row",
        )  # fmt: skip
        for column, (name, points) in enumerate(series.items()):
            contestants = dict.fromkeys(key for each in points.values() for key in each.rounds)
            for contestant in contestants:
                known = {v: each for v, each in points.items() if contestant in each.rounds}
                speeds = [spread(e.rounds[contestant], "images_per_second") for e in known.values()]
                peaks = [spread(e.rounds[contestant], "peak_mib") for e in known.values()]
                is_ours = CONTESTANTS[contestant].is_ours
                style: dict[str, Any] = {
                    "color": _OURS if is_ours else "0.45",
                    "marker": "o" if is_ours else "s",
                    "linestyle": "-" if is_ours else "--",
                    "label": CONTESTANTS[contestant].title,
                }
                panels[0, column].plot([*known], [1000 / s.median for s in speeds], **style)
                panels[1, column].plot([*known], [p.median / 1024 for p in peaks], **style)
            panels[0, column].set(title=name.replace(", ", "\n", 1))
            for panel in panels[:, column]:
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter("{x:g}")
                panel.tick_params(axis="y", which="minor", labelsize="x-small")
                panel.grid(axis="y", alpha=0.4)
        panels[0, 0].set(ylabel="ms an image")
        panels[1, 0].set(ylabel="peak GiB")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _save(figure, path, "growth")


def _bars(
    subjects: Mapping[str, Measured],
    titles: Mapping[str, str],
    ours: set[str],
    path: Path,
    part: str,
) -> Path:
    """Images a second: a panel for each subject, a bar with its spread for each contestant."""
    rows = max(len(measured.rounds) for measured in subjects.values())
    columns = min(len(subjects), 2)
    lines = -(-len(subjects) // columns)
    with plt.rc_context({**sns.axes_style("ticks"), **_THEME}):
        figure, panels = plt.subplots(
            lines, columns, figsize=(5.6 * columns, (0.9 + 0.28 * rows) * lines), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for panel in panels.flat[len(subjects) :]:
            panel.set_visible(False)
        for panel, (name, measured) in zip(panels.flat, subjects.items(), strict=False):
            speeds = [spread(rounds, "images_per_second") for rounds in measured.rounds.values()]
            medians = [speed.median for speed in speeds]
            errors = [
                [speed.median - speed.low for speed in speeds],
                [speed.high - speed.median for speed in speeds],
            ]
            panel.barh(
                [titles[key] for key in measured.rounds], medians, xerr=errors, ecolor="0.3",
                color=[_OURS if key in ours else _OTHER for key in measured.rounds],
            )  # fmt: skip
            for place, speed in enumerate(speeds):
                panel.annotate(
                    f"{speed.median:,.0f}", (speed.high, place), xytext=(4, 0),
                    textcoords="offset points", va="center", fontsize="small",
                )  # fmt: skip
            panel.invert_yaxis()
            panel.margins(x=0.15)
            panel.tick_params(axis="y", length=0)
            panel.set(title=name, xlabel="images a second")
    return _save(figure, path, part)


def _save(figure: Figure, path: Path, part: str) -> Path:
    output = path.with_name(f"{path.stem}-{part}.png")
    with writing(output), atomic(output) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return output
