"""Published settings and ablations, as TOML. Nothing here imports torch.

Each file belongs to a method or an evaluation: ``mae.toml`` in this folder to ``mae``, and
``mine.paper.toml`` beside ``mine.py`` to a user's plugin. Both tables are optional::

    [published.mae."imagenet-mae-"]         # the stage; the beginning of presets' names
    sources = "He et al., arXiv:2111.06377"
    mask_ratio = { value = 0.75, source = "table 1" }
    epochs = [{ value = 1600, source = "table 3" }, { value = 800, source = "PRETRAIN.md" }]
    "loss of a patch" = { value = "mean squared error", source = "paper" }

    [ablations.decoder-depth]
    title = "blocks in the decoder"
    source = "table 1a"
    setting = "ViT-L/16, 800 epochs"
    flag = "--decoder-depth"
    values = [1, 2, 4]
    paper = { finetune = [84.8, 84.9, 84.9], linear = [65.5, 70.0, 71.9] }

A stage is the pre-training, under the method's name, or an evaluation: a method's file holds its
paper's evaluations, an evaluation's file what several papers have in common. A longer prefix
overrides a shorter one. A name with a space is no flag but something that the code fixes.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ssl_bench.errors import require
from ssl_bench.utils.files import load_toml

HERE = Path(__file__).parent
_SCALAR = (str, bool, int, float)
_TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "Any": ("a text, a number, true or false, or an array", (*_SCALAR, list)),
    "str": ("a text", str),
    "bool": ("true or false", bool),
    "tuple": ("an array", list),
    "Mapping": ("a table", dict),
}


@dataclass(frozen=True)
class Published:
    """A setting of a paper or its official code, for ``ssl-bench recipe``.

    Attributes:
        value: in the flag's unit, except that a warm-up is written out: "40 epochs".
        source: the table or section of the paper, or the file of the official code.
        ours: what this project does instead, where no flag can change it.
        unless: values of flags, any one of which makes this setting irrelevant.
    """

    value: Any
    source: str
    ours: str = ""
    unless: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """The published settings of a pre-training or an evaluation, and their sources.

    Attributes:
        settings: by the name of the flag, or of what no flag changes; several where the sources
            disagree.
    """

    sources: str = ""
    settings: Mapping[str, tuple[Published, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """An ablation of a method's paper and its results, for ``ssl-bench ablate``.

    Attributes:
        title: what is varied.
        source: the paper's figure or table.
        setting: what the paper trained, and on what, except for what is varied.
        values: numbers for the flag, or names.
        paper: for each evaluation, the paper's score at each value, in percent; also shown beside
            evaluations whose names begin with that name.
        flag: the numeric flag that is varied, or "".
        cells: without such a flag, the arguments of ``ssl-bench run`` for each named value; a value
            without arguments is shown from the paper alone.
        note: a caveat for the comparison.
        share_of_patches: whether the flag is the fraction of patches to hide; several fractions may
            hide the same number.
    """

    title: str
    source: str
    setting: str
    values: tuple[float | str, ...]
    paper: Mapping[str, tuple[float, ...]]
    flag: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    share_of_patches: bool = False


@dataclass(frozen=True)
class Paper:
    """The content of a file: recipes by stage and prefix of a preset's name, and ablations."""

    published: Mapping[str, Mapping[str, Recipe]] = field(default_factory=dict)
    ablations: Mapping[str, Ablation] = field(default_factory=dict)


@cache
def read(path: Path) -> Paper:
    """The content of a file; empty where there is no file.

    Raises:
        UserError: the file cannot be read, or is not valid.
    """
    if not os.path.lexists(path):
        return Paper()
    content = _fields(Paper, load_toml(path), str(path))
    published = {
        stage: {
            prefix: _recipe(each, f"{path}: [published.{stage}.{prefix!r}]")
            for prefix, each in _table(prefixes, f"{path}: [published.{stage}]").items()
        }
        for stage, prefixes in content.get("published", {}).items()
    }
    ablations = {
        name: _ablation(each, f"{path}: [ablations.{name}]")
        for name, each in content.get("ablations", {}).items()
    }
    return Paper(published, ablations)


