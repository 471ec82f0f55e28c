"""Pre-training without labels, and evaluating on another data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import write_images
from PIL import Image

from ssl_bench.cli import sweep_args
from ssl_bench.data.names import several

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def unlabelled(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of images without class folders."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, path in enumerate(sorted((image_folder / "train").rglob("*.png"))):
        path.replace(folder / f"{number}.png")
    write_images(image_folder)
    return folder


@pytest.fixture
def grey(image_folder: Path, tmp_path: Path) -> Path:
    """Other labelled images: grey, larger, of one class more."""
    folder = tmp_path / "grey"
    for path in image_folder.rglob("*.png"):
        image = Image.open(path).convert("L").resize((24, 24))
        for name in (path.parent.name, "c"):
            home = folder / path.parents[1].name / name
            home.mkdir(parents=True, exist_ok=True)
            image.save(home / path.name)
            image = image.rotate(90)
    return folder


@pytest.fixture
def run(ssl_bench: Call, unlabelled: Path, tmp_path: Path) -> Call:
    """Pre-train on images without labels."""

    def call(*args: object) -> tuple[int, str, str]:
        return ssl_bench(
            *("run", "--data", unlabelled, "--epochs", 2, "--batch-size", 16),
            *("--backbone", "vit_nano", "--precision", "fp32", "--runs-dir", tmp_path / "runs"),
            *args,
        )

    return call


def records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("**/scores.json")):
        yield json.loads(path.read_text())


def test_a_single_class_is_no_label(ssl_bench: Call, tmp_path: Path, unlabelled: Path) -> None:
    (tmp_path / "one").mkdir()
    unlabelled.rename(tmp_path / "one" / "only")
    args = ("--epochs", 1, "--batch-size", 16, "--backbone", "vit_nano", "--runs-dir", tmp_path)
    code, out, err = ssl_bench("run", "--data", tmp_path / "one", *args)
    assert code == 0 and "left out" in out, err
    [folder] = tmp_path.glob("mae-one-*")
    assert (folder / "encoder.safetensors").exists() and not list(records(folder))
    for command in ("compare", "report"):
        output = ("-o", tmp_path / "report") if command == "report" else ()
        code, out, err = ssl_bench(command, "--runs-dir", tmp_path, *output)
        assert code == 0, err
        if command == "compare":
            assert folder.name in "".join(out.split())
    assert folder.name in (tmp_path / "report" / "index.html").read_text()


def test_what_needs_no_labels_is_measured_without(run: Call, tmp_path: Path) -> None:
    code, _, err = run("--evals", "representation,cka", "--representation-images", 8)
    assert code == 0, err
    assert {each["eval"] for each in records(tmp_path / "runs")} == {"representation", "cka"}
    code, _, err = run("--evals", "representation,knn")
    assert code == 2 and "knn" in err and "representation" not in err


def test_another_data_set_changes_no_training(
    ssl_bench: Call, run: Call, tmp_path: Path, image_folder: Path, grey: Path
) -> None:
    runs = ("--runs-dir", tmp_path / "runs")
    code, out, err = run("--evals", "knn", "--eval-every", "50%", "--eval-data", image_folder)
    assert code == 0 and "reused" not in out, err
    [folder] = (tmp_path / "runs").glob("mae-*")
    code, out, err = run("--evals", "knn", "--eval-every", "50%", "--eval-data", grey)
    assert code == 0 and "reused" in out, err
    assert list((tmp_path / "runs").glob("mae-*")) == [folder]
    for home in (folder, folder / "snapshots"):
        found = {each["data"]: each for each in records(home)}
        assert {name: len(each["classes"]) for name, each in found.items()} == {
            "images": 2,
            "grey": 3,
        }
        assert len({each["data_fingerprint"] for each in found.values()}) == 2
        assert len({each["protocol"] for each in found.values()}) == 2
        assert all(
            set(each["baselines"]) == {"raw pixels", "random init"} for each in found.values()
        )
    code, out, err = ssl_bench("compare", *runs)
    tables = " ".join(out.split())
    assert code == 0 and "images, 12 test images" in tables and "grey, 24 test images" in tables

    config = json.loads((folder / "config.json").read_text())
    assert config["eval_data_source"] == config["settings"]["eval_data"] == str(image_folder)
    code, out, err = ssl_bench("run", "--config", folder / "config.json")
    assert code == 0 and "evaluated on images" in out, err
    code, out, err = ssl_bench("eval", folder, "--evals", "linear", *runs)
    assert code == 0, err
    assert [each["data"] for each in records(folder) if each["eval"] == "linear"] == ["images"]
    code, out, err = ssl_bench("rerun", folder, *runs)
    assert code == 0 and "is left out" in out, out + err
    [again] = (tmp_path / "runs" / "reruns").glob("*/mae-*")
    assert {(e["eval"], e["data"]) for e in records(again)} == {
        ("knn", "images"),
        ("linear", "images"),
    }


def test_a_run_evaluated_later_is_repeated_on_those_data(
    ssl_bench: Call, run: Call, tmp_path: Path, grey: Path
) -> None:
    assert run()[0] == 0
    [folder] = (tmp_path / "runs").glob("mae-*")
    runs = ("--runs-dir", tmp_path / "runs")
    code, _, err = ssl_bench("eval", folder, "--evals", "knn", "--data", grey, *runs)
    assert code == 0, err
    code, out, err = ssl_bench("rerun", folder, *runs)
    assert code == 0, out + err
    [again] = (tmp_path / "runs" / "reruns").glob("*/mae-*")
    assert [each["data"] for each in records(again)] == ["grey"]


@pytest.mark.parametrize("kind", ["missing", "flat", "one"])
def test_data_that_cannot_be_evaluated_on_are_refused_first(
    run: Call, tmp_path: Path, unlabelled: Path, kind: str
) -> None:
    if kind == "one":
        (tmp_path / "one" / "only").mkdir(parents=True)
        for path in unlabelled.glob("*.png"):
            (tmp_path / "one" / "only" / path.name).write_bytes(path.read_bytes())
    code, _, err = run("--eval-data", tmp_path / kind)
    assert code == 2 and kind in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_several_data_sets_stand_in_one_table(
    ssl_bench: Call, run: Call, tmp_path: Path, image_folder: Path, grey: Path
) -> None:
    runs, both = ("--runs-dir", tmp_path / "runs"), f"{image_folder},{grey}"
    code, out, err = run("--evals", "knn", "--eval-every", "50%", "--eval-data", both)
    assert code == 0 and "12 or 24 test images" in " ".join(out.split()), err
    rows = [line for line in out.splitlines() if "│" in line and " knn" in line]
    assert [any(name in row for row in rows) for name in ("images", "grey")] == [True, True]
    [folder] = (tmp_path / "runs").glob("mae-*")
    for home in (folder, folder / "snapshots"):
        found = {each["data"]: each for each in records(home)}
        assert set(found) == {"images", "grey"}
        assert len({each["protocol"] for each in found.values()}) == 2
    code, out, err = ssl_bench("compare", *runs)
    tables = " ".join(out.split())
    assert code == 0 and "images, 12 test images" in tables and "grey, 24 test images" in tables

    before = sorted(folder.glob("evals/*/scores.json"))
    assert ssl_bench("run", "--config", folder / "config.json")[0] == 0
    assert sorted(folder.glob("evals/*/scores.json")) == before
    code, out, err = ssl_bench("rerun", folder, *runs)
    assert code == 0 and "knn on grey" in out and "knn on images" in out, out + err
    code, _, err = ssl_bench("eval", folder, "--evals", "linear", *runs)
    assert code == 0, err
    code, _, err = ssl_bench("eval", folder, "--evals", "linear", "--data", both, *runs)
    assert code == 0, err
    linear = [each["data"] for each in records(folder) if each["eval"] == "linear"]
    assert sorted(linear) == ["grey", "images"]


def test_one_of_several_that_cannot_be_read_stops_before_training(
    run: Call, tmp_path: Path, grey: Path, unlabelled: Path
) -> None:
    for other in (tmp_path / "missing", unlabelled):
        code, _, err = run("--evals", "knn", "--eval-data", f"{grey},{other}")
        assert code == 2 and other.name in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_each_of_several_gets_the_evaluations_that_it_allows(
    run: Call, tmp_path: Path, grey: Path, unlabelled: Path
) -> None:
    evals = ("--evals", "knn,representation", "--representation-images", 8)
    code, out, err = run(*evals, "--eval-data", f"{unlabelled},{grey}")
    assert code == 0 and "left out" in out, err
    found = sorted((each["data"], each["eval"]) for each in records(tmp_path / "runs"))
    runs = [each for each in found if each[1] == "knn"]
    assert {data for data, _ in runs} == {"grey"}
    assert ("flat", "representation") in found and ("grey", "representation") in found


def test_a_path_with_a_comma_is_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert several(f"{tmp_path}/a,b@whole") == (f"{tmp_path}/a,b@whole",)
    assert several("mnist, usps@validation,,mnist") == ("mnist", "usps@validation")
    assert several("") == (), "which would be the folder of the process"


def test_data_that_nothing_is_evaluated_on_are_named(run: Call, grey: Path) -> None:
    code, out, err = run("--evals", "none", "--eval-data", grey)
    lines = [line for line in out.splitlines() if str(grey) in line and "ssl-bench" not in line]
    assert code == 0 and len(lines) == 1 and "not used" in lines[0], err


def test_a_search_chooses_on_training_images_of_the_other_data() -> None:
    args = ["--search", "random", "--trials", "2", "--method", "mae", "--data", "mnist"]
    grid = sweep_args.parse([*args, "--eval-data", "usps", "--evals", "knn"])
    settings = [cell.config.settings for cell in grid.cells]
    assert {(each.data, each.eval_data) for each in settings} == {
        ("mnist@validation", "usps@validation")
    }
    finals = [config.settings for final in grid.finals for config in final.configs]
    assert {(each.data, each.eval_data) for each in finals} == {("mnist", "usps")}
