"""All settings of a run as one object: from a command line, to a file, and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import EXAMPLE_METHOD, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.config import chosen
from ssl_bench.config.chosen import ChosenBy
from ssl_bench.errors import UserError
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.sweep import jobs
from ssl_bench.utils.files import load_json

Call = Callable[..., tuple[int, str, str]]
SHORT = ("--epochs", 1, "--batch-size", 16, "--precision", "fp32", "--evals", "knn")


def without_idle(given_: dict[str, Any]) -> dict[str, Any]:
    """The flags, but for those of evaluations that are not run, which are refused."""
    of_paper = given_.get("--preset") == "imagenet-mae-vitb"
    usual = "linear-paper,finetune" if of_paper else "finetune,knn,linear"
    evals = given_.get("--evals", usual).split(",")
    owners = {"--finetune-pooling": "finetune", "--linear-learning-rates": "linear"}
    return {flag: value for flag, value in given_.items() if owners.get(flag) in (None, *evals)}


options = st.fixed_dictionaries(
    {},
    optional={
        "--preset": st.sampled_from(["quick", "small", "imagenet-mae-vitb"]),
        "--epochs": st.sampled_from(["3", "0.5", "1e-3"]),
        "--mask-ratio": st.floats(0.01, 0.99).map(str),
        "--eval-every": st.sampled_from(["20%", "0.5"]),
        "--evals": st.sampled_from(["none", "knn", "linear-paper,finetune"]),
        "--finetune-pooling": st.sampled_from(["avg", "cls"]),
        "--linear-learning-rates": st.sampled_from(["0.1", "0.1,1e-4"]),
        "--data": st.sampled_from(["cifar10", "a b/c", "x@whole"]),
        "--eval-data": st.sampled_from(["mnist", "a b/c@whole"]),
        "--image-size": st.integers(8, 500).map(str),
        "--runs-dir": st.sampled_from(["elsewhere", "/tmp/a b"]),
        "--wait": st.just(None),
        "--no-flip": st.just(None),
        "--no-keep-features": st.just(None),
        "--name": st.just("my run"),
        "--tags": st.sampled_from(["a", "a,b c"]),
    },
).map(without_idle)


@settings(max_examples=20)
@given(options)
def test_a_config_is_the_same_after_json(given_: dict[str, Any]) -> None:
    pairs = ([name] if value is None else [name, value] for name, value in given_.items())
    config = flags.parse_run(["--method", "mae", *(word for pair in pairs for word in pair)])
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@settings(max_examples=20)
@given(options)
def test_values_that_are_put_in_make_the_run_of_the_same_arguments(given_: dict[str, Any]) -> None:
    pairs = [[name] if value is None else [name, value] for name, value in given_.items()]
    words = ["--method", "mae", *(word for pair in pairs for word in pair)]
    wanted = flags.parse_run(words)
    values = {**vars(wanted.settings), **vars(wanted.method_config)}
    for plugin, config in wanted.evals.items():
        prefix = plugin.name.replace("-", "_")
        values |= {f"{prefix}_{name}": value for name, value in vars(config).items()}
    preset = ["--preset", wanted.settings.preset]
    assert flags.parse_run(["--method", "mae", *preset]).with_values(values) == wanted


@settings(max_examples=20)
@given(options)
def test_the_command_of_a_config_makes_it_again(given_: dict[str, Any]) -> None:
    pairs = ([name] if value is None else [name, value] for name, value in given_.items())
    config = flags.parse_run(["--method", "mae", *(word for pair in pairs for word in pair)])
    program, name, *args = config.command()
    assert (program, name) == ("ssl-bench", "run") and "--wait" not in args
    assert flags.parse_run(args) == config.with_values({"wait": False})


def test_a_job_records_a_command_that_a_person_can_type(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = str(tmp_path / "runs")
    args = ["--data", str(image_folder), *map(str, SHORT), "--mask-ratio", "0.5"]
    monkeypatch.setattr(sys, "argv", ["jobs.py", "mae-images-seed0", "config.json"])
    jobs.perform(flags.parse_run([*args, "--runs-dir", runs]))
    [folder] = (path.parent for path in Path(runs).glob("*/config.json"))
    [scores] = folder.glob("evals/*/scores.json")
    recorded = load_json(folder / "environment.json")["command"]
    assert load_json(scores)["environment"]["command"] == recorded
    assert recorded[:4] == ["ssl-bench", "run", "--method", "mae"]
    assert flags.parse_run(recorded[2:]) == flags.parse_run([*args, "--runs-dir", runs])


def test_a_value_that_is_put_in_is_checked() -> None:
    config = flags.parse_run(["--evals", "knn"])
    for values in ({"epochs": -1}, {"mask_ratio": 2.0}, {"knn_temperature": 0.0}):
        with pytest.raises(UserError, match="out of range"):
            config.with_values(values)
    with pytest.raises(UserError, match="knm"):
        config.with_values({"evals": ("knm",)})
    assert config.with_values({"linear_epochs": -1}) == config  # it has no such evaluation


def test_a_method_of_a_file_is_found_again() -> None:
    config = flags.parse_run(["--method", str(EXAMPLE_METHOD), "--noise", "0.25"])
    again = RunConfig.from_json(config.to_json())
    assert again == config and again.method.path == EXAMPLE_METHOD


@pytest.fixture
def trained(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Path:
    """The ``config.json`` of a run."""
    code, _, said = ssl_bench(
        *("run", "--data", image_folder, *SHORT, "--mask-ratio", 0.5, "--runs-dir", tmp_path / "r")
    )
    assert code == 0, said
    [path] = (tmp_path / "r").glob("*/config.json")
    return path


def test_the_file_of_a_run_runs_it(ssl_bench: Call, trained: Path) -> None:
    code, out, said = ssl_bench("run", "--config", trained)
    assert code == 0, said
    assert "reused" in out and str(trained.parent) in out
    content = json.loads(trained.read_text())
    content["settings"]["seed"] = 7
    other = trained.parents[1] / "mine.json"
    other.write_text(json.dumps(content))
    code, out, said = ssl_bench("run", f"--config={other}")
    assert code == 0, said
    assert [path.name for path in trained.parents[1].glob("*seed7*")] == [
        trained.parent.name.replace("seed0", "seed7")
    ]


def change(content: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split("/")
    for each in parents:
        content = content[each]
    content[name] = value


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("method", "dino9", "dino9"),
        ("method", 3, "3"),
        ("method_config/mask_ratio", "much", "much"),
        ("method_config/mask_ratio", 2, "2"),
        ("method_config/odd", 1, "odd"),
        ("settings", [], "settings"),
        ("settings/epochs", -1, "-1"),
        ("settings/precision", "fp8", "fp8"),
        ("settings/odd", 1, "odd"),
        ("evals/odd", {"source": "", "config": {}}, "odd"),
        ("evals/knn/config/temperature", None, "temperature"),
        ("evals/knn/config", 1, "1"),
    ],
)
def test_one_line_tells_what_is_wrong(
    ssl_bench: Call, tmp_path: Path, path: str, value: Any, named: str
) -> None:
    content = stored("--evals", "knn", "--runs-dir", tmp_path / "runs")
    change(content, path, value)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    code, out, said = ssl_bench("run", "--config", file)
    assert (code, said.count("\n")) == (2, 1), out + said
    assert str(file) in said and named in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '"mae"', "{}", "null"])
def test_a_file_that_is_no_config(ssl_bench: Call, tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    for path in (file, tmp_path / "nothing.json", tmp_path):
        code, _, said = ssl_bench("run", "--config", path)
        assert (code, said.count("\n")) == (2, 1) and str(path) in said


def test_other_flags_beside_a_file_are_refused(ssl_bench: Call, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(stored("--runs-dir", tmp_path / "runs")))
    code, _, said = ssl_bench("run", "--config", file, "--epochs", 3)
    assert code == 2 and "--epochs cannot go beside --config" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["method_source", "evals/mine"])
def test_a_file_that_a_config_names_is_not_run_unasked(
    ssl_bench: Call, image_folder: Path, tmp_path: Path, place: str
) -> None:
    evil, marker = tmp_path / "mine.py", tmp_path / "marker"
    ran = f"open({str(marker)!r}, 'w')"
    evil.write_text(EXAMPLE_METHOD.read_text() + f"\n_ODD = {ran}\n")
    content = stored("--data", image_folder, *SHORT, "--runs-dir", tmp_path / "runs")
    value: Any = str(evil) if place == "method_source" else {"source": str(evil), "config": {}}
    change(content, place, value)
    content["method_config"] = {}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    code, _, said = ssl_bench("run", "--config", file)
    assert (code, said.count("\n")) == (2, 1)
    assert str(evil) in said and "--trust" in said
    assert not marker.exists() and not (tmp_path / "runs").exists()
    if place == "method_source":
        code, _, said = ssl_bench("run", "--config", file, "--trust")
        assert code == 0, said
        assert marker.exists()


def test_a_config_of_another_type_of_file_is_refused() -> None:
    content = stored()
    content["method_source"] = "method.txt"
    with pytest.raises(UserError, match=r"method\.txt"):
        RunConfig.from_json(content)
    assert registry.find("method", "mae")


@pytest.mark.parametrize(
    ("args", "images", "epochs"),
    [
        ("", 60_000, 8),
        ("", 54_000, 8),  # with a tenth held out
        ("", 1_000_000, 8),
        ("", 3_000, 160),
        ("--method mocov3", 60_000, 2),
        ("--method mocov3", 3_000, 40),
        ("--epochs 8", 3_000, 8),
        ("--method mocov3 --epochs 0.5", 3_000, 0.5),
        ("--preset small", 3_000, 200),
    ],
)
def test_few_images_get_more_passes_unless_epochs_are_given(
    args: str, images: int, epochs: float
) -> None:
    config = flags.parse_run(args.split())
    assert config.epochs_on(images) == epochs
    again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again.epochs_on(images) == epochs
    assert flags.parse_run(config.command()[2:]).epochs_on(images) == epochs


@pytest.mark.parametrize(
    ("args", "images", "size"),
    [
        ("", 60_000, 128),
        ("", 128, 128),
        ("", 127, 64),
        ("", 5, 4),
        ("--devices 4", 3, 4),  # which the schedule then refuses
        ("--batch-size 128", 100, 128),
        ("--method videomae", 60_000, 64),
        ("--method videomae", 33, 32),
        ("--method albef --batch-size 16", 9, 16),
        ("--preset small", 100, 256),
    ],
)
def test_a_batch_that_nobody_asked_for_fits_few_images(args: str, images: int, size: int) -> None:
    config = flags.parse_run(args.split())
    assert config.batch_on(images) == size
    assert flags.parse_run(config.command()[2:]).batch_on(images) == size


def test_smaller_batches_make_no_more_steps() -> None:
    config = flags.parse_run([])
    steps = {images: config.epochs_on(images) * (images // config.batch_on(images))
             for images in (64, 128, 60_000)}  # fmt: skip
    assert max(steps.values()) <= 1.01 * min(steps.values())


TUNED = "preset, tuned by hand: learning rate, crops and decoder, partly on test scores"
SEARCH = ChosenBy(trials=8, judged_by="linear", space={"base_lr": "1e-3 to 1e-2"})


def test_a_searchs_choice_is_carried_by_all_that_changes_no_setting_of_the_method() -> None:
    config = flags.parse_run(["--method", "mae", "--base-lr", "3e-3"]).chosen_by_search(SEARCH)
    again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
    for each in (config, again, again.with_values({"seed": 3, "budget_flops": 1e9})):
        assert (each.chosen_by["trials"], each.chosen_by["judged_by"]) == (8, "linear")
    assert again == config


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_choice_that_was_changed_is_no_longer_the_searchs(by_hand: bool) -> None:
    config = flags.parse_run(["--method", "mae"]).chosen_by_search(SEARCH)
    if by_hand:
        content = json.loads(json.dumps(config.to_json()))
        content["method_config"]["mask_ratio"] = 0.5
        config = RunConfig.from_json(content)
    else:
        config = config.with_values({"mask_ratio": 0.5})
    assert "trials" not in config.chosen_by
    assert config.chosen_by["flags"] == ["mask_ratio"]
    assert chosen.in_words(chosen.read(config.chosen_by)) == "set by hand"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], TUNED),
        (["--method", "mocov3"], "preset, not tuned"),
        (["--preset", "small"], "preset, not tuned"),
        (["--batch-size", "64", "--epochs", "3", "--seed", "5"], TUNED),
        (["--base-lr", "1e-3"], "set by hand"),
        (["--method", "random-init"], ""),
    ],
)
def test_a_preset_says_how_it_came_about(words: list[str], said: str) -> None:
    assert chosen.in_words(chosen.read(flags.parse_run(words).chosen_by)) == said
    assert chosen.in_words(None) == "not recorded"
