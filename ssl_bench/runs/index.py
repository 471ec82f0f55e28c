"""All runs as two tables, however many there are.

The run folders are the truth. What they say is kept in ``RUNS_DIR/.index/runs.parquet``, one row
for each run with the stamps of the files it follows from, and a run is read again only where these
differ. Nothing depends on that file: it is replaced as a whole by whoever has newer rows, without a
lock, and where it is missing, damaged, of another version or cannot be written, the folders are
read.
"""

from __future__ import annotations

import inspect
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_bench.runs import run_folder, run_records, schema
from ssl_bench.utils import progress
from ssl_bench.utils.files import atomic, load_bytes

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
_HOME = ".index"
_SETTLED_NS = 3_000_000_000
"""A file that changed later than this before it was read may change again under the same stamp:
file systems count time in steps of up to two seconds."""
_SECONDS_UNSEEN = 2.0
_THREADS = 16
_SLOW = 2e-3
"""Seconds for a folder from which on threads wait for a file system together; below, they cost."""
_AT_ONCE = 50
_LARGEST = 2**31
"""Bytes of the file, and of what it unfolds to: a run of many evaluations has some 10,000."""
_TYPES: Mapping[run_records.Kind, Any] = {
    "text": pa.string(),
    "json": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}


@dataclass(frozen=True)
class Index:
    """What there is.

    A column of whole numbers is float64 where one is missing (NaN).

    Attributes:
        runs: one row for each run folder; columns as in `run_records.RUN_COLUMNS`.
        scores: one row for each number; columns as in `run_records.SCORE_COLUMNS`.
        problems: one line for each thing that is wrong: a file that cannot be read, a score that
            is no number.
    """

    runs: pd.DataFrame
    scores: pd.DataFrame
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Tables:
    """An `Index` in Arrow, where what is missing is null and whole numbers stay whole."""

    runs: pa.Table
    scores: pa.Table
    problems: tuple[str, ...]


def load(runs_dir: Path, names: Sequence[str] = ()) -> Index:
    """The runs under a folder.

    Args:
        names: those wanted, as `run_folder.find` takes them, in that order; all, by name, when
            there is none.

    Raises:
        UserError: there is no such run, or none at all.
    """
    found = tables(runs_dir, names)
    return Index(found.runs.to_pandas(), found.scores.to_pandas(), found.problems)


def tables(runs_dir: Path, names: Sequence[str] = ()) -> Tables:
    """`load` without pandas.

    Raises:
        UserError: there is no such run, or none at all.
    """
    folders = _folders(runs_dir, names)
    kept = _kept(runs_dir)
    pool = ThreadPoolExecutor(_THREADS)
    try:
        position = _holding(kept, folders, pool)
        stale = [folder for folder in folders if folder not in position]
        now_ns = _clock(runs_dir) if stale else 0
        fresh = _read(stale, pool)
    finally:
        pool.shutdown(cancel_futures=True)
    position |= {folder: len(kept) + number for number, folder in enumerate(fresh)}
    everything = pa.concat_tables([kept, _as_table(fresh.values())])
    present = [folder for folder in folders if folder in position]
    if not present:
        run_folder.find(runs_dir, list(names))
    settled = {
        name: position[folder]
        for folder, reading in fresh.items()
        if (name := folders[folder]) and reading.changed_ns < now_ns - _SETTLED_NS
    }
    here = {folders[folder] for folder in present}
    old = {name: n for n, name in enumerate(kept["run"].to_pylist()) if names or name in here}
    if settled or len(old) < len(kept):
        wanted = old | settled
        _keep(runs_dir, _take(everything, [wanted[name] for name in sorted(wanted)]))
    return _assemble(_take(everything, [position[folder] for folder in present]), present)


