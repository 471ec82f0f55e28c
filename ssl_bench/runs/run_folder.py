"""A run is a folder, and the folder is the truth.

``<method>-<data>-seed<seed>-<hash>/``, whose hash covers everything that changes the result:

    config.json          the plan: every setting, resolved
    environment.json     command, versions, code, device of the last start
    metrics.jsonl        step, epoch, loss, learning rate, img/s, share of time waiting for data
    checkpoint.pt        the state to go on from; gone once the training is done
    encoder.safetensors  weights under timm's names, and encoder.json to build them
    method.safetensors   the method's other parameters: a decoder, a projector
    cost.json            FLOPs, images seen, seconds, peak memory, parameters
    snapshots/step-.../  the encoder on the way: the last three of these files' kinds, and evals/
    failed.json          why the last training or evaluation failed, until the next one
    evals/<name>-.../    scores.json and predictions.npz
    unfinished/          states of evaluations that train, to go on from, until they are done
    features/            what the encoder makes of each split, for evaluations to come
    figures/             PNG files
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ssl_bench import CORE_VERSION, __version__
from ssl_bench.errors import UserError, first_line, require, the_one
from ssl_bench.utils.files import Absent, Unreadable, checked_name, load_json, remove_temporary, strange, write_json
from ssl_bench.utils.locks import held, is_locked

_PACKAGES = (
    *("torch", "timm", "torchvision", "numpy", "pandas", "pillow", "safetensors"),
    *("scikit-learn", "scipy"),
)
_TEXT, _MAYBE, _NAMED = ((str,), "text"), ((str, type(None)), "text"), ((dict,), "names and values")
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("method", "identity", "method_code", "method_source", "precision"), _TEXT),
    **dict.fromkeys(("data", "data_fingerprint", "data_source", "preset"), _MAYBE),
    **dict.fromkeys(("method_config", "encoder"), _NAMED),
    **dict.fromkeys(("seed", "batch_size"), ((int,), "whole number")),
    "epochs": ((int, float, type(None)), "number"),
}
"""What a plan's values are in JSON, and in words."""
_noting: list[Path] = []


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
        """What the runs of one experiment share, whatever their seed: eight hexadecimal digits."""
        content = {field.name: chosen(getattr(self, field.name)) for field in fields(self)}
        del content["seed"]
        return digest(content)

    @property
    def name(self) -> str:
        """The run folder's name."""
        return f"{self.method}-{self.data}-seed{self.seed}-{self.identity}"


def chosen(config: Any) -> Any:
    """The fields of a dataclass that differ from its defaults; any other value as it is.

    An identity is made of these, so that a new field, whose default does what was done before,
    leaves the identity of everything made without it as it was.
    """
    if not is_dataclass(config):
        return config
    found = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default:
            found[field.name] = value
    return found


def digest(content: Any) -> str:
    """Eight hexadecimal digits that stand for JSON content."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def create(runs_dir: Path, name: str, config: Mapping[str, Any]) -> Path:
    """The folder of that name, made with its ``config.json`` unless it is there.

    Raises:
        UserError: it cannot be written, the name would lead elsewhere, or the folder was made with
            other settings.
    """
    folder = runs_dir / checked_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            # Whoever holds the lock may remove what others are writing.
            with locked(folder, wait=True):
                if not (folder / "config.json").exists():
                    write_json(folder / "config.json", config)
    except OSError as error:
        raise UserError(f"cannot write run folder {str(folder)!r}: {error.strerror}") from error
    _require_same_settings(folder, config)
    return folder


def _require_same_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` where a default changed that a folder's name says nothing about."""
    stored, config = facts(folder / "config.json"), json.loads(json.dumps(config))
    for part in ("method_config", "encoder"):
        then, now = mapping(stored.get(part)), mapping(config.get(part))
        for name in then.keys() & now.keys():
            require(
                then[name] == now[name],
                f"run {folder.name!r} was made with {name} {then[name]!r:.40}, and would be with "
                f"{now[name]!r:.40} now; another --runs-dir would make it again",
            )


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from working in the folder meanwhile, on other machines too.

    What one that was killed left half done is removed first. However this process ends, the lock
    is gone with it.

    Args:
        wait: until another process is done, instead of giving up.

    Raises:
        UserError: another process holds the lock, the file system has no locks, something in the
            folder leads out of it, or the folder was removed or replaced in the meantime.
    """
    with held(folder, wait):
        _require_own(folder)
        remove_temporary(folder)
        if is_trained(folder):
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        before = folder.stat()
        try:
            yield
        except Exception as error:
            _require_same(folder, before, error)
            raise
        _require_same(folder, before, None)


def _require_same(folder: Path, before: os.stat_result, cause: Exception | None) -> None:
    """Raise `UserError` where a folder is not there any more, or is another one."""
    try:
        is_same = os.path.samestat(before, folder.stat())
    except OSError:
        is_same = False
    if not is_same:
        raise UserError(
            f"run folder {str(folder)!r} was removed or renamed while it was in use, and what "
            "would have been written there is lost; the same command makes it again"
        ) from cause


@contextmanager
def failures_noted(folder: Path) -> Iterator[None]:
    """Write ``failed.json`` if the block fails, so that tables can say why; first forget the last.

    An interruption is no failure.
    """
    (folder / "failed.json").unlink(missing_ok=True)
    _noting[:] = [folder]
    try:
        yield
    except Exception as error:
        note_failure(first_line(error))
        raise  # and another process's failure, if that was the cause, may still be noted
    _noting.clear()


def note_failure(reason: str) -> None:
    """Write ``failed.json`` for the block of `failures_noted` that is under way or has failed."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for folder in _noting:
        with suppress(OSError):  # on a full disk, or of a folder that is gone
            write_json(folder / "failed.json", {"error": reason, "at": now})


