"""What becomes of the stages that run on this machine: a file each, beside the log.

The id of a stage is its file's path below the folder of the jobs, without the suffix:
``local-1/003-pretrain``. Locks that the system drops with their holder tell who is alive, so that
nobody is taken for a process that had the same number before.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ssl_bench.errors import UserError
from ssl_bench.sweep.jobs import Job, State
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Absent, Unreadable, write_json
from ssl_bench.utils.locks import is_held

ID = "(?:local|debug)-[0-9]{1,9}/[0-9]{3,9}-(?:pretrain|evaluate)"
"""Of a stage."""


@dataclass(frozen=True)
class Record:
    """What is known of a stage.

    Attributes:
        state: "running", "done", "failed", "killed" or "cancelled".
        starts: how often it was begun.
        exit_code: of its process; minus the number of the signal that killed it.
        lines: the last ones of the error.
    """

    state: State
    starts: int = 0
    exit_code: int | None = None
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class LocalBatch:
    """Cells that were submitted together.

    Attributes:
        folder: of its records, logs and locks.
        cells: the stages of each.
        workers_folder: for the locks that batches share, one for each worker.
        processes: of submitit, one for each worker.
    """

    folder: Path
    cells: Sequence[Sequence[Job]]
    workers_folder: Path
    processes: Sequence[int] = ()

    def name(self, cell: int, stage: int) -> str:
        """The name of a stage's files."""
        return f"{cell:03}-{self.cells[cell][stage].stage}"

    def ids(self) -> list[list[str]]:
        """The id of each stage of each cell."""
        return [
            [f"{self.folder.name}/{self.name(cell, stage)}" for stage in range(len(stages))]
            for cell, stages in enumerate(self.cells)
        ]

    def save(self) -> None:
        """Write ``batch.json``."""
        content = asdict(self) | {"workers_folder": str(self.workers_folder)}
        del content["folder"]
        write_json(self.folder / "batch.json", content)

    @classmethod
    def load(cls, folder: Path) -> LocalBatch:
        """Read ``batch.json``.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return typed_json.read(folder / "batch.json", cls, folder=str(folder))
        except Unreadable as error:
            raise UserError(f"{str(folder / 'batch.json')!r} cannot be read: {error}") from error


def suffixed(path: Path, suffix: str) -> Path:
    """One of a stage's files: its "config.json", its record "json", its "log".

    A file "cancel" asks that it be stopped, or not begun.

    Args:
        path: folder and id of the stage.
    """
    return path.with_name(f"{path.name}.{suffix}")


def new_batch(
    folder: Path, kind: str, cells: Sequence[Sequence[Job]], workers_folder: Path | None = None
) -> LocalBatch:
    """A batch in a folder of its own, which is written.

    Args:
        kind: of cluster; the folder's name begins with it.
        workers_folder: as in `LocalBatch`. Default: ``folder``.
    """
    number = 1
    while True:
        try:
            (folder / f"{kind}-{number}").mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
    home = (folder / f"{kind}-{number}").absolute()
    batch = LocalBatch(home, cells, (workers_folder or folder).absolute())
    batch.save()
    for cell, stages in enumerate(cells):
        for stage, job in enumerate(stages):
            write_json(suffixed(home / batch.name(cell, stage), "config.json"), job.config)
    return batch


def read(path: Path) -> Record | None:
    """The record of a stage, if there is one yet that can be read."""
    try:
        return typed_json.read(suffixed(path, "json"), Record)
    except Unreadable:
        return None


def failure(path: Path) -> list[str]:
    """What is known of a stage's end: the last lines of its error, or that the record is gone."""
    try:
        return list(typed_json.read(suffixed(path, "json"), Record).lines)
    except Absent:
        whole = path.parent / "batch.json"
        return [] if whole.exists() else [f"{str(whole)!r} is gone, which told who is at it"]
    except Unreadable as error:
        return [f"{str(suffixed(path, 'json'))!r} cannot be read: {error}"]


def ids_in(folder: Path) -> list[str]:
    """The stages of all batches below the folder of the jobs, as far as their files tell."""
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.*")}
    for path in folder.glob("*/batch.json"):
        with suppress(UserError):
            found.update(each for stages in LocalBatch.load(path.parent).ids() for each in stages)
    return sorted(each for each in found if re.fullmatch(ID, each))


def write(path: Path, record: Record) -> None:
    """Put a record in the place of what was known."""
    write_json(suffixed(path, "json"), asdict(record))


def update(path: Path, state: State, exit_code: int | None, lines: Sequence[str]) -> None:
    """Note how a stage ended."""
    before = read(path) or Record(state)
    write(path, Record(state, before.starts, exit_code, list(lines)))


def cell_lock(folder: Path, cell: int) -> Path:
    """The lock of whoever works on a cell."""
    return folder / f"{cell:03}.lock"


def worker_lock(folder: Path, worker: int) -> Path:
    """The lock of a worker as long as it lives."""
    return folder / f"worker-{worker}.lock"


def states(ids: Sequence[str], folder: Path) -> dict[str, State]:
    """The state of each stage, as `clusters.states` has it."""
    alive: dict[Path, bool] = {}
    found: dict[str, State] = {}
    for each in ids:
        path = folder / each
        record = read(path)
        if record and record.state != "running":
            found[each] = record.state
        elif record and is_held(cell_lock(path.parent, int(path.name.split("-")[0]))):
            found[each] = "running"
        elif os.path.exists(suffixed(path, "cancel")):
            found[each] = "cancelled"
        else:
            if path.parent not in alive:
                alive[path.parent] = _has_workers(path.parent)
            found[each] = "pending" if alive[path.parent] else "lost"
    return found


def _has_workers(folder: Path) -> bool:
    """Whether any worker of a batch lives or is about to begin."""
    if any(is_held(path) for path in folder.glob("worker-*.lock")):
        return True
    with suppress(UserError):
        return any(_is_ours(number, folder) for number in LocalBatch.load(folder).processes)
    return False


def _is_ours(number: int, folder: Path) -> bool:
    """Whether that process is one of submitit's for the batch: its command names the folder."""
    if not Path("/proc/self/cmdline").exists():  # macOS, which has ps; a small Linux has not
        command = ["ps", "-ww", "-p", str(number), "-o", "args="]
        return os.fsencode(folder) in subprocess.run(command, capture_output=True).stdout
    with suppress(OSError):
        return os.fsencode(folder) in Path(f"/proc/{number}/cmdline").read_bytes()
    return False
