"""Creating, locking and finding run folders, and recording where their numbers come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ssl_bench import __version__
from ssl_bench.errors import UserError, first_line, require, the_one
from ssl_bench.runs import schema
from ssl_bench.runs.schema import mapping
from ssl_bench.utils.files import checked_name, remove_temporary, strange, write_json
from ssl_bench.utils.locks import held, is_locked

_PACKAGES = (
    *("torch", "timm", "torchvision", "numpy", "pandas", "pillow", "safetensors"),
    *("scikit-learn", "scipy"),
)
_noting_failures: list[Path] = []
_command: list[str] = []
_SHOWN = 12


def create(runs_dir: Path, name: str, config: Mapping[str, Any]) -> Path:
    """The folder of that name, created with its ``config.json`` unless it exists.

    Raises:
        UserError: it cannot be written, the name would lead elsewhere, or the folder was created
            with other settings.
    """
    folder = runs_dir / checked_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / schema.CONFIG).exists():
            # The holder of the lock removes temporary files, also those of others.
            with locked(folder, wait=True):
                if not (folder / schema.CONFIG).exists():
                    write_json(folder / schema.CONFIG, config)
    except OSError as error:
        raise UserError(f"cannot write run folder {str(folder)!r}: {error.strerror}") from error
    _require_same_settings(folder, config)
    return folder


def _require_same_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` where a default changed, which the name of the folder does not show."""
    stored, config = schema.load_object(folder / schema.CONFIG), json.loads(json.dumps(config))
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
    """Lock the folder against other processes, on this and other machines, during the block.

    Leftovers of a killed process are removed first.

    Args:
        wait: for another process to finish, instead of giving up.

    Raises:
        UserError: another process holds the lock, the file system has no locks, something in the
            folder leads out of it, or the folder was removed or replaced in the meantime.
    """
    with held(folder, wait):
        _require_own(folder)
        remove_temporary(folder)
        if schema.is_trained(folder):
            (folder / schema.CHECKPOINT).unlink(missing_ok=True)
        before = folder.stat()
        try:
            yield
        except Exception as error:
            _require_same(folder, before, error)
            raise
        _require_same(folder, before, None)


def _require_same(folder: Path, before: os.stat_result, cause: Exception | None) -> None:
    """Raise `UserError` where a folder was removed or replaced."""
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
    """Write ``failed.json`` if the block fails, in place of an earlier one.

    An interruption is not a failure.
    """
    (folder / schema.FAILED).unlink(missing_ok=True)
    _noting_failures[:] = [folder]
    try:
        yield
    except Exception as error:
        note_failure(first_line(error))
        raise  # `note_failure` may still correct this, if another process was the cause
    _noting_failures.clear()