def environment(device: str) -> dict[str, Any]:
    """Where numbers come from: command, code, packages and machine."""
    return {
        "command": ["ssl-bench", *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": _code_version(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": device,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def record_environment(folder: Path, device: str, devices: Mapping[str, Any] | None = None) -> None:
    """Write ``environment.json``; with what an interrupted training began is kept in ``earlier``.

    Args:
        devices: how many there are, and how they share the work.

    Raises:
        UserError: the one that is there cannot be read.
    """
    now, path = {**environment(device), **(devices or {})}, folder / "environment.json"
    if (folder / "checkpoint.pt").exists():
        last = facts(path)
        earlier = {name: last.get(name) for name in ("started", "code", "device", "packages")}
        now["earlier"] = [*last.get("earlier", []), earlier]
    write_json(path, now)


def facts(path: Path) -> dict[str, Any]:
    """A JSON file of a run; nothing if it is not there.

    Raises:
        UserError: it cannot be read, or holds something else than names and values.
    """
    try:
        found = load_json(path)
    except Absent:
        return {}
    except Unreadable as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from error
    require(isinstance(found, dict), f"{str(path)!r} cannot be read: it holds no names and values")
    return dict(found)


def mapping(value: Any) -> dict[str, Any]:
    """What JSON should have as names and values: nothing where it is something else."""
    return value if isinstance(value, dict) else {}


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def state(folder: Path) -> str:
    """trained, failed, running (its lock is held) or unfinished."""
    if is_trained(folder):
        return "trained"
    if (folder / "failed.json").exists():
        return "failed"
    return "running" if is_locked(folder) else "unfinished"


def command_of(folder: Path) -> str:
    """The command that last started the run."""
    try:
        return shlex.join(load_json(folder / "environment.json")["command"])
    except (Unreadable, KeyError, TypeError):
        return "ssl-bench run ..."


def is_trained(folder: Path) -> bool:
    """Whether the folder's pre-training is done; ``encoder.json`` is the last file it writes."""
    return (folder / "encoder.json").exists()


def find(runs_dir: Path, names: list[str]) -> list[Path]:
    """Run folders by path or by name under ``runs_dir``; all of them when no name is given.

    Raises:
        UserError: there is no such run, or none at all.
    """
    if not names:
        folders = sorted(path.parent for path in runs_dir.glob("*/config.json"))
        if not folders:
            raise UserError(f"no run in {str(runs_dir)!r}; `ssl-bench run` makes one")
        return folders
    return [_find_one(runs_dir, name) for name in names]


def find_trained(runs_dir: Path, name: str, wait: bool = False) -> Path:
    """The folder of a run whose pre-training is done.

    Args:
        wait: until another process that is training it is done.

    Raises:
        UserError: there is none of that name, it is not done, or a link in it leads elsewhere.
    """
    folder = _find_one(runs_dir, name)
    if wait and not is_trained(folder) and is_locked(folder):
        with held(folder, wait):
            pass
    require(
        is_trained(folder),
        f"run {folder.name!r} is not finished; this goes on with it: {command_of(folder)}",
    )
    _require_own(folder)
    return folder


def _require_own(folder: Path) -> None:
    """Raise `UserError` where something in a folder leads elsewhere, or is no file to read."""
    odd = strange(folder)
    require(
        not odd,
        f"run {str(folder)!r} cannot be used: {'; '.join(odd[:3])}; the files themselves in their "
        "places would work",
    )


def _find_one(runs_dir: Path, name: str) -> Path:
    for folder in (Path(name), runs_dir / name):
        if (folder / "config.json").exists():
            return folder
    require(
        Path(name).suffix not in (".pth", ".pt", ".bin", ".safetensors"),
        f"file {name!r} does not exist",
    )
    known = {path.name: path for path in find(runs_dir, [])}
    return known[the_one("run", name, known, str(runs_dir))]


def preset_of(runs_dir: Path, name: str) -> str | None:
    """The preset that a run was made with, if it is a run and says so."""
    try:
        return plan_of(_find_one(runs_dir, name)).get("preset")
    except UserError:
        return None


def config_of(folder: Path) -> dict[str, Any]:
    """What ``config.json`` holds, whatever its values are.

    Raises:
        UserError: it cannot be read, or is not that of a run.
    """
    path = folder / "config.json"
    require(path.exists(), f"{str(path)!r} cannot be read: {os.strerror(errno.ENOENT)}")
    config = facts(path)
    require("method" in config, f"{str(folder)!r} is no run but a baseline that runs share")
    return config


def plan_of(folder: Path) -> dict[str, Any]:
    """The run's plan.

    Raises:
        UserError: ``config.json`` cannot be read, or holds something else than a plan.
    """
    plan, path = config_of(folder), folder / "config.json"
    for name, value in plan.items():
        kinds, words = _KINDS.get(name, ((type(value),), ""))
        require(
            type(value) in kinds,
            f"{str(path)!r} cannot be used: its {name} is {value!r:.60}, which is no {words}",
        )
    return plan


def file_of_method(folder: Path) -> str:
    """One line where a run's method is a file, which nobody but `rerun` runs; "" otherwise."""
    config = config_of(folder)
    source = config.get("method_source")
    if not source:
        return ""
    return (
        f"run {folder.name!r} was made by {config['method']!r}, a method in the file {source!r}, "
        "which is not run to look at the run"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _code_version() -> dict[str, Any]:
    """The package's version, and its commit and dirty state when it runs from a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", __file__) is not None
    return {
        "version": __version__,
        "commit": git("rev-parse", "HEAD") if tracked else None,
        "dirty": bool(git("status", "--porcelain")) if tracked else None,
    }
