"""``ssl-bench list methods``: papers, needs, and counted costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import method_costs
import pytest
from helpers import EXAMPLE_METHOD, METHODS

from ssl_bench.api import registry
from ssl_bench.cli.commands.list import COSTS
from ssl_bench.config.presets import PRESET_NOTES

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", [plugin.name for plugin in METHODS])
def test_costs_are_those_that_are_counted(name: str) -> None:
    """After a change of them, ``python tests/method_costs.py`` counts anew."""
    assert json.loads(COSTS.read_text()).get(name) == method_costs.of(name)


def test_each_method_has_its_paper_needs_and_cost(
    ssl_bench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = ssl_bench("list", "methods")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    costs = json.loads(COSTS.read_text())
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line[:1].strip()}
    for plugin in METHODS:
        assert rows[plugin.name] == f"{costs[plugin.name] / costs['mae']:.1f}"
        together = " ".join(out.split())
        assert all(word in together for word in plugin.declared.paper.split())
        has_paper = set(plugin.presets()) > set(PRESET_NOTES)
        assert bool(plugin.declared.paper) == has_paper, plugin.name


def test_a_method_of_somebody_else_has_no_cost(
    ssl_bench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = registry.Plugin("method", "mae", Path(__file__).parent.parent / "example_method.py", "")
    monkeypatch.setattr(registry, "discover", lambda kind: {"mae": mine})
    code, out, err = ssl_bench("list", "methods")
    assert code == 0, err
    [row] = [line for line in out.splitlines() if line.startswith("mae")]
    assert row.split()[-2:] == ["-", "-"]


def test_presets_of_somebody_else_are_not_called_published(
    tmp_path: Path, ssl_bench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = EXAMPLE_METHOD.read_text().replace(
        "    def __init__", '    presets = {"long": {"epochs": 9.0}}\n\n    def __init__', 1
    )
    (tmp_path / "mine.py").write_text(code)
    mine = registry.Plugin("method", "mine", tmp_path / "mine.py", "")
    found = registry.discover("method") | {"mine": mine}
    monkeypatch.setattr(registry, "discover", lambda kind: found if kind == "method" else {})
    _, out, err = ssl_bench("list", "presets")
    [row] = [line for line in out.splitlines() if "long" in line]
    assert row.split() == ["long", "mine,", "epochs", "9.0"], err


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from ssl_bench.cli import main; main(['list', 'methods']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
