"""Methods and evaluations, found by looking at files.

A file in ``methods/`` or ``evals/`` is a plugin; so is a module that another distribution names
under the entry points ``ssl_bench.methods`` or ``ssl_bench.evals``, and any ``.py`` file given by
its path. Flags and help are read from a plugin's source without importing torch.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any, Literal

from ssl_bench import papers
from ssl_bench.api import HOMES
from ssl_bench.api.declarations import EvaluationDeclarations, MethodDeclarations, names
from ssl_bench.api.ranges import Range
from ssl_bench.config.presets import PRESET_NOTES
from ssl_bench.config.settings import EvalSettings, Settings
from ssl_bench.distributed.environment import PARENT
from ssl_bench.errors import UserError, first_line, require, unknown
from ssl_bench.papers import Ablation, Recipe
from ssl_bench.utils.formatting import plain

Kind = Literal["method", "eval"]
_SIZES = ("backbone", "epochs", "batch_size")
_NO_CODE = {
    *("version", "presets", "search_space", "encodes_in_parts", "is_default", "sharded"),
}
"""Declared attributes that change no number that is computed."""
_BASES = {"method": "Method", "eval": "Evaluation"}
_DECLARATIONS: Mapping[Kind, type] = {
    "method": MethodDeclarations,
    "eval": EvaluationDeclarations,
}
_ENTRIES: Mapping[str, Any] = {"presets": Mapping, "search_space": Range}
_TELLING = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef, ast.Expr, ast.Pass)
_FORMER = {"SEARCH": "search_space", "DEFAULT": "is_default", "SPREAD": "sharded"}
_STORED_TYPES = (bool, int, float, str, tuple)
_told: set[tuple[Kind, str]] = set()
_LIGHT_MODULES = {
    "ssl_bench.errors",
    "ssl_bench.config.finetuning_settings",
    "ssl_bench.api.ranges",
    "ssl_bench.config.recipes",
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

    @property
    def source(self) -> str:
        """The file that was named by its path; nothing for a plugin that is installed."""
        return "" if self.module else str(self.path)

    def outline(self) -> types.ModuleType:
        """The module reduced to its docstring, constants, ``Config`` and declared attributes.

        That takes no import of torch. Where they need more of the file, it is the module itself.

        Raises:
            UserError: the file is not valid, or declares what the contract does not know.
        """
        return _outline(self)[0]

    @property
    def declared(self) -> Any:
        """The class attributes of the method or evaluation, without importing torch if possible.

        `declarations` says which.
        """
        return _outline(self)[1]

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
        _check_config(self, module)
        return module

    def load_class(self) -> Any:
        """The `method.Method` or `evaluation.Evaluation` that the file defines.

        Raises:
            UserError: it cannot be imported, or defines none or several.
        """
        module = self.load()
        base = getattr(importlib.import_module(HOMES[_BASES[self.kind]]), _BASES[self.kind])
        found = {
            each.__name__: each
            for each in vars(module).values()
            if isinstance(each, type)
            and issubclass(each, base)
            and each.__module__ == module.__name__
            and not each.__name__.startswith("_")
        }
        return found[_the_only(self, list(found))]

    @property
    def config(self) -> type:
        """The plugin's ``Config`` dataclass."""
        return self.outline().Config

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
        """The `checked_config` of what a run has stored as JSON, where tuples are lists.

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
        return self.checked_config(restored)

    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        """The flags that each preset sets for this plugin."""
        return self.declared.presets

    @property
    def paper_file(self) -> Path:
        """Where the published values that come with it are, if it has any (see `papers`)."""
        if self.is_ours:
            return papers.HERE / f"{self.path.stem}.toml"
        return self.path.with_suffix(".paper.toml")

    def published(self, preset: str, method: Plugin) -> Recipe:
        """What is published of it for a preset of a method, with it and with the method.

        What comes with a method of ours is not about somebody else's evaluation of the same name.

        Raises:
            UserError: a file of published values makes no sense.
        """
        applies = self.is_ours or not method.is_ours
        found = []
        for plugin in dict.fromkeys([self, method] if applies else [self]):
            found.append(papers.read(plugin.paper_file))
            strange = set(found[-1].published) - {plugin.name, *discover("eval")}
            require(
                not strange,
                f"{plugin.paper_file}: stage {min(strange, default='')!r} is neither "
                f"{plugin.name!r} nor an evaluation",
            )
        return papers.recipe_of(found, self.name, preset)

    def ablations(self) -> Mapping[str, Ablation]:
        """The ablations that the method offers, by name."""
        return papers.read(self.paper_file).ablations

    def search(self) -> Mapping[str, Range]:
        """The range that a search draws each of the method's flags from, by the field's name."""
        return self.declared.search_space

    @property
    def summary(self) -> str:
        """The first line of the module's docstring."""
        return (self.outline().__doc__ or "").strip().split("\n")[0]

    @property
    def version(self) -> int | str:
        """What stands for the plugin's code in the identity of what it makes.

        That is the ``version`` that one of ours declares; of any other, which its author edits
        without raising anything, it is the `fingerprint`.
        """
        if not self.is_ours:
            return self.fingerprint
        return self.declared.version

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
    return hashlib.sha256(repr(_canonical(_without_declarations(tree))).encode()).hexdigest()[:16]


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
def _outline(plugin: Plugin) -> tuple[types.ModuleType, type]:
    """The outline, and the class in it that has the declared attributes."""
    tree = _parse(plugin)
    classes = _classes(tree, plugin.kind)
    _check_names(plugin, tree, classes)
    outline = types.ModuleType(
        f"_outline_{plugin.kind}_{_module_name(plugin.path)}", ast.get_docstring(tree)
    )
    outline.__file__ = str(plugin.path)
    outline._Declarations = _DECLARATIONS[plugin.kind]  # type: ignore[attr-defined]
    sys.modules[outline.__name__] = outline
    try:
        kept = [each for node in tree.body for each in _light(node, classes, plugin.kind)]
        exec(compile(ast.Module(kept, []), str(plugin.path), "exec"), outline.__dict__)
        _check_config(plugin, outline)
        public = [each.name for each in classes if not each.name.startswith("_")]
        declared = getattr(outline, _the_only(plugin, public))
        require(isinstance(declared, type), "the class has become something else")
    except SyntaxError as error:  # which parsing has not seen
        raise UserError(f"{plugin.path} is not valid Python: {error}") from error
    except (Exception, SystemExit):
        outline, declared = plugin.load(), plugin.load_class()
        own = [each for each in tree.body if isinstance(each, ast.ClassDef)]
        _check_names(plugin, tree, [each for each in own if each.name == declared.__name__])
    _check_values(plugin, declared)
    return outline, declared


