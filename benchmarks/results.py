"""What was measured on a device, kept in one file: running one part loses nothing of another's."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.rounds import Rounds
from ssl_bench.errors import UserError, first_line
from ssl_bench.utils.files import write_json, writing


@dataclass(frozen=True)
class Measured:
    """The contestants' rounds at one subject.

    Attributes:
        about: date, versions, commit, and how it was measured.
        rounds: figures by contestant.
        work: of a step, by contestant: see `training.work`.
    """

    about: Mapping[str, Any]
    rounds: Rounds
    work: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Results = dict[str, dict[str, Measured]]
"""By part, then by subject."""


def path_of(folder: Path, device: str) -> Path:
    """The device's file."""
    stem = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return folder / f"{stem}.json"


def load(path: Path) -> Results:
    """What the file holds; nothing, if there is none.

    Raises:
        UserError: it cannot be read.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        return {
            part: {name: Measured(**fields) for name, fields in subjects.items()}
            for part, subjects in content["parts"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} holds no results of this benchmark ({first_line(error)}); move it away"
        ) from error


def save(path: Path, device: str, results: Results) -> None:
    """Write all of it, or nothing.

    Raises:
        UserError: it cannot be written.
    """
    parts = {
        part: {name: asdict(measured) for name, measured in subjects.items()}
        for part, subjects in results.items()
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"device": device, "parts": parts})


def about(**how: Any) -> dict[str, Any]:
    """Date, versions and commit, and how it is measured."""
    import timm
    import torch

    from ssl_bench.runs import run_folder

    code = run_folder.environment("")["code"]
    commit = (code["commit"] or "unknown")[:12] + ("+" if code["dirty"] else "")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        **how,
    }
