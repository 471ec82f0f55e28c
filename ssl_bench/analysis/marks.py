"""How the marks of scores read in the terminal, on the page and in files."""

from __future__ import annotations

from ssl_bench.analysis.comparison.pairs import Pair
from ssl_bench.analysis.comparison.score_tables import ScoreTable
from ssl_bench.analysis.comparison.statistics import LEVEL

_MARKS = {
    "best": (
        "*",
        f"better than each of the other methods in its column (p < {LEVEL:g})",
    ),
    "equivalent": ("≈", "as good as the best mean of its column, within the margin"),
    "undecided": ("~", "not decided against the best mean of its column"),
}


def sign(mark: str) -> str:
    """The sign behind a score with this mark; "" for any other word."""
    return f" {_MARKS[mark][0]}" if mark in _MARKS else ""


def meaning(mark: str) -> str:
    """The mark in words; "" where there is none."""
    return _MARKS[mark][1] if mark else ""


def legend(table: ScoreTable) -> list[str]:
    """The meaning of the marks that a table has, and what single runs do not tell."""
    marks = {cell.mark for cell in table.cells.values()}
    lines = [f"{sign} {meaning}" for mark, (sign, meaning) in _MARKS.items() if mark in marks]
    if table.pairs and any(
        len(group.seeds) == 1 for group in table.groups if not group.is_baseline
    ):
        lines.append("single runs have no mark: other seeds may differ")
    if table.pairs and table.interval_over != "seeds":
        lines.append("marks and differences are over seeds")
    return [*lines, *filter(None, [settings(table)])]


def settings(table: ScoreTable) -> str:
    """How the settings of a table's methods were chosen; "" where there was nothing to choose."""
    ways = table.chosen_by
    if not ways:
        return ""
    if len(ways) == 1:
        return f"settings of all: {next(iter(ways))}"
    return "settings: " + "; ".join(f"{way} ({', '.join(who)})" for way, who in ways.items())


def verdict(pair: Pair, sign: int = 1) -> str:
    """What a pair's first group is, or with a sign of -1 its second one.

    Where settings were not chosen alike, the word is of the scores and not of the methods.
    """
    turned = {"better": "worse", "worse": "better"}
    word = turned.get(pair.verdict, pair.verdict) if sign < 0 else pair.verdict
    return word if pair.is_fair else {"better": "ahead", "worse": "behind"}.get(word, word)


def corrected(table: ScoreTable) -> str:
    """What the pairs' intervals, p values and verdicts are, in a sentence."""
    if all(pair.p_adjusted is None for pair in table.pairs):
        return "difference and its 95 % interval over test images"
    unfair = [pair for pair in table.pairs if pair.better and not pair.is_fair]
    return (
        "difference, and the interval at the level of its own test, which leaves out zero where "
        "the difference is decided (intervals hold one by one); p by Holm's correction over a "
        f"{table.family}, of a group that beats all others its own"
        + ("; ahead, behind: settings were not chosen alike" if unfair else "")
    )
