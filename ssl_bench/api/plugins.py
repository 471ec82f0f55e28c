"""A method or an evaluation as an object: read from its file, and imported when it is needed."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ssl_bench import papers
from ssl_bench.api import HOMES
from ssl_bench.api.declarations import BASELINES, COLUMNS, names
from ssl_bench.api.ranges import Range
from ssl_bench.api.sources import (
    BASES,
    DECLARATIONS,
    Kind,
    check_names,
    classes_of,
    fingerprint,
    light,
    module_name,
    parse,
)
from ssl_bench.config.settings import Settings
from ssl_bench.errors import UserError, first_line, require, unknown
from ssl_bench.papers import Ablation

_ENTRIES: Mapping[str, Any] = {"presets": Mapping, "tuned": str, "search_space": Range}
_CHOICES = {"columns": sorted(COLUMNS), "compared_with": [*BASELINES]}
_STORED_TYPES = (bool, int, float, str, tuple)


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
        base = getattr(importlib.import_module(HOMES[BASES[self.kind]]), BASES[self.kind])
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

    def checked_config(self, values: Mapping[str, Any], is_real: bool = False) -> Any:
        """The ``Config`` of these values, from the outline if that can make it: no torch import.

        It is good for flags and messages; a run gets an instance of the imported module's own.

        Args:
            is_real: make that one.

        Raises:
            UserError: a value is out of range, or the file cannot be imported.
        """
        try:
            return (self.load() if is_real else self.outline()).Config(**values)
        except UserError:
            raise
        except Exception as error:
            if not is_real:  # its checks may need more of the file than the outline has
                return self.checked_config(values, is_real=True)
            raise UserError(
                f"Config in {self.path} fails: {type(error).__name__}: {first_line(error)}"
            ) from error

    def real_config(self, config: Any) -> Any:
        """The config again, as an instance of the ``Config`` of the imported module."""
        if type(config) is self.load().Config:
            return config
        fields = (field.name for field in dataclasses.fields(config) if field.init)
        return self.checked_config({n: getattr(config, n) for n in fields}, is_real=True)

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

    def ablations(self) -> Mapping[str, Ablation]:
        """The ablations that the method offers, by name."""
        return papers.read(self.paper_file).ablations

    def search(self) -> Mapping[str, Range]:
        """The range that a search draws each of its flags from, by the field's name."""
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
        return fingerprint(parse(self.path))


@cache
def _outline(plugin: Plugin) -> tuple[types.ModuleType, type]:
    """The outline, and the class in it that has the declared attributes."""
    tree = parse(plugin.path)
    classes = classes_of(tree, plugin.kind)
    check_names(plugin.path, plugin.kind, tree, classes)
    outline = types.ModuleType(
        f"_outline_{plugin.kind}_{module_name(plugin.path)}", ast.get_docstring(tree)
    )
    outline.__file__ = str(plugin.path)
    outline._Declarations = DECLARATIONS[plugin.kind]  # type: ignore[attr-defined]
    sys.modules[outline.__name__] = outline
    try:
        kept = [each for node in tree.body for each in light(node, classes, plugin.kind)]
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
        check_names(
            plugin.path, plugin.kind, tree, [each for each in own if each.name == declared.__name__]
        )
    _check_values(plugin, declared)
    _check_fields(plugin, outline.Config, declared)
    return outline, declared


def _check_config(plugin: Plugin, module: types.ModuleType) -> None:
    config = getattr(module, "Config", None)
    require(
        isinstance(config, type) and dataclasses.is_dataclass(config),
        f"{plugin.path} defines no dataclass 'Config'; see {_contract(plugin)}",
    )
    try:
        hints = typing.get_type_hints(config)
    except Exception as error:
        raise UserError(f"Config in {plugin.path} cannot be read: {error}") from error
    for field in dataclasses.fields(typing.cast(type, config)):
        require(
            _can_be_given(hints[field.name]),
            f"field {field.name!r} of Config in {plugin.path} is of a type that no flag has; int, "
            "float, bool, str, Literal, tuple[int, ...] or one of these or None would work",
        )


def _can_be_given(type_: Any) -> bool:
    """Whether a flag can have a value of this type."""
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType):
        return all(each is type(None) or _can_be_given(each) for each in args)
    if origin is tuple:
        return len(args) == 2 and args[1] is Ellipsis and _can_be_given(args[0])
    known = (int, float, str, Path)  # and what is made of them
    return origin is typing.Literal or (isinstance(type_, type) and issubclass(type_, known))


def _the_only(plugin: Plugin, found: Sequence[str]) -> str:
    base = BASES[plugin.kind]
    require(bool(found), f"{plugin.path} defines no subclass of {base!r}; see {_contract(plugin)}")
    require(
        len(found) == 1,
        f"{plugin.path} defines several subclasses of {base!r}: {', '.join(found)}; one would "
        "work, beside others whose names begin with an underscore",
    )
    return found[0]


def _contract(plugin: Plugin) -> str:
    return f"{HOMES[BASES[plugin.kind]].replace('.', '/')}.py"


def _check_values(plugin: Plugin, declared: Any) -> None:
    for name, default in names(DECLARATIONS[plugin.kind]).items():
        value = getattr(declared, name)
        where = f"{name} of {declared.__name__} in {plugin.path}"
        if isinstance(default, Mapping):
            require(isinstance(value, Mapping), f"{where} is {type(value).__name__}, no mapping")
            kind = _ENTRIES[name]
            words = " or ".join(each.__name__ for each in typing.get_args(kind) or (kind,))
            for key, each in value.items():
                require(
                    isinstance(key, str) and isinstance(each, kind),
                    f"{where}: {key!r} is {type(each).__name__}, not {words}",
                )
            continue
        kind = type(default)
        require(type(value) is kind, f"{where} is {value!r:.60}; {kind.__name__} would work")
        if name in _CHOICES:
            others = ", ".join(sorted(repr(each) for each in value if each not in _CHOICES[name]))
            known = ", ".join(_CHOICES[name])
            require(not others, f"{where} has {others}; it may have {known}")
        elif kind is int:
            require(value > 0, f"{where} is {value}; 1 or more would work")


def _check_fields(plugin: Plugin, config: type, declared: Any) -> None:
    """Refuse presets and search ranges of what is no flag; what is inherited may say more."""
    known = {field.name for field in dataclasses.fields(config)}
    said = [(f"preset {name!r}", each) for name, each in vars(declared).get("presets", {}).items()]
    if plugin.kind == "method":
        known |= {field.name for field in dataclasses.fields(Settings)}
    said.append(("search_space", vars(declared).get("search_space", {})))
    for where, values in said:
        for name in values:
            if name not in known:
                raise unknown(f"field in {where} of {plugin.path}", name, known)


def _from_file(path: Path) -> types.ModuleType:
    name = f"ssl_bench_plugin_{module_name(path)}"
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