def _check_config(plugin: Plugin, module: types.ModuleType) -> None:
    config = getattr(module, "Config", None)
    require(
        isinstance(config, type) and dataclasses.is_dataclass(config),
        f"{plugin.path} defines no dataclass 'Config'; see {_contract(plugin)}",
    )
    try:
        typing.get_type_hints(config)
    except Exception as error:
        raise UserError(f"Config in {plugin.path} cannot be read: {error}") from error


def _the_only(plugin: Plugin, found: Sequence[str]) -> str:
    base = _BASES[plugin.kind]
    require(bool(found), f"{plugin.path} defines no subclass of {base!r}; see {_contract(plugin)}")
    require(
        len(found) == 1,
        f"{plugin.path} defines several subclasses of {base!r}: {', '.join(found)}; one would "
        "work, beside others whose names begin with an underscore",
    )
    return found[0]


def _contract(plugin: Plugin) -> str:
    return f"{HOMES[_BASES[plugin.kind]].replace('.', '/')}.py"


def _classes(tree: ast.Module, kind: Kind) -> list[ast.ClassDef]:
    """The classes of a file that are seen to be of a kind, one after the other."""
    base = _BASES[kind]
    known = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl_bench.")
        for alias in node.names
        if alias.name == base
    }
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(
            (isinstance(each, ast.Name) and each.id in known)
            or (isinstance(each, ast.Attribute) and each.attr == base)
            for each in node.bases
        ):
            known.add(node.name)
            found.append(node)
    return found


def _check_names(plugin: Plugin, tree: ast.Module, classes: Iterable[ast.ClassDef]) -> None:
    """Complain about what is declared and known to nobody, or in a place where nobody looks."""
    known = names(_DECLARATIONS[plugin.kind])
    for cls in classes:
        for node in cls.body:
            if isinstance(node, ast.FunctionDef) and node.name in known:
                raise UserError(
                    f"{node.name!r} of {cls.name} in {plugin.path} is a function; a plain class "
                    "attribute would work"
                )
            for name in _assigned(node):
                near = _nearest(name, known, 0.0)
                require(
                    name in known or name.startswith("_"),
                    f"{cls.name} in {plugin.path} declares {name!r}, which the contract does not "
                    f"know; did you mean {near!r}? A name of your own begins with an underscore",
                )
    for node in tree.body:
        for name in _assigned(node):
            near = _FORMER.get(name) or _nearest(name, known, 0.75)
            require(
                near not in known or name.startswith("_"),
                f"{name!r} in {plugin.path} stands outside of the class, where nobody looks; "
                f"{near!r} in the class would work. A name of your own begins with an underscore",
            )


