"""What the README shows is what is there, and it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import METHODS
from rich.console import Console

from ssl_bench.analysis import comparison, tables
from ssl_bench.cli import flags
from ssl_bench.cli.commands.list import COSTS
from ssl_bench.runs import index
from ssl_bench.utils.files import load_json

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests" / "example_method.py"


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_example_is_the_file(readme: str) -> None:
    source = EXAMPLE.read_text()
    assert f"```python\n{source}```" in readme
    assert len(source.splitlines()) < 60


def test_example_runs(
    ssl_bench: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
) -> None:
    code, out, err = ssl_bench(
        "run", "--method", EXAMPLE, "--noise", 0.3, "--data", image_folder, "--epochs", 2,
        "--batch-size", 16, "--evals", "knn", "--runs-dir", tmp_path / "runs",
    )  # fmt: skip
    assert code == 0, err
    assert "example-method on images" in out
    [folder] = (tmp_path / "runs").glob("example-method-*")
    assert (folder / "encoder.safetensors").exists()


def test_declarations_are_taken(readme: str, tmp_path: Path) -> None:
    [declarations] = re.findall(r"```python\n(    .*?)```", readme, flags=re.DOTALL)
    source = EXAMPLE.read_text().replace("import Batch", "import LogUniform, Batch")
    path = tmp_path / "mine.py"
    path.write_text(source.replace("    def __init__", f"{declarations}\n    def __init__"))
    config = flags.parse_run(["--method", str(path), "--preset", "noisy", "--evals", "none"])
    assert (config.method_config.noise, config.settings.batch_size) == (1.0, 512)
    assert set(config.method.search()) == {"noise", "base_lr"}


def test_every_package_has_a_line_in_the_tree(readme: str) -> None:
    listed = re.findall(r"^  (\w+)/ ", readme, flags=re.MULTILINE)
    packages = [path.parent.name for path in (ROOT / "ssl_bench").glob("[!me]*/__init__.py")]
    packages += ["evaluation", "experiment", "models"]
    assert sorted(listed) == sorted(packages)


def test_numbers_are_those_of_the_committed_runs(readme: str) -> None:
    """Each score in the first table stands in a stored record, baselines and gains included."""
    records = [load_json(path) for path in ROOT.glob("results/quickstart/*/evals/*/scores.json")]
    rows = re.findall(r"^│ (finetune|knn|linear) +│ +(\S+) │(.*)│$", readme, flags=re.MULTILINE)
    assert len(rows) == 6
    for name, score, others in rows:
        shown = re.findall(r"([\d.]+) \(([+-][\d.]+)\)", others)
        assert any(
            f"{record['scores']['top1']:.2f}" == score
            and {(f"{b['top1']:.2f}", f"{record['scores']['top1'] - b['top1']:+.2f}")
                 for b in record["baselines"].values()} == set(shown)
            for record in records
            if record["eval"] == name
        ), name  # fmt: skip


def test_the_comparison_is_that_of_the_committed_runs(readme: str) -> None:
    """Each row of scores, as ``ssl-bench compare`` prints it."""
    compared = comparison.compare(index.load(ROOT / "results/fashion-mnist"))
    console = Console(width=84, markup=False)
    with console.capture() as capture:
        for table in tables.as_rich(compared, console.width):
            console.print(table)
    printed = [line.strip() for line in capture.get().splitlines()]
    rows = re.findall(r"^│ (?:mae|mocov3|random-init|supervised) .*│$", readme, re.MULTILINE)
    assert len(rows) == 8
    assert all(row in printed for row in rows)


def test_pictures_exist(readme: str) -> None:
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme):
        assert (ROOT / target).is_file(), target


def test_every_method_has_a_row(readme: str) -> None:
    costs = json.loads(COSTS.read_text())
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \| ([\d.]+) \|$", readme, re.MULTILINE)
    assert rows == [
        (
            plugin.name,
            plugin.declared.paper or "-",
            ", ".join(plugin.declared.needs) or "-",
            f"{costs[plugin.name] / costs['mae']:.1f}",
        )
        for plugin in METHODS
    ]


def test_make_targets_exist(readme: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", readme)) <= targets
