"""Where cells run: as jobs of Slurm, by local workers on this machine, or here and now.

Everywhere, a cell is a sequence of stages, and each stage gets an id. ``folder`` is the same folder
in all calls: logs, records and what submitit needs are below it.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_bench.config.sweep_settings import Cluster, ClusterSettings
from ssl_bench.errors import require
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.sweep.backends import local, records, slurm, slurm_queue
from ssl_bench.sweep.backends.records import Record
from ssl_bench.sweep.jobs import ACTIVE, Job, State, lines_of, perform
from ssl_bench.utils.locks import taken

_ID = re.compile(rf"{records.ID}|{slurm.ID}")


def is_id(text: str) -> bool:
    """Whether this has the form of a stage id, which stands in paths and command lines."""
    return bool(_ID.fullmatch(text))


def ids_in(folder: Path) -> list[str]:
    """The stages that have left files of their own, where nobody knows what was submitted."""
    return [*records.ids_in(folder), *slurm.ids_in(folder)]


def submit(
    cells: Sequence[Sequence[Job]],
    cluster: Cluster,
    folder: Path,
    settings: ClusterSettings | None = None,
    name: str = "ssl-bench",
    limit: int | None = None,
    after: Sequence[str | None] | None = None,
    workers_folder: Path | None = None,
) -> list[list[str]]:
    """Submit cells, and return at once; "debug" does them first.

    On Slurm each stage is an array of jobs, those of a stage waiting for the same cell's of the
    stage before. A cell's stages are named by the jobs: cells that have pre-trained have one.

    Args:
        name: what ``squeue`` shows, with the stage's name.
        limit: how many cells may run at a time; on Slurm, of each stage.
        after: on Slurm, for each cell a job that its first stage waits for, or None. Elsewhere
            what was submitted with the same ``workers_folder`` before comes first.
        workers_folder: of this machine's workers: cells that share it share the workers. Default:
            ``folder``.

    Returns:
        The id of each stage of each cell.

    Raises:
        slurm.Refused: Slurm did not take all jobs; ``submitted`` has the ids of those it did take,
            of each cell.
        UserError: nothing was submitted.
    """
    folder = folder.absolute()
    if cluster == "debug":
        return _run_here(cells, folder)
    if cluster == "local":
        every = [job for stages in cells for job in stages]
        nodes, devices = (max(getattr(job, name) for job in every) for name in ("nodes", "devices"))
        require(nodes == 1, f"--nodes {nodes}: the local cluster is this machine; 1 would work")
        return local.submit(cells, folder, limit, devices, workers_folder=workers_folder)
    return slurm.submit_cells(cells, settings or ClusterSettings(), folder, name, limit, after)


def _run_here(cells: Sequence[Sequence[Job]], folder: Path) -> list[list[str]]:
    """Do the cells now, in this process, one after the other; one that fails fails alone.

    Returns:
        The ids of each cell's stages.
    """
    batch = records.new_batch(folder, "debug", cells)
    for cell, stages in enumerate(cells):
        failed = ""
        with taken(records.cell_lock(batch.folder, cell), 0):
            for stage, job in enumerate(stages):
                path = batch.folder / batch.name(cell, stage)
                if failed:
                    records.update(path, "cancelled", None, [f"its {failed} failed"])
                elif not _perform_here(job, path):
                    failed = job.stage
    return batch.ids()


def _perform_here(job: Job, path: Path) -> bool:
    """Whether it succeeded."""
    records.write(path, Record("running", starts=1))
    try:
        with contextlib.chdir(job.cwd):
            code = perform(RunConfig.from_json(job.config), job.run)
    except Exception as error:
        records.update(path, "failed", None, lines_of(error))
        print("\n".join(lines_of(error)), file=sys.stderr)
        return False
    except BaseException:  # somebody wants all of it to end
        records.update(path, "cancelled", None, [])
        raise
    records.update(path, "failed" if code else "done", code, [])
    return not code


def states(ids: Iterable[str], folder: Path) -> dict[str, State]:
    """The state of each stage, from any process, in one or two questions for all of them."""
    here, there = _parted(ids)
    return {**records.states(here, folder), **slurm_queue.states(there, folder)}


def under_way(ids: Iterable[str], folder: Path) -> list[str]:
    """The stages that are not over, as far as the cluster tells."""
    found = states(ids, folder)
    return [each for each, state in found.items() if state in {*ACTIVE, "unknown"}]


def reasons(ids: Iterable[str]) -> dict[str, str]:
    """Why those of Slurm's stages wait that do, in Slurm's words: "Resources", or something that
    will never pass, such as "PartitionTimeLimit" where the partition allows less time."""
    return slurm_queue.reasons(_parted(ids)[1])


def failure(stage: str, folder: Path, lines: int = 5) -> list[str]:
    """The last lines of what went wrong, for a person: a mistake's one line, or an error's end."""
    if _is_here(stage):
        return records.failure(folder / stage)[-lines:]
    return slurm.failure(stage, folder, lines)


def log(stage: str, folder: Path) -> Path:
    """The file that a stage writes its progress and its errors to; it may not be there yet."""
    return records.suffixed(folder / stage, "log") if _is_here(stage) else slurm.log(stage, folder)


def cancel(ids: Iterable[str], folder: Path) -> None:
    """Stop stages that run, which save first, and do not begin those that wait.

    Raises:
        UserError: Slurm does not answer.
    """
    here, there = _parted(ids)
    for stage in here:
        records.suffixed(folder / stage, "cancel").touch()
    slurm_queue.cancel(there, folder)


def _is_here(stage: str) -> bool:
    """Whether it is a stage of this machine rather than a job of Slurm's."""
    return "/" in stage


def _parted(ids: Iterable[str]) -> tuple[list[str], list[str]]:
    known = list(ids)
    return [i for i in known if _is_here(i)], [i for i in known if not _is_here(i)]
