"""What a plugin's file may say, and what a run gets of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_bench.api import registry
from ssl_bench.api.declarations import HOOKS
from ssl_bench.api.evaluation import Evaluation
from ssl_bench.api.method import Method
from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.utils.files import load_json

Command = Callable[..., tuple[int, str, str]]
CONFIG = '''
"""Mine: checks its settings with a function of its own."""
from __future__ import annotations
from dataclasses import dataclass
import torch
from ssl_bench.api import Evaluation, Method, OptimizerConfig, Result
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
class Mine(Method):
    def __init__(self, config, encoder, num_classes):
        super().__init__(config, encoder.requires_grad_(False), num_classes)
        assert isinstance(config, Config), type(config)
"""
EVAL = """
class Ours(Evaluation):
    def evaluate(self, encoder, data):
        assert isinstance(self.config, Config), type(self.config)
        return Result({{"width": float(self.config.width)}}, unit="pixels")
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
    for type_ in ("dict", "list[int]", "tuple[int, int]", "dict | None"):
        unusable = write("odd.py", METHOD, more=f"many: {type_} = None\n    '''Several.'''")
        with pytest.raises(UserError, match=r"field 'many' of Config in .*odd.py .* would work"):
            _ = registry.find("method", str(unusable)).config
        unusable.unlink()
    odd = "choice: Choice | None = None\n    '''One.'''"
    path = write("mine.py", METHOD + "\nclass Choice(str): pass\n", more=odd)
    assert {"width", "choice"} <= registry.field_help(
        registry.find("method", str(path)).config
    ).keys()
    missing = write("other.py", METHOD, more=odd)
    with pytest.raises(UserError, match="Choice"):
        _ = registry.find("method", str(missing)).config


PICKY = """
class Picky(Evaluation):
    compared_with = ("pixels", "random")

    def supports(self, encoder, data):
        if len(data.test) < self.config.width:
            return f"{{len(data.test)}} images are not enough"
        return None if hasattr(encoder, "trainable_copy") else "pixels"

    def evaluate(self, encoder, data):
        return Result({{"width": float(self.config.width)}}, unit="pixels")
"""


@pytest.mark.parametrize("command", ["run", "eval"])
def test_what_an_evaluation_does_not_support_is_left_out(
    ssl_bench: Command,
    write: Callable[..., Path],
    image_folder: Path,
    tmp_path: Path,
    command: str,
) -> None:
    evals = f"{write('picky.py', PICKY)},{write('ours.py', EVAL)}"
    runs = tmp_path / "runs"
    words = ["run", "--method", "random-init", "--data", image_folder, "--runs-dir", runs]
    if command == "eval":
        assert ssl_bench(*words, "--evals", "none")[0] == 0
        words = ["eval", next(runs.glob("random-init-*")), "--runs-dir", runs]
    before = sorted(runs.rglob("*"))
    code, _, error = ssl_bench(*words, "--evals", tmp_path / "picky.py", "--picky-width", 14)
    assert (code, error.count("\n")) == (2, 1)
    assert "picky" in error and "12 images" in error
    assert [path for path in sorted(runs.rglob("*")) if path.name != "lock"] == before

    code, output, error = ssl_bench(*words, "--evals", evals, "--picky-width", 14)
    assert code == 0, error
    [line] = [line for line in output.splitlines() if "12 images" in line]
    assert "picky" in line
    [folder] = runs.glob("random-init-*")
    found = [load_json(path) for path in schema.score_files(folder)]
    assert [record["eval"] for record in found] == ["ours"]

    code, output, error = ssl_bench(*words, "--evals", evals, "--picky-width", 12)
    assert code == 0, error
    assert "left out" not in output
    found = [load_json(path) for path in schema.score_files(folder)]
    baselines = {record["eval"]: list(record["baselines"]) for record in found}
    assert baselines == {"ours": [], "picky": ["random init"]}


def test_an_unknown_baseline_is_refused_before_it_has_a_folder(
    ssl_bench: Command, write: Callable[..., Path], image_folder: Path, tmp_path: Path
) -> None:
    hook = "    def baselines(self):\n        return {{'raw pixels': ('pixles', self.config)}}\n"
    typo = write("typo.py", EVAL + hook)
    words = ["run", "--method", "random-init", "--data", image_folder, "--evals", typo]
    code, _, error = ssl_bench(*words, "--typo-width", 12, "--runs-dir", tmp_path / "runs")
    assert (code, error.count("\n")) == (2, 1), error
    assert "'pixles'" in error and "pixels or random" in error
    assert not (tmp_path / "runs/baselines").exists()


PLAIN = """
import importlib
from dataclasses import dataclass
from ssl_bench import api
from ssl_bench.api import {base}, LogUniform
import torch

