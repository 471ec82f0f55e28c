"""A run folder as rows of tables: one for the run, one for each of its scores.

Nothing here raises for a damaged folder: each problem is listed, and the run's state is "broken".
A record names the files it was read from, with stamps from before they were read, so that a cache
can tell whether it is still valid.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from typing import Any, Literal

from ssl_bench.runs import schema
from ssl_bench.runs.schema import digest, is_number, mapping
from ssl_bench.utils.files import Absent, Unreadable, leads_out, load_json
from ssl_bench.utils.formatting import plain

Kind = Literal["text", "json", "int", "float", "bool"]
Row = dict[str, Any]

RUN_COLUMNS: Mapping[str, tuple[Kind, str]] = {
    "run": ("text", "name of the run folder"),
    "folder": ("text", "its path"),
    "group": ("text", "hash of all that defines the pre-training but the seed"),
    "method": ("text", "name of the method, or of the weights"),
    "settings": ("json", "every other setting, flat"),
    "chosen_by": ("json", "how the method's settings were chosen; none where it was not recorded"),
    "pretrained_on": ("text", "name of the data set"),
    "data_fingerprint": ("text", "hash of that data set's content"),
    "seed": ("int", "of every random draw"),
    "state": ("text", "trained, failed, running, unfinished or broken"),
    "error": ("text", "why it failed, or what is broken"),
    "step": ("int", "last optimiser step that was recorded"),
    "epochs": ("float", "passes over the training split that are planned"),
    "batch_size": ("int", "images in an optimiser step"),
    "images_seen": ("int", "images that pre-training went through, repetitions counted"),
    "flops": ("float", "floating-point operations of pre-training, forward and backward"),
    "seconds": ("float", "device-seconds of pre-training"),
    "peak_memory_mib": ("float", "peak memory of pre-training, MiB"),
    "encoder_parameters": ("int", "parameters of the encoder"),
    "trained_parameters": ("int", "parameters that pre-training changed"),
    "collapsed": ("text", "what shows that the compared features have collapsed, if they have"),
    "device": ("text", "what it ran on"),
    "precision": ("text", "arithmetic of pre-training: fp32, bf16"),
    "commit": ("text", "git commit of ssl-bench"),
    "dirty": ("bool", "whether files differed from that commit"),
    "started": ("text", "last start, ISO 8601, UTC"),
    "command": ("text", "command of that start"),
    "name": ("text", "what its user calls it"),
    "tags": ("json", "its user's words for it"),
}
"""Columns of ``runs``: kind and meaning."""

SCORE_COLUMNS: Mapping[str, tuple[Kind, str]] = {
    "run": ("text", "name of the run folder"),
    "eval": ("text", "name of the evaluation"),
    "protocol": ("text", "hash of all that defines the evaluation but its seed and precision"),
    "evaluated_on": ("text", "name of the data set"),
    "test_fingerprint": ("text", "hash of that data set's content"),
    "test_images": ("int", "images in its test split"),
    "eval_seed": ("int", "of every random draw of the evaluation"),
    "eval_precision": ("text", "arithmetic of the evaluation: fp32, bf16"),
    "score": ("text", "name of the number"),
    "value": ("float", "the number"),
    "is_headline": ("bool", "whether it is the evaluation's first number"),
    "unit": ("text", "what a headline counts; none for other numbers"),
    "better": ("text", "higher, lower or neither, for a headline"),
    "step": ("int", "optimiser step of a snapshot; none for the final encoder"),
    "images_seen": ("int", "images that pre-training had gone through by then"),
    "flops": ("float", "floating-point operations of pre-training until then"),
    "seconds": ("float", "device-seconds of pre-training until then"),
    "eval_seconds": ("float", "device-seconds of the evaluation"),
    "note": ("text", "what to know about the data"),
    "baselines": ("json", "label of each baseline to its scores"),
    "folder": ("text", "path of the evaluation's folder"),
}
"""Columns of ``scores``: kind and meaning."""

_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_LONGEST, _MOST_SCORES = 20_000, 1000
"""Characters of a text, and scores of an evaluation; no run of ours has more."""
_DIRECTIONS = ("higher", "lower")
_COSTS = ("images_seen", "flops", "seconds")
_SIZES = ("peak_memory_mib", "encoder_parameters", "trained_parameters")
_BESIDE_SCORES = (schema.PREDICTIONS, schema.ARRAYS)


@dataclass(frozen=True)
class RunRecord:
    """One run folder's rows.

    Attributes:
        run: of `RUN_COLUMNS`, without ``folder``.
        scores: of `SCORE_COLUMNS`, without ``run``; ``folder`` is relative to the run's.
        seen: the paths that were read, relative to the folder.
        stamp: their `stamp_of` from before they were read.
        changed_ns: when the last of them changed, by the file system's clock.
    """

    run: Row
    scores: Sequence[Row]
    problems: Sequence[str]
    seen: Sequence[str]
    stamp: str
    changed_ns: int


def read(folder: str) -> RunRecord | None:
    """The record of a folder; None where it is no run folder, or is gone."""
    reader = _Reader(folder)
    names = reader.names("")
    plan = reader.json(schema.CONFIG, names)
    if schema.CONFIG not in names or (plan is None and not reader.problems):
        return None
    cost = reader.json(schema.COST, names) or {}
    run = _run(reader, plan or {}, cost, names)
    scores = list(_scores(reader, names, "", cost, None))
    if schema.SNAPSHOTS in names:
        for name in reader.names(schema.SNAPSHOTS):
            snapshot = f"{schema.SNAPSHOTS}/{name}"
            if reader.stays(snapshot):
                inside = reader.names(snapshot)
                cost = reader.json(f"{snapshot}/{schema.COST}", inside) or {}
                if cost:
                    scores += _scores(reader, inside, f"{snapshot}/", cost, cost.get("steps"))
    if reader.problems:
        run |= {"state": "broken", "error": reader.problems[0]}
    not_finite = [
        plain(f"{row['folder']}: score {row['score']} is {row['value']}")
        for row in scores
        if row["value"] is not None and not isfinite(row["value"])
    ]
    return RunRecord(
        run,
        scores,
        [*reader.problems, *not_finite],
        list(reader.seen),
        _digest(reader.seen.values()),
        max(max(stamp[:2]) for stamp in reader.seen.values()),
    )


def stamp_of(folder: str, paths: Iterable[str]) -> str:
    """A hash that changes when one of these files or folders is replaced or edited."""
    return _digest(_stamp(f"{folder}/{path}") for path in paths)


_Stamp = tuple[int, int, int]


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _digest(stamps: Iterable[_Stamp]) -> str:
    numbers = array("q")
    for stamp in stamps:
        numbers.extend(stamp)
    return blake2b(numbers.tobytes(), digest_size=12).hexdigest()


def _load(path: str) -> Row:
    content = load_json(path)
    if not isinstance(content, dict):
        raise Unreadable("it is no JSON object")
    return content


class _Reader:
    """Reads a run folder, and collects the stamps of what it read and the problems it found."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.seen: dict[str, _Stamp] = {}
        self.problems: list[str] = []

    def names(self, path: str) -> list[str]:
        """The names in a folder; none where it is gone, is no folder, or leads out by a link."""
        return self._look(path, lambda full: sorted(os.listdir(full)), [])

    def stays(self, path: str) -> bool:
        """Whether the path stays in the run's folder; a problem where it leads out by a link."""
        full = f"{self.folder}/{path}"
        if not path or not os.path.islink(full) or not leads_out(full, self.folder):
            return True
        self.problems.append(f"{plain(path)} leads out of the run's folder by a link: not read")
        return False

    def json(
        self, path: str, among: Sequence[str], how: Callable[[str], Any] = _load
    ) -> Row | None:
        """A JSON object; None where there is none, or it is not ``among`` a folder's names."""
        found: Row | None = self._look(path, how, None) if os.path.basename(path) in among else None
        return found

    def row(self, columns: Mapping[str, tuple[Kind, str]], values: Row, where: str = "") -> Row:
        """The values with their columns' types; None, and a problem, for those of another type."""
        row = {}
        for name, value in values.items():
            try:
                row[name] = _typed(columns[name][0], value)
                if name != "value" and isinstance(row[name], float) and not isfinite(row[name]):
                    raise ValueError
            except (ValueError, OverflowError):
                row[name] = None
                kind = columns[name][0]
                self.problems.append(plain(f"{where}{name} is {value!r:.60}, which is no {kind}"))
        return row

    def _look(self, path: str, how: Callable[[str], Any], nothing: Any) -> Any:
        full = f"{self.folder}/{path}"
        self.seen[path] = _stamp(full)
        if not self.stays(path):
            return nothing
        try:
            return how(full)
        except Absent:
            return nothing
        except Unreadable as error:
            self.problems.append(plain(f"{path} cannot be read: {error}"))
        except OSError as error:
            if error.errno not in _VANISHED:
                self.problems.append(plain(f"{path or 'folder'} cannot be read: {error.strerror}"))
        return nothing


