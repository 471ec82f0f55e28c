"""What a plugin's file may say, and what a run gets of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_bench.api import registry
from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.utils.files import load_json

Command = Callable[..., tuple[int, str, str]]
CONFIG = '''
"""Mine: checks its settings with a function of its own."""
from __future__ import annotations
from dataclasses import dataclass
import torch
from ssl_bench.api.contract import Method, Result
from ssl_bench.config.settings import OptimizerConfig
from ssl_bench.errors import above

def check(width):
    above("my width", width, int(torch.zeros(())))
    if width == 13:
        raise ZeroDivisionError("unlucky")
    return width

@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """Flags."""
    width: int = 3
    """A number."""
    {more}

    def __post_init__(self):
        if self.width != 3 or {always}:
            check(self.width)
'''
METHOD = """
class Pretraining(Method):
    def __init__(self, config, encoder, num_classes):
        super().__init__(config, encoder.requires_grad_(False), num_classes)
        assert isinstance(config, Config), type(config)
"""
EVAL = """
def evaluate(encoder, data, config):
    assert isinstance(config, Config), type(config)
    return Result({{"width": float(config.width)}}, unit="pixels")
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to(name: str, text: str, more: str = "", always: bool = True) -> Path:
        path = tmp_path / name
        path.write_text((CONFIG + text).format(more=more, always=always))
        return path

    return to


@pytest.mark.parametrize("always", [True, False])
def test_a_run_gets_the_files_own_config(
    ssl_bench: Command,
    write: Callable[..., Path],
    image_folder: Path,
    tmp_path: Path,
    always: bool,
) -> None:
    method = write("mine.py", METHOD, always=always)
    evaluation = write("ours.py", EVAL, always=always)
    words = ["run", "--method", method, "--evals", evaluation, "--data", image_folder]
    words += ["--runs-dir", tmp_path / "runs", "--width", 5, "--ours-width", 7]
    code, output, error = ssl_bench(*words)
    assert code == 0, error
    assert "--width" in ssl_bench(*words, "--help")[1]
    [folder] = (tmp_path / "runs").glob("mine-*")
    assert widths(folder) == {7}
    code, output, error = ssl_bench("rerun", folder, "--runs-dir", tmp_path / "runs", "--trust")
    assert code == 0, error + output
    folders = (folder, "--evals", evaluation, "--ours-width", 8, "--runs-dir", tmp_path / "runs")
    code, output, error = ssl_bench("eval", *folders)
    assert code == 0, error
    assert widths(folder) == {7, 8}


def widths(folder: Path) -> set[float]:
    """What the evaluation has stored."""
    return {load_json(path)["scores"]["width"] for path in schema.score_files(folder)}


@pytest.mark.parametrize(("width", "told"), [(-1, "my width -1"), (13, "unlucky")])
def test_what_the_own_config_refuses_is_one_line(
    ssl_bench: Command,
    write: Callable[..., Path],
    image_folder: Path,
    tmp_path: Path,
    width: int,
    told: str,
) -> None:
    words = ["run", "--method", write("mine.py", METHOD), "--data", image_folder]
    code, _, error = ssl_bench(*words, "--width", width, "--runs-dir", tmp_path / "runs")
    assert (code, error.count("\n")) == (2, 1), error
    assert told in error
    assert not (tmp_path / "runs").exists()


def test_a_type_of_the_own_file_is_found(write: Callable[..., Path]) -> None:
    odd = "choice: Choice | None = None\n    '''One.'''"
    path = write("mine.py", METHOD + "\nclass Choice(str): pass\n", more=odd)
    assert {"width", "choice"} <= registry.field_help(
        registry.find("method", str(path)).config
    ).keys()
    missing = write("other.py", METHOD, more=odd)
    with pytest.raises(UserError, match="Choice"):
        _ = registry.find("method", str(missing)).config