@dataclass(frozen=True)
class Config:
    width: int = 3

class Mine({base}):
"""
LINES = {
    "a typo": ("method", "    per_sample_los = True", ["per_sample_los", "per_sample_loss"]),
    "an annotated typo": ("method", "    versoin: int = 2", ["versoin", "version"]),
    "one of a pair": ("method", "    version, preset = 1, {}", ["preset", "presets"]),
    "another kind's": ("method", "    sharded = True", ["sharded"]),
    "a method's": ("eval", "    per_sample_loss = True", ["per_sample_loss"]),
    "a constant": ("eval", "    DEFAULT = True", ["DEFAULT", "is_default"]),
    "outside": ("method", "    pass\nPRESETS = {'quick': {}}", ["PRESETS", "presets"]),
    "misspelt outside": ("method", "    pass\nPRESET = {'quick': {}}", ["PRESET", "presets"]),
    "a British hook": ("method", "    def optimiser(self): pass", ["optimiser", "optimizer"]),
    "a misspelt hook": ("eval", "    def support(self, e, d): pass", ["support", "supports"]),
    "no flag in a preset": (
        "method",
        "    presets = {'quick': {'epohcs': 3}}",
        ["epohcs", "epochs"],
    ),
    "another's flag": ("eval", "    presets = {'quick': {'epochs': 3}}", ["epochs", "quick"]),
    "no flag in a space": (
        "method",
        "    search_space = {'widht': LogUniform(1, 2)}",
        ["widht", "width"],
    ),
    "a function": ("method", "    def presets(self): return {}", ["presets"]),
    "no mapping": ("method", "    presets = 5", ["presets", "int"]),
    "no mappings in it": ("method", "    presets = {'quick': 5}", ["presets", "quick", "int"]),
    "no range": ("method", "    search_space = {'width': (1, 2)}", ["search_space", "tuple"]),
    "what tables say": ("method", "    ablations = {'width': {}}", ["ablations"]),
    "no whole number": ("method", "    version = '2'", ["version", "'2'", "int"]),
    "a bool for a number": ("method", "    version = True", ["version", "True", "int"]),
    "a number for a bool": ("eval", "    is_default = 1", ["is_default", "1", "bool"]),
    "a column of nobody": ("method", "    columns = frozenset({'lable'})", ["columns", "'lable'"]),
    "columns as a set": ("eval", "    columns = {'image'}", ["columns", "frozenset"]),
    "a baseline of nobody": (
        "eval",
        "    compared_with = 'pixles',",
        ["compared_with", "'pixles'"],
    ),
    "none below 1": ("method", "    smallest_batch = 0", ["smallest_batch", "0"]),
    "two of them": ("method", "    pass\nclass Other(Mine): pass", ["Mine", "Other"]),
    "of the other kind": ("eval", "    pass\nMine = None", ["Evaluation"]),
}


def test_hooks_are_what_the_classes_define() -> None:
    for kind, cls in (("method", Method), ("eval", Evaluation)):
        public = {name for name in vars(cls) if not name.startswith("_")}
        assert set(HOOKS[kind]) == public - {"encoder", "watch", "watched_BD", "fixed_shapes"}


@pytest.mark.parametrize("what", LINES)
def test_what_the_contract_does_not_know_is_one_line(
    ssl_bench: Command, tmp_path: Path, what: str
) -> None:
    kind, lines, told = LINES[what]
    path = tmp_path / "mine.py"
    path.write_text(PLAIN.format(base={"method": "Method", "eval": "Evaluation"}[kind]) + lines)
    flag = "--method" if kind == "method" else "--evals"
    code, _, error = ssl_bench("run", flag, path, "--runs-dir", tmp_path / "runs", "--help")
    assert (code, error.count("\n")) == (2, 1), error
    assert str(path) in error
    assert all(each in error for each in told), error


@pytest.mark.parametrize(
    "lines",
    [
        "    version = 4",
        "    version: int = 4",
        "    '''Mine.'''\n    _OWN = 4\n    version = _OWN",
        "    version = smallest_batch = 4",
        "    version, smallest_batch = 4, 2",
        "    if torch:\n        version = 4",
        "    version = int(4 * torch.ones(()))",
        "    pass\nMine.version = 4",
        "    pass\n_FOUR = 4\nMine.version = _FOUR\nOWN = 5",
        "    note: str\n    def __init__(self): ...\n    version = 4\nclass _Other(Mine): pass",
    ],
)
@pytest.mark.parametrize("base", ["Method", "api.Method", "_Base", "One"])
def test_declared_attributes_are_those_of_the_class(tmp_path: Path, lines: str, base: str) -> None:
    path = tmp_path / "mine.py"
    text = PLAIN.format(base="Method").replace("class Mine(Method)", f"class Mine({base})")
    text = text.replace("import torch\n", "import torch\nfrom ssl_bench.api import Method as One\n")
    inherits = "\nclass _Base(Method):\n    encodes_in_parts = True\n\nclass Mine"
    path.write_text(text.replace("\nclass Mine", inherits) + lines)
    plugin = registry.find("method", str(path))
    assert plugin.declared.version == 4 == plugin.load_class().version
    for name in ("presets", "encodes_in_parts", "smallest_batch", "per_sample_loss"):
        assert getattr(plugin.declared, name) == getattr(plugin.load_class(), name)
    assert plugin.declared.encodes_in_parts == (base == "_Base")


def test_declared_attributes_that_make_no_number_are_no_code(tmp_path: Path) -> None:
    hashes: dict[str, str] = {}
    for lines in (
        "",
        "    version = 2",
        "    presets = {'quick': {}}",
        "    encodes_in_parts: bool = True",
        "    search_space = {'width': LogUniform(1, 2)}",
        "    per_sample_loss = True",
        "    _version = 2",
        "    def loss(self, batch):\n        version = 2",
        "    def loss(self, batch):\n        version = 3",
    ):
        path = tmp_path / "mine.py"
        path.write_text(PLAIN.format(base="Method") + "    '''Mine.'''\n" + lines)
        hashes[lines] = registry.Plugin("method", "mine", path, "").fingerprint
    distinct = list(dict.fromkeys(hashes.values()))
    assert len(distinct) == 5
    assert list(hashes.values())[:5] == distinct[:1] * 5


def test_the_fields_of_a_config_are_code_whatever_they_are_called(tmp_path: Path) -> None:
    prints = set()
    for default in (1, 2):
        path = tmp_path / "mine.py"
        text = PLAIN.format(base="Method").replace("width: int = 3", f"version: int = {default}")
        path.write_text(text + "    pass")
        prints.add(registry.Plugin("method", "mine", path, "").fingerprint)
    assert len(prints) == 2


def test_a_typo_below_another_method_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    text = PLAIN.format(base="Method").replace("class Mine(Method)", "class Mine(mae.MAE)")
    path.write_text("from ssl_bench.methods import mae\n" + text + "    versio = 2")
    with pytest.raises(UserError, match=r"'versio'.*'version'"):
        _ = registry.find("method", str(path)).declared
    path = tmp_path / "other.py"
    path.write_text("from ssl_bench.methods import mae\n" + text + "    version = 2")
    declared = registry.find("method", str(path)).declared
    assert (declared.version, declared.per_sample_loss) == (2, True)