def _nearest(name: str, known: Iterable[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)), None)


def _assigned(node: ast.stmt) -> list[str]:
    """The names that a statement gives a value to."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    else:
        return []
    parts = (part for target in targets for part in ast.walk(target))
    return [p.id for p in parts if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store)]


def _check_values(plugin: Plugin, declared: Any) -> None:
    """Complain about a declared attribute of another type."""
    for name, default in names(_DECLARATIONS[plugin.kind]).items():
        value = getattr(declared, name)
        where = f"{name} of {declared.__name__} in {plugin.path}"
        if isinstance(default, Mapping):
            require(isinstance(value, Mapping), f"{where} is {type(value).__name__}, no mapping")
            for key, each in value.items():
                kind = _ENTRIES[name]
                require(
                    isinstance(key, str) and isinstance(each, kind),
                    f"{where}: {key!r} is {type(each).__name__}, not {_named(kind)}",
                )
        else:
            kind = type(default)
            require(type(value) is kind, f"{where} is {value!r:.60}; {_named(kind)} would work")
            require(kind is bool or value > 0, f"{where} is {value}; 1 or more would work")


def _named(kind: Any) -> str:
    """A type or a union of types, for a person to read."""
    return " or ".join(each.__name__ for each in typing.get_args(kind) or (kind,))


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
    """Whether a statement changes no result by itself: an import of ours, published values."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == "ssl_bench"
    return isinstance(node, ast.Assign) and _assigned(node) == ["PAPER"]


def _without_declarations(tree: ast.Module) -> ast.Module:
    """A plugin's file without those declared attributes that change no result."""
    classes = [*_classes(tree, "method"), *_classes(tree, "eval")]
    body = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node in classes:
            kept = [each for each in node.body if not set(_assigned(each)) & _NO_CODE]
            node = ast.ClassDef(**{**dict(ast.iter_fields(node)), "body": kept})
        body.append(node)
    return ast.Module(body, tree.type_ignores)


def _light(node: ast.stmt, classes: Sequence[ast.ClassDef], kind: Kind) -> Iterator[ast.stmt]:
    """What the outline keeps of a statement of a module."""
    if isinstance(node, ast.ImportFrom):
        if node.module == "ssl_bench.api":
            aliases = [each for each in node.names if HOMES.get(each.name) in _LIGHT_MODULES]
            if aliases:
                yield ast.copy_location(ast.ImportFrom(node.module, aliases, 0), node)
        elif {node.module, (node.module or "").split(".")[0]} & _LIGHT_MODULES:
            yield node
    elif isinstance(node, ast.Import):
        if all(alias.name.split(".")[0] in _LIGHT_MODULES for alias in node.names):
            yield node
    elif isinstance(node, ast.ClassDef) and node in classes:
        yield _declaring(node, kind, [each.name for each in classes])
    elif isinstance(node, ast.Assign | ast.AnnAssign) or (
        isinstance(node, ast.ClassDef) and node.name == "Config"
    ):
        yield node


def _declaring(node: ast.ClassDef, kind: Kind, own: Sequence[str]) -> ast.stmt:
    """A class with the declared attributes of another, and nothing else.

    Args:
        own: the names of such classes in the file.

    Raises:
        ValueError: the class's body alone does not tell them.
    """
    is_alone = len(node.bases) == 1 and not node.keywords and not node.decorator_list
    is_alone &= not any(isinstance(each, ast.Name) and each.id in own for each in node.bases)
    targets = [t for each in node.body if isinstance(each, ast.Assign) for t in each.targets]
    if not (
        is_alone
        and all(isinstance(each, _TELLING) for each in node.body)
        and all(isinstance(each, ast.Name) for each in targets)
    ):
        raise ValueError("something else may declare an attribute")
    known = names(_DECLARATIONS[kind])
    kept: list[ast.stmt] = [ast.Pass()]
    for each in node.body:
        found = _assigned(each)
        if set(found) & known.keys():
            plain: list[ast.expr] = [ast.Name(name, ast.Store()) for name in found]
            kept.append(ast.Assign(plain, each.value))  # type: ignore[attr-defined]
    parts = {**dict(ast.iter_fields(node)), "bases": [ast.Name("_Declarations", ast.Load())]}
    made = ast.ClassDef(**{**parts, "body": kept})
    return ast.fix_missing_locations(ast.copy_location(made, node))


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
