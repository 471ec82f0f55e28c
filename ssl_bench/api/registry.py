"""Methods and evaluations, found by looking at files.

A file in ``methods/`` or ``evals/`` is a plugin; so is a module that another distribution names
under the entry points ``ssl_bench.methods`` or ``ssl_bench.evals``, and any ``.py`` file given by
its path. Flags and help are read from a plugin's source without importing torch.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import io
import itertools
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any, Literal

from ssl_bench.api.ranges import Range
from ssl_bench.config.presets import PRESET_NOTES
from ssl_bench.config.settings import Ablation, EvalSettings, Published, Settings
from ssl_bench.distributed.environment import PARENT
from ssl_bench.errors import UserError, first_line, require, unknown
from ssl_bench.utils.formatting import plain

Kind = Literal["method", "eval"]
_SIZES = ("backbone", "epochs", "batch_size")
_NO_CODE = {"VERSION", "PRESETS", "PAPER", "ABLATIONS", "SEARCH", "SPREAD", "ENCODES_IN_PARTS"}
_STORED_TYPES = (bool, int, float, str, tuple)
_told: set[tuple[Kind, str]] = set()
_LIGHT_MODULES = {
    "ssl_bench.errors",
    "ssl_bench.config.finetuning_settings",
    "ssl_bench.api.ranges",
    "ssl_bench.config.settings",
    *sys.stdlib_module_names,
}


@dataclass(frozen=True)
class Plugin:
    """A method or an evaluation, before its code is imported.

    Attributes:
        kind: "method" or "eval".
        name: the file's name with hyphens.
        path: the source file.
        module: the importable module's name, or "" for a file given by its path.
    """

    kind: Kind
    name: str
    path: Path
    module: str

    def outline(self) -> types.ModuleType:
        """The module reduced to its docstring, constants and ``Config``: no torch import."""
        return _outline(self)

    def load(self) -> types.ModuleType:
        """Import the module.

        Raises:
            UserError: the file cannot be imported, or lacks what its kind must define.
        """
        try:
            module = importlib.import_module(self.module) if self.module else _from_file(self.path)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.path} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        for name in ("Config", {"method": "Pretraining", "eval": "evaluate"}[self.kind]):
            if not hasattr(module, name):
                raise UserError(f"{self.path} defines no {name!r}; see ssl_bench/api/contract.py")
        return module

    @property
    def config(self) -> type:
        """The plugin's ``Config`` dataclass."""
        outline = self.outline()
        if not dataclasses.is_dataclass(getattr(outline, "Config", None)):
            raise UserError(
                f"{self.path} defines no dataclass 'Config'; see ssl_bench/api/contract.py"
            )
        return outline.Config

    def checked_config(self, values: Mapping[str, Any]) -> Any:
        """The ``Config`` of these values, from the outline if that can make it: no torch import.

        It is good for flags and messages; `real_config` is what a run gets.

        Raises:
            UserError: a value is out of range.
        """
        try:
            return self.config(**values)
        except UserError:
            raise
        except Exception:  # its checks need more of the file than the outline has
            return self._make_config(values)

    def real_config(self, config: Any) -> Any:
        """The config again, as an instance of the ``Config`` of the imported module.

        Raises:
            UserError: that refuses it.
        """
        if type(config) is self.load().Config:
            return config
        fields = dataclasses.fields(config)
        return self._make_config({f.name: getattr(config, f.name) for f in fields if f.init})

    def _make_config(self, values: Mapping[str, Any]) -> Any:
        try:
            return self.load().Config(**values)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"Config in {self.path} fails: {type(error).__name__}: {first_line(error)}"
            ) from error

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The real config from what a run has stored of it as JSON, where tuples are lists.

        Raises:
            UserError: a value is of no field, of another type than the field's default, or out of
                range.
        """
        known = {field.name: field.default for field in dataclasses.fields(self.config)}
        surplus = sorted(set(values) - set(known))
        require(
            not surplus,
            f"{self.kind} {self.name!r} has no {', '.join(surplus)} any more, which the run was "
            "made with",
        )
        restored = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        for name, value in restored.items():
            type_ = type(known[name])
            fits = type(value) is type_ or (type_ is float and type(value) is int)
            require(
                fits or type_ not in _STORED_TYPES,
                f"{self.kind} {self.name!r} was stored with {name} {value!r:.60}, which is no "
                f"{type_.__name__}",
            )
        return self._make_config(restored)

    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        """The flags that each preset sets for this plugin."""
        return getattr(self.outline(), "PRESETS", {})

    def published(self, preset: str) -> Mapping[str, Published | tuple[Published, ...]]:
        """What papers say about a preset: the entries of ``PAPER`` whose key it begins with."""
        paper = getattr(self.outline(), "PAPER", {})
        rows: dict[str, Published | tuple[Published, ...]] = {}
        for prefix in sorted(paper, key=len):
            rows |= paper[prefix] if preset.startswith(prefix) else {}
        return rows

    def ablations(self) -> Mapping[str, Ablation]:
        """The ablations that the method offers, by name."""
        return getattr(self.outline(), "ABLATIONS", {})

    def search(self) -> Mapping[str, Range]:
        """The range that a search draws each of the method's flags from, by the field's name."""
        return getattr(self.outline(), "SEARCH", {})

    @property
    def summary(self) -> str:
        """The first line of the module's docstring."""
        return (self.outline().__doc__ or "").strip().split("\n")[0]

    @property
    def version(self) -> int | str:
        """What stands for the plugin's code in the identity of what it makes.

        That is the ``VERSION`` that one of ours declares; of any other, which its author edits
        without raising anything, it is the `fingerprint`.
        """
        if not self.is_ours:
            return self.fingerprint
        return self.outline().VERSION

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this package's own files."""
        return self.module.startswith("ssl_bench.")

    @property
    def fingerprint(self) -> str:
        """The `fingerprint` of the plugin's file."""
        return fingerprint(_parse(self))


