"""The flags of sweeps: of the sweep itself, of its jobs, of those who follow and end it.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ssl_bench.config.checked import CheckedConfig
from ssl_bench.config.settings import RunsSettings
from ssl_bench.errors import UserError, require
from ssl_bench.utils.formatting import seconds

Cluster = Literal["local", "slurm", "debug"]


@dataclass(frozen=True, kw_only=True)
class SweepSettings(CheckedConfig):
    """Flags of ``ssl-bench sweep`` that say what is to become of the cells."""

    cluster: Cluster = "local"
    """Where the cells run: as processes of this machine, as jobs of Slurm, or one after the other
    in this very process, to see an error happen."""
    parallel_jobs: Annotated[int | None, "[1, inf)"] = None
    """Cells at the same time. Default: without Slurm one, or one for each GPU; with Slurm as many
    as it starts."""
    retry_failed: bool = False
    """Do the cells again that failed."""
    dry_run: bool = False
    """Show the cells and their cost, for Slurm also what sbatch would be given; start nothing."""
    search: Literal["grid", "random", "sobol"] = "grid"
    """Every combination of the values given; or --trials of them for each method, drawn at random
    or evenly (Sobol) from the ranges that the method declares, chosen on images held out of the
    training split."""
    trials: Annotated[int | None, "[1, inf)"] = None
    """Trials of each method in a search; a longer search begins with those of a shorter one."""
    trial_length: Annotated[float, "(0, 1]"] = 1.0
    """How long a trial is, as a share of the --budget-flops or --epochs of the runs on all training
    images; its schedule shrinks with it."""
    search_seed: int = 0
    """Seed of what a search draws."""
    choose_by: str = ""
    """Evaluation whose score on the held-out images chooses a method's best trial. Default: the
    first of --evals."""
    eval_devices: Annotated[int, "[1, inf)"] = 1
    """Devices of an evaluation's job, whatever the pre-training has."""
    profile: str = ""
    """Name of a [slurm.NAME] table in the config file, whose values win over those of [slurm]."""
    config: Path | None = None
    """TOML file with a [slurm] table. Default: ssl-bench.toml here, else
    ~/.config/ssl-bench/config.toml, where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search == "grid":
            for name in ("trials", "choose_by"):
                flag = name.replace("_", "-")
                require(not getattr(self, name), f"--{flag} needs --search random or sobol")
            require(self.trial_length == 1, "--trial-length needs --search random or sobol")
        else:
            require(
                self.trials is not None,
                f"--search {self.search} needs a number of trials for each method, such as "
                "--trials 16",
            )


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(CheckedConfig):
    """What each job of a sweep asks Slurm for: flags, or keys of a ``[slurm]`` table."""

    partition: str = ""
    """Partition of the jobs. Default: the cluster's."""
    account: str = ""
    """Account that pays for them. Default: the user's."""
    qos: str = ""
    """Quality of service. Default: the user's."""
    time: str = "4h"
    """Longest time that a job runs before it is queued again and resumes: 90m, 4h, 1d12h, or as
    Slurm has it (minutes, 1:30:00, 1-12:00:00)."""
    gpus: Annotated[int, "[0, inf)"] = 0
    """GPUs on each node."""
    cpus: Annotated[int | None, "[1, inf)"] = None
    """CPU cores for each process. Default: the cluster's."""
    memory: str = ""
    """Memory on each node, such as 32G or 500M. Default: the cluster's."""
    constraint: str = ""
    """Features that a node must have."""
    setup: tuple[str, ...] = ()
    """Shell line to run before each job; may be given several times."""
    slurm_options: tuple[str, ...] = ()
    """Any other option of sbatch as KEY=VALUE; may be given several times."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.minutes > 0, f"--time {self.time!r} is no time at all; 4h would work")
        if self.memory_mib is not None:
            require(self.memory_mib > 0, f"--memory {self.memory!r} is none at all; 32G would work")
        for option in self.slurm_options:
            key, equals, _ = option.partition("=")
            require(
                bool(equals and re.fullmatch(r"[a-z][a-z0-9-_]*", key)),
                f"--slurm-options {option!r} is not KEY=VALUE, such as exclude=node7",
            )

    @property
    def minutes(self) -> int:
        """What ``time`` says, rounded up."""
        found = seconds(self.time)
        if found is None:
            raise UserError(f"--time {self.time!r} is no time such as 90m, 4h or 1-12:00:00")
        require(found < 1e9, f"--time {self.time!r} is longer than any job; 4h would work")
        return -int(-found // 60)

    @property
    def memory_mib(self) -> int | None:
        """What ``memory`` says; None where it says nothing."""
        if not self.memory:
            return None
        found = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)(?:i?B)?\s*", self.memory, re.IGNORECASE)
        if not found:
            raise UserError(f"--memory {self.memory!r} is no size such as 32G or 500M")
        kib = int(found[1]) * 1024 ** "KMGT".index(found[2].upper() or "M")
        return -(-kib // 1024)


@dataclass(frozen=True, kw_only=True)
class StatusSettings(RunsSettings):
    """Show how far the cells of a sweep are, live until none is under way."""

    sweep: str = ""
    """Name of a sweep, or a part of it. Default: the last one."""
    once: bool = False
    """Show it once, as where the output is no terminal, with every cell."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class CancelSettings(RunsSettings):
    """End the jobs of a sweep; what they have saved stays."""

    sweep: str = ""
    """Name of a sweep, or a part of it. Default: the last one."""
