"""``ssl-bench sweep``, whose help takes no import of torch."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

from ssl_bench.cli import help_text, parser
from ssl_bench.cli.argv import HELP
from ssl_bench.config.sweep_settings import ClusterSettings, SweepSettings

_RULES = """\
usage: ssl-bench sweep [FILE.toml] [FLAGS] [FLAGS OF ssl-bench run]

Many runs: every combination of the values of any flags of `ssl-bench run`, or a search. What is
done already is not done again, and what was interrupted is resumed.

  ssl-bench sweep --method mae,mocov3 --mask-ratio 0.5,0.75,0.9 --seed 0..4
  ssl-bench sweep --method mae,mocov3 --base-lr 1e-3 --mocov3.base-lr 5e-4,1e-3 --cluster slurm
  ssl-bench sweep --method mae,mocov3 --search random --trials 16 --seed 0..2 --evals knn,linear
  ssl-bench sweep sweep.toml --dry-run

rules:
  --seed 0,1,7      values separated by commas, in a grid with those of other flags
  --seed 0..4,7     a range of whole numbers holds both its ends
  --flip yes,no     with and without a flag that takes no value
  --mask-ratio 0.5  goes to the methods that have it: 1 x 5 cells of mocov3 in the first example
  --mae.epochs 4    goes to that method alone, and wins there over --epochs
  --evals knn,cka   goes as it is to each cell, as does any flag that takes several values itself

FILE.toml holds flags as keys, and what the command line gives wins over it:

  method = ["mae", "mocov3"]     # an array makes a grid, but for evals = ["knn", "linear"]
  seed = "0..4"
  parallel-jobs = 8
  [mae]                          # of that method alone
  mask-ratio = [0.5, 0.75]
  [[cells]]                      # combinations that are no grid, each with all that is above
  epochs = 4
  base-lr = 4e-3
  [[cells]]
  epochs = 40
  base-lr = 1e-3
  [slurm]                        # as in ssl-bench.toml, which holds profiles for all sweeps:
  partition = "gpu"              # [slurm] and, by --profile a100, [slurm.a100]
  time = "4h"
  setup = ["module load cuda"]

A search gives each method the same number of trials on a tenth of the training images held out
(--data NAME@validation), which choose its flags; the runs of each --seed have them on all.
"""


def sweep(args: Sequence[str]) -> None:
    """Do a sweep, or print the help."""
    if HELP & set(args):
        print(text(), end="")
        return
    from ssl_bench.cli.commands import sweep

    sweep.main(args)


def text() -> str:
    """The whole help."""
    lines = [_RULES, "flags:", *_flags(SweepSettings), "", "flags of jobs under Slurm:"]
    lines += [*_flags(ClusterSettings), "", "flags of runs: `ssl-bench run --help-all`"]
    return "\n".join(lines) + "\n"


def _flags(cls: type) -> list[str]:
    lines = []
    for flag in parser.flags_of(cls).values():
        is_repeated = typing.get_origin(flag.type) is tuple
        lines += help_text.entry(dataclasses.replace(flag, type=str) if is_repeated else flag)
    return lines
