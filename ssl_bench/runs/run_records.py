"""What a run folder says, as rows of tables: one for the run, one for each of its scores.

Nothing here raises for what is wrong in a folder: it is named, and the run's state is "broken".
What a row was read from is noted, with stamps taken before it was read, so that whoever keeps the
row can tell whether it still holds.
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
    "device": ("text", "what it ran on"),
    "precision": ("text", "arithmetic of pre-training: fp32, bf16"),
    "commit": ("text", "git commit of ssl-bench"),
    "dirty": ("bool", "whether files differed from that commit"),
    "started": ("text", "last start, ISO 8601, UTC"),
    "command": ("text", "command of that start"),
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
"""Characters of a text and scores of an evaluation: beyond, they are none of ours."""
_DIRECTIONS = ("higher", "lower")
_BESIDE_SCORES = (schema.PREDICTIONS, schema.ARRAYS)


@dataclass(frozen=True)
class RunRecord:
    """One run folder's rows.

    Attributes:
        run: of `RUN_COLUMNS`, without ``folder``.
        scores: of `SCORE_COLUMNS`, without ``run``; ``folder`` is relative to the run's.
        problems: one line for each thing that is wrong.
        seen: the paths that the rows follow from, relative to the folder.
        stamp: of these paths, as `stamp_of` makes it, from before they were read.
        changed_ns: when the last of them changed, by the file system's clock.
    """

    run: Row
    scores: Sequence[Row]
    problems: Sequence[str]
    seen: Sequence[str]
    stamp: str
    changed_ns: int


def read(folder: str) -> RunRecord | None:
    """What a folder says; None where it is no run folder, or is gone."""
    found = _Folder(folder)
    names = found.names("")
    plan = found.json(schema.CONFIG, names)
    if schema.CONFIG not in names or (plan is None and not found.problems):
        return None
    cost = found.json(schema.COST, names) or {}
    run = _run(found, plan or {}, cost, names)
    scores = list(_scores(found, names, "", cost, None))
    if "snapshots" in names:
        for name in filter(lambda name: found.stays(f"snapshots/{name}"), found.names("snapshots")):
            base = f"snapshots/{name}/"
            own = found.names(base[:-1])
            cost = found.json(base + schema.COST, own) or {}
            if cost:
                scores += _scores(found, own, base, cost, cost.get("steps"))
    if found.problems:
        run |= {"state": "broken", "error": found.problems[0]}
    odd = [
        plain(f"{row['folder']}: score {row['score']} is {row['value']}")
        for row in scores
        if row["value"] is not None and not isfinite(row["value"])
    ]
    changed = max(max(stamp[:2]) for stamp in found.seen.values())
    stamp = _digest(found.seen.values())
    return RunRecord(run, scores, [*found.problems, *odd], list(found.seen), stamp, changed)


def stamp_of(folder: str, paths: Iterable[str]) -> str:
    """A hash that changes when one of the paths, files or folders, is replaced or edited."""
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


class _Folder:
    """Reads what is in a run folder, and notes what it looked at and what is wrong."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.seen: dict[str, _Stamp] = {}
        self.problems: list[str] = []

    def names(self, path: str) -> list[str]:
        """What is in a folder; nothing where it is gone, no folder, or elsewhere by a link."""
        return self._look(path, lambda full: sorted(os.listdir(full)), [])

    def stays(self, path: str) -> bool:
        """Whether the path is no link that leads out of the run's folder; told where it is one."""
        full = f"{self._folder}/{path}"
        if not path or not os.path.islink(full) or not leads_out(full, self._folder):
            return True
        self.problems.append(f"{plain(path)} leads out of the run's folder by a link: not read")
        return False

    def json(self, path: str, among: Sequence[str] | None = None) -> Row | None:
        """A JSON object; None where it is gone, is none, or is not among a folder's names."""
        if among is not None and os.path.basename(path) not in among:
            return None
        found: Row | None = self._look(path, _load, None)
        return found

    def last_record(self, path: str, among: Sequence[str]) -> Row:
        """The last whole line of JSON Lines; nothing where it is not among a folder's names."""
        if path not in among:
            return {}
        found: Row = self._look(path, schema.last_record, {})
        return found

    def row(self, columns: Mapping[str, tuple[Kind, str]], values: Row, where: str = "") -> Row:
        """The values as the columns want them; None, and a problem, for those that cannot be."""
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
        full = f"{self._folder}/{path}"
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


def _load(path: str) -> Row:
    content = load_json(path)
    if not isinstance(content, dict):
        raise Unreadable("it is no JSON object")
    return content


def text(value: str) -> str:
    """The text in one line, as it may be shown anywhere."""
    return plain(value) if value.isprintable() else " ".join(plain(value).split())


def _as_text(content: Any) -> str:
    """Names and values as JSON, each text as it may be shown.

    Raises:
        ValueError: they are more than any run has.
    """
    found = json.dumps(_shown(content))
    if len(found) > _LONGEST:
        raise ValueError
    return found


