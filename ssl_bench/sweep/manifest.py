"""What was submitted, in ``RUNS_DIR/sweeps/NAME/sweep.json``; what is done, the run folders say.

The same cells make the same sweep, whichever command names them, so that evaluations can be added
to it later. Jobs' own files are beside it, in ``jobs/``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ssl_bench.config.settings import Settings
from ssl_bench.config.sweep_settings import Cluster
from ssl_bench.errors import UserError, require, the_one
from ssl_bench.runs import schema
from ssl_bench.sweep.backends.clusters import is_id
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable, checked_name, write_json

Stage = Literal["pretrain", "evaluate"]
_MOST = 2**53


@dataclass(frozen=True)
class Entry:
    """A cell as it was planned.

    Attributes:
        label: what varies between cells.
        config: of its run, as JSON.
        run: name of its run folder.
        evals: name of each evaluation's folder in it.
        steps: optimiser steps of its pre-training; 0 where it trains nothing.
        flops: of its pre-training.
        pretrain_seconds, eval_seconds: device-seconds that each stage may take; None where no
            earlier run tells.
        trial: whether it is a trial of a search.
    """

    label: str
    config: Mapping[str, Any]
    run: str
    evals: Mapping[str, str]
    steps: int
    batch_size: int
    flops: int
    pretrain_seconds: float | None
    eval_seconds: float | None
    trial: bool = False

    def __post_init__(self) -> None:
        for name in (self.run, *self.evals.values()):
            _check_name(name)
        numbers = (self.steps, self.batch_size, self.pretrain_seconds or 0, self.eval_seconds or 0)
        if not (all(0 <= number < _MOST for number in numbers) and self.flops >= 0):
            raise Unreadable(f"a number of cell {self.label!r:.40} is out of range")


@dataclass(frozen=True)
class Submitted:
    """A job for a stage of a run.

    Attributes:
        at: ISO 8601, UTC.
        evals: folders of the evaluations that it is to make.
    """

    run: str
    stage: Stage
    job: str
    at: str
    evals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.run, *self.evals):
            _check_name(name)
        if not is_id(self.job):
            raise Unreadable(f"{self.job!r:.40} is no job")


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is stored.

    Attributes:
        cluster: where it was last submitted to.
        submitted: every job, the latest ones last.
        command: the last one.
        damage: why its record cannot be read, in one line with what helps; then nothing else of it
            is known.
    """

    folder: Path
    cluster: Cluster
    command: tuple[str, ...]
    entries: tuple[Entry, ...]
    submitted: tuple[Submitted, ...]
    damage: str = ""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    @property
    def runs_dir(self) -> Path:
        """Folder that holds the run folders."""
        return self.folder.parent.parent

    @property
    def place(self) -> str:
        """What a command line needs to find it; nothing where that is the default."""
        is_default = self.runs_dir == Settings.runs_dir
        return "" if is_default else f" --runs-dir {shlex.quote(str(self.runs_dir))}"

    @property
    def jobs_folder(self) -> Path:
        """Where the jobs' own files are."""
        return self.folder / "jobs"


def name_of(entries: Sequence[Entry]) -> str:
    """What a sweep over these cells is called."""
    methods = dict.fromkeys(entry.run.split("-", 1)[0] for entry in entries)
    kind = "search" if any(entry.trial for entry in entries) else "sweep"
    stem = "-".join(methods) if len(methods) < 4 else f"{len(methods)}-methods"
    return f"{kind}-{stem}-{schema.digest(sorted(entry.run for entry in entries))}"


def write(sweep: Sweep) -> None:
    """Store a sweep as a whole."""
    content = asdict(sweep)
    del content["folder"], content["damage"]
    sweep.folder.mkdir(parents=True, exist_ok=True)
    path = sweep.folder / "sweep.json"
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder where a file should be; delete it")
    write_json(path, content)


def read(folder: Path) -> Sweep:
    """A sweep as it was stored, or what is damaged of it."""
    try:
        return typed_json.read(folder / "sweep.json", Sweep, folder=str(folder))
    except Unreadable as error:
        sweep = Sweep(folder, "local", (), (), ())
        damage = (
            f"{str(folder / 'sweep.json')!r} cannot be read: {error}; the same `ssl-bench sweep` "
            f"writes it again, `ssl-bench cancel {sweep.name}{sweep.place}` ends its jobs"
        )
        return replace(sweep, damage=damage)


def every(runs_dir: Path) -> list[Sweep]:
    """All sweeps there, what is damaged first, and the one that was changed last at the end."""

    def place(sweep: Sweep) -> tuple[bool, float]:
        with suppress(OSError):
            return not sweep.damage, (sweep.folder / "sweep.json").stat().st_mtime
        return False, 0.0

    folders = sorted(path for path in runs_dir.glob("sweeps/*") if path.is_dir())
    return sorted(map(read, folders), key=place)


def find(sweeps: Sequence[Sweep], runs_dir: Path, name: str) -> Sweep:
    """A sweep by its name or a part of it; the one that was changed last without a name.

    Args:
        sweeps: all of the folder.

    Raises:
        UserError: there is none, or more than one.
    """
    require(bool(sweeps), f"no sweep in {str(runs_dir)!r}; `ssl-bench sweep` makes one")
    if not name:
        require(not sweeps[-1].damage, sweeps[-1].damage)
        return sweeps[-1]
    by_name = {each.name: each for each in sweeps}
    return by_name[the_one("sweep", Path(name).name, by_name, str(runs_dir))]


def _check_name(name: str) -> None:
    """Of a folder in another one.

    Raises:
        Unreadable: it would lead elsewhere.
    """
    try:
        checked_name(name)
    except UserError as error:
        raise Unreadable(str(error)) from None
