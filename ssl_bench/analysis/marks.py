"""How the marks of scores read in the terminal, on the page and in files."""

from __future__ import annotations

from ssl_bench.analysis.comparison import ScoreTable
from ssl_bench.analysis.comparison.pairs import LEVEL

_MARKS = {
    "best": ("*", f"significantly better than all others in its column (corrected p < {LEVEL:g})"),
    "single": (
        "†",
        f"better than all others in its column, but of single runs (corrected p < {LEVEL:g})",
    ),
    "tied": ("~", "cannot be told apart from the best mean of its column"),
}


def sign(mark: str) -> str:
    """The sign behind a score with this mark; "" for any other word."""
    return f" {_MARKS[mark][0]}" if mark in _MARKS else ""


def meaning(mark: str) -> str:
    """The mark in words; "" where there is none."""
    return _MARKS[mark][1] if mark else ""


def legend(table: ScoreTable) -> list[str]:
    """The meaning of the marks that a table has, and a warning where single runs are compared."""
    marks = {cell.mark for cell in table.cells.values()}
    lines = [f"{sign} {meaning}" for mark, (sign, meaning) in _MARKS.items() if mark in marks]
    if any(pair.is_of_single_runs for pair in table.pairs):
        lines.append("one run a side: that tells of these runs, not of other seeds")
    return lines
