"""What an identity sees: versions, settings, the code of others; and the lock on our own code."""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numbers_lock
import pytest
from numbers_lock import LOCK, ROOT

from ssl_bench.api import registry
from ssl_bench.api.method import Method
from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.evaluation import runner
from ssl_bench.experiment import loading, run_config
from ssl_bench.experiment.preparation import prepare_run
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import run_folder, schema
from ssl_bench.runs.schema import Plan
from ssl_bench.training import flops
from ssl_bench.utils.files import load_json

MAE, KNN = registry.find("method", "mae"), registry.find("eval", "knn")
OURS = [*registry.discover("method").values(), *registry.discover("eval").values()]


def test_code_that_makes_numbers_is_as_locked() -> None:
    lock, now = json.loads(LOCK.read_text()), numbers_lock.current()
    assert dict(numbers_lock.changed(lock, now)) == {}, (
        "raise a version, or say why numbers stay the same: see tests/numbers_lock.py"
    )
    assert list(numbers_lock.other_defaults(lock, now)) == []
    assert {f"{plugin.kind} {plugin.name}" for plugin in OURS if plugin.is_ours} < lock.keys()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package that a test may change."""
    for name in ("ssl_bench", "methods", "evals"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def masking(checkout: Path) -> Path:
    [path] = (checkout / "ssl_bench").rglob("masking.py")
    return path


@pytest.mark.parametrize(
    "path,old,new,owner",
    [
        ("masking.py", "_BLOCK_ATTEMPTS = 32", "_BLOCK_ATTEMPTS = 31", "core"),
        ("mae.py", "    version = 1\n", "    version = 1\n    _odd = 1\n", "method mae"),
        ("knn.py", "    version = 1\n", "    version = 1\n    _odd = 1\n", "eval knn"),
    ],
)
def test_a_change_fails_until_a_version_is_raised(
    checkout: Path, path: str, old: str, new: str, owner: str
) -> None:
    lock = numbers_lock.current(checkout)
    [changed] = [p for p in checkout.rglob(path) if "ssl_bench/methods" not in str(p)]
    edit(changed, old, new)
    now = numbers_lock.current(checkout)
    assert dict(numbers_lock.changed(lock, now)) == {owner: [str(changed.relative_to(checkout))]}
    now[owner]["version"] = 2
    assert dict(numbers_lock.changed(lock, now)) == {}


def test_comments_imports_and_moves_are_no_change(checkout: Path) -> None:
    lock = numbers_lock.current(checkout)
    path = masking(checkout)
    edit(path, "import torch\n", "import torch\n\nfrom ssl_bench import elsewhere  # a comment\n")
    now = numbers_lock.current(checkout)
    assert dict(numbers_lock.changed(lock, now)) == {}
    files = now["core"]["files"]
    files["ssl_bench/elsewhere.py"] = files.pop(str(path.relative_to(checkout)))
    assert dict(numbers_lock.changed(lock, now)) == {}
    del files["ssl_bench/elsewhere.py"]
    assert [*dict(numbers_lock.changed(lock, now))] == ["core"]


_NO_NUMBERS = (
    *("errors", "runs", "api.registry", "api.plugins", "api.sources", "api.ranges", "papers"),
    *("api.declarations", "experiment", "analysis", "distributed.environment", "utils"),
    *("distributed.launcher", "data.names", "config.checked"),
)
"""What code that makes numbers imports, and what makes none."""


def test_whatever_makes_numbers_is_locked() -> None:
    """All that locked files import is locked, but for what is listed above."""
    locked = {name for owner in numbers_lock.current().values() for name in owner["files"]}
    missing = set()
    for name in locked:
        for node in ast.walk(ast.parse((ROOT / name).read_bytes())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("ssl_"):
                continue
            for alias in node.names:
                for module in (node.module or "", f"{node.module}.{alias.name}"):
                    file = Path(*module.split(".")).with_suffix(".py")
                    makes_none = module.removeprefix("ssl_bench.").startswith(_NO_NUMBERS)
                    if (ROOT / file).is_file() and str(file) not in locked and not makes_none:
                        missing.add(str(file))
    assert not missing


@pytest.mark.parametrize(
    "path,old,new",
    [
        ("api/optimizers.py", "(1 + math.cos(math.pi * done)) / 2", "(1 + math.cos(done)) / 2"),
        ("config/presets.py", '"depth": 4', '"depth": 5'),
    ],
)
def test_optimisers_and_backbones_make_numbers(
    checkout: Path, path: str, old: str, new: str
) -> None:
    lock = numbers_lock.current(checkout)
    edit(checkout / "ssl_bench" / path, old, new)
    assert dict(numbers_lock.changed(lock, numbers_lock.current(checkout))) == {
        "core": [f"ssl_bench/{path}"]
    }


def test_what_an_import_is_called_is_code() -> None:
    prints = {
        registry.fingerprint(ast.parse(text))
        for text in (
            "from ssl_bench.models.masking import random_scores as hide\nhide()",
            "from ssl_bench.models.masking import block_scores as hide\nhide()",
        )
    }
    moved = "from ssl_bench.elsewhere import block_scores as hide\nhide()"
    assert len(prints) == 2 and registry.fingerprint(ast.parse(moved)) in prints


def test_no_reason_excuses_another_default() -> None:
    lock = numbers_lock.current()
    now = copy.deepcopy(lock)
    now["method mae"]["defaults"] |= {"decoder_depth": "3", "a_new_field": "1"}
    [problem] = numbers_lock.other_defaults(lock, now)
    assert "decoder_depth" in problem
    now["method mae"]["version"] = 2
    assert list(numbers_lock.other_defaults(lock, now)) == []


def test_the_lock_is_changed_for_a_reason_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    content: dict[str, Any] = {**numbers_lock.current(), "reasons": []}
    content["method mae"]["files"] = dict.fromkeys(content["method mae"]["files"], "another")
    path.write_text(json.dumps(content))
    monkeypatch.setattr(numbers_lock, "LOCK", path)
    monkeypatch.setattr("builtins.input", lambda _: " ")
    with pytest.raises(UserError):
        numbers_lock.main([])
    with pytest.raises(UserError, match="mae"):
        numbers_lock.main(["--check"])
    numbers_lock.main(["only", "names"])
    numbers_lock.main(["--check"])
    reasons = json.loads(path.read_text())["reasons"]
    assert (reasons[-1]["owners"], reasons[-1]["reason"]) == (["method mae"], "only names")


def test_a_raised_version_trains_anew(checkout: Path, image_folder: Path) -> None:
    """The case that was missed: a mask is drawn otherwise, and the run was said to be there."""

    def run() -> str:
        words = ["run", "--method", "mae", "--sampling", "block", "--data", image_folder]
        words += ["--epochs", 1, "--batch-size", 16, "--precision", "fp32", "--evals", "none"]
        words += ["--backbone", "vit_nano"]
        done = subprocess.run(
            [sys.executable, "-m", "ssl_bench", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "reused" not in run()
    edit(masking(checkout), "_BLOCK_ATTEMPTS = 32", "_BLOCK_ATTEMPTS = 31")
    edit(checkout / "ssl_bench/__init__.py", "CORE_VERSION = 1", "CORE_VERSION = 2")
    assert "reused" not in run()
    assert len(list((checkout / "runs").glob("mae-*"))) == 2


@pytest.fixture
def plan(spec: EncoderSpec, tiny: Dataset) -> Plan:
    print_ = tiny.fingerprint
    return Plan("mae", MAE.version, MAE.config(), "tiny", print_, spec, 2, 32, 0, "fp32")


def test_seeds_share_an_identity(plan: Plan) -> None:
    other = dataclasses.replace(plan, seed=1)
    assert other.identity == plan.identity and other.name != plan.name


@pytest.mark.parametrize("plugin", OURS, ids=lambda plugin: plugin.name)
def test_versions_are_declared(plugin: Plugin) -> None:
    assert type(plugin.version) is int and plugin.version >= 1


def test_a_new_field_leaves_identities_as_they_are(plan: Plan, tiny: Dataset) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(MAE.config):  # type: ignore[name-defined]
        invented: int = 3

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LaterKNN(KNN.config):  # type: ignore[name-defined]
        invented: int = 3

    def identities(**invented: Any) -> tuple[str, str]:
        later = dataclasses.replace(plan, method_config=Later(**invented))
        return later.identity, runner.protocol(KNN, LaterKNN(**invented), tiny)

    before = plan.identity, runner.protocol(KNN, KNN.config(), tiny)
    assert identities() == before
    assert not set(identities(invented=4)) & set(before)


def test_a_plugin_of_others_is_known_by_its_source(tmp_path: Path, tiny: Dataset) -> None:
    identities = set()
    for text in ("", "\n_ODD = 1\n"):
        path = tmp_path / "mine.py"
        path.write_text(KNN.path.read_text() + text)
        mine = Plugin("eval", "mine", path, "")
        identities.add((mine.version, runner.protocol(mine, KNN.config(), tiny)))
        assert mine.version == mine.fingerprint
    assert len(identities) == len(dict(identities)) == 2


def test_a_folder_made_with_another_default_is_refused(tmp_path: Path) -> None:
    before = {"method_config": {"depth": 1}, "encoder": {"image_size": 16}}
    folder = run_folder.create(tmp_path, "mae-x-seed0-aa", before)
    stored = (folder / "config.json").read_bytes()
    assert (
        run_folder.create(tmp_path, folder.name, {"method_config": {"depth": 1, "new": 2}})
        == folder
    )
    with pytest.raises(UserError, match="depth 1"):
        run_folder.create(tmp_path, folder.name, {"method_config": {"depth": 2}})
    assert (folder / "config.json").read_bytes() == stored


def test_committed_runs_are_what_their_settings_lead_to_today(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`compare` groups them with new ones, and the same command reuses them.

    Each cost of a step that a method's runs have recorded is counted once, and is the same. Of runs
    that differ in their seed alone the first is planned anew.
    """
    load = functools.lru_cache(loading.load)
    paths = sorted(ROOT.glob("results/*/*/config.json"))
    assert len(paths) > 20
    count, counted = flops.of_step, set[tuple[type[Method], int]]()

    def of_step(method: Method, spec: EncoderSpec, batch_size: int) -> int:
        recorded = load_json(path.parent / schema.COST)["flops_per_step"]
        if (type(method), recorded) not in counted:
            assert count(method, spec, batch_size) == recorded
            counted.add((type(method), recorded))
        return recorded

    monkeypatch.setattr(flops, "of_step", of_step)
    planned: dict[str, Plan] = {}
    for path in paths:
        told = load_json(path)
        seed = told.pop("seed")
        assert told["settings"].pop("seed") == seed
        config = run_config.load(path, allow=lambda files: None)
        plan = planned.get(settings := json.dumps(told))
        if plan is None:
            plan = prepare_run(config, loading.data_of(config, load)).plan
            planned[settings] = plan
        plan = dataclasses.replace(plan, seed=seed)
        assert plan.name == path.parent.name
        for record in map(load_json, schema.score_files(path.parent)):
            plugin = registry.find("eval", record["eval"])
            if record["version"] < plugin.declared.version:
                continue  # which stays apart in every table
            data = SimpleNamespace(fingerprint=record["data_fingerprint"])
            own = plugin.config_of(record["config"])
            of_text = plan.encoder.is_text
            assert runner.protocol(plugin, own, data, of_text) == record["protocol"]  # type: ignore[arg-type]
