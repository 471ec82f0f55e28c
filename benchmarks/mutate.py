"""Would the tests notice? ``make mutate`` breaks the code in small ways, and runs the tests on it.

``mutations.toml`` lists the mutations. Each is made in a copy of the checkout, never in itself, and
is noticed if its tests fail there, which pass without it. Results are added to
``results/mutations/mutations.csv`` one by one, so that a later call resumes where this one stopped;
a mutation that has changed is tried anew, ``--survived`` tries those again for which there are
other tests now, and each call ends by dropping the results of those that are not in the table.
"""

# Processes of the copy are forked from one that has imported this module: it must import nothing of
# ours, which would be the checkout's, but where only the process of the command comes.
from __future__ import annotations

import argparse
import compileall
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("mutations.toml")
OUTPUT = ROOT / "results/mutations"
_PRELOADED = (
    *("torch", "timm", "timm.data.auto_augment", "lightly.loss", "lightly.models.modules.heads"),
    *("scipy.stats", "sklearn.manifold", "statsmodels.api", "pandas", "safetensors.torch"),
    *("hypothesis", "pytest", "PIL.Image", "rich.progress", "rich.table", "huggingface_hub"),
)
_FIELDS = ("key", "result", "seconds", "file", "old", "new")
_PATIENCE = 240.0
"""Seconds after which a mutation that hangs its tests counts as noticed."""
Row = dict[str, str]


class TableError(Exception):
    """The table of mutations, or the checkout that it is of, is not what it should be."""


@dataclass(frozen=True)
class Mutation:
    """A change of one place in a file, and the tests that should fail for it.

    Attributes:
        tests: what pytest is asked to run.
        why: why no test can notice it; "" where one should.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""

    @property
    def key(self) -> str:
        """Tells it from others, and from what it was before its entry changed."""
        return hashlib.sha256("\0".join((self.file, self.old, self.new)).encode()).hexdigest()[:12]

    def applied(self, root: Path) -> str:
        """The text of the changed file.

        Raises:
            TableError: the old text is not there exactly once.
        """
        text = (root / self.file).read_text("utf-8")
        if (found := text.count(self.old)) != 1:
            raise TableError(f"{self.file} has {self.old!r} {found} times; once would work")
        return text.replace(self.old, self.new)


def load(table: Path = TABLE, root: Path = ROOT) -> list[Mutation]:
    """The mutations of a table.

    Raises:
        TableError: it cannot be read, or an entry lacks something, names what is not there, or
            changes nothing.
    """
    try:
        found = tomllib.loads(table.read_text("utf-8"))
    except OSError as error:
        raise TableError(f"{table} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TableError(f"{table} is not TOML: {error}") from error
    mutations = [*_mutations(table, found)]
    for mutation in mutations:
        for name in (mutation.file, *(test.split("::")[0] for test in mutation.tests)):
            if not (root / name).is_file():
                raise TableError(f"there is no file {name!r}")
        if mutation.applied(root) == (root / mutation.file).read_text("utf-8"):
            raise TableError(f"{mutation.file}: {mutation.old!r} is changed into itself")
    if len({mutation.key for mutation in mutations}) < len(mutations):
        raise TableError("a mutation is there twice")
    return mutations


def _mutations(table: Path, found: dict[str, Any]) -> Iterator[Mutation]:
    """Those that a table's entries describe."""
    groups = found.get("group")
    if not isinstance(groups, list) or not groups:
        raise TableError(f"{table} has no [[group]], which would have file, tests and changes")
    for number, group in enumerate(groups, 1):
        for name, kind in (("file", str), ("tests", list), ("changes", list)):
            if not (isinstance(group, dict) and isinstance(group.get(name), kind) and group[name]):
                needed = "file, tests and changes, the latter two lists"
                raise TableError(f"{table}: group {number} has no {name}; it needs {needed}")
        for change in group["changes"]:
            texts = [*change, *group["tests"]] if isinstance(change, list) else [None]
            if not all(isinstance(text, str) for text in texts) or len(change) not in (2, 3):
                raise TableError(
                    f"{table}: group {number}: {change!r} with tests {group['tests']!r} is no "
                    "mutation; [from, to] or [from, to, why] would be, all of them texts"
                )
            old, new, *why = change
            yield Mutation(group["file"], old, new, tuple(group["tests"]), *why)


