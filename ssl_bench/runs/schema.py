"""The run folder: the names of its files, what they hold, and the state of a run.

``<method>-<data>-seed<seed>-<identity>/``. The folder is the truth, and everything above `models`
that reads or writes one uses this module.

    config.json          every setting, resolved, with the identity and where the method came from
    environment.json     command, versions, code, device of the last start
    metrics.jsonl        step, epoch, loss, learning rate, img/s, fraction of time waiting for data
    checkpoint.pt        the state to resume from; gone once the training is done
    encoder.safetensors  weights under timm's names, and encoder.json to build them
    method.safetensors   the method's other parameters: a decoder, a projector
    cost.json            FLOPs, images seen, seconds, peak memory, parameters
    snapshots/step-.../  the encoder during training: its weights, its cost.json and evals/
    failed.json          why the last training or evaluation failed, until the next one
    evals/<name>-.../    scores.json, predictions.npz and arrays.npz
    unfinished/          checkpoints of evaluations that train, until they are done
    features/            the encoder's features of each split, for later evaluations
    figures/             PNG files
    tensorboard/         its event files; there, and in wandb/, mlflow/ and trackio/, what they have
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench import CORE_VERSION
from ssl_bench.errors import UserError, require
from ssl_bench.models import file_names
from ssl_bench.utils.files import Absent, Unreadable, load_bytes, load_json, parse_json
from ssl_bench.utils.locks import is_locked

CONFIG, ENVIRONMENT, METRICS, COST = "config.json", "environment.json", "metrics.jsonl", "cost.json"
CHECKPOINT, FAILED = "checkpoint.pt", "failed.json"
ENCODER, ENCODER_WEIGHTS = file_names.ENCODER, file_names.ENCODER_WEIGHTS
METHOD_WEIGHTS = file_names.METHOD_WEIGHTS
EVALS, SCORES, PREDICTIONS, ARRAYS = "evals", "scores.json", "predictions.npz", "arrays.npz"
SNAPSHOTS, UNFINISHED, FEATURES, FIGURES = "snapshots", "unfinished", "features", "figures"
BASELINES = "baselines"
"""A folder beside the runs: untrained encoders, which all runs share."""

State = Literal["trained", "failed", "running", "unfinished"]
_TAIL = 4096
_TEXT, _MAYBE, _NAMED = ((str,), "text"), ((str, type(None)), "text"), ((dict,), "names and values")
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("method", "identity", "method_code", "method_source", "precision"), _TEXT),
    **dict.fromkeys(("data", "data_fingerprint", "data_source", "preset"), _MAYBE),
    "eval_data_source": _TEXT,
    **dict.fromkeys(("method_config", "encoder"), _NAMED),
    **dict.fromkeys(("seed", "batch_size"), ((int,), "whole number")),
    "epochs": ((int, float, type(None)), "number"),
}
"""The types of a plan's values in JSON, and their names."""


@dataclass(frozen=True)
class Plan:
    """Everything that changes the result of a pre-training.

    Attributes:
        method_version: what the method declares, or the hash of its source where it is not ours.
        method_config: the method's ``Config``.
        encoder: the `EncoderSpec`.
        precision: "fp32" or "bf16".
    """

    method: str
    method_version: int | str
    method_config: Any
    data: str
    data_fingerprint: str
    encoder: Any
    epochs: float
    batch_size: int
    seed: int
    precision: str
    core_version: int = CORE_VERSION

    @property
    def identity(self) -> str:
        """What runs that differ only in the seed share: eight hexadecimal digits."""
        content = {field.name: non_defaults(getattr(self, field.name)) for field in fields(self)}
        del content["seed"]
        return digest(content)

    def to_json(self) -> dict[str, Any]:
        """What a run folder stores of it."""
        return {**asdict(self), "encoder": self.encoder.to_json()}

    @property
    def name(self) -> str:
        """The run folder's name."""
        return f"{self.method}-{self.data}-seed{self.seed}-{self.identity}"


