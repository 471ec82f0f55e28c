"""A plugin's file, read without being imported: its declarations, its ``Config``, its identity."""

from __future__ import annotations

import ast
import difflib
import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ssl_bench.api import HOMES
from ssl_bench.api.declarations import HOOKS, EvaluationDeclarations, MethodDeclarations, names
from ssl_bench.errors import UserError, require

Kind = Literal["method", "eval"]
BASES = {"method": "Method", "eval": "Evaluation"}
DECLARATIONS: Mapping[Kind, type] = {
    "method": MethodDeclarations,
    "eval": EvaluationDeclarations,
}
_NO_CODE = {
    *("version", "columns", "presets", "tuned", "search_space", "encodes_in_parts"),
    *("is_default", "sharded"),
}
"""Declared attributes that change no number that is computed."""
_TELLING = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef, ast.Expr, ast.Pass)
_LIGHT_MODULES = {
    "ssl_bench.errors",
    "ssl_bench.config.checked",
    "ssl_bench.config.finetuning_settings",
    "ssl_bench.api.ranges",
    "ssl_bench.config.recipes",
    "ssl_bench.config.settings",
    *sys.stdlib_module_names,
}


def fingerprint(tree: ast.Module) -> str:
    """A hash of code, blind to comments, layout, docstrings, `_NO_CODE` and modules of ours.

    What is imported from our modules counts where it gets another name. The hash is the same under
    every version of Python.
    """
    code = repr(_canonical(_without_declarations(tree)))
    ours = (node for node in ast.walk(tree) if _is_our_import(node))
    aliases = (alias for node in ours for alias in node.names)  # type: ignore[attr-defined]
    renamed = sorted((alias.name, alias.asname) for alias in aliases if alias.asname)
    return hashlib.sha256(f"{code}{renamed or ''}".encode()).hexdigest()[:16]


@cache
def field_help(cls: type) -> Mapping[str, str]:
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


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        UserError: it is no Python.
    """
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is not valid Python: {error}") from error


def classes_of(tree: ast.Module, kind: Kind) -> list[ast.ClassDef]:
    """The classes of a file that are seen to be of a kind, one after the other."""
    base = BASES[kind]
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


def check_names(path: Path, kind: Kind, tree: ast.Module, classes: Iterable[ast.ClassDef]) -> None:
    """Refuse declarations and hooks that the contract does not know, or outside of the class.

    Raises:
        UserError: there is one.
    """
    known = names(DECLARATIONS[kind])
    hooks = HOOKS[kind]
    for cls in classes:
        for node in cls.body:
            if isinstance(node, ast.FunctionDef) and node.name not in hooks:
                near = _nearest(node.name, hooks, 0.85)
                require(
                    near is None or node.name.startswith("_"),
                    f"{cls.name} in {path} defines {node.name!r}, which nothing calls; did you "
                    f"mean {near!r}? A function of your own begins with an underscore",
                )
            if isinstance(node, ast.FunctionDef) and node.name in known:
                raise UserError(
                    f"{node.name!r} of {cls.name} in {path} is a function; a plain class "
                    "attribute would work"
                )
            for name in _assigned(node):
                near = _nearest(name, known, 0.0)
                require(
                    name in known or name.startswith("_"),
                    f"{cls.name} in {path} declares {name!r}, which the contract does not "
                    f"know; did you mean {near!r}? A name of your own begins with an underscore",
                )
    for node in tree.body:
        for name in _assigned(node):
            near = _nearest(name, known, 0.75)
            require(
                near is None or name.startswith("_"),
                f"{name!r} in {path} stands outside of the class, where nobody looks; "
                f"{near!r} in the class would work. A name of your own begins with an underscore",
            )


def _nearest(name: str, known: Iterable[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)), None)


def _assigned(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    else:
        return []
    parts = (part for target in targets for part in ast.walk(target))
    return [p.id for p in parts if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store)]


def light(node: ast.stmt, classes: Sequence[ast.ClassDef], kind: Kind) -> Iterator[ast.stmt]:
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
    known = names(DECLARATIONS[kind])
    kept: list[ast.stmt] = [ast.Pass()]
    for each in node.body:
        found = _assigned(each)
        if set(found) & known.keys():
            plain: list[ast.expr] = [ast.Name(name, ast.Store()) for name in found]
            kept.append(ast.Assign(plain, each.value))  # type: ignore[attr-defined]
    parts = {**dict(ast.iter_fields(node)), "bases": [ast.Name("_Declarations", ast.Load())]}
    made = ast.ClassDef(**{**parts, "body": kept})
    return ast.fix_missing_locations(ast.copy_location(made, node))


def _canonical(item: Any) -> Any:
    """A syntax tree as nested tuples, without what is empty: versions of Python differ there."""
    if isinstance(item, list):
        return tuple(
            _canonical(each) for each in item if not (_is_text(each) or _is_our_import(each))
        )
    if not isinstance(item, ast.AST):
        return item
    fields = ((name, _canonical(value)) for name, value in ast.iter_fields(item))
    kept = tuple((name, value) for name, value in fields if value not in (None, ()))
    return (type(item).__name__, *kept)


def _is_our_import(node: Any) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ssl_bench"


def _without_declarations(tree: ast.Module) -> ast.Module:
    """A plugin's file without those declared attributes that change no result."""
    classes = [*classes_of(tree, "method"), *classes_of(tree, "eval")]
    body = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node in classes:
            kept = [each for each in node.body if not set(_assigned(each)) & _NO_CODE]
            node = ast.ClassDef(**{**dict(ast.iter_fields(node)), "body": kept})
        body.append(node)
    return ast.Module(body, tree.type_ignores)


def _is_text(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def module_name(path: Path) -> str:
    """A name for a file's module that no other file has."""
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
