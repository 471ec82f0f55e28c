"""What was submitted, in ``RUNS_DIR/sweeps/NAME/sweep.json``; what is done, the run folders say.

The same cells make the same sweep, whichever command names them, so that evaluations can be added
to it later. Jobs' own files are beside it, in ``jobs/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench import locks, runs
from ssl_bench.errors import UserError, first_line, require, the_one
from ssl_bench.files import read_json, write_json
from ssl_bench.settings import Settings

Stage = Literal["pretrain", "evaluate"]


@dataclass(frozen=True)
class Entry:
    """A cell as it was planned.

    Attributes:
        label: what varies between cells.
        words: of ``ssl-bench run``, complete.
        run: name of its run folder.
        evals: name of each evaluation's folder in it.
        steps: optimiser steps of its pre-training; 0 where it trains nothing.
        flops: of its pre-training.
        pretrain_seconds, eval_seconds: device-seconds that each stage may take; None where no
            earlier run tells.
        trial: whether it is a trial of a search.
    """

    label: str
    words: tuple[str, ...]
    run: str
    evals: Mapping[str, str]
    steps: int
    batch_size: int
    flops: int
    pretrain_seconds: float | None
    eval_seconds: float | None
    trial: bool = False


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


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is stored.

    Attributes:
        cluster: where it was last submitted to.
        submitted: every job, the latest ones last.
        command: the last one.
    """

    folder: Path
    cluster: str
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
        is_default = self.runs_dir == Settings.runs_dir
        return "" if is_default else f" --runs-dir {self.runs_dir}"

    @property
    def jobs_folder(self) -> Path:
        """Where the jobs' own files are."""
        return self.folder / "jobs"


def name_of(entries: Sequence[Entry]) -> str:
    """What a sweep over these cells is called."""
    methods = dict.fromkeys(entry.run.split("-", 1)[0] for entry in entries)
    kind = "search" if any(entry.trial for entry in entries) else "sweep"
    stem = "-".join(methods) if len(methods) < 4 else f"{len(methods)}-methods"
    return f"{kind}-{stem}-{runs.digest(sorted(entry.run for entry in entries))}"


def write(sweep: Sweep) -> None:
    """Store a sweep as a whole."""
    content = asdict(sweep)
    del content["folder"]
    sweep.folder.mkdir(parents=True, exist_ok=True)
    write_json(sweep.folder / "sweep.json", content)


def read(folder: Path) -> Sweep:
    """A sweep as it was stored.

    Raises:
        UserError: ``sweep.json`` cannot be read.
    """
    path = folder / "sweep.json"
    try:
        content: dict[str, Any] = read_json(path)
        entries = [Entry(**{**each, "words": tuple(each["words"])}) for each in content["entries"]]
        submitted = [
            Submitted(**{**each, "evals": tuple(each["evals"])}) for each in content["submitted"]
        ]
        command = tuple(content["command"])
        return Sweep(folder, content["cluster"], command, tuple(entries), tuple(submitted))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def every(runs_dir: Path) -> list[Sweep]:
    """All sweeps there, the one that was changed last at the end.

    Raises:
        UserError: one cannot be read.
    """
    paths = [path for path in runs_dir.glob("sweeps/*/sweep.json") if path.is_file()]
    return [read(path.parent) for path in sorted(paths, key=lambda path: path.stat().st_mtime)]


def find(runs_dir: Path, name: str) -> Sweep:
    """A sweep by its name or a part of it; the one that was changed last without a name.

    Raises:
        UserError: there is none, or more than one.
    """
    known = every(runs_dir)
    require(bool(known), f"no sweep in {str(runs_dir)!r}; `ssl-bench sweep` makes one")
    if not name:
        return known[-1]
    by_name = {sweep.name: sweep for sweep in known}
    return by_name[the_one("sweep", Path(name).name, by_name, str(runs_dir))]


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
