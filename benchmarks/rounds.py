"""Contestants take turns, each time in a process of its own, and their rounds are compared."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Round = Mapping[str, float]
Rounds = Mapping[str, Sequence[Round]]


class Failed(Exception):
    """A measurement's process ended without a result."""


def in_process(function: str, **arguments: Any) -> dict[str, float]:
    """What ``module:function`` returns in a new process.

    Raises:
        Failed: it returned nothing; the message is the last line it wrote.
    """
    order = json.dumps({"function": function, "arguments": arguments})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", order],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failed(lines[-1][:300]) from None


def in_turn(
    names: Iterable[str], rounds: int, measure: Callable[[str], dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """Each contestant's rounds; whoever fails once is told of and left out."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(1, rounds + 1):
        for name in list(found):
            try:
                result = measure(name)
            except Failed as error:
                print(f"  {name} is left out: {error}", flush=True)
                del found[name]
                continue
            found[name].append(result)
            shown = "  ".join(f"{key} {value:,.4g}" for key, value in result.items())
            print(f"  round {number} {name:<24} {shown}", flush=True)
    return found


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


def spread(rounds: Sequence[Round], key: str) -> Spread:
    """Of one contestant's figure."""
    return Spread.of(each[key] for each in rounds)


def ratio(ours: Sequence[Round], theirs: Sequence[Round], key: str) -> Spread:
    """Of ours to theirs, round by round: what slows a machine down slows both."""
    return Spread.of(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))