def _folders(runs_dir: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Folders that may be runs, each with its name if it lies in ``runs_dir``."""
    if names:
        found: dict[Path, Path] = {}
        for folder in run_folder.find(runs_dir, list(names)):
            found.setdefault(folder.resolve(), folder)
        home = runs_dir.resolve()
        return {
            str(folder): path.name if path.parent == home else None
            for path, folder in found.items()
        }
    try:
        with os.scandir(runs_dir) as entries:
            inside = sorted(e.name for e in entries if e.name != _HOME and e.is_dir())
    except OSError:
        return {}
    return {os.path.join(runs_dir, name): name for name in inside}


def _holding(
    kept: pa.Table, folders: Mapping[str, str | None], pool: ThreadPoolExecutor
) -> dict[str, int]:
    """The position of each folder's row that still holds."""
    names = {name: number for number, name in enumerate(kept["run"].to_pylist())}
    seen, stamps = kept["seen"].to_pylist(), kept["stamp"].to_pylist()
    known = {folder: names[name] for folder, name in folders.items() if name in names}

    def holds(folder: str) -> bool:
        number = known[folder]
        return stamps[number] == run_records.stamp_of(folder, seen[number].split("\0"))

    answers = _spread(holds, list(known), pool)
    return {f: number for (f, number), held in zip(known.items(), answers, strict=True) if held}


def _read(folders: Sequence[str], pool: ThreadPoolExecutor) -> dict[str, run_records.RunRecord]:
    """What each folder says that is a run, while a bar shows if that takes long."""
    readings = {}
    started, bar = time.monotonic(), None
    with ExitStack() as stack:
        answers = _spread(run_records.read, folders, pool)
        for number, (folder, reading) in enumerate(zip(folders, answers, strict=True), start=1):
            if reading:
                readings[folder] = reading
            if not bar and time.monotonic() - started > _SECONDS_UNSEEN:
                bar = stack.enter_context(progress.bar("read runs", len(folders)))
            if bar:
                bar.update(number)
    return readings


def _spread(
    function: Callable[[str], T], folders: Sequence[str], pool: ThreadPoolExecutor
) -> Iterator[T]:
    """Results in order; where a network answers, many to a task, which are waited for together."""
    first, others = folders[:_AT_ONCE], folders[_AT_ONCE:]
    started = time.monotonic()
    yield from map(function, first)
    if time.monotonic() - started < _SLOW * len(first):
        yield from map(function, others)
        return

    def some(part: Sequence[str]) -> list[T]:
        return [function(folder) for folder in part]

    parts = [others[start : start + _AT_ONCE] for start in range(0, len(others), _AT_ONCE)]
    yield from itertools.chain.from_iterable(pool.map(some, parts))


@cache
def _schema() -> pa.Schema:
    """Of what is kept; its metadata is the version of all that makes a row."""

    def fields_of(columns: Mapping[str, tuple[run_records.Kind, str]], without: str) -> list[Any]:
        return [(name, _TYPES[kind]) for name, (kind, _) in columns.items() if name != without]

    scores = pa.list_(pa.struct(fields_of(run_records.SCORE_COLUMNS, "run")))
    own = [("scores", scores), ("problems", pa.list_(pa.string()))]
    stamps = [("seen", pa.string()), ("stamp", pa.string())]
    columns = pa.schema([*fields_of(run_records.RUN_COLUMNS, "folder"), *own, *stamps])
    code = [inspect.getsource(module) for module in (run_records, schema)]
    return columns.with_metadata({"version": schema.digest(code)})


def _kept(runs_dir: Path) -> pa.Table:
    """The rows that were kept, or none."""
    try:
        content = pa.BufferReader(load_bytes(_path(runs_dir), _LARGEST))
        if not _is_bounded(pq.read_metadata(content)):
            return _schema().empty_table()
        table = pq.read_table(content, page_checksum_verification=True)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException):
        return _schema().empty_table()
    found = table.schema
    if not found.equals(_schema()) or found.metadata != _schema().metadata:
        return _schema().empty_table()
    return table


def _is_bounded(metadata: pq.FileMetaData) -> bool:
    """Whether a file unfolds to no more than the rows of the largest folder would."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.total_byte_size for group in groups) < _LARGEST


def _keep(runs_dir: Path, table: pa.Table) -> None:
    """Replace what was kept, where that can be written."""
    if _is_elsewhere(runs_dir):
        return
    try:
        with atomic(_path(runs_dir)) as path:
            pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    except OSError:
        return


def _clock(runs_dir: Path) -> int:
    """The file system's time in nanoseconds, which need not be this machine's; 0 if not known."""
    if _is_elsewhere(runs_dir):
        return 0
    try:
        home = _path(runs_dir).parent
        home.mkdir(exist_ok=True)
        ignore = home / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        ignore.touch()
        return ignore.stat().st_mtime_ns
    except OSError:
        return 0


def _is_elsewhere(runs_dir: Path) -> bool:
    """Whether writing our files here would follow a link, which may have come with the folder.

    A pipe in a file's place counts too, since opening it would block.
    """
    home = _path(runs_dir).parent
    ignore = home / ".gitignore"
    return home.is_symlink() or ignore.is_symlink() or (ignore.exists() and not ignore.is_file())


def _path(runs_dir: Path) -> Path:
    return runs_dir / _HOME / "runs.parquet"


def _as_table(readings: Iterable[run_records.RunRecord]) -> pa.Table:
    found = [
        {
            **reading.run,
            "scores": reading.scores,
            "problems": reading.problems,
            "seen": "\0".join(reading.seen),
            "stamp": reading.stamp,
        }
        for reading in readings
    ]
    return pa.Table.from_pylist(found, schema=_schema())


def _take(table: pa.Table, order: Sequence[int]) -> pa.Table:
    if list(order) == list(range(len(table))):
        return table
    return table.take(pa.array(order, pa.int64()))


def _assemble(table: pa.Table, folders: Sequence[str]) -> Tables:
    """What is told of the rows, which are those of the folders."""
    names = table["run"].to_pylist()
    unique = Counter(names)
    names = [n if unique[n] == 1 else folder for n, folder in zip(names, folders, strict=True)]
    names = _told_apart(list(map(run_records.text, names)))
    states = [
        schema.add_running(state, Path(folder))
        for state, folder in zip(table["state"].to_pylist(), folders, strict=True)
    ]
    problems = [
        f"{name}: {problem}"
        for name, found in zip(names, table["problems"].to_pylist(), strict=True)
        for problem in found
    ]
    # A path stays what it is, but for what is no character.
    paths = [folder.encode(errors="replace").decode() for folder in folders]
    told = {"run": names, "folder": paths, "state": states}
    of_runs = pa.table(
        {
            name: pa.array(told[name], pa.string()) if name in told else table[name]
            for name in run_records.RUN_COLUMNS
        }
    )
    nested = table["scores"].combine_chunks()
    own = pa.Table.from_struct_array(pc.list_flatten(nested))
    parents = pc.list_parent_indices(nested)
    homes = pc.binary_join_element_wise(of_runs["folder"].take(parents), own["folder"], os.sep)
    derived = {"run": of_runs["run"].take(parents), "folder": homes}
    of_scores = pa.table(
        {
            name: derived[name] if name in derived else own[name]
            for name in run_records.SCORE_COLUMNS
        }
    )
    return Tables(of_runs, of_scores, tuple(problems))


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names that were others by what cannot be shown of them, with a number after each but one."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