def _shown(content: Any) -> Any:
    if isinstance(content, dict):
        return {text(name): _shown(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_shown(value) for value in content]
    return text(content) if isinstance(content, str) else content


def _typed(kind: Kind, value: Any) -> Any:
    """The value as a column's kind.

    Raises:
        ValueError, OverflowError: it cannot be.
    """
    if value is None:
        return None
    if kind == "json":
        return _as_text(value)
    if kind == "text" and isinstance(value, str) and len(value) <= _LONGEST:
        return text(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "float" and is_number(value):
        return float(value)
    if kind == "int" and is_number(value) and value == int(value) and abs(value) < 2**63:
        return int(value)
    raise ValueError


def _run(found: _Folder, plan: Row, cost: Row, names: Sequence[str]) -> Row:
    environment = found.json(schema.ENVIRONMENT, names) or {}
    failure = found.json(schema.FAILED, names) or {}
    last = found.last_record(schema.METRICS, names)
    code = mapping(environment.get("code"))
    command = environment.get("command")
    if "method" not in plan and not found.problems:
        found.problems.append("config.json names no method: no run, or a baseline that runs share")
    values = {
        "run": os.path.basename(os.path.abspath(found._folder)),
        "group": _group(plan),
        "method": plan.get("method"),
        "settings": _settings(plan),
        "pretrained_on": plan.get("data"),
        "data_fingerprint": plan.get("data_fingerprint"),
        "seed": plan.get("seed"),
        "state": schema.state_from_names(names),
        "error": failure.get("error"),
        "step": last.get("step", cost.get("steps")),
        "epochs": plan.get("epochs"),
        "batch_size": plan.get("batch_size"),
        "images_seen": cost.get("images_seen"),
        "flops": cost.get("flops"),
        "seconds": cost.get("seconds"),
        "peak_memory_mib": cost.get("peak_memory_mib"),
        "encoder_parameters": cost.get("encoder_parameters"),
        "trained_parameters": cost.get("trained_parameters"),
        "device": cost.get("device", environment.get("device")),
        "precision": cost.get("precision", plan.get("precision")),
        "commit": code.get("commit"),
        "dirty": code.get("dirty"),
        "started": environment.get("started"),
        "command": shlex.join(map(str, command)) if isinstance(command, list) else None,
    }
    return found.row(RUN_COLUMNS, values)


def _group(plan: Row) -> str | None:
    """Runs of one group differ in their seed alone, and share their identity.

    Where a run does not say it, all that it says stands in for it.
    """
    if not plan:
        return None
    return plan.get("identity", digest({k: v for k, v in plan.items() if k != "seed"}))


def _settings(plan: Row) -> Row:
    """What a run was told, flat; an encoder's channels, mean and deviation are the data's."""
    encoder = mapping(plan.get("encoder"))
    own = {name: encoder.get(name) for name in ("backbone", "image_size", "patch_size")}
    length = {name: plan.get(name) for name in ("epochs", "batch_size", "precision")}
    told = own | mapping(encoder.get("architecture")) | length
    return mapping(plan.get("method_config")) | {k: v for k, v in told.items() if v is not None}


def _scores(
    found: _Folder, names: Sequence[str], base: str, cost: Row, step: int | None
) -> Iterator[Row]:
    """A row for each number of the evaluations in one folder."""
    for name in found.names(f"{base}evals") if "evals" in names else ():
        folder = f"{base}evals/{name}"
        if not all(map(found.stays, [folder, *(f"{folder}/{each}" for each in _BESIDE_SCORES)])):
            continue
        record = found.json(f"{folder}/scores.json")
        if record is None:
            continue  # not done, or a problem
        scores = mapping(record.get("scores"))
        lacking = [key for key in ("eval", "protocol", "scores") if not record.get(key)]
        if lacking or not scores:
            what = ", ".join(lacking) or "scores"
            found.problems.append(plain(f"{folder}/scores.json has no {what}"))
            continue
        if len(scores) > _MOST_SCORES:
            found.problems.append(plain(f"{folder}/scores.json has {len(scores):,} scores"))
            continue
        baselines = {
            label: {name: value for name, value in mapping(own).items() if is_number(value)}
            for label, own in mapping(record.get("baselines")).items()
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
                "images_seen": cost.get("images_seen"),
                "flops": cost.get("flops"),
                "seconds": cost.get("seconds"),
                "eval_seconds": record.get("seconds"),
                "note": record.get("note"),
                "baselines": baselines,
                "folder": folder,
            }
            row = found.row(SCORE_COLUMNS, values, f"{folder}/scores.json: ")
            if is_headline:
                row["unit"] = row["unit"] or ""
                row["better"] = row["better"] if row["better"] in _DIRECTIONS else "neither"
            yield row
