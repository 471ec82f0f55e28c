"""The gate for scores: every result passes here before it is stored, and when it is read again.

An evaluation may be anybody's code, and a stored record may have been edited, damaged or written
by another version. What is let through is what `ssl_bench.api.Result` promises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_bench.api.evaluation import Result
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError, require
from ssl_bench.runs import schema
from ssl_bench.utils import arrays

_BETTER = ("higher", "lower", "neither")
_ROUNDED = 0.006
"""How far off a score in percent may be that was rounded to two digits."""
_SHARE = re.compile(r"top\d+(_|$)")
"""Scores of these names are percent, whatever the unit of the headline is."""
_RESERVED = ("file", "allow_pickle")  # parameters of numpy's own, which take arrays by name
_DEFAULT_UNIT = "top-1 accuracy (%)"


@dataclass(frozen=True)
class Admitted:
    """A result that has passed, in plain numbers and numpy arrays, each of the smallest type."""

    scores: Mapping[str, float]
    predictions_N: np.ndarray | None
    chosen: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    unit: str
    better: str


def admit(result: Any, name: str, data: Dataset) -> Admitted:
    """Let a result through to be stored.

    Raises:
        UserError: it is no `Result`, a score is no finite number or out of its unit's range, there
            is not one class index for each test image, the headline is not the share of them that
            are right, or an array holds something else than finite numbers.
    """
    whose = f"evaluation {name!r}"
    is_result = isinstance(result, Result)
    require(is_result, f"{whose} returned {_shown(result)}; an ssl_bench.api.Result is expected")
    _check_unit(result.unit, result.better, whose)
    scores = _scores(result.scores, result.unit, result.better, whose)
    predictions_N = _predictions(result.predictions_N, scores, data, whose)
    _expect(result.chosen, Mapping, f"{whose} has chosen", "names and values are")
    _expect(result.arrays, Mapping, f"{whose} has arrays", "arrays by name are")
    chosen = _plain(dict(result.chosen), f"{whose} has chosen")
    named = {key: _array(key, value, whose) for key, value in result.arrays.items()}
    return Admitted(scores, predictions_N, chosen, named, result.unit, result.better)


def check_record(record: Any, folder: Path | None = None, **expected: Any) -> dict[str, Any]:
    """Let a record through that was stored, as it is.

    The files beside it in the ``folder``, whose digests it gives, are checked too; ``expected``
    are values that it must have, such as its ``protocol``.

    Raises:
        UserError: it is none.
    """
    require(isinstance(record, dict), f"it holds {_shown(record)}, no names and values")
    for key, value in expected.items():
        found = record.get(key)
        require(found == value, f"{key} is {_shown(found)}; {_shown(value)} is expected")
    for key in ("eval", "protocol", "data", "note"):
        _expect(record.get(key), str, f"{key} is", "a text is")
    count = record.get("test_images")
    require(
        type(count) is int and count > 0,
        f"test_images is {_shown(count)}; a whole number above 0 is expected",
    )
    unit, better = record.get("unit", _DEFAULT_UNIT), record.get("better", "higher")
    _check_unit(unit, better, "it")
    _scores(record.get("scores"), unit, better, "it")
    baselines = record.get("baselines", {})
    _expect(baselines, dict, "baselines is", "scores by name are")
    for label, scores in baselines.items():
        _scores(scores, unit, better, f"its baseline {label!r}")
    if folder:
        for file in (schema.PREDICTIONS, schema.ARRAYS):
            arrays.check_digest(folder / file, record)
    return record


def _expect(value: Any, kind: type | UnionType, what: str, expected: str) -> None:
    require(isinstance(value, kind), f"{what} {_shown(value)}; {expected} expected")


def _check_unit(unit: Any, better: Any, whose: str) -> None:
    _check_name(unit, f"{whose} has unit")
    is_known = isinstance(better, str) and better in _BETTER
    known = ", ".join(_BETTER)
    require(is_known, f"{whose} has better {_shown(better)}; {known} are expected")


def _check_name(name: Any, what: str) -> None:
    is_name = isinstance(name, str) and bool(name.strip()) and name.isprintable()
    require(is_name, f"{what} {_shown(name)}; a text is expected")


def _scores(scores: Any, unit: str, better: str, whose: str) -> dict[str, float]:
    """Scores as plain numbers, the headline first."""
    require(
        isinstance(scores, Mapping) and len(scores) > 0,
        f"{whose} has scores {_shown(scores)}; numbers by name are expected, the headline first",
    )
    found: dict[str, float] = {}
    for position, (name, value) in enumerate(scores.items()):
        _check_name(name, f"{whose} has a score named")
        what = f"{whose} has score {name} = {_shown(value)}"
        number = _number(value)
        require(
            number is not None and math.isfinite(number), f"{what}; a finite number is expected"
        )
        assert number is not None
        if (position == 0 and "%" in unit) or _SHARE.match(name):
            # What has no better direction, such as a similarity, may have a sign.
            low = -100 if better == "neither" else 0
            require(
                low - _ROUNDED <= number <= 100 + _ROUNDED,
                f"{what}; a number from {low} to 100 is expected, as it is in percent",
            )
        found[name] = number
    return found


def _predictions(
    given: Any, scores: Mapping[str, float], data: Dataset, whose: str
) -> np.ndarray | None:
    """Class indices of the test images, whose share that is right is the headline."""
    if given is None:
        return None
    what = f"{whose} has predictions_N"
    _expect(
        given,
        Tensor | np.ndarray,
        f"{what} of type {type(given).__name__}:",
        "a tensor of class indices is",
    )
    found = torch.as_tensor(given).detach().cpu()
    is_whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    kind = str(found.dtype).removeprefix("torch.")
    require(is_whole, f"{what} of {kind}; whole numbers, class indices, are expected")
    require(
        found.shape == (len(data.test),),
        f"{what} of shape {tuple(found.shape)}; one for each of {len(data.test):,} test images is "
        "expected",
    )
    classes = len(data.classes)
    outside_K = ((found < 0) | (found >= classes)).nonzero()[:, 0]
    if len(outside_K):
        first = int(outside_K[0])
        raise UserError(
            f"{what}[{first}] = {int(found[first])}; class indices from 0 to {classes - 1} are "
            "expected"
        )
    right = 100 * (found == data.test.labels_N.cpu()).double().mean().item()
    name, headline = next(iter(scores.items()))
    require(
        abs(headline - right) <= _ROUNDED,
        f"{whose} has score {name} = {headline:g}, and {right:g} % of its predictions are right; "
        "where the headline is something else, no predictions_N are expected",
    )
    return found.numpy().astype(np.int32)


def _array(name: Any, value: Any, whose: str) -> np.ndarray:
    _check_name(name, f"{whose} has an array named")
    is_usable = "/" not in name and name not in _RESERVED
    require(is_usable, f"{whose} has an array named {_shown(name)}; another name is expected")
    what = f"{whose} has array {name!r}"
    _expect(value, Tensor | np.ndarray, f"{what} of type {type(value).__name__}:", "a tensor is")
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    require(value.dtype.kind in "biuf", f"{what} of type {value.dtype}; real numbers are expected")
    bad = int(value.size - np.isfinite(value).sum())
    require(
        bad == 0,
        f"{what} with {bad:,} of {value.size:,} numbers that are not finite; finite ones are "
        "expected",
    )
    if value.dtype == np.int64:
        limits = np.iinfo(np.int32)
        if value.size == 0 or (limits.min <= value.min() and value.max() <= limits.max):
            value = value.astype(np.int32)
    return value


def _plain(value: Any, what: str) -> Any:
    """A value as JSON holds it."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            _expect(key, str, f"{what} a name", "a text is")
        return {key: _plain(each, f"{what} {key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, what) for each in value]
    number = _number(value)
    if number is None or not math.isfinite(number):
        raise UserError(f"{what} = {_shown(value)}; finite numbers and texts are expected")
    return number


def _number(value: Any) -> float | None:
    """A real number, also one that is a numpy scalar or a tensor of no dimensions; else None."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        float(value)
    except OverflowError:
        return math.inf
    return value


def _shown(value: Any) -> str:
    """A value in a few words, whatever it is."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    show: Callable[[Any], str] = repr
    try:
        text = " ".join(show(value).split())
    except Exception:
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
