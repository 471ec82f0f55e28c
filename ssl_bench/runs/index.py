"""All runs and their scores as two tables, cached so that thousands of runs load fast.

The run folders are the truth. ``RUNS_DIR/.index/runs.parquet`` caches one row for each run, with
the stamps of the files it was made from, and a run is read again only when these change. Nothing
depends on the cache: any process that has newer rows replaces it, without a lock, and where it is
missing, damaged, of another version or read-only, the folders are read.
"""

from __future__ import annotations

import inspect
import io
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_bench.errors import UserError, first_line
from ssl_bench.runs import run_folder, run_records, schema
from ssl_bench.utils import progress
from ssl_bench.utils.files import Absent, Unreadable, atomic, load_bytes

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
_HOME = ".index"
_SETTLED_NS = 3_000_000_000
"""A file that changed more recently may change again under the same stamp: file systems count time
in steps of up to two seconds."""
_SECONDS_UNTIL_BAR = 2.0
_THREADS = 16
_SLOW = 2e-3
"""Seconds for a folder above which threads are worth their cost: on a network file system."""
_AT_ONCE = 50
_LARGEST = 2**31
"""Bytes of the cache and of its content; a run with many evaluations takes some 10,000."""
_TYPES: Mapping[run_records.Kind, Any] = {
    "text": pa.string(),
    "json": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}


@dataclass(frozen=True)
class Index:
    """One row for each run folder and for each score, and one line for each problem.

    The columns are those of `run_records`. In pandas, whole numbers are float64 where one is
    missing (NaN); in Arrow missing values are null.
    """

    runs: pd.DataFrame | pa.Table
    scores: pd.DataFrame | pa.Table
    problems: tuple[str, ...]


def load(runs_dir: Path, names: Sequence[str] = ()) -> Index:
    """The runs under a folder.

    Args:
        names: of the runs, in order, as `run_folder.find` takes them. Default: all, sorted.

    Raises:
        UserError: there is no such run, or none at all.
    """
    found = load_arrow(runs_dir, names)
    return Index(found.runs.to_pandas(), found.scores.to_pandas(), found.problems)


def load_arrow(runs_dir: Path, names: Sequence[str] = ()) -> Index:
    """`load` in Arrow, without pandas.

    Raises:
        UserError: there is no such run, or none at all.
    """
    folders = _folders(runs_dir, names)
    cached = _load_cache(runs_dir)
    pool = ThreadPoolExecutor(_THREADS)
    try:
        rows = _valid_rows(cached, folders, pool)
        stale = [folder for folder in folders if folder not in rows]
        now_ns = _clock(runs_dir) if stale else 0
        fresh = _read(stale, pool)
    finally:
        pool.shutdown(cancel_futures=True)
    rows |= {folder: number for number, folder in enumerate(fresh, len(cached))}
    everything = pa.concat_tables([cached, _as_table(fresh.values())])
    present = [folder for folder in folders if folder in rows]
    if not present:
        run_folder.find(runs_dir, list(names))
    settled = {
        name: rows[folder]
        for folder, record in fresh.items()
        if (name := folders[folder]) and record.changed_ns < now_ns - _SETTLED_NS
    }
    known = {folders[folder] for folder in present}
    old = {name: n for n, name in enumerate(cached["run"].to_pylist()) if names or name in known}
    if settled or len(old) < len(cached):
        wanted = old | settled
        _save_cache(runs_dir, _take(everything, [wanted[name] for name in sorted(wanted)]))
    return _assemble(_take(everything, [rows[folder] for folder in present]), present)


