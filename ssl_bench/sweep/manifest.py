"""What was submitted, in ``RUNS_DIR/sweeps/NAME/sweep.json``; what is done, the run folders say.

The same cells make the same sweep, whichever command names them, so that evaluations can be added
to it later. Jobs' own files are beside it, in ``jobs/``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.config.settings import Settings
from ssl_bench.config.sweep_settings import Cluster
from ssl_bench.errors import UserError, require, the_one
from ssl_bench.runs import schema
from ssl_bench.sweep.backends.clusters import is_id
from ssl_bench.utils import locks, typed_json
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
class Damaged:
    """A sweep whose record cannot be read.

    Attributes:
        why: in one line, with what helps.
    """

    folder: Path
    why: str

    @property
    def jobs_folder(self) -> Path:
        """Where the jobs' own files are."""
        return self.folder / "jobs"


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is stored.

    Attributes:
        cluster: where it was last submitted to.
        submitted: every job, the latest ones last.
        command: the last one.
    """

    folder: Path
    cluster: Cluster
    command: tuple[str, ...]
    entries: tuple[Entry, ...]
    submitted: tuple[Submitted, ...]

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
        return _place(self.runs_dir)

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
    del content["folder"]
    sweep.folder.mkdir(parents=True, exist_ok=True)
    path = sweep.folder / "sweep.json"
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder where a file should be; delete it")
    write_json(path, content)


def read(folder: Path) -> Sweep:
    """A sweep as it was stored.

    Raises:
        UserError: ``sweep.json`` cannot be read; the message says what helps.
    """
    try:
        return typed_json.read(folder / "sweep.json", Sweep, folder=str(folder))
    except Unreadable as error:
        raise UserError(
            f"{str(folder / 'sweep.json')!r} cannot be read: {error}; the same `ssl-bench sweep` "
            f"writes it again, `ssl-bench cancel {folder.name}{_place(folder.parent.parent)}` ends "
            "its jobs"
        ) from error


def every(runs_dir: Path) -> tuple[list[Sweep], list[Damaged]]:
    """All sweeps there, the one that was changed last at the end, and what cannot be read."""
    found: list[tuple[float, Sweep]] = []
    damaged = []
    for folder in _folders(runs_dir):
        try:
            found.append((_changed(folder), read(folder)))
        except UserError as error:
            damaged.append(Damaged(folder, str(error)))
    return [sweep for _, sweep in sorted(found, key=lambda each: each[0])], damaged


def find(runs_dir: Path, name: str) -> Sweep | Damaged:
    """A sweep by its name or a part of it; the one that was changed last without a name.

    Raises:
        UserError: there is none, or more than one.
    """
    known, damaged = every(runs_dir)
    if not name and known:
        return known[-1]
    by_name: dict[str, Sweep | Damaged] = {each.folder.name: each for each in damaged}
    by_name |= {each.name: each for each in known}
    require(bool(by_name), f"no sweep in {str(runs_dir)!r}; `ssl-bench sweep` makes one")
    if not name:
        raise UserError(damaged[0].why)
    return by_name[the_one("sweep", Path(name).name, by_name, str(runs_dir))]


def _place(runs_dir: Path) -> str:
    is_default = runs_dir == Settings.runs_dir
    return "" if is_default else f" --runs-dir {shlex.quote(str(runs_dir))}"


def _folders(runs_dir: Path) -> list[Path]:
    """Of the sweeps, whatever is in them."""
    return sorted(path for path in runs_dir.glob("sweeps/*") if path.is_dir())


def _changed(folder: Path) -> float:
    with suppress(OSError):
        return (folder / "sweep.json").stat().st_mtime
    return 0.0


def _check_name(name: str) -> None:
    """Of a folder in another one.

    Raises:
        Unreadable: it would lead elsewhere.
    """
    try:
        checked_name(name)
    except UserError as error:
        raise Unreadable(str(error)) from None


def jobs_of(sweeps: Sequence[Sweep]) -> dict[tuple[str, Stage], tuple[Sweep, Submitted]]:
    """The latest job for each stage of each run, and the sweep that it belongs to."""
    found: dict[tuple[str, Stage], tuple[Sweep, Submitted]] = {}
    for sweep in sweeps:
        for each in sweep.submitted:
            key = (each.run, each.stage)
            if key not in found or found[key][1].at <= each.at:
                found[key] = (sweep, each)
    return found


@contextmanager
def submitting(runs_dir: Path) -> Iterator[None]:
    """Keep others from submitting the same cells meanwhile; they wait."""
    home = runs_dir / "sweeps"
    home.mkdir(parents=True, exist_ok=True)
    with locks.held(home, wait=True):
        yield
