"""A paper's ablation to be run here.

Nothing here imports torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.experiment.run_config import RunConfig, text_of
from ssl_bench.papers import Ablation


@dataclass(frozen=True)
class AblationCell:
    """One run of an ablation.

    Attributes:
        value: what is varied, as shown.
        args: of ``ssl-bench run``.
    """

    value: str
    config: RunConfig
    args: Sequence[str] = ()

    @property
    def command(self) -> str:
        """The command line that makes the run by itself."""
        return shlex.join(["ssl-bench", "run", *self.args])


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
    """A number as it is shown; whatever else is left to the flag to complain about."""
    try:
        return text_of(float(value))
    except ValueError:
        return str(value)
