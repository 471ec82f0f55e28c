"""What is printed on terminals of several widths."""

from __future__ import annotations

import io

from rich.table import Table

from ssl_bench.utils.terminal import Console


def test_a_caption_is_as_wide_as_the_terminal_and_not_as_its_table() -> None:
    output, caption = io.StringIO(), "words of a caption that is much wider than what it is under"
    table = Table(title="t", caption=f"{caption}\nsecond line")
    table.add_column("a")
    Console(file=output, width=80).print(table)
    lines = [line.strip() for line in output.getvalue().splitlines()]
    assert lines[-2:] == [caption, "second line"]
    assert table.caption  # printing a table leaves its caption in place