def note_failure(reason: str) -> None:
    """Write ``failed.json`` for the block of `failures_noted` that is running or has failed."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for folder in _noting_failures:
        with suppress(OSError):  # on a full disk, or of a folder that is gone
            write_json(folder / schema.FAILED, {"error": reason, "at": now})


@contextmanager
def recorded_as(command: Sequence[str]) -> Iterator[None]:
    """Have `environment` name this command, and not how the process was started: a job of a sweep
    or a notebook is none that a person could type."""
    before = [*_command]
    _command[:] = command
    try:
        yield
    finally:
        _command[:] = before


def environment(device: str) -> dict[str, Any]:
    """The origin of numbers: command, code, packages and machine."""
    return {
        "command": [*_command] or ["ssl-bench", *sys.argv[1:]],
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
    """Write ``environment.json``; those of an interrupted training are kept under ``earlier``.

    Args:
        devices: their number, and the strategy.

    Raises:
        UserError: the existing file cannot be read.
    """
    now, path = {**environment(device), **(devices or {})}, folder / schema.ENVIRONMENT
    if (folder / schema.CHECKPOINT).exists():
        last = schema.load_object(path)
        earlier = {name: last.get(name) for name in ("started", "code", "device", "packages")}
        now["earlier"] = [*last.get("earlier", []), earlier]
    write_json(path, now)


def find(runs_dir: Path, names: list[str]) -> list[Path]:
    """Run folders by path or by name under ``runs_dir``; all of them when no name is given.

    A name with ``*``, ``?`` or ``[`` stands for all that match it.

    Raises:
        UserError: there is no such run, or none at all.
    """
    if not names:
        folders = sorted(path.parent for path in runs_dir.glob("*/config.json"))
        if not folders:
            raise UserError(f"no run in {str(runs_dir)!r}; `ssl-bench run` makes one")
        return folders
    return [folder for name in names for folder in _matching(runs_dir, name)]


def _matching(runs_dir: Path, name: str) -> list[Path]:
    """The folder that a name stands for, or those that a pattern does."""
    if not set("*?[") & set(name) or Path(name).exists():
        return [_find_one(runs_dir, name)]
    folders = find(runs_dir, [])
    found = [
        path
        for path in folders
        if fnmatchcase(path.name, name) or fnmatchcase(name_given(path), name)
    ]
    names = ", ".join(path.name for path in folders[:_SHOWN]) + ", ..." * (len(folders) > _SHOWN)
    require(bool(found), f"no run in {str(runs_dir)!r} matches {name!r}; runs there: {names}")
    return found


def find_trained(runs_dir: Path, name: str, wait: bool = False) -> Path:
    """The folder of a run whose pre-training is done.

    Args:
        wait: for another process that is training it.

    Raises:
        UserError: there is no such run, it is not done, or a link in it leads elsewhere.
    """
    folder = _find_one(runs_dir, name)
    if wait and not schema.is_trained(folder) and is_locked(folder):
        with held(folder, wait):
            pass
    require(
        schema.is_trained(folder),
        f"run {folder.name!r} is not finished; this resumes it: {schema.last_command(folder)}",
    )
    _require_own(folder)
    return folder


def _require_own(folder: Path) -> None:
    """Raise `UserError` where something in a folder leads out of it, or is no regular file."""
    odd = strange(folder)
    require(
        not odd,
        f"run {str(folder)!r} cannot be used: {'; '.join(odd[:3])}; the files themselves in their "
        "places would work",
    )


def _find_one(runs_dir: Path, name: str) -> Path:
    for folder in (Path(name), runs_dir / name):
        if (folder / schema.CONFIG).exists():
            return folder
    require(
        Path(name).suffix not in (".pth", ".pt", ".bin", ".safetensors"),
        f"file {name!r} does not exist",
    )
    known = {path.name: path for path in find(runs_dir, [])}
    if not any(name in each for each in known):
        called = {path.name: path for path in known.values() if name_given(path) == name}
        if called:
            return called[the_one("run", "", called, str(runs_dir))]
    return known[the_one("run", name, known, str(runs_dir))]


def name_given(folder: Path) -> str:
    """What its user calls a run; "" where it has no such name."""
    return str(mapping(schema.peek(folder / schema.CONFIG).get("settings")).get("name") or "")


def call(folder: Path, name: str, tags: Sequence[str]) -> None:
    """Note what the user calls a run that is there already, where that is said anew."""
    content = schema.peek(folder / schema.CONFIG)
    settings = mapping(content.get("settings"))
    said = {n: v for n, v in (("name", name), ("tags", list(tags))) if v}
    if settings and any(settings.get(n) != v for n, v in said.items()):
        write_json(folder / schema.CONFIG, {**content, "settings": settings | said})


def preset_of(runs_dir: Path, name: str) -> str | None:
    """The preset of a run; None if it is no run, or had none."""
    try:
        return schema.load_plan(_find_one(runs_dir, name)).get("preset")
    except UserError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _code_version() -> dict[str, Any]:
    """The package's version, and its commit and whether it is dirty when run from a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", __file__) is not None
    return {
        "version": __version__,
        "commit": git("rev-parse", "HEAD") if tracked else None,
        "dirty": bool(git("status", "--porcelain")) if tracked else None,
    }
