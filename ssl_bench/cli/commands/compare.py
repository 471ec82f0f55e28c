"""``ssl-bench compare``."""

from __future__ import annotations

import json

from ssl_bench.analysis import comparison, tables
from ssl_bench.config.command_settings import CompareSettings, ReportSettings
from ssl_bench.runs import index
from ssl_bench.utils.files import atomic, writing
from ssl_bench.utils.formatting import plain
from ssl_bench.utils.terminal import Console

console = Console()


def compare(settings: CompareSettings) -> None:
    """Show runs side by side: ``ssl-bench compare``."""
    found = index.load(settings.runs_dir, settings.runs)
    found = comparison.select(
        *(found, settings.method, settings.data, settings.evals, settings.tags)
    )
    compared = comparison.compare(found, settings.at, settings.at_cost)
    compared = comparison.ordered(compared, settings.sort)
    if settings.csv:
        with writing(settings.csv), atomic(settings.csv) as path:
            path.write_bytes(tables.as_csv(tables.flat(compared)))
    if settings.json:
        print(json.dumps(tables.as_json(compared), indent=1))
        return
    for table in tables.as_rich(compared, console.width):
        console.print(table)
    for note in tables.notes(compared):
        console.print(f"note: {note}", style="yellow")
    if settings.csv:
        console.print(f"table: {settings.csv}")


def report(settings: ReportSettings) -> None:
    """Write the page, and say what was written: ``ssl-bench report``."""
    from ssl_bench.analysis import report

    for line in report.write(settings):
        print(plain(line))