def main(args: Sequence[str] | None = None) -> int:
    """Try mutations until the time is up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutate", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after about so many")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="files with one of these in the name"
    )
    parser.add_argument("--survived", action="store_true", help="try those again that survived")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args(args)

    from ssl_bench.errors import UserError, above, as_user_error, unknown

    try:
        above("--minutes", asked.minutes, 0)
        with as_user_error():
            mutations = load(asked.table, asked.root)
            files = {mutation.file for mutation in mutations}
            for part in asked.only:
                if not any(part in file for file in files):
                    names = {Path(file).name for file in files}
                    raise unknown("file", part, files | names, see=str(asked.table))
            _try(mutations, asked)
    except (TableError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _try(mutations: Sequence[Mutation], asked: argparse.Namespace) -> None:
    """Try what has no result yet, and write the report."""
    end = time.monotonic() + 60 * asked.minutes
    path = asked.output / "mutations.csv"
    asked.output.mkdir(parents=True, exist_ok=True)
    done = _results(path)
    again = {key for key, row in done.items() if asked.survived and row["result"] == "survived"}
    todo = [
        mutation
        for mutation in mutations
        if any(part in mutation.file for part in asked.only)
        and (mutation.key not in done or mutation.key in again)
    ]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        _copy(asked.root, copy)
        passes: dict[tuple[str, ...], bool] = {}
        for number, mutation in enumerate(todo, 1):
            if time.monotonic() > end:
                print(
                    f"{len(todo) - number + 1} mutations are left; run the command again to resume"
                )
                break
            if mutation.tests not in passes:
                passes[mutation.tests] = _passes(copy, mutation.tests, is_first=True)
            if not passes[mutation.tests]:
                raise TableError(f"{' '.join(mutation.tests)}: fails without a mutation")
            started, target = time.monotonic(), copy / mutation.file
            text = target.read_text("utf-8")
            target.write_text(mutation.applied(copy), "utf-8")
            survived = _passes(copy, mutation.tests)
            target.write_text(text, "utf-8")
            row = {
                "key": mutation.key,
                "result": "survived" if survived else "noticed",
                "seconds": f"{time.monotonic() - started:.1f}",
                "file": mutation.file,
                "old": mutation.old,
                "new": mutation.new,
            }
            _append(path, row)
            print(f"{number}/{len(todo)} {row['result']}: {mutation.file}: {mutation.old!r} -> "
                  f"{mutation.new!r}", flush=True)  # fmt: skip
    keys = {mutation.key for mutation in mutations}
    done = {key: row for key, row in _results(path).items() if key in keys}
    _write(path, done.values())
    (asked.output / "README.md").write_text(report(mutations, done), "utf-8")


def _copy(root: Path, copy: Path) -> None:
    """Copy the files of a checkout that git knows or would add, with compiled ones beside them."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    command.append("--exclude-standard")
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        raise TableError(f"--root {root} is no checkout: {' '.join(listed.stderr.split())}")
    for name in listed.stdout.split("\0"):
        if name and os.path.lexists(root / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name, follow_symlinks=False)
    # By time and size, a mutation could pass for what was compiled before it.
    compileall.compile_dir(copy, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def _passes(copy: Path, tests: Sequence[str], is_first: bool = False) -> bool:
    """Whether tests pass in a copy, in a process that begins with other people's code imported.

    The first time, without a mutation, bytecode is kept, and how long each test takes is noted, so
    that the quickest come first afterwards.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    process = context.Process(target=_run, args=(copy, list(tests), is_first))
    process.start()
    process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def _run(copy: Path, tests: Sequence[str], is_first: bool) -> None:
    """In a process of its own: run tests in the copy, with its code alone."""
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(copy)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and some take a second
    sys.dont_write_bytecode = not is_first
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    import pytest

    quick = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
    order = _QuickestFirst(copy.with_name("seconds.json"))
    code = int(pytest.main([*quick, *tests], [order]))
    if is_first:
        order.path.write_text(json.dumps(order.seconds))
    sys.exit(code)


class _QuickestFirst:
    """What orders tests by the seconds that they took before, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call":
            self.seconds[report.nodeid] = report.duration


def _append(path: Path, row: Row) -> None:
    if not path.exists():
        _write(path, [])
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, _FIELDS, lineterminator="\n").writerow(row)


def _write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the results by these, at once."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    new.replace(path)


def _results(path: Path) -> dict[str, Row]:
    """The last result of each mutation, by its key."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def report(mutations: Sequence[Mutation], done: dict[str, Row]) -> str:
    """The score, and those that survived, as Markdown."""
    tried = [m for m in mutations if m.key in done]
    survived = [m for m in tried if done[m.key]["result"] == "survived"]
    open_ = [m for m in survived if not m.why]
    count = len(tried) - len(survived)
    share = f" ({100 * count / len(tried):.1f} %)" if tried else ""
    reasons = f"{len(open_)} of those that survived have no reason to"
    if survived and not open_:
        reasons = "each of those that survived has a reason to"
    rest = "`make mutate` tries the rest, and " if len(tried) < len(mutations) else ""
    lines = [
        "# Would the tests notice?",
        "",
        f"Of {len(mutations)} small mutations of the code "
        f"([the table](../../benchmarks/mutations.toml)), {len(tried)} were tried; {count}{share} "
        f"were noticed by a test; {reasons}. {rest}`mutations.csv` has each result.",
    ]  # fmt: skip
    for title, those in (
        ("Survived for a reason", [m for m in survived if m.why]),
        ("Survived", open_),
    ):
        if those:
            lines += [
                "",
                f"## {title}",
                "",
                "| file | from | to | why |",
                "| --- | --- | --- | --- |",
            ]
        for m in those:
            cells = (m.file, f"`{m.old}`", f"`{m.new}`", m.why)
            plain = (cell.replace("|", chr(92) + "|").replace("\n", " ") for cell in cells)
            lines.append(f"| {' | '.join(plain)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
