"""The examples of the documentation are files that run, and its commands exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from docs_text import ROOT, commands, text_of

from ssl_bench.analysis.comparison.pairs import Verdict
from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.cli.commands import COMMANDS
from ssl_bench.cli.commands.list import KINDS
from ssl_bench.cli.parser import every_flag
from ssl_bench.utils.files import load_json

METHOD = ROOT / "tests" / "example_method.py"
EVALUATION = ROOT / "tests" / "example_evaluation.py"
Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("page", "path"), [("docs/own-method.md", METHOD), ("docs/own-evaluation.md", EVALUATION)]
)
def test_an_example_is_the_file(page: str, path: Path) -> None:
    source = path.read_text()
    assert f"```python\n{source}```" in text_of(page)
    assert len(source.splitlines()) < 80


def test_the_examples_run(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> None:
    """A method and an evaluation of one's own in one command, and the evaluation afterwards."""
    runs = ("--runs-dir", tmp_path / "runs")
    code, out, err = ssl_bench(
        "run", "--method", METHOD, "--noise", 0.3, "--data", image_folder, "--epochs", 2,
        "--batch-size", 16, "--evals", f"knn,{EVALUATION}", *runs,
    )  # fmt: skip
    assert code == 0, err
    assert "example-method on images" in out and "example-evaluation" in out
    [folder] = (tmp_path / "runs").glob("example-method-*")
    assert (folder / "encoder.safetensors").exists()
    [path] = folder.glob("evals/example-evaluation-*/scores.json")
    record = load_json(path)
    assert 0 <= record["scores"]["top1"] <= 100
    assert set(record["baselines"]) == {"raw pixels", "random init"}
    other = ("--example-evaluation-distance", "cosine")
    code, _, err = ssl_bench("eval", folder, "--evals", EVALUATION, *other, *runs)
    assert code == 0, err
    assert len(list(folder.glob("evals/example-evaluation-*/scores.json"))) == 2


def test_declarations_are_taken(tmp_path: Path) -> None:
    page = text_of("docs/own-method.md")
    [declarations] = re.findall(r"```python\n(    .*?)```", page, flags=re.DOTALL)
    source = METHOD.read_text().replace("import Batch", "import LogUniform, Batch")
    path = tmp_path / "mine.py"
    path.write_text(source.replace("    def __init__", f"{declarations}\n    def __init__"))
    config = flags.parse_run(["--method", str(path), "--preset", "noisy", "--evals", "none"])
    assert (config.method_config.noise, config.settings.batch_size) == (1.0, 512)
    assert set(config.method.search()) == {"noise", "base_lr"}


def known(command: str) -> set[str]:
    """The flags of a command whatever the method, those of the examples included."""
    each = COMMANDS[command]
    if not each.settings:
        return set()
    fields = set(every_flag(command, each.classes, each.plugins, {}).__dataclass_fields__)  # type: ignore[attr-defined]
    if each.plugins:
        for kind, path in (("method", METHOD), ("eval", EVALUATION)):
            plugin = registry.find(kind, str(path))  # type: ignore[arg-type]
            prefix = "example_evaluation_" if kind == "eval" else ""
            fields |= {prefix + name for name in plugin.config.__dataclass_fields__}  # type: ignore[attr-defined]
    flags_ = {name.replace("_", "-") for name in fields}
    return {*flags_, *(f"no-{name}" for name in flags_), "help", "help-all", "config"}


def test_every_command_and_flag_exists() -> None:
    lines = [line for line in commands() if re.search(r"(^|\s)ssl-bench ", line)]
    lines += re.findall(r"`(ssl-bench list [^`]*)`", " ".join(text_of("").split()))
    assert len(lines) > 40
    for line in lines:
        words = line[re.search(r"(^|[\s(])ssl-bench ", line).end() :].split()  # type: ignore[union-attr]
        command = words[0]
        assert command in COMMANDS, line
        assert command != "list" or {*words[1:]} <= {*KINDS}, line
        given = {re.split(r"[=.)]", word[2:])[-1 if "." in word.split("=")[0] else 0]
                 for word in words if word.startswith("--")}  # fmt: skip
        assert given <= known(command), f"{line}: {given - known(command)}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", text_of(""))) | {
        line.split()[1] for line in commands() if line.startswith("make ")
    }
    assert {"docs", "test", "demo"} <= named <= targets


def test_verdicts_in_printed_tables_are_those_there_are() -> None:
    known = {*get_args(Verdict)}
    for page in ("README.md", "docs/tutorial.md"):
        of_verdicts = False
        for line in text_of(page).splitlines():
            if "┃ evaluation ┃" in line or "┃ method" in line:
                of_verdicts = "┃ verdict" in line
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if of_verdicts and line.startswith("│") and cells[0]:
                assert cells[-1] in known, line
