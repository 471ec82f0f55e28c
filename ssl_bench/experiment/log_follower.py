"""``--log``: a run's curves, scores and pictures in the tools of `loggers`.

The run folder holds all of it, so a training calls no logger: each has a thread of its own, which
sends what is new in the folder and notes how far it got. Hence a resumed run continues in the
tool's own run, no step lost or twice, what failed is sent later, and a run that was made without a
logger is sent as a whole by the same command with one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from ssl_bench.errors import first_line
from ssl_bench.experiment.loading import note
from ssl_bench.experiment.loggers import SECONDS_TO_FINISH, TOOLS, Sent
from ssl_bench.runs import schema
from ssl_bench.runs.schema import is_number, mapping
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable, make_inside, parse_json, write_json

SECONDS_BETWEEN_LOOKS = 2.0
_MOST_SECONDS_BETWEEN_TRIES = 300.0
_COLLAPSE = ("spread", "effective_rank")


@contextmanager
def following(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Send what is in a run folder, and what comes there during the block, to each logger."""
    followers = [_Follower(name, folder) for name in names]
    failed = True
    try:
        yield
        failed = False
    finally:
        for each in followers:
            each.finish(failed)


class _Follower:
    """Sends a run to one tool; that this fails is told once, and it is tried again."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder, self._noted = name, folder, folder / name / "sent.json"
        try:
            self._sent = typed_json.read(self._noted, Sent)
        except Unreadable:
            self._sent = Sent()
        self._written: Sent | None = None
        self._end, self._last_line = 0, b""
        self._failed, self._told, self._ended = False, False, Event()
        self._thread = Thread(target=self._follow, daemon=True)
        try:
            make_inside(folder, self._noted.parent)
            config = {**schema.load_config(folder), "run_folder": str(folder.resolve())}
            self._tool = TOOLS[name](folder, config, self._sent)
            self._thread.start()
        except Exception as error:
            note(f"--log {name}: {first_line(error)}; the run continues without this logger")

    def finish(self, failed: bool) -> None:
        """Send the rest."""
        self._failed = failed
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_TO_FINISH)
        if self._thread.is_alive():
            note(f"--log {self._name} does not end; the same command sends what is missing")

    def _follow(self) -> None:
        pause, is_last = SECONDS_BETWEEN_LOOKS, False
        while not is_last:
            is_last = self._ended.wait(pause)
            try:
                self._send(is_last)
                if is_last:
                    self._tool.finish(self._failed)
                pause = SECONDS_BETWEEN_LOOKS
            except Exception as error:
                pause = min(2 * pause, _MOST_SECONDS_BETWEEN_TRIES)
                then = "the same command sends what is missing" if is_last else "it is tried again"
                if is_last or not self._told:
                    note(f"--log {self._name}: {first_line(error)}; {then}")
                self._told = True

    def _send(self, is_last: bool) -> None:
        """Send what is new, and note it."""
        for row in self._new_rows():
            self._tool.log(row["step"], _curves(row))
            self._sent.step = row["step"]
        if schema.is_trained(self._folder):
            on_the_way = sorted(self._folder.glob(f"{schema.SNAPSHOTS}/*"))
            # Tools draw points as they come, so the last one waits for those before it.
            for home in [*on_the_way, *([self._folder] if is_last or not on_the_way else [])]:
                self._send_files(home)
        if self._sent != self._written:
            write_json(self._noted, asdict(self._sent))
            self._written = replace(self._sent)

    def _new_rows(self) -> Iterator[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl`` that the tool has not got."""
        path = self._folder / schema.METRICS
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._end - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:  # a resumed run cuts the file
                self._end = 0
                file.seek(0)
            for line in file:
                try:
                    row = parse_json(line) if line.endswith(b"\n") else None
                except Unreadable:
                    row = None
                if row is None:
                    return
                if row["step"] > self._sent.step:
                    yield row
                self._end, self._last_line = self._end + len(line), line

    def _send_files(self, home: Path) -> None:
        """Pictures and scores of the encoder in a folder."""
        step = schema.peek(home / schema.COST).get("steps", self._sent.step)
        for path in (home / schema.FIGURES / "pictures.png", *schema.score_files(home)):
            name = path.relative_to(self._folder).as_posix()
            if name in self._sent.files or not path.exists():
                continue
            if path.name == schema.SCORES:
                record = schema.peek(path)
                title = record.get("eval", path.parent.name)
                of_same = f"{path.parents[1].relative_to(self._folder).as_posix()}/{title}-"
                if any(each.startswith(of_same) for each in self._sent.files):
                    title = path.parent.name  # another protocol, and so another curve
                scores = mapping(record.get("scores")).items()
                self._tool.log(step, {f"eval/{title}/{n}": v for n, v in scores if is_number(v)})
            else:
                self._tool.picture(step, path)
            self._sent.files = (*self._sent.files, name)


def _curves(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl``, by their names in a tool."""
    numbers = {name: value for name, value in row.items() if is_number(value) and name != "step"}
    parts = mapping(row.get("losses"))
    return {
        **{f"{'collapse' if n in _COLLAPSE else 'train'}/{n}": v for n, v in numbers.items()},
        **{f"losses/{name}": value for name, value in parts.items() if is_number(value)},
    }
