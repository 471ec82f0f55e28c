"""``ssl-bench compare``."""

from __future__ import annotations

import json

from ssl_bench.analysis import comparison, tables
from ssl_bench.analysis.comparison import Comparison
from ssl_bench.config.command_settings import CompareSettings
from ssl_bench.utils.files import atomic, writing
from ssl_bench.utils.terminal import Console

console = Console()


def compare(settings: CompareSettings) -> None:
    """Show runs side by side: ``ssl-bench compare``."""
    found = compared(settings)
    if settings.csv:
        with writing(settings.csv), atomic(settings.csv) as path:
            path.write_bytes(tables.as_csv(tables.flat(found)))
    if settings.json:
        print(json.dumps(tables.as_json(found), indent=1))
        return
    for table in tables.as_rich(found, console.width):
        console.print(table)
    for note in tables.notes(found):
        console.print(f"note: {note}", style="yellow")
    if settings.csv:
        console.print(f"table: {settings.csv}")


def compared(settings: CompareSettings) -> Comparison:
    """The comparison that these settings ask for."""
    found = comparison.load(settings)
    compared = comparison.compare(found, settings.at, settings.at_cost, settings)
    return comparison.ordered(compared, settings.sort)
