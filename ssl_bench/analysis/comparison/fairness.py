"""Whether a lead may be a method's own: how rows were tuned, and what their trainings cost."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ssl_bench.config import chosen
from ssl_bench.config.chosen import MOST_UNEQUAL
from ssl_bench.config.command_settings import At
from ssl_bench.utils.formatting import listed

if TYPE_CHECKING:
    from ssl_bench.analysis.comparison.pairs import Mark
    from ssl_bench.analysis.comparison.rows import Group

_ABOUT = 1.1
"""Trainings whose FLOPs differ by less than this factor cost about the same."""


def why_no_best(groups: Sequence[Group], marks: Mapping[str, Mark], at: At) -> str:
    """Why none of these rows of a column may be called its best; "" where one may be.

    A lead may be that of the tuning, or of more than twice the FLOPs that any row of another method
    has; but where an equal cost was asked for, the FLOPs are what they are. Rows of one method
    differ in the very settings that are compared. A preset that was tuned speaks against its own
    method's lead alone: who is ahead of such a method is so in spite of it.
    """
    if unlike := _tuned_unlike(groups):
        return f"settings were not chosen alike ({', '.join(unlike)})"
    best = next((group for group in groups if marks.get(group.key) == "best"), None)
    if best is None:
        return ""
    if behind := [group.method for group in groups if _started_ahead(best, group)]:
        return (
            f"what was not searched is of a tuned preset for {best.label} alone, "
            f"and of an untuned one for {listed([*dict.fromkeys(behind)])}"
        )
    if at != "end":
        return ""
    most: dict[str, float] = defaultdict(float)
    for group in groups:
        most[group.method] = max(most[group.method], _spent(group))
    outspent = [name for name, flops in most.items() if 0 < MOST_UNEQUAL * flops < _spent(best)]
    if not outspent:
        return ""
    return f"{best.label} has more than {MOST_UNEQUAL} times the FLOPs of {listed(outspent)}"


def is_fair(better: Group, worse: Group) -> bool:
    """Whether the tuning of these two rows cannot be why one is better than the other."""
    return not _tuned_unlike([better, worse]) and not _started_ahead(better, worse)


def _started_ahead(better: Group, worse: Group) -> bool:
    """Whether the presets that searches leave as they are were tuned for the better one alone."""
    theirs = [each.tuned for each in worse.searches]
    is_tuned = any(each.tuned for each in better.searches)
    return better.method != worse.method and is_tuned and bool(theirs) and not any(theirs)


def notes(groups: Sequence[Group]) -> Iterator[str]:
    """What to know of the searches and the trainings of a table's rows."""
    searched = [(group.method, each) for group in groups for each in group.searches]
    if _tuned_unlike(groups) and len({each.flops for _, each in searched}) > 1:
        flops = dict.fromkeys(f"{method} {each.flops:.2g}" for method, each in searched)
        yield f"FLOPs of the searches: {', '.join(flops)}"
    if len({len(each.space) for _, each in searched}) > 1:
        counts = dict.fromkeys(f"{method} {len(each.space)}" for method, each in searched)
        yield f"settings searched: {', '.join(counts)}"
    rest: dict[str, dict[str, None]] = defaultdict(dict)
    for method, each in searched:
        if each.tuned:
            rest[f"of a preset tuned {each.tuned}"][method] = None
        elif not each.tried:
            rest["of a preset of which nothing tells whether it was tuned"][method] = None
    for what, who in rest.items():
        yield f"{listed(who)}: what was not searched is {what}"
    trained = sorted(filter(_spent, groups), key=_spent)
    if trained and _spent(trained[-1]) > _ABOUT * _spent(trained[0]):
        least, most = trained[0], trained[-1]
        yield (
            f"FLOPs of pre-training differ by up to a factor of {_spent(most) / _spent(least):.3g}:"
            f" {least.label} {_spent(least):.3g}, {most.label} {_spent(most):.3g}"
        )


def _tuned_unlike(groups: Sequence[Group]) -> list[str]:
    """In what the settings of different methods were chosen otherwise."""
    distinct = {(group.method, repr(group.choices)): group for group in groups}.values()
    found = set()
    for a, b in itertools.combinations(distinct, 2):
        if a.method != b.method:
            for of_a, of_b in itertools.product(a.choices, b.choices):
                found |= {*chosen.differences(of_a, of_b)}
    return sorted(found)


def _spent(group: Group) -> float:
    """The FLOPs of its training; 0 where it has none, or none is known."""
    return group.costs.get("flops") or 0.0
