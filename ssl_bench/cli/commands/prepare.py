"""``ssl-bench data prepare``: write a data set once as files that are read fast."""

from __future__ import annotations

from pathlib import Path

from ssl_bench import data as datasets
from ssl_bench.config.command_settings import PrepareSettings
from ssl_bench.data.listing import counted
from ssl_bench.data.names import EMBEDDED, base
from ssl_bench.data.prepare import prepare as write
from ssl_bench.errors import require
from ssl_bench.experiment.loading import console, first_broken, note, say_images
from ssl_bench.utils import progress
from ssl_bench.utils.files import readable


def prepare(settings: PrepareSettings) -> None:
    """Write a data set once as files that are read fast: ``ssl-bench data prepare``.

    Raises:
        UserError: there is no such data set, an image cannot be read, or the folder exists or
            cannot be written.
    """
    assert settings.output is not None
    place = base(settings.source)
    require(
        place != EMBEDDED,
        f"data set {EMBEDDED!r} is inside the package, ready to be used",
    )
    source = Path(place).expanduser().resolve()
    require(
        source not in settings.output.expanduser().resolve().parents,
        f"output {str(settings.output)!r} lies in {settings.source!r} and would become a part of "
        "it; a folder beside it would work",
    )
    listing = datasets.list_images(settings.source, settings.data_dir)
    say_images(listing)
    with progress.bar(f"prepare {readable(settings.source)}", 1) as bar:
        written, reduced, broken = write(
            *(listing, settings.output, settings.short_side, settings.quality, bar.of),
            settings.skip_broken,
        )
    left_out = counted(listing.left_out)
    for each in (*written.caveats, *filter(None, [left_out]), *first_broken(broken)):
        note(f"{listing.name}: {each}")
    console.print(
        f"{written.count - reduced:,} images copied as they are, {reduced:,} made smaller"
    )
    console.print(f"data: {readable(settings.output)}")
