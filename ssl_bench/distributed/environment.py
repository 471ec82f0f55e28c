"""Rank and world size, read from torchrun's, submitit's or Slurm's environment variables."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ssl_bench.errors import require

PARENT = "SSL_BENCH_PARENT"
"""The variable for the process id of a command that starts its ranks itself."""
MARKER = "SSL_BENCH_MARKER"
"""The variable for the file to create when these ranks have met."""


@dataclass(frozen=True)
class DistributedEnvironment:
    """This process's rank and world size, overall and on this machine, and how to reach rank 0.

    Attributes:
        threads: the number of CPU threads for this rank, if its launcher set one.
        parent: process id of the command of ours that started it and waits for it.
        marker: a file to create when all ranks have met, if that command asks for it.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str
    port: int
    threads: int | None = None
    parent: int | None = None
    marker: str | None = None


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find(environment: Mapping[str, str], devices: int, nodes: int) -> DistributedEnvironment | None:
    """This process's environment where a launcher has started all ranks; else None.

    Raises:
        UserError: the processes that were started do not match devices and nodes.
    """
    found = _of_torchrun(environment) or _of_submitit(environment) or _of_slurm(environment)
    if found is None or found.world == 1:
        return None
    require(
        found.world == devices * nodes and found.local_world == devices,
        f"{found.world} processes were started, {found.local_world} of them on this machine, "
        f"and --devices {devices} --nodes {nodes} asks for {devices} on each of {nodes}; "
        f"--devices {found.local_world} --nodes {max(1, found.world // found.local_world)} would "
        "match",
    )
    node, local = divmod(found.rank, devices)
    require(
        local == found.local_rank,
        f"process {found.rank} is number {found.local_rank} on its machine, and should be number "
        f"{local} on machine {node}; srun --distribution=block would work",
    )
    return found


def _of_torchrun(environment: Mapping[str, str]) -> DistributedEnvironment | None:
    """Also of `launcher`, which sets the same variables and its own."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    if not all(environment.get(name, "").isdigit() for name in names):
        return None
    rank, world, local_rank, local_world, port = (int(environment[name]) for name in names)
    parent = environment.get(PARENT)
    return DistributedEnvironment(
        *(rank, world, local_rank, local_world, environment.get("MASTER_ADDR", "127.0.0.1"), port),
        parent=int(parent) if parent else None,
        marker=environment.get(MARKER) if parent else None,
    )


def _of_submitit(environment: Mapping[str, str]) -> DistributedEnvironment | None:
    """Of its local executor."""
    if "SUBMITIT_LOCAL_GLOBALID" not in environment:
        return None
    world = int(environment["SUBMITIT_LOCAL_NTASKS"])
    rank = int(environment["SUBMITIT_LOCAL_GLOBALID"])
    local = int(environment["SUBMITIT_LOCAL_LOCALID"])
    port = _port(environment, f"submitit {environment.get('SUBMITIT_LOCAL_JOB_ID')}")
    return DistributedEnvironment(rank, world, local, world, "127.0.0.1", port)


def _of_slurm(environment: Mapping[str, str]) -> DistributedEnvironment | None:
    """Of srun: a batch script alone has no step, whatever it asked for."""
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_PROCID" not in environment:
        return None
    world = int(environment["SLURM_STEP_NUM_TASKS"])
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    first_host = "".join(re.findall(r"^([^[,]*)\[?([^],-]*)", hosts)[0])  # a3 of "a[3-5,7],b"
    step = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    threads = environment.get("SLURM_CPUS_PER_TASK")
    return DistributedEnvironment(
        *(int(environment["SLURM_PROCID"]), world),
        *(int(environment["SLURM_LOCALID"]), max(1, world // nodes)),
        "127.0.0.1" if nodes == 1 else environment.get("MASTER_ADDR") or first_host,
        _port(environment, f"slurm {step}"),
        threads=int(threads) if threads else None,
    )


def _port(environment: Mapping[str, str], job: str) -> int:
    """The same port for every process of a job, below the ephemeral ports."""
    given = environment.get("MASTER_PORT", "")
    return int(given) if given.isdigit() else 20000 + zlib.crc32(job.encode()) % 12000