def text(value: str) -> str:
    """The text in one line, safe to show anywhere."""
    return plain(value) if value.isprintable() else " ".join(plain(value).split())


def _safe(content: Any) -> Any:
    """JSON whose texts are safe to show."""
    if isinstance(content, dict):
        return {text(name): _safe(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_safe(value) for value in content]
    return text(content) if isinstance(content, str) else content


def _typed(kind: Kind, value: Any) -> Any:
    """The value as a column's kind; ValueError or OverflowError where it is of another."""
    if value is None:
        return None
    if kind == "json":
        kind, value = "text", json.dumps(_safe(value))
    if kind == "text" and isinstance(value, str) and len(value) <= _LONGEST:
        return text(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "float" and is_number(value):
        return float(value)
    if kind == "int" and is_number(value) and value == int(value) and abs(value) < 2**63:
        return int(value)
    raise ValueError


def _run(reader: _Reader, plan: Row, cost: Row, names: Sequence[str]) -> Row:
    environment = reader.json(schema.ENVIRONMENT, names) or {}
    failure = reader.json(schema.FAILED, names) or {}
    last = reader.json(schema.METRICS, names, schema.last_record) or {}
    code = mapping(environment.get("code"))
    command = environment.get("command")
    given = mapping(plan.get("settings"))
    without_seed = {name: value for name, value in plan.items() if name != "seed"}
    if "method" not in plan and not reader.problems:
        reader.problems.append("config.json names no method: no run, or a baseline that runs share")
    values = {
        "run": os.path.basename(os.path.abspath(reader.folder)),
        "group": plan.get("identity", digest(without_seed)) if plan else None,
        "method": plan.get("method"),
        "settings": _settings(plan),
        "chosen_by": plan.get("chosen_by"),
        "pretrained_on": plan.get("data"),
        "data_fingerprint": plan.get("data_fingerprint"),
        "seed": plan.get("seed"),
        "state": schema.state_from_names(names),
        "error": failure.get("error"),
        "step": last.get("step", cost.get("steps")),
        "epochs": plan.get("epochs"),
        "batch_size": plan.get("batch_size"),
        **{name: cost.get(name) for name in (*_COSTS, *_SIZES)},
        "collapsed": cost.get("collapsed"),
        "device": cost.get("device", environment.get("device")),
        "precision": cost.get("precision", plan.get("precision")),
        "commit": code.get("commit"),
        "dirty": code.get("dirty"),
        "started": environment.get("started"),
        "command": shlex.join(map(str, command)) if isinstance(command, list) else None,
        "name": given.get("name") or None,
        "tags": given.get("tags") or None,
    }
    return reader.row(RUN_COLUMNS, values)


def _settings(plan: Row) -> Row:
    """A run's settings, flat; an encoder's channels, mean and std are the data's."""
    encoder = mapping(plan.get("encoder"))
    settings = {
        **{name: encoder.get(name) for name in ("backbone", "image_size", "patch_size")},
        **mapping(encoder.get("architecture")),
        **{name: plan.get(name) for name in ("epochs", "batch_size", "precision")},
    }
    return mapping(plan.get("method_config")) | {k: v for k, v in settings.items() if v is not None}


def _scores(
    reader: _Reader, names: Sequence[str], base: str, cost: Row, step: int | None
) -> Iterator[Row]:
    """A row for each score of the evaluations in the ``base`` folder, which has these names."""
    for name in reader.names(base + schema.EVALS) if schema.EVALS in names else ():
        folder = f"{base}{schema.EVALS}/{name}"
        file = f"{folder}/{schema.SCORES}"
        if not all(map(reader.stays, [folder, *(f"{folder}/{each}" for each in _BESIDE_SCORES)])):
            continue
        record = reader.json(file, [schema.SCORES])
        if record is None:
            continue  # not done, or a problem
        scores = mapping(record.get("scores"))
        lacking = [key for key in ("eval", "protocol", "scores") if not record.get(key)]
        if lacking or not scores:
            reader.problems.append(plain(f"{file} has no {', '.join(lacking) or 'scores'}"))
            continue
        if len(scores) > _MOST_SCORES:
            reader.problems.append(plain(f"{file} has {len(scores):,} scores"))
            continue
        baselines = {
            label: {name: value for name, value in mapping(values).items() if is_number(value)}
            for label, values in mapping(record.get("baselines")).items()
        }
        for number, (score, value) in enumerate(scores.items()):
            is_headline = number == 0
            values = {
                "eval": record["eval"],
                "protocol": record["protocol"],
                "evaluated_on": record.get("data"),
                "test_fingerprint": record.get("data_fingerprint"),
                "test_images": record.get("test_images"),
                "eval_seed": record.get("seed"),
                "eval_precision": record.get("precision"),
                "score": score,
                "value": math.nan if value is None else value,
                "is_headline": is_headline,
                "unit": record.get("unit", "top-1 accuracy (%)") if is_headline else None,
                "better": record.get("better", "higher") if is_headline else None,
                "step": step,
                **{name: cost.get(name) for name in _COSTS},
                "eval_seconds": record.get("seconds"),
                "note": record.get("note"),
                "baselines": baselines,
                "folder": folder,
            }
            row = reader.row(SCORE_COLUMNS, values, f"{file}: ")
            if is_headline:
                row["unit"] = row["unit"] or ""
                row["better"] = row["better"] if row["better"] in _DIRECTIONS else "neither"
            yield row
