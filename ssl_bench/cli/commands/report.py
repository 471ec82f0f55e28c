"""``ssl-bench report``."""

from __future__ import annotations

from ssl_bench.analysis import report as pages
from ssl_bench.config.command_settings import ReportSettings
from ssl_bench.utils.formatting import plain


def report(settings: ReportSettings) -> None:
    """Write the page, and say what was written: ``ssl-bench report``."""
    for lines in pages.watch(settings) if settings.watch else [pages.write(settings)]:
        for line in lines:
            print(plain(line), flush=True)
