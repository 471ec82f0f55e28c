"""``ssl-bench report``: everything that a set of runs says, as one page that people want to see.

A folder is written: ``index.html`` needs nothing else; ``figures/`` and ``tables/`` hold the same
for papers, and ``report.json`` tells that the folder is a report, which alone may be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ssl_bench import __version__
from ssl_bench.analysis import comparison
from ssl_bench.analysis.report import (
    ablations,
    accuracy,
    cost,
    drawing,
    exports,
    numbers,
    origins,
    page,
    predictions,
    representations,
    robustness,
    tables,
    training,
)
from ssl_bench.analysis.report.drawing import Drawing, Files, Missing
from ssl_bench.analysis.report.source import UNKNOWN, Source
from ssl_bench.api import registry
from ssl_bench.config.command_settings import ReportSettings
from ssl_bench.errors import first_line, require
from ssl_bench.runs import index, schema
from ssl_bench.utils import progress
from ssl_bench.utils.files import load_json, temporary_folder, write_json, writing

_MARKER = "report.json"
_MAKER = "ssl-bench report"
Draw = Callable[[Source], Iterator[Drawing | Missing]]
_FIGURES: tuple[Draw, ...] = (
    accuracy.by_evaluation,
    accuracy.within_evaluations,
    cost.against_cost,
    ablations.over_settings,
    training.curves,
    training.reconstructions,
    representations.attention,
    representations.embeddings,
    representations.similarities,
    robustness.by_corruption,
    predictions.confusions,
    predictions.class_differences,
)


def write(settings: ReportSettings) -> list[str]:
    """Read the runs, draw, and write a folder that takes an older one's place once it is whole.

    Returns:
        What to tell the user, line by line.

    Raises:
        UserError: there is no run, or the folder is not a report, or cannot be written.
    """
    output = settings.output.expanduser().resolve()
    _check(output, settings.output)
    found = index.load(settings.runs_dir, settings.runs)
    methods = found.runs["method"].fillna(UNKNOWN)
    source = Source(
        found,
        comparison.compare(found),
        drawing.looks(methods, registry.discover("method")),
        dict.fromkeys(found.problems),
    )
    with writing(settings.output), _replacing(output) as folder:
        (folder / schema.FIGURES).mkdir()
        (folder / "tables").mkdir()
        figures, missing = _draw(source, folder / schema.FIGURES)
        content = _content(source, settings, figures, missing)
        for table in content.all_tables:
            stem = folder / "tables" / table.name
            stem.with_name(f"{table.name}.csv").write_bytes(numbers.as_csv(table.data))
            stem.with_name(f"{table.name}.md").write_text(exports.as_markdown(table), "utf-8")
            stem.with_name(f"{table.name}.tex").write_text(exports.as_latex(table), "utf-8")
        table_of_runs = numbers.as_csv(origins.provenance_table(content.provenance))
        (folder / "tables" / "provenance.csv").write_bytes(table_of_runs)
        (folder / "index.html").write_text(page.render(content), "utf-8")
        made = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / _MARKER, {"made_by": _MAKER, "version": __version__, "at": made})
    return [
        *(f"problem: {line}" for line in source.problems),
        *(f"not drawn: {each}" for each in missing),
        f"report: {settings.output / 'index.html'} ({len(source.runs)} runs, "
        f"{len(figures)} figures)",
    ]


def _draw(source: Source, folder: Path) -> tuple[list[page.Figure], list[Missing]]:
    """Draw everything there is to draw, and save it."""
    figures: list[page.Figure] = []
    missing: list[Missing] = []
    names: set[str] = set()
    with drawing.style(), progress.bar("draw", len(_FIGURES)) as bar:
        for number, draw in enumerate(_FIGURES, 1):
            for drawn in _drawn(source, draw):
                if isinstance(drawn, Missing):
                    missing.append(drawn)
                    continue
                name = _unused(drawn[0].name, names)
                for ending, content in drawn[1].contents.items():
                    (folder / f"{name}.{ending}").write_bytes(content)
                figures.append(page.figure(name, *drawn))
            bar.of(number, len(_FIGURES))
    return figures, missing


def _drawn(source: Source, draw: Draw) -> Iterator[tuple[Drawing, Files] | Missing]:
    """What a function draws, up to where it fails."""
    try:
        for drawn in draw(source):
            yield drawn if isinstance(drawn, Missing) else (drawn, drawing.files(drawn))
    # Whatever one evaluation has stored must not cost the figures of the others.
    except Exception as error:
        what = f"{draw.__module__.rpartition('.')[2]}.{draw.__name__}"
        source.problem(f"figure {what} cannot be drawn: {first_line(error)}")


def _content(
    source: Source,
    settings: ReportSettings,
    figures: list[page.Figure],
    missing: list[Missing],
) -> page.Content:
    runs, compared = source.runs, source.comparison
    scores = list(tables.main_tables(source))
    pairs = list(tables.pair_tables(source))
    blocks = origins.provenance(source)
    data = sorted({table.evaluated_on for table in compared.tables})
    states = runs["state"].value_counts()
    facts = {
        "Made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Runs": ", ".join(f"{count:,} {state}" for state, count in states.items()),
        "Methods": ", ".join(sorted(set(runs["method"].dropna().astype(str)))),
        "Evaluated on": ", ".join(data),
        "Devices": ", ".join(sorted(set(runs["device"].dropna().astype(str)))),
        "ssl-bench": __version__,
    }
    return page.Content(
        title=settings.title,
        facts=[(title, text) for title, text in facts.items() if text],
        tables=scores,
        further=dict(tables.further_tables(source)),
        pairs=pairs,
        runs=origins.run_table(source),
        figures=page.by_theme(figures),
        missing=missing,
        provenance=blocks,
        notes=compared.notes,
        problems=tuple(source.problems),
    )


def _unused(name: str, names: set[str]) -> str:
    """The name, with a number where another figure has it; remembered."""
    number = 2
    found = name
    while found in names:
        found = f"{name}-{number}"
        number += 1
    names.add(found)
    return found


def _check(output: Path, shown: Path) -> None:
    """Refuse to replace what is no report."""
    if not output.exists():
        return
    require(output.is_dir(), f"output {str(shown)!r} is a file; name a folder")
    require(
        not any(output.iterdir()) or _is_report(output),
        f"output {str(shown)!r} exists and is no report; name another folder with -o",
    )


def _is_report(folder: Path) -> bool:
    try:
        return load_json(folder / _MARKER)["made_by"] == _MAKER
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A folder beside the output that takes its place once the block has succeeded.

    A folder cannot be replaced in one step: killed between the two renames, a process leaves the
    older one beside its place, where the next one finds it.
    """
    with temporary_folder(output) as new:
        yield new
        old = new.with_suffix(".old")
        if output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
