"""A paper's ablation to be run here.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.papers import Ablation


@dataclass(frozen=True)
class AblationCell:
    """One run of an ablation.

    Attributes:
        value: what is varied, as shown.
        config: of the run.
    """

    value: str
    config: RunConfig


@dataclass(frozen=True)
class Study:
    """An ablation to be run.

    Attributes:
        method: whose ablation it is.
        name: of the ablation.
        ablation: what the paper did.
        cells: what is to be run.
        constant: fields of the method's ``Config`` that another of its ablations varies.
        runs_dir: folder that holds the run folders.
    """

    method: str
    name: str
    ablation: Ablation
    cells: Sequence[AblationCell]
    constant: Sequence[str]
    runs_dir: Path


def as_number(value: str | float) -> str:
    """A number as it is shown: short, unless that makes it another one.

    Whatever else is left to the flag to complain about.
    """
    try:
        number = float(value)
    except ValueError:
        return str(value)
    short = f"{number:g}"
    return short if float(short) == number else repr(number)
