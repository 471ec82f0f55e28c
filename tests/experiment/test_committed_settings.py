"""Today's defaults, presets and ranges are those that the committed results were made with.

Names of runs and protocols hash only what differs from the defaults: with another default, results
that are unlike would be compared. The command in each record says what was set by hand; the rest
has to come out the same today, also in records of older versions, whose settings are still ours.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from numbers_lock import ROOT

from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.runs import schema
from ssl_bench.utils.files import load_json

FOLDERS = sorted({path.parent.parent for path in ROOT.glob("results/*/*/config.json")})


@functools.cache
def asked(*words: str) -> Any:
    """What a recorded command leads to today: the config of a run, or of evaluations."""
    _, command, *args = words
    return (flags.parse_eval if command == "eval" else flags.parse_run)(args)


def told(who: str, name: str, today: Any, stored: Any) -> Iterator[str]:
    """A line where they differ."""
    if today != stored:
        yield f"{who}: {name} {today}, which was {stored}"


def compared(who: str, config: Any, stored: Mapping[str, Any]) -> Iterator[str]:
    """A line for each setting that is not as it was stored; what came later is not compared."""
    today = json.loads(json.dumps(asdict(config), default=str))
    for name, value in stored.items():
        yield from told(who, name, today.get(name), value)


def of_run(folder: Path) -> Iterator[str]:
    """What of a run's settings, lengths and ranges is not what its command leads to today."""
    record = load_json(folder / schema.CONFIG)
    config: RunConfig = asked(*load_json(folder / schema.ENVIRONMENT)["command"])
    settings, who = config.settings, record["method"]
    yield from compared(who, config.method_config, record["method_config"])
    yield from told(who, "batch_size", config.batch_on(), record["batch_size"])
    if record["epochs"] and not (settings.budget_flops or settings.budget_time or settings.match):
        images = load_json(folder / schema.COST)["images_seen"] // record["epochs"]
        yield from told(who, "epochs", config.epochs_on(images), record["epochs"])
    if "chosen_by" not in record:  # whose settings are those that were found out
        return
    shared = {n: v for n, v in record["settings"].items() if n not in ("wait", "batch_size")}
    yield from compared(who, settings, {n: v for n, v in shared.items() if v is not None})
    by_hand = record["chosen_by"].get("flags", ())
    if space := record["chosen_by"].get("space"):
        for name, range_ in config.method.search().items():
            if name not in by_hand:
                yield from told(who, f"range of {name}", str(range_), space.get(name))


def of_scores(path: Path) -> Iterator[str]:
    """What of an evaluation's settings is not what its command leads to today."""
    record = load_json(path)
    plugin = registry.find("eval", record["eval"])
    config = asked(*record["environment"]["command"])
    evals = {**getattr(config, "evals_on_the_way", {}), **config.evals}
    yield from compared(plugin.name, evals[plugin], record["config"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_results_are_what_their_commands_lead_to_today(folder: Path) -> None:
    found = set[str]()
    for path in folder.glob(f"*/{schema.CONFIG}"):
        found.update(of_run(path.parent))
        for record in schema.score_files(path.parent):
            found.update(of_scores(record))
    assert sorted(found) == []
