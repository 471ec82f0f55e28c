"""Methods and evaluations, found by looking at files.

A file in ``methods/`` or ``evals/`` is a plugin; so is a module that another distribution names
under the entry points ``ssl_bench.methods`` or ``ssl_bench.evals``, and any ``.py`` file given by
its path. Flags and help are read from a plugin's source without importing torch.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path

from ssl_bench import papers
from ssl_bench.api.plugins import Plugin
from ssl_bench.api.sources import Kind, field_help, fingerprint, parse
from ssl_bench.config.presets import PRESET_NOTES
from ssl_bench.config.settings import EvalSettings, Settings
from ssl_bench.distributed.environment import PARENT
from ssl_bench.errors import UserError, require, unknown
from ssl_bench.utils.formatting import plain

__all__ = [
    "Kind",
    "Plugin",
    "discover",
    "field_help",
    "find",
    "fingerprint",
    "installed",
    "presets",
]

_SIZES = ("backbone", "epochs", "batch_size")
_told: set[tuple[Kind, str]] = set()


def discover(kind: Kind) -> dict[str, Plugin]:
    """Every plugin of a kind that is installed, by name, the project's own first.

    Those of other distributions that cannot be used are left out, and named once on the standard
    error.
    """
    found, broken = _installed(kind)
    for name, reason in broken.items():
        if (kind, name) not in _told and PARENT not in os.environ:  # nor by each rank
            print(f"ssl-bench: {kind} {name!r} is left out: {reason}", file=sys.stderr)
        _told.add((kind, name))
    return dict(found)


def find(kind: Kind, name: str) -> Plugin:
    """The plugin of that name, or the one in the file of that path.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"{kind} file {name!r} does not exist")
        return Plugin(kind, path.stem.replace("_", "-"), path, "")
    found, broken = _installed(kind)
    if name in found:
        return found[name]
    if name in broken:
        raise UserError(f"{kind} {name!r} cannot be used: {broken[name]}")
    raise _unknown(kind, name)


def _unknown(kind: Kind, name: str) -> UserError:
    """The error for a name that no plugin has, be it "MoCo_v2" or that of one plugin's own flag."""
    short, plugins = _letters(name), discover(kind)
    by_letters = {_letters(own): own for own in plugins}
    meant = by_letters.get(short) or by_letters.get(re.sub(r"v[12]$", "", short), "")
    if not meant:
        fields = {own: dataclasses.fields(plugin.config) for own, plugin in plugins.items()}
        owners = [own for own, each in fields.items() if short in {field.name for field in each}]
        meant = owners[0] if len(owners) == 1 else ""
    presets = plugins[meant].presets() if meant and short not in _letters(meant) else ()
    preset = next((each for each in presets if short in _letters(each)), "")
    hint = f" `ssl-bench recipe {preset}` shows what makes it so" if preset else ""
    return UserError(f"{unknown(kind, name, plugins, meant)}{hint}")


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def installed(kind: Kind, name: str) -> Plugin | None:
    """The plugin of that name among those installed, or None: for a name that came with data.

    Unlike `find` it takes no path, so that nobody's results can say which file to run.
    """
    return discover(kind).get(name)


def presets() -> dict[str, str]:
    """Every preset of the core and of installed plugins, with one line about it."""
    notes = dict(PRESET_NOTES)
    for plugin in discover("method").values():
        for name, values in plugin.presets().items():
            sizes = [f"{key.replace('_', ' ')} {values[key]}" for key in _SIZES if key in values]
            of = f"{plugin.name} as published" if plugin.is_ours else plugin.name
            notes.setdefault(name, ", ".join([of, *sizes]))
    for plugin in discover("eval").values():
        notes |= {name: "" for name in plugin.presets() if name not in notes}
    return notes