def recipe_of(papers: Iterable[Paper], stage: str, preset: str) -> Recipe:
    """The published recipe of a stage for a preset; longer prefixes of its name override others."""
    found = [
        (prefix, recipe)
        for paper in papers
        for prefix, recipe in paper.published.get(stage, {}).items()
        if preset.startswith(prefix)
    ]
    merged = Recipe()
    for _, recipe in sorted(found, key=lambda pair: len(pair[0])):
        settings = {**merged.settings, **recipe.settings}
        merged = Recipe(recipe.sources or merged.sources, settings)
    return merged


def _recipe(table: Any, where: str) -> Recipe:
    settings = dict(_table(table, where))
    sources = settings.pop("sources", "")
    require(isinstance(sources, str), f"{where}: 'sources' is {sources!r:.60}, not a text")
    return Recipe(
        sources, {name: _entries(e, f"{where}: {name!r}") for name, e in settings.items()}
    )


def _entries(given: Any, where: str) -> tuple[Published, ...]:
    entries = given if isinstance(given, list) else [given]
    require(bool(entries), f"{where} is empty; give it a value and a source")
    return tuple(_published(each, where) for each in entries)


def _published(table: Any, where: str) -> Published:
    values = _fields(Published, table, where)
    value = values["value"]
    if isinstance(value, list):
        is_flat = all(isinstance(each, _SCALAR) for each in value)
        require(is_flat, f"{where}: 'value' is {value!r:.60}, not an array of texts or numbers")
        values["value"] = tuple(value)
    return Published(**values)


def _ablation(table: Any, where: str) -> Ablation:
    values = _fields(Ablation, table, where)
    known, flag, cells = values["values"], values.get("flag", ""), values.get("cells", {})
    require(
        bool(flag) != bool(cells),
        f"{where} varies either a numeric 'flag' or named 'cells', one of the two",
    )
    require(
        bool(known) and all(_is_number(each) if flag else isinstance(each, str) for each in known),
        f"{where}: 'values' is {known!r:.60}, not {'numbers' if flag else 'names'}",
    )
    require(len(set(known)) == len(known), f"{where}: 'values' has one of them twice")
    for name, arguments in cells.items():
        require(name in known, f"{where}: cell {name!r} is none of the 'values'")
        require(isinstance(arguments, str), f"{where}: cell {name!r} is {arguments!r:.60}, no text")
    for name, scores in values["paper"].items():
        require(
            isinstance(scores, list)
            and len(scores) == len(known)
            and all(_is_number(each) and 0 <= each <= 100 for each in scores),
            f"{where}: 'paper' has {scores!r:.60} for {name!r}, not {len(known)} scores in "
            "percent, one for each of the 'values'",
        )
    values["values"] = tuple(known)
    values["paper"] = {name: tuple(scores) for name, scores in values["paper"].items()}
    return Ablation(**values)


def _fields(cls: type, table: Any, where: str) -> dict[str, Any]:
    """Require a table whose keys are fields of a dataclass, with values of their types."""
    known = {each.name: each for each in dataclasses.fields(cls)}
    for name, value in _table(table, where).items():
        require(name in known, f"{where} has {name!r}; it may have {', '.join(known)}")
        kind, types = _TYPES[str(known[name].type).partition("[")[0]]
        require(isinstance(value, types), f"{where}: {name!r} is {value!r:.60}, not {kind}")
    for name, each in known.items():
        is_needed = each.default is each.default_factory is dataclasses.MISSING
        require(name in table or not is_needed, f"{where} lacks {name!r}")
    return dict(table)


def _table(given: Any, where: str) -> Mapping[str, Any]:
    require(isinstance(given, dict), f"{where} is {given!r:.60}, not a table")
    return given


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and -math.inf < value < math.inf