def non_defaults(config: Any) -> Any:
    """The fields of a dataclass that differ from its defaults; any other value as it is.

    Identities are made of these, so that a new field does not change the identity of older runs.
    """
    if not is_dataclass(config):
        return config
    found = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default:
            found[field.name] = non_defaults(value)
    return found


def digest(content: Any) -> str:
    """A hash of JSON content: eight hexadecimal digits."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def load_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run; an empty one if there is no file.

    Raises:
        UserError: it cannot be read, or is not an object.
    """
    try:
        found = load_json(path)
    except Absent:
        return {}
    except Unreadable as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from error
    require(isinstance(found, dict), f"{str(path)!r} cannot be read: it holds no names and values")
    return dict(found)


def peek(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run; an empty one where none can be read."""
    try:
        return load_object(path)
    except UserError:
        return {}


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """What a table of the index has where a text may be missing: the text, or ""."""
    return value if isinstance(value, str) else ""


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def state(folder: Path) -> State:
    """The state of a run; "running" is an unfinished one that some process has locked."""
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    return add_running(state_from_names(names), folder)


def state_from_names(names: Collection[str]) -> State:
    """The state that the names of a folder's files show, which is never "running"."""
    if ENCODER in names:
        return "trained"
    return "failed" if FAILED in names else "unfinished"


def add_running(state: State, folder: Path) -> State:
    """The state from the names of the files, or "running" where a process has locked the folder."""
    return "running" if state == "unfinished" and is_locked(folder) else state


def is_trained(folder: Path) -> bool:
    """Whether the pre-training is done; ``encoder.json`` is the last file it writes."""
    return (folder / ENCODER).exists()


def score_files(folder: Path) -> list[Path]:
    """The record of each evaluation of the encoder in a folder."""
    return sorted(folder.glob(f"{EVALS}/*/{SCORES}"))


def last_record(metrics: Path | str) -> dict[str, Any]:
    """The last whole line of a training's metrics; another process may be writing the next.

    Raises:
        Unreadable: they cannot be read.
        Absent: there are none.
    """
    for line in reversed(load_bytes(metrics, tail=_TAIL).splitlines()):
        try:
            record = parse_json(line)
        except Unreadable:
            continue
        if isinstance(record, dict):
            return record
    return {}


def failure(folder: Path) -> str:
    """Why a run failed; "" where it did not, or where the file cannot be read."""
    return str(peek(folder / FAILED).get("error", ""))


def last_command(folder: Path) -> str:
    """The command that last started the run."""
    command = peek(folder / ENVIRONMENT).get("command")
    return shlex.join(map(str, command)) if isinstance(command, list) else "ssl-bench run ..."


def load_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``, whose values may be anything.

    Raises:
        UserError: it cannot be read, or is not that of a run.
    """
    path = folder / CONFIG
    require(path.exists(), f"{str(path)!r} cannot be read: {os.strerror(errno.ENOENT)}")
    config = load_object(path)
    require("method" in config, f"{str(folder)!r} is no run but a baseline that runs share")
    return config


def load_plan(folder: Path) -> dict[str, Any]:
    """The run's plan.

    Raises:
        UserError: ``config.json`` cannot be read, or is not a plan.
    """
    plan, path = load_config(folder), folder / CONFIG
    for name, value in plan.items():
        kinds, words = _KINDS.get(name, ((type(value),), ""))
        require(
            type(value) in kinds,
            f"{str(path)!r} cannot be used: its {name} is {value!r:.60}, which is no {words}",
        )
    return plan


def warn_of_method_file(folder: Path) -> str:
    """One line where a run's method is a file, which only `rerun` executes; "" otherwise."""
    config = load_config(folder)
    source = config.get("method_source")
    if not source:
        return ""
    return (
        f"run {folder.name!r} was made by {config['method']!r}, a method in the file {source!r}, "
        "which is not run to look at the run"
    )
