"""``ssl-bench query``: SQL over all runs and their scores."""

from __future__ import annotations

import atexit
import csv
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from ssl_bench.config.command_settings import QuerySettings
from ssl_bench.errors import UserError
from ssl_bench.runs import index, run_records
from ssl_bench.utils.files import atomic, writing
from ssl_bench.utils.formatting import cell, plain
from ssl_bench.utils.signals import Interrupted
from ssl_bench.utils.terminal import Console

T = TypeVar("T")
Fetch = Callable[[int], list[tuple[Any, ...]]]

_SHOWN = 100
_AT_ONCE = 10_000
_MEMORY = "2GB"
"""For the database: a slip like a join on nothing ends there, and not this machine."""
_CLOSED = (
    "python_enable_replacements = false",
    "temp_directory = ''",
    "enable_external_access = false",
    "autoload_known_extensions = false",
    "autoinstall_known_extensions = false",
    "allow_community_extensions = false",
    "lock_configuration = true",
)
"""What keeps SQL from files, from the network, from extensions and from more memory."""
_SECONDS_TO_END = 0.3
_NARROW = 8
"""Characters below which a table's columns cannot be read."""


def query(settings: QuerySettings) -> None:
    """Answer a query, or list the columns that there are where none is asked."""
    console = Console()
    if settings.schema or not settings.sql.strip():
        for title, columns in (
            ("runs", run_records.RUN_COLUMNS),
            ("scores", run_records.SCORE_COLUMNS),
        ):
            console.print(_meanings(title, columns))
            console.print()
        return
    found = index.load_arrow(settings.runs_dir)
    with _asked(settings.sql, found) as (names, fetch):
        answer = fetch(_SHOWN + 1)
        is_wide = len(names) * _NARROW > console.width and console.is_terminal
        if not console.is_terminal:
            console.width = 10_000  # nobody's window, whose lines would be broken
        for table in (_records if is_wide else _table)(names, answer[:_SHOWN]):
            console.print(table)
        if len(answer) > _SHOWN:
            console.print("more rows; --csv FILE writes them all")
        if found.problems:
            first, *others = found.problems
            rest = f" (and {len(others):,} more)" if others else ""
            note = Text(plain(f"note: {first}{rest}"))
            Console(stderr=True).print(note, style="yellow")
        if settings.csv:
            with (
                writing(settings.csv),
                atomic(settings.csv) as path,
                path.open("w", newline="", encoding="utf-8") as f,
            ):
                writer = csv.writer(f)
                writer.writerow(map(cell, names))
                while answer:
                    writer.writerows(map(cell, row) for row in answer)
                    answer = fetch(_AT_ONCE)
            console.print(Text(f"table: {settings.csv}"))


@contextmanager
def _asked(sql: str, found: index.Index) -> Iterator[tuple[list[str], Fetch]]:
    """The names of the answer's columns, and what gives its next rows.

    The database is in memory, and SQL reaches no file but by the two tables.
    """
    import duckdb

    connection = duckdb.connect(":memory:")
    connection.register("runs", found.runs)
    connection.register("scores", found.scores)
    for setting in (f"memory_limit = '{_MEMORY}'", *_CLOSED):
        connection.execute(f"SET {setting}")

    def ask() -> list[str]:
        connection.execute(sql)
        return [column[0] for column in connection.description or ()]

    def fetch(count: int) -> list[tuple[Any, ...]]:
        rows = partial(connection.fetchmany, count)
        return _stoppable(rows, connection.interrupt) if names else []

    try:
        names = _stoppable(ask, connection.interrupt)
        yield names, fetch
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.OutOfMemoryException:
        raise UserError(f"the answer takes more than {_MEMORY} of memory; ask for less") from None
    except duckdb.Error as error:
        is_of_names = isinstance(error, duckdb.BinderException | duckdb.CatalogException)
        hint = " (`ssl-bench query` lists the columns)" if is_of_names else ""
        raise UserError(str(error).partition("\n\nLINE ")[0] + hint) from None
    connection.close()


def _stoppable(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """What the work gives, done in a thread so that a signal is handled meanwhile.

    Python handles one between two steps of its main thread alone, and the database takes one long
    step. Most of what it does ends soon once it is asked to; the rest ends with the process.
    """
    outcome: Future[T] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    try:
        return outcome.result()
    except (KeyboardInterrupt, Interrupted) as error:
        stop()
        with suppress(Exception):
            outcome.exception(timeout=_SECONDS_TO_END)
        code = 128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)
        atexit.register(_leave, outcome, code)
        raise


def _leave(outcome: Future[Any], code: int) -> None:
    """End the process, which would wait for what the database is still at."""
    if not outcome.done():
        sys.stdout.flush()
        os._exit(code)


def _table(names: Sequence[str], answer: Sequence[Sequence[Any]]) -> list[Table]:
    table = Table()
    for number, name in enumerate(names):
        is_number = all(isinstance(row[number], int | float | None) for row in answer)
        table.add_column(
            Text(plain(name)), justify="right" if is_number else "left", overflow="fold"
        )
    for row in answer:
        table.add_row(*map(_cell, row))
    return [table]


def _records(names: Sequence[str], answer: Sequence[Sequence[Any]]) -> list[Table]:
    """A table for each row, which is too wide for one line."""
    tables = []
    for row in answer:
        table = Table(show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in zip(names, row, strict=True):
            table.add_row(Text(plain(name)), _cell(value))
        tables.append(table)
    return tables


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value:.6g}" if isinstance(value, float) else plain(str(value)))


def _meanings(title: str, columns: Any) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column()
    for name, (kind, meaning) in columns.items():
        table.add_row(name, kind, Text(meaning))
    return table
