"""``ssl-bench report``: everything that a set of runs shows, as one page.

It writes a folder: ``index.html`` is self-contained; ``figures/`` and ``tables/`` hold the same for
papers. ``report.json`` marks the folder as a report, the only kind of folder that is replaced.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

from ssl_bench import __version__
from ssl_bench.analysis import comparison, verdict
from ssl_bench.analysis.report import (
    accuracy,
    cost,
    drawing,
    exports,
    image_text,
    origins,
    page,
    predictions,
    representations,
    searching,
    tables,
    training,
)
from ssl_bench.analysis.report.drawing import Drawings, Figure, Missing
from ssl_bench.analysis.report.source import UNKNOWN, Source
from ssl_bench.analysis.tables import as_csv
from ssl_bench.api import registry
from ssl_bench.config.command_settings import ReportSettings
from ssl_bench.errors import first_line, require
from ssl_bench.runs import schema
from ssl_bench.utils import progress
from ssl_bench.utils.files import new_folder, write_json, writing
from ssl_bench.utils.formatting import many

_MARKER = "report.json"
_MAKER = "ssl-bench report"
Draw = Callable[[Source], Drawings]
_LEADING = ("Accuracy against cost", "Accuracy")
_FIGURES: tuple[Draw, ...] = (
    accuracy.by_evaluation,
    accuracy.within_evaluations,
    cost.against_cost,
    cost.over_budgets,
    accuracy.over_settings,
    searching.best_of_trials,
    training.curves,
    training.reconstructions,
    representations.attention,
    image_text.retrieved,
    image_text.words,
    representations.segmentations,
    representations.embeddings,
    representations.similarities,
    accuracy.by_corruption,
    predictions.confusions,
    predictions.class_differences,
)


def write(settings: ReportSettings) -> list[str]:
    """Write the report of some runs, replacing an older one once the new one is complete.

    Returns:
        What to tell the user, line by line.

    Raises:
        UserError: there is no run, or the folder is not a report or cannot be written.
    """
    output = settings.output.expanduser().resolve()
    _check(output, settings.output)
    found = comparison.load(settings)
    methods = found.runs["method"].fillna(UNKNOWN)
    source = Source(
        found,
        comparison.compare(found, settings=settings),
        drawing.looks(methods, registry.discover("method")),
        dict.fromkeys(found.problems),
        settings,
    )
    with writing(settings.output), new_folder(output) as folder:
        (folder / schema.FIGURES).mkdir()
        (folder / "tables").mkdir()
        figures, missing = _draw(source, folder / schema.FIGURES)
        by_theme: dict[str, list[Figure]] = {}
        for figure in figures:
            by_theme.setdefault(figure.drawing.theme, []).append(figure)
        lead = _lead(by_theme)
        scores, pairs = list(tables.main_tables(source)), list(tables.pair_tables(source))
        further, runs = dict(tables.further_tables(source)), origins.run_table(source)
        spaces = list(searching.spaces(source))
        for table in (*scores, *further.values(), *spaces, *pairs, runs):
            stem = str(folder / "tables" / table.name)
            Path(f"{stem}.csv").write_bytes(as_csv(table.data))
            Path(f"{stem}.md").write_text(exports.as_markdown(table), "utf-8")
            Path(f"{stem}.tex").write_text(exports.as_latex(table), "utf-8")
        provenance = origins.provenance(source)
        of_runs = as_csv(origins.provenance_table(provenance))
        (folder / "tables" / "provenance.csv").write_bytes(of_runs)
        content = {
            "title": settings.title,
            "reload": math.ceil(settings.watch) if settings.watch else None,
            "facts": _facts(source),
            "answers": [
                (table.title, verdict.summary(table), list(verdict.sentences(table)))
                for table in source.comparison.tables
            ],
            "lead": lead,
            "tables": scores,
            "further": further,
            "spaces": spaces,
            "pairs": pairs,
            "runs": runs,
            "figures": by_theme,
            "missing": missing,
            "provenance": provenance,
            "notes": source.comparison.notes,
            "problems": list(source.problems),
        }
        (folder / "index.html").write_text(page.render(content), "utf-8")
        made = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / _MARKER, {"made_by": _MAKER, "version": __version__, "at": made})
    return [
        *(f"problem: {line}" for line in source.problems),
        *_not_drawn(missing),
        f"report: {settings.output / 'index.html'} ({len(source.runs)} runs, "
        f"{len(figures)} figures)",
    ]


def _not_drawn(missing: Sequence[Missing]) -> list[str]:
    """The one figure that is missing, or how many are."""
    if len(missing) < 2:
        return [f"not drawn: {each}" for each in missing]
    return [f"not drawn: {many(len(missing), 'figure')}; the page says why, and what makes them"]


def watch(settings: ReportSettings) -> Iterator[list[str]]:
    """Write the report again whenever the runs have changed, without end: what `write` tells.

    Raises:
        UserError: as of `write`.
    """
    assert settings.watch
    shown: object = None
    while True:
        now = _state(settings.runs_dir)  # before they are read, so that no change is missed
        if now != shown:
            yield write(settings)
            shown = now
        time.sleep(settings.watch)


def _state(runs_dir: Path) -> frozenset[tuple[str, int]]:
    """What changes when a run begins, ends or fails, or is evaluated."""
    names = (schema.CONFIG, schema.ENCODER, schema.FAILED, f"**/{schema.EVALS}/*/{schema.SCORES}")
    found = set()
    for path in chain.from_iterable(runs_dir.glob(f"*/{name}") for name in names):
        with suppress(OSError):  # it has gone meanwhile
            found.add((str(path), path.stat().st_mtime_ns))
    return frozenset(found)


def _draw(source: Source, folder: Path) -> tuple[list[Figure], list[Missing]]:
    figures: dict[str, Figure] = {}
    missing: list[Missing] = []
    with drawing.style(), progress.bar("draw", len(_FIGURES)) as bar:
        for number, draw in enumerate(_FIGURES, 1):
            for figure in _rendered(source, draw):
                if isinstance(figure, Missing):
                    missing.append(figure)
                    continue
                copies = (f"{figure.name}-{number}" for number in count(2))
                name = next(each for each in chain([figure.name], copies) if each not in figures)
                for extension, content in figure.contents.items():
                    (folder / f"{name}.{extension}").write_bytes(content)
                figures[name] = replace(figure, name=name)
            bar.of(number, len(_FIGURES))
    return [*figures.values()], missing


def _lead(by_theme: dict[str, list[Figure]]) -> Figure | None:
    """The figure to open with, taken from the others."""
    for theme in _LEADING:
        if of_theme := by_theme.get(theme):
            lead = of_theme.pop(0)
            if not of_theme:
                del by_theme[theme]
            return lead
    return None


def _rendered(source: Source, draw: Draw) -> Iterator[Figure | Missing]:
    """The figures that a function draws, up to its first error."""
    try:
        for drawn in draw(source):
            yield drawn if isinstance(drawn, Missing) else drawing.render(drawn)
    # Whatever one evaluation has stored must not cost the figures of the others.
    except Exception as error:
        what = f"{draw.__module__.rpartition('.')[2]}.{draw.__name__}"
        source.problem(f"figure {what} cannot be drawn: {first_line(error)}")


def _facts(source: Source) -> dict[str, str]:
    """Titles and texts for the head of the page."""
    runs = source.runs
    states = runs["state"].value_counts()
    facts = {
        "Made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Runs": ", ".join(f"{count:,} {state}" for state, count in states.items()),
        "Methods": ", ".join(sorted(set(runs["method"].dropna().astype(str)))),
        "Evaluated on": ", ".join(sorted({t.evaluated_on for t in source.comparison.tables})),
        "Devices": ", ".join(sorted(set(runs["device"].dropna().astype(str)))),
        "ssl-bench": __version__,
    }
    return {name: text for name, text in facts.items() if text}


def _check(output: Path, shown: Path) -> None:
    """Refuse to replace anything but a report."""
    if not output.exists():
        return
    require(output.is_dir(), f"output {str(shown)!r} is a file; name a folder")
    require(
        not any(output.iterdir()) or schema.peek(output / _MARKER).get("made_by") == _MAKER,
        f"output {str(shown)!r} exists and is no report; name another folder with -o",
    )
