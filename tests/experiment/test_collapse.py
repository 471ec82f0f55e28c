"""A training whose features become alike says so, at its end and in the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import helpers
import pytest

WATCHING = helpers.EXAMPLE_METHOD.read_text().replace(
    "        return (predicted_BLP",
    "        self.watch(tokens_BTD[:, 0] * self.config.kept + 1)\n        return (predicted_BLP",
)


@pytest.mark.parametrize("kept", [0.0, 1000.0])
def test_a_collapse_is_told_and_listed(
    kept: float,
    ssl_bench: Callable[..., tuple[int, str, str]],
    image_folder: Path,
    tmp_path: Path,
) -> None:
    plugin = tmp_path / "watching.py"
    field = f'    kept: float = {kept}\n    """Weight."""\n    base_lr'
    plugin.write_text(WATCHING.replace("    base_lr", field, 1))
    runs = tmp_path / "runs"
    options = ["--data", image_folder, "--runs-dir", runs, "--backbone", "vit_nano"]
    options += ["--epochs", 1, "--batch-size", 12, "--evals", "knn"]
    code, out, err = ssl_bench("run", "--method", plugin, *options)
    assert code == 0, err
    [folder] = [path.parent for path in runs.glob("*/cost.json")]
    cost = json.loads((folder / "cost.json").read_text())
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: record[name] for name in ("spread", "effective_rank")} == {
        name: cost[name] for name in ("spread", "effective_rank")
    }
    collapsed = kept == 0
    assert ("collapsed" in cost) == collapsed == ("collapsed" in out)
    code, out, _ = ssl_bench("compare", "--runs-dir", runs)
    assert code == 0 and ("collapsed" in out) == collapsed
    assert (folder.name in out) == collapsed or not collapsed
