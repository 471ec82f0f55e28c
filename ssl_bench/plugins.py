"""Methods and evaluations, found by looking at files.

A file in ``methods/`` or ``evals/`` is a plugin; so is a module that another distribution names
under the entry points ``ssl_bench.methods`` or ``ssl_bench.evals``, and any ``.py`` file given by
its path. Flags and help are read from a plugin's source without importing torch.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import itertools
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from ssl_bench.errors import UserError, unknown
from ssl_bench.presets import PRESET_NOTES
from ssl_bench.ranges import Range
from ssl_bench.settings import Ablation, Published

Kind = Literal["method", "eval"]
_SIZES = ("backbone", "epochs", "batch_size")
_NO_CODE = {"PRESETS", "PAPER", "ABLATIONS", "SEARCH", "SPREAD", "ENCODES_IN_PARTS"}
_NO_CODE_MODULES = {"ssl_bench.ranges", "ssl_bench.sharing"}
_LIGHT_MODULES = {
    "ssl_bench.errors",
    "ssl_bench.finetuning_settings",
    "ssl_bench.ranges",
    "ssl_bench.settings",
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
        except Exception as error:
            raise UserError(
                f"{self.path} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        for name in ("Config", {"method": "Pretraining", "eval": "evaluate"}[self.kind]):
            if not hasattr(module, name):
                raise UserError(f"{self.path} defines no {name!r}; see ssl_bench/contract.py")
        return module

    @property
    def config(self) -> type:
        """The plugin's ``Config`` dataclass."""
        outline = self.outline()
        if not dataclasses.is_dataclass(getattr(outline, "Config", None)):
            raise UserError(f"{self.path} defines no dataclass 'Config'; see ssl_bench/contract.py")
        return outline.Config

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
    def fingerprint(self) -> str:
        """A hash of the plugin's code, blind to comments, layout, docstrings and `_NO_CODE`.

        It is blind to how ranks share the work (`sharing`), too.

        It is the same under every version of Python.
        """
        text = repr(_canonical(_parse(self)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def discover(kind: Kind) -> dict[str, Plugin]:
    """Every plugin of a kind that is installed, by name, the project's own first."""
    folder = Path(__file__).parent / f"{kind}s"
    own = [
        Plugin(kind, path.stem.replace("_", "-"), path, f"ssl_bench.{kind}s.{path.stem}")
        for path in sorted(folder.glob("[!_]*.py"))
    ]
    found = {plugin.name: plugin for plugin in own}
    for point in entry_points(group=f"ssl_bench.{kind}s"):
        spec = importlib.util.find_spec(point.module)
        if spec and spec.origin:
            plugin = Plugin(kind, point.name, Path(spec.origin), point.module)
            found.setdefault(point.name, plugin)
    return found


def find(kind: Kind, name: str) -> Plugin:
    """The plugin of that name, or the one in the file of that path.

    Raises:
        UserError: there is none.
    """
    if name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"{kind} file {name!r} does not exist")
        return Plugin(kind, path.stem.replace("_", "-"), path, "")
    plugins = discover(kind)
    if name not in plugins:
        raise unknown(kind, name, plugins)
    return plugins[name]


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
    except Exception:
        return plugin.load()
    return outline


def _parse(plugin: Plugin) -> ast.Module:
    try:
        return ast.parse(plugin.path.read_bytes())
    except (SyntaxError, ValueError) as error:
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
    """Whether a statement gives the value of a constant that changes no result by itself.

    An import of what such values are made of is another one, and so is what says how ranks share
    the work.
    """
    if isinstance(node, ast.ImportFrom):
        return node.module in _NO_CODE_MODULES
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "shared_rows"
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
