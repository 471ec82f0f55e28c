"""The lock on code that makes numbers: ``numbers_lock.json`` beside this file.

It holds a hash of every file whose change may change what a training or an evaluation computes,
with the version and the defaults of whoever owns it: the core, a method, or an evaluation. Where
a hash is another, either the numbers changed, and the owner's version has to be raised, or they did
not, and somebody says why::

    python tests/numbers_lock.py "names of locals only"

After a version was raised the same command, without a reason, brings the lock up to date.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ssl_bench import CORE_VERSION
from ssl_bench.api import registry
from ssl_bench.errors import UserError, require
from ssl_bench.models.backbones import EncoderSpec

ROOT = Path(__file__).resolve().parent.parent
LOCK = Path(__file__).with_suffix(".json")
_CORE = (
    *("api/evaluation", "api/method", "api/optimizers", "api/parts", "api/step"),
    *("config/finetuning_settings", "config/presets", "config/recipes", "config/settings"),
    *(
        "data/**/*",
        "distributed/[!el]*",
        "evaluation/*",
        "models/*",
        "training/*",
        "transforms/*",
        "utils/rng",
    ),
)
"""Patterns of the files that make numbers, in the package."""

Owner = dict[str, Any]


def current(root: Path = ROOT) -> dict[str, Owner]:
    """Version, hashes by file, and defaults, by owner, of the code as it is.

    Args:
        root: the checkout to read files from; versions and defaults are those that are imported.
    """
    package = root / "ssl_bench"
    files = sorted(path for name in _CORE for path in package.glob(f"{name}.py"))
    owners = {"core": _owner(CORE_VERSION, files, EncoderSpec, root)}
    for kind in ("method", "eval"):
        for plugin in registry.discover(kind).values():
            if plugin.is_ours:
                file = root / f"{kind}s" / plugin.path.name
                owners[f"{kind} {plugin.name}"] = _owner(
                    plugin.version, [file], plugin.config, root
                )
    return owners


def _owner(version: int | str, files: list[Path], config: type, root: Path) -> Owner:
    hashes = {
        str(path.relative_to(root)): registry.fingerprint(ast.parse(path.read_bytes()))
        for path in files
    }
    defaults = {
        field.name: repr(field.default)
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING
    }
    return {"version": version, "files": hashes, "defaults": defaults}


def changed(lock: Mapping[str, Any], now: Mapping[str, Owner]) -> Iterator[tuple[str, list[str]]]:
    """Owners whose code is not the lock's though their version is, with the files.

    A file that was moved, and is otherwise as it was, has not changed.
    """
    for name, owner in now.items():
        locked = lock.get(name)
        if locked is None or locked["version"] == owner["version"]:
            files = differing(locked, owner)
            if files:
                yield name, files


def differing(locked: Owner | None, owner: Owner) -> list[str]:
    """Files of an owner that are not the lock's, and those of the lock that are gone."""
    then, now = (locked or {}).get("files", {}), owner["files"]
    files = {path for path, print_ in now.items() if print_ not in then.values()}
    return sorted(files | {path for path, print_ in then.items() if print_ not in now.values()})


def other_defaults(lock: Mapping[str, Any], now: Mapping[str, Owner]) -> Iterator[str]:
    """Fields whose default is another under the same version, which no reason excuses.

    Identities leave out what has its default, so two trainings would have one name.
    """
    for name, owner in now.items():
        locked = lock.get(name, {"version": None})
        if locked["version"] == owner["version"]:
            for field, default in owner["defaults"].items():
                then = locked["defaults"].get(field, default)
                if then != default:
                    yield f"{name}: {field} was {then} by default, is {default}"


def main(argv: list[str]) -> None:
    """Bring the lock up to date, for the reason given; ``--check`` says whether it is."""
    lock: dict[str, Any] = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    now = current()
    if argv == ["--check"]:
        stale = [name for name, owner in now.items() if lock.get(name) != owner]
        require(not stale, f"the lock is behind for {', '.join(stale)}; see {LOCK.stem}.py")
        return
    others = list(other_defaults(lock, now))
    require(not others, f"{'; '.join(others)}; raise the version")
    unexplained = dict(changed(lock, now)) if lock else {}
    reasons = lock.get("reasons", [])
    if unexplained:
        named = ", ".join(path for files in unexplained.values() for path in files)
        reason = " ".join(argv) or input(f"Why do numbers stay the same with another {named}? ")
        require(bool(reason.strip()), "no reason, no change of the lock")
        reasons.append({"on": str(date.today()), "owners": [*unexplained], "reason": reason})
    content = {**now, "reasons": reasons}
    LOCK.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"numbers_lock: {error}")
