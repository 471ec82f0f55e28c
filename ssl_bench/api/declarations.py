"""What the class of a method or an evaluation may declare of itself.

These are read from a plugin's source without importing torch, see `registry`. Another public class
attribute is an error, so that a misspelt one is not silently nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ssl_bench.api.ranges import Range

HOOKS = {
    "method": (
        *(
            "transforms",
            "loss",
            "terms",
            "forward",
            "optimizer",
            "trains",
            "pictures",
            "settings_of",
            "refuses",
        ),
        *("before_training", "before_optimizer_step", "after_optimizer_step"),
    ),
    "eval": ("supports", "audit", "training", "baselines", "evaluate"),
}
"""The public functions of `method.Method` and `evaluation.Evaluation`, which are called."""
Presets = Mapping[str, Mapping[str, Any]]
COLUMNS = frozenset({"image", "label", "mask", "clip", "caption"})
"""What a data set may have of each sample."""
BASELINES = {"pixels": "raw pixels", "random": "random init"}
"""What an evaluation may show beside an encoder, and what tables call it."""


class MethodDeclarations:
    """Class attributes of a `method.Method`.

    Attributes:
        version: part of the identity of all that the method trains; raised by a change of its code
            that changes numbers.
        presets: the flags that each preset sets: fields of the method's ``Config`` and of
            `settings.Settings`.
        tuned: how a preset's values were tuned, in words, by its name; of a preset that is not
            here they are published ones, or guesses.
        search_space: the range that ``ssl-bench sweep --search`` draws a field of the ``Config``
            from.
        per_sample_loss: whether the loss of a batch is the mean of its images' own losses, a
            function of the batch and the parameters that changes neither buffers nor, but for
            dropout and stochastic depth, torch's own random numbers, so that parts of a batch may
            be computed at the same time.
        encodes_in_parts: whether a method whose loss is not per sample keeps the activations of as
            many images at a time as its encoders' ``images_at_once`` says: `encoders.class_token`
            does, and `encoders.in_parts` helps.
        smallest_batch: images that a step needs at least.
        columns: what a method reads of the data: "image", "clip" or either of them, "label" for a
            supervised baseline, "caption". What is not asked for is not in its batches; without
            "image" and "clip" its encoder is one of captions, and with "caption" its ``Config`` is
            a `recipes.TextConfig`.
        paper: who published it, where and when.
        needs: what it takes beyond a backbone and single views, in words, such as "pairs".
    """

    version: ClassVar[int] = 1
    presets: ClassVar[Presets] = {}
    tuned: ClassVar[Mapping[str, str]] = {}
    search_space: ClassVar[Mapping[str, Range]] = {}
    per_sample_loss: ClassVar[bool] = False
    encodes_in_parts: ClassVar[bool] = False
    smallest_batch: ClassVar[int] = 1
    columns: ClassVar[frozenset[str]] = frozenset({"image"})
    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()


class EvaluationDeclarations:
    """Class attributes of an `evaluation.Evaluation`.

    Attributes:
        version: part of the identity of all that the evaluation finds, as for a method.
        presets: the flags that each preset sets: fields of the evaluation's ``Config``.
        is_default: whether it is run without being asked for.
        search_space: the range that the evaluation itself draws a field of the ``Config`` from, if
            it is asked to try several.
        sharded: whether every rank calls it at once, instead of rank 0 alone, see `runner`.
        compared_with: the `BASELINES` that stand beside an encoder, under the same settings.
        columns: what it reads of the data: "image", "label", "caption" and "mask", the class of
            each pixel. One that reads no labels runs without them, too, and one that reads no
            images itself, but takes features, with an encoder of captions.
    """

    version: ClassVar[int] = 1
    columns: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    presets: ClassVar[Presets] = {}
    search_space: ClassVar[Mapping[str, Range]] = {}
    is_default: ClassVar[bool] = False
    sharded: ClassVar[bool] = False
    compared_with: ClassVar[tuple[str, ...]] = ()


def names(declarations: type) -> dict[str, Any]:
    """The attributes that may be declared, with their defaults."""
    return {name: value for name, value in vars(declarations).items() if not name.startswith("_")}