@cache
def _installed(kind: Kind) -> tuple[Mapping[str, Plugin], Mapping[str, str]]:
    """Plugins by name, and why those of other distributions that are broken cannot be used."""
    folder = Path(__file__).parent.parent / f"{kind}s"
    found = {
        path.stem.replace("_", "-"): Plugin(
            kind, path.stem.replace("_", "-"), path, f"ssl_bench.{kind}s.{path.stem}"
        )
        for path in sorted(folder.glob("[!_]*.py"))
    }
    broken: dict[str, str] = {}
    own = set(found)
    for name, point in _entry_points(f"ssl_bench.{kind}s"):
        try:
            # What it prints is no part of what was asked for.
            with contextlib.redirect_stdout(sys.stderr):
                require(name not in own, "it has the name of one of ours")
                plugin = _of_entry_point(kind, name, point)
                require(
                    found.get(name, plugin) == plugin, "two distributions have one of that name"
                )
                _check(plugin, found.values())
        except (Exception, SystemExit) as error:
            reason = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            broken[name] = plain(" ".join(f"{reason} ({_distribution(point)})".split()))
        else:
            found[name] = plugin
    return found, broken


def _entry_points(group: str) -> list[tuple[str, EntryPoint]]:
    """Those of a group; a distribution whose metadata cannot be read has none."""
    try:
        points = list(entry_points(group=group))
    except Exception:
        points = []
        for each in distributions():
            with contextlib.suppress(Exception):
                points += each.entry_points.select(group=group)
    return [(str(point.name), point) for point in points]


def _of_entry_point(kind: Kind, name: str, point: EntryPoint) -> Plugin:
    """The plugin that an entry point names; the packages around it are imported.

    Raises:
        UserError: it names none. What else these packages raise when they are imported, too.
    """
    require(
        bool(re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name)) and name != "none",
        "its name is not one of letters, digits and hyphens",
    )
    require(bool(re.fullmatch(r"[\w.]+(:[\w.]+)?", point.value)), f"{point.value!r} is no module")
    spec = importlib.util.find_spec(point.module)
    if not spec or not spec.origin or not Path(spec.origin).is_file():
        raise UserError(f"there is no file of module {point.module!r}")
    return Plugin(kind, name, Path(spec.origin), point.module)


def _check(plugin: Plugin, others: Iterable[Plugin]) -> None:
    """Complain about what would end every command, or could only fail once it is asked for.

    Raises:
        UserError: there is something of that kind. What the plugin's own code raises, too.
    """
    for node in parse(plugin.path).body:
        _refuse_to_import(node)
    papers.read(plugin.paper_file)
    field_help(plugin.config)
    config = type(plugin.checked_config({}))
    twins = _flags(plugin) & _flags_beside(plugin, others)
    require(not twins, f"its field {min(twins, default='')!r} has the name of another flag")
    import tyro

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        tyro.cli(config, args=[])


def _flags(plugin: Plugin) -> set[str]:
    """The names of a plugin's flags, as fields."""
    prefix = f"{plugin.name}-".replace("-", "_") if plugin.kind == "eval" else ""
    return {prefix + field.name for field in dataclasses.fields(plugin.config)}


def _flags_beside(plugin: Plugin, others: Iterable[Plugin]) -> set[str]:
    """Those that are there whenever the plugin's are: evaluations offer theirs unasked."""
    found = {field.name for field in dataclasses.fields(Settings)}
    if plugin.kind == "eval":
        found |= {field.name for field in dataclasses.fields(EvalSettings)}
        everyone = [*_installed("method")[0].values(), *others]
        found.update(*(_flags(each) for each in everyone if each != plugin))
    return found


def _refuse_to_import(node: ast.stmt) -> None:
    """Complain about a statement of a module that cannot succeed, as far as one can see."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module or ""]
    for name in names:
        package = name.split(".")[0]
        is_there = package in sys.modules or importlib.util.find_spec(package)
        require(bool(is_there), f"it imports {package!r}, which is not installed")
    if isinstance(node, ast.Raise):
        raise UserError(f"it raises an error in line {node.lineno} when it is imported")


def _distribution(point: EntryPoint) -> str:
    try:
        return f"distribution {point.dist.name}"  # type: ignore[union-attr]
    except Exception:
        return f"entry point {point.value}"