def fingerprint(tree: ast.Module) -> str:
    """A hash of code, blind to comments, layout, docstrings, imports of ours and `_NO_CODE`.

    It is the same under every version of Python.
    """
    return hashlib.sha256(repr(_canonical(tree)).encode()).hexdigest()[:16]


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
    raise unknown(kind, name, discover(kind))


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
    for node in _parse(plugin).body:
        _refuse_to_import(node)
    config, outline = plugin.config, plugin.outline()
    for name in ("PRESETS", "PAPER", "ABLATIONS", "SEARCH"):
        value = getattr(outline, name, {})
        require(isinstance(value, Mapping), f"{name} is {type(value).__name__}, no mapping")
    require(all(isinstance(each, Mapping) for each in plugin.presets().values()), "odd PRESETS")
    field_help(config)
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
            notes.setdefault(name, ", ".join([f"{plugin.name} as published", *sizes]))
    for plugin in discover("eval").values():
        notes |= {name: "" for name in plugin.presets() if name not in notes}
    return notes


def field_help(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        source = Path(sys.modules[base.__module__].__file__ or "")
        tree = ast.parse(source.read_bytes())
        body = next(
            node.body
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == base.__name__
        )
        for item, following in itertools.pairwise(body):
            if isinstance(item, ast.AnnAssign) and _is_text(following):
                name = item.target.id  # type: ignore[union-attr]
                texts[name] = " ".join(following.value.value.split())  # type: ignore[attr-defined]
    return texts


@cache
def _outline(plugin: Plugin) -> types.ModuleType:
    tree = _parse(plugin)
    kept = [node for node in tree.body if _is_light(node)]
    outline = types.ModuleType(
        f"_outline_{plugin.kind}_{_module_name(plugin.path)}", ast.get_docstring(tree)
    )
    outline.__file__ = str(plugin.path)
    sys.modules[outline.__name__] = outline
    code = compile(ast.Module(kept, []), str(plugin.path), "exec")
    try:
        exec(code, outline.__dict__)
        if hasattr(outline, "Config"):
            typing.get_type_hints(outline.Config)
    except (Exception, SystemExit):
        outline = plugin.load()
        try:
            typing.get_type_hints(outline.Config)
        except Exception as error:
            raise UserError(f"Config in {plugin.path} cannot be read: {error}") from error
    return outline


def _parse(plugin: Plugin) -> ast.Module:
    try:
        return ast.parse(plugin.path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{plugin.path} is not valid Python: {error}") from error


def _canonical(item: Any) -> Any:
    """A syntax tree as nested tuples, without what is empty: versions of Python differ there."""
    if isinstance(item, list):
        return tuple(_canonical(each) for each in item if not (_is_text(each) or _is_no_code(each)))
    if not isinstance(item, ast.AST):
        return item
    fields = ((name, _canonical(value)) for name, value in ast.iter_fields(item))
    kept = tuple((name, value) for name, value in fields if value not in (None, ()))
    return (type(item).__name__, *kept)


def _is_no_code(node: Any) -> bool:
    """Whether a statement changes no result by itself: an import of ours, some constants."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == "ssl_bench"
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id in _NO_CODE for target in node.targets
    )


def _is_light(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return {node.module, (node.module or "").split(".")[0]} & _LIGHT_MODULES != set()
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] in _LIGHT_MODULES for alias in node.names)
    if isinstance(node, ast.ClassDef):
        return node.name == "Config"
    return isinstance(node, ast.Assign | ast.AnnAssign)


def _is_text(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _module_name(path: Path) -> str:
    """A name for a file's module that no other file has."""
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _from_file(path: Path) -> types.ModuleType:
    name = f"ssl_bench_plugin_{_module_name(path)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
