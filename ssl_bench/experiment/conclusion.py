"""What one run shows, in sentences: what was learnt, how sure that is, what to do next."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ssl_bench.api import registry
from ssl_bench.config.presets import PRESETS, shared_defaults
from ssl_bench.config.settings import BUDGETS, Settings
from ssl_bench.experiment import evaluating
from ssl_bench.experiment.evaluating import headline
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.training.schedule import whole_epochs
from ssl_bench.utils.formatting import digits, listed, seconds

FEW_STEPS = 500
"""Fewer say little about a method: MAE's features were hardly better than an untrained encoder's
after 450 steps on 2,000 images (docs/tutorial.md), clearly after 777 (results/presets)."""
_TIMES = ("10m", "1h", "8h")
_WORDS = {
    "random init": ("an untrained encoder", "is"),
    "raw pixels": ("raw pixels", "are"),
    "from scratch": ("training from scratch", "is"),
}
"""The usual baselines, as the table calls them and as a person would, with their verb."""
_Gains = Mapping[str, Sequence[str]]


def sentences(
    method: str, records: Sequence[Mapping[str, Any]], steps: int, pace: float | None
) -> list[str]:
    """What the scores of a run say beside their baselines, and how far they can be trusted.

    Two accuracies that are no further apart than those of two equal models are in 19 of 20 cases,
    for so many test images, are called the same, and so are two scores with 95 % intervals over
    test images. Models that err on the same images differ less by chance, so that this is on the
    safe side.

    Args:
        method: its name.
        records: as in ``scores.json``.
        steps: that the training took; 0 where there was none.
        pace: steps a second, where it is known.
    """
    if not steps:
        return []
    ahead, behind, alike = _gains(records)
    found = []
    if ahead:
        every = "" if behind or alike else "every baseline: of "
        parts = "; of ".join(f"{_words(label)[0]} in {listed(ahead[label])}" for label in ahead)
        found.append(f"{method} is ahead of {every}{parts}.")
    for label, gains in behind.items():
        name, verb = _words(label)
        found.append(f"{name[0].upper()}{name[1:]} {verb} ahead of {method} in {listed(gains)}.")
    for label, gains in alike.items():
        found.append(f"Chance may explain what sets it apart from {_words(label)[0]} in "
                     f"{listed(gains)}.")  # fmt: skip
    if {*behind, *alike} - {"raw pixels"} and not ahead.keys() - {"raw pixels"}:
        found.append("Nothing here shows that pre-training has taught the encoder anything.")
    if steps < FEW_STEPS:
        found.append(few(steps, pace))
    if ahead or behind or alike:
        found.append("This is one run: other seeds may differ.")
    return found


def next_commands(config: RunConfig, epochs: float, name: str) -> dict[str, str]:
    """What to do next, and the command that does it.

    Args:
        epochs: of the run, whatever fixed them.
        name: the run's.
    """
    settings = replace(config.settings, name="", tags=(), wait=False)
    length: dict[str, Any] = dict.fromkeys(BUDGETS) | {"budget_time": "", "match": ""}
    if settings.budget_time:  # which every run of a sweep would measure for itself
        settings = replace(settings, budget_time="", epochs=epochs)
    seeds = replace(config, settings=replace(settings, seed=0)).command()[2:]
    longer = replace(config, settings=replace(settings, **length, epochs=whole_epochs(4 * epochs)))
    more = {"more seeds": shlex.join(["ssl-bench", "sweep", *seeds, "--seed", "0..4"])}
    found = {
        **({} if config.search else more),  # its own sweep has them, with what has chosen
        "four times as long": shlex.join(longer.command()),
    }
    columns = config.method.declared.columns
    if "image" in columns and "caption" not in columns:  # which a rival reads, too
        other = _rival(config, replace(settings, **(length | {"match": name})))
        found["another method at the same cost"] = shlex.join(other.command())
    return found


def _rival(config: RunConfig, settings: Settings) -> RunConfig:
    """Another method with its own settings of the same preset."""
    rival = registry.find("method", "mae" if config.method.name == "mocov3" else "mocov3")
    preset = settings.preset if settings.preset in PRESETS else Settings.preset
    defaults = shared_defaults(preset, rival.presets().get(preset, {}))
    own = {field.name for field in fields(rival.config)} & defaults.keys()
    epochs = defaults.get("epochs", Settings.epochs)
    return RunConfig(
        replace(settings, epochs=epochs, method=rival.name, preset=preset),
        rival,
        rival.checked_config({name: defaults[name] for name in own}),
        config.evals,
        config.evals_on_the_way,
    )


def few(steps: int, pace: float | None = None) -> str:
    """That a training is too short to judge by, and what would be longer.

    Args:
        pace: steps a second, where it is known.
    """
    more = "more --epochs or --budget-time 10m would tell more"
    if pace:
        given = {text: int(pace * (seconds(text) or 0)) for text in _TIMES}
        text = next((text for text in _TIMES if given[text] >= 2 * FEW_STEPS), _TIMES[-1])
        more = f"--budget-time {text} would give about {_rounded(given[text]):,}"
    return (
        f"{steps:,} {'step is' if steps == 1 else 'steps are'} too few to judge by: an encoder "
        f"hardly moves in fewer than {FEW_STEPS}. {more[0].upper()}{more[1:]}."
    )


def _gains(records: Sequence[Mapping[str, Any]]) -> tuple[_Gains, _Gains, _Gains]:
    """Baselines that the run is ahead of, behind, and too close to: each with its evaluations."""
    ahead, behind, alike = (defaultdict[str, list[str]](list) for _ in range(3))
    for record in records:
        sign = {"higher": 1, "lower": -1}.get(record.get("better", "higher"), 0)
        score = headline(record["scores"])
        for label, scores in record["baselines"].items():
            gain = score - headline(scores)
            if not sign or math.isnan(gain):
                continue
            chance = _chance(record["scores"], scores, record)
            kind = alike if abs(gain) <= chance else ahead if sign * gain > 0 else behind
            kind[label].append(f"{record['eval']} ({digits(gain, record['unit'], '+')})")
    return ahead, behind, alike


def _chance(
    one: Mapping[str, float], other: Mapping[str, float], record: Mapping[str, Any]
) -> float:
    """How far apart chance may set two scores of so many test images.

    0 for what is neither an accuracy nor has an interval, of which that is unknown.
    """
    intervals = [ends for each in (one, other) if (ends := evaluating.interval(each))]
    if len(intervals) == 2:
        return math.hypot(*((high - low) / 2 for low, high in intervals))
    if not record["unit"].startswith("top-1 accuracy") or not record["test_images"]:
        return 0.0
    variances = (headline(each) * (100 - headline(each)) for each in (one, other))
    return 1.96 * math.sqrt(max(0.0, sum(variances)) / record["test_images"])


def _words(label: str) -> tuple[str, str]:
    return _WORDS.get(label, (label, "is"))


def _rounded(number: int) -> int:
    """Two digits of it: a forecast has no more."""
    return round(number, 2 - len(str(number)))
