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
overrides a shorter one. A name with a space is no flag but something that the code fixes: where
``experiment.facts`` tells it of a method under that name, the published text is compared with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError, require
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable, load_toml

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """A setting of a paper or its official code, for ``ssl-bench recipe``.

    Attributes:
        value: in the flag's unit, except that a warm-up is written out: "40 epochs".
        source: the table or section of the paper, or the file of the official code.
        ours: what this project does instead, as stated, where neither a flag nor an object tells.
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
        settings: the paper's own, by the names of flags, to tell what is otherwise here.
    """

    title: str
    source: str
    setting: str
    values: tuple[Any, ...]
    paper: Mapping[str, tuple[float, ...]]
    flag: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    share_of_patches: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Paper:
    """The content of a file: recipes by stage and prefix of a preset's name, and ablations."""

    published: Mapping[str, Mapping[str, Recipe]] = field(default_factory=dict)
    ablations: Mapping[str, Ablation] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    published: Mapping[str, Any] = field(default_factory=dict)
    ablations: Mapping[str, Any] = field(default_factory=dict)


@cache
def read(path: Path) -> Paper:
    """The content of a file; empty where there is no file.

    Raises:
        UserError: the file cannot be read, or is not valid.
    """
    if not os.path.lexists(path):
        return Paper()
    content = _parse(_File, load_toml(path), str(path))
    published = {
        stage: {
            prefix: _recipe(each, f"{path}: [published.{stage}.{prefix!r}]")
            for prefix, each in _table(prefixes, f"{path}: [published.{stage}]").items()
        }
        for stage, prefixes in content.published.items()
    }
    ablations = {
        name: _ablation(each, f"{path}: [ablations.{name}]")
        for name, each in content.ablations.items()
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
    sources = _parse(str, settings.pop("sources", ""), f"{where}: 'sources'")
    return Recipe(
        sources, {name: _entries(each, f"{where}: {name!r}") for name, each in settings.items()}
    )


def _entries(given: Any, where: str) -> tuple[Published, ...]:
    entries = given if isinstance(given, list) else [given]
    require(bool(entries), f"{where} is empty; give it a value and a source")
    return tuple(_published(each, where) for each in entries)


def _published(table: Any, where: str) -> Published:
    published: Published = _parse(Published, table, where)
    value = published.value
    is_flat = all(
        isinstance(each, str | bool | int | float)
        for each in (value if isinstance(value, list) else [value])
    )
    require(
        is_flat, f"{where}: 'value' is {value!r:.60}, not a text, a number or an array of these"
    )
    return replace(published, value=tuple(value)) if isinstance(value, list) else published


def _ablation(table: Any, where: str) -> Ablation:
    ablation: Ablation = _parse(Ablation, table, where)
    known, flag, cells = ablation.values, ablation.flag, ablation.cells
    require(
        bool(flag) != bool(cells),
        f"{where} varies either a numeric 'flag' or named 'cells', one of the two",
    )
    require(
        bool(known) and all(_is_number(each) if flag else isinstance(each, str) for each in known),
        f"{where}: 'values' is {known!r:.60}, not {'numbers' if flag else 'names'}",
    )
    require(len(set(known)) == len(known), f"{where}: 'values' has one of them twice")
    for name in cells:
        require(name in known, f"{where}: cell {name!r} is none of the 'values'")
    for name, scores in ablation.paper.items():
        require(
            len(scores) == len(known) and all(0 <= each <= 100 for each in scores),
            f"{where}: 'paper' has {scores!r:.60} for {name!r}, not {len(known)} scores in "
            "percent, one for each of the 'values'",
        )
    return ablation


def _parse(type_: Any, value: Any, where: str) -> Any:
    """The value as that type; a `UserError` that names the place if it has another one."""
    try:
        return typed_json.of(type_, value)
    except Unreadable as error:
        raise UserError(f"{where}: {error}") from error


def _table(given: Any, where: str) -> Mapping[str, Any]:
    require(isinstance(given, dict), f"{where} is {given!r:.60}, not a table")
    return given


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