def load_metrics(path: Path) -> pd.DataFrame:
    """The records of a training: step, epoch, loss, learning rate and whatever else was measured.

    Without a line that another process may be writing. What trains nothing has no records.

    Raises:
        UserError: the file cannot be read.
    """
    import pandas as pd

    try:
        content = load_bytes(path, _LARGEST)
        return pd.read_json(io.BytesIO(content[: content.rfind(b"\n") + 1]), lines=True)
    except Absent:
        return pd.DataFrame(columns=["step", "epoch", "loss", "learning_rate"])
    except (Unreadable, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def _folders(runs_dir: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Folders that may be runs, each with its name if it is in ``runs_dir``."""
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


def _valid_rows(
    cached: pa.Table, folders: Mapping[str, str | None], pool: ThreadPoolExecutor
) -> dict[str, int]:
    """The number of each folder's cached row whose files have not changed."""
    names = {name: number for number, name in enumerate(cached["run"].to_pylist())}
    seen, stamps = cached["seen"].to_pylist(), cached["stamp"].to_pylist()
    known = {folder: names[name] for folder, name in folders.items() if name in names}

    def is_valid(folder: str) -> bool:
        number = known[folder]
        return stamps[number] == run_records.stamp_of(folder, seen[number].split("\0"))

    return dict(itertools.compress(known.items(), _map(is_valid, list(known), pool)))


def _read(folders: Sequence[str], pool: ThreadPoolExecutor) -> dict[str, run_records.RunRecord]:
    """The record of each folder that is a run; a bar shows where that takes long."""
    records: list[run_records.RunRecord | None] = []
    started, bar = time.monotonic(), None
    with ExitStack() as stack:
        for record in _map(run_records.read, folders, pool):
            records.append(record)
            if not bar and time.monotonic() - started > _SECONDS_UNTIL_BAR:
                bar = stack.enter_context(progress.bar("read runs", len(folders)))
            if bar:
                bar.update(len(records))
    return {folder: record for folder, record in zip(folders, records, strict=True) if record}


def _map(
    function: Callable[[str], T], folders: Sequence[str], pool: ThreadPoolExecutor
) -> Iterator[T]:
    """The function's results in order; from threads where the file system is slow."""
    first, others = folders[:_AT_ONCE], folders[_AT_ONCE:]
    started = time.monotonic()
    yield from map(function, first)
    if time.monotonic() - started < _SLOW * len(first):
        yield from map(function, others)
        return

    parts = [others[start : start + _AT_ONCE] for start in range(0, len(others), _AT_ONCE)]
    results = pool.map(lambda part: list(map(function, part)), parts)
    yield from itertools.chain.from_iterable(results)


@cache
def _schema() -> pa.Schema:
    """The cache's columns; the metadata holds a hash of the code that makes a row."""

    def fields_of(columns: Mapping[str, tuple[run_records.Kind, str]], without: str) -> list[Any]:
        return [(name, _TYPES[kind]) for name, (kind, _) in columns.items() if name != without]

    columns = [
        *fields_of(run_records.RUN_COLUMNS, without="folder"),
        ("scores", pa.list_(pa.struct(fields_of(run_records.SCORE_COLUMNS, without="run")))),
        ("problems", pa.list_(pa.string())),
        ("seen", pa.string()),
        ("stamp", pa.string()),
    ]
    code = [inspect.getsource(module) for module in (run_records, schema)]
    return pa.schema(columns).with_metadata({"version": schema.digest(code)})


def _load_cache(runs_dir: Path) -> pa.Table:
    """The cached rows, or none."""
    try:
        content = pa.BufferReader(load_bytes(_path(runs_dir), _LARGEST))
        metadata = pq.read_metadata(content)
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) >= _LARGEST:  # once it is uncompressed
            return _schema().empty_table()
        table = pq.read_table(content, page_checksum_verification=True)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException):
        return _schema().empty_table()
    found = table.schema  # its fields have metadata of their own, which are not compared
    is_current = found.equals(_schema()) and found.metadata == _schema().metadata
    return table if is_current else _schema().empty_table()


def _save_cache(runs_dir: Path, table: pa.Table) -> None:
    """Replace the cache, unless it cannot be written."""
    if not _leads_out(runs_dir):
        with suppress(OSError), atomic(_path(runs_dir)) as path:
            pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def _clock(runs_dir: Path) -> int:
    """The time by the file system's clock, in nanoseconds; 0 if it cannot be asked."""
    if _leads_out(runs_dir):
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


def _leads_out(runs_dir: Path) -> bool:
    """Whether writing our files would follow a link that came with the folder, or open a pipe."""
    home = _path(runs_dir).parent
    ignore = home / ".gitignore"
    return home.is_symlink() or ignore.is_symlink() or (ignore.exists() and not ignore.is_file())


def _path(runs_dir: Path) -> Path:
    return runs_dir / _HOME / "runs.parquet"


def _as_table(records: Iterable[run_records.RunRecord]) -> pa.Table:
    rows = [
        {**record.run, "scores": record.scores, "problems": record.problems,
         "seen": "\0".join(record.seen), "stamp": record.stamp}
        for record in records
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_schema())


def _take(table: pa.Table, order: Sequence[int]) -> pa.Table:
    if list(order) == list(range(len(table))):
        return table
    return table.take(pa.array(order, pa.int64()))


def _assemble(table: pa.Table, folders: Sequence[str]) -> Index:
    """The index of the cache's rows of these folders."""
    names = table["run"].to_pylist()
    count = Counter(names)
    names = [name if count[name] == 1 else f for name, f in zip(names, folders, strict=True)]
    # Names may look alike once their unprintable characters are gone.
    seen: Counter[str] = Counter()
    for number, name in enumerate(map(run_records.text, names)):
        seen[name] += 1
        names[number] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    states = [
        schema.add_running(state, Path(folder))
        for state, folder in zip(table["state"].to_pylist(), folders, strict=True)
    ]
    problems = [
        f"{name}: {problem}"
        for name, found in zip(names, table["problems"].to_pylist(), strict=True)
        for problem in found
    ]
    # A path is shown as it is, except for bytes that are no characters.
    paths = [folder.encode(errors="replace").decode() for folder in folders]
    runs = dict(zip(table.column_names, table.columns, strict=True))
    for name, values in (("run", names), ("folder", paths), ("state", states)):
        runs[name] = pa.array(values, pa.string())
    nested = table["scores"].combine_chunks()
    scores = pa.Table.from_struct_array(pc.list_flatten(nested))
    parents = pc.list_parent_indices(nested)
    homes = runs["folder"].take(parents)
    scores = scores.append_column("run", runs["run"].take(parents)).set_column(
        scores.column_names.index("folder"),
        "folder",
        pc.binary_join_element_wise(homes, scores["folder"], os.sep),
    )
    return Index(
        pa.table({name: runs[name] for name in run_records.RUN_COLUMNS}),
        scores.select(list(run_records.SCORE_COLUMNS)),
        tuple(problems),
    )
