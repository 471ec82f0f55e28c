"""The live bar of long work, on terminals of several widths."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ssl_bench.utils import progress


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("title", ["pre-train mocov3", "read /data/of/somebody/in/a/long/path"])
def test_steps_and_time_left_are_never_cut(
    width: int, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    with progress.bar(title, 18_750) as bar:
        bar.update(12_345, "loss 0.4321  1,234 img/s  waiting for data 12%")
    shown = [line for line in re.split(r"[\r\n]", output.getvalue()) if "12345/18750" in line]
    assert shown and all(re.search(r"left +(-:--:--|\d:\d\d:\d\d)", line) for line in shown)
