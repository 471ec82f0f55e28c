"""Where numbers come from, and whether they come out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import EXAMPLE_METHOD

from ssl_bench.errors import UserError
from ssl_bench.runs import run_folder
from ssl_bench.training import pretrain, training_state
from ssl_bench.utils.files import load_json, write_json

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Call:
    """``ssl-bench run`` of a small encoder, evaluated by kNN."""

    def call(*words: object) -> tuple[int, str, str]:
        return ssl_bench(
            *("run", "--data", image_folder, "--runs-dir", tmp_path / "runs", "--batch-size", 16),
            *("--backbone", "vit_nano", "--epochs", 2, "--precision", "fp32"),
            *(
                words
                if "--evals" in words
                else (*words, "--evals", "knn", "--knn-neighbors", "1,3")
            ),
        )

    return call


def only_run(tmp_path: Path) -> Path:
    [path] = (tmp_path / "runs").glob("*/config.json")
    return path.parent


def test_show_tells_origin_and_cost(run: Call, ssl_bench: Call, tmp_path: Path) -> None:
    run()
    code, out, _ = ssl_bench("show", "mae", "--runs-dir", tmp_path / "runs", "--json")
    assert code == 0
    facts = json.loads(out)
    [evaluated] = facts["evaluations"].values()
    for origin in (facts["run"], evaluated):
        assert {"command", "code", "packages", "device", "seed", "data_fingerprint"} <= {
            name.replace(" ", "_") for name in origin
        }
    assert facts["run"]["cost flops"] == load_json(only_run(tmp_path) / "cost.json")["flops"]
    assert Path(evaluated["folder"]).is_dir()
    code, out, _ = ssl_bench("show", "mae", "--runs-dir", tmp_path / "runs")
    assert code == 0
    assert "torch" in out
    assert evaluated["protocol"] in out
    assert "mask_ratio" in out and "budget_time" not in out  # which is not given


@pytest.mark.parametrize("method", ["mae", "mocov3", "random-init"])
def test_rerun_comes_out_the_same(run: Call, ssl_bench: Call, tmp_path: Path, method: str) -> None:
    assert run("--method", method, "--seed", 3)[0] == 0
    code, out, err = ssl_bench("rerun", method, "--runs-dir", tmp_path / "runs")
    assert code == 0, err
    assert "came out the same" in out
    [outcome] = (tmp_path / "runs/reruns").glob("*/*/rerun.json")
    parts = load_json(outcome)["parts"]
    assert [part["what"] for part in parts] == ["encoder", "knn top1", "  its predictions"]
    assert all(part["same"] for part in parts)
    # A repetition is no run of its own in tables.
    assert only_run(tmp_path).name.startswith(method)


def test_rerun_that_is_killed_goes_on(
    run: Call, ssl_bench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    save, steps = training_state.save, []

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        steps.append(arguments[2])
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_state, "save", save_and_die)
    assert ssl_bench("rerun", "mae", "--runs-dir", tmp_path / "runs")[0] == 130
    code, out, err = ssl_bench("rerun", "mae", "--runs-dir", tmp_path / "runs")
    assert code == 0, err
    assert "was interrupted, and is resumed" in out and "came out the same" in out
    assert steps == sorted(set(steps)), "no step was trained twice"
    assert len(list((tmp_path / "runs/reruns").iterdir())) == 1
    # One that ended stays as it is; nor is one resumed that other code began.
    [first] = (tmp_path / "runs/reruns").iterdir()
    assert ssl_bench("rerun", "mae", "--runs-dir", tmp_path / "runs")[0] == 0
    [second] = set((tmp_path / "runs/reruns").iterdir()) - {first}
    [ended] = second.glob("*/rerun.json")
    ended.unlink()
    environment = load_json(ended.parent / "environment.json")
    write_json(ended.parent / "environment.json", environment | {"code": "another"})
    assert ssl_bench("rerun", "mae", "--runs-dir", tmp_path / "runs")[0] == 0
    assert len(list((tmp_path / "runs/reruns").iterdir())) == 3


def test_two_reruns_at_a_time_have_a_folder_each(
    run: Call, ssl_bench: Call, tmp_path: Path
) -> None:
    run()
    assert ssl_bench("rerun", "mae", "--runs-dir", tmp_path / "runs")[0] == 0
    [ended] = (tmp_path / "runs/reruns").glob("*/*/rerun.json")
    ended.unlink()
    with run_folder.locked(ended.parent):
        assert ssl_bench("rerun", "mae", "--runs-dir", tmp_path / "runs")[0] == 0
    assert len(list((tmp_path / "runs/reruns").iterdir())) == 2


def test_rerun_says_what_differs(run: Call, ssl_bench: Call, tmp_path: Path) -> None:
    run()
    folder = only_run(tmp_path)
    [scores] = folder.glob("evals/*/scores.json")
    record = load_json(scores)
    write_json(scores, record | {"scores": {"top1": record["scores"]["top1"] + 1}})
    environment = load_json(folder / "environment.json")
    environment["packages"]["torch"] = "1.0"
    write_json(folder / "environment.json", environment)
    (folder / "encoder.safetensors").unlink()
    code, out, _ = ssl_bench("rerun", folder, "--runs-dir", tmp_path / "runs")
    assert code == 1
    assert "packages torch was 1.0" in out
    assert "did NOT come out the same" in out
    assert "cannot tell" in out
    assert "-1" in out


def test_rerun_names_what_it_cannot_repeat(run: Call, ssl_bench: Call, tmp_path: Path) -> None:
    """One evaluation under two protocols, a new score, a device that is another one."""
    run()
    folder = only_run(tmp_path)
    shared, precise = ("--runs-dir", tmp_path / "runs"), ("--precision", "fp32")
    ssl_bench("eval", folder, "--evals", "knn", "--knn-neighbors", 2, *precise, *shared)
    environment = load_json(folder / "environment.json")
    write_json(folder / "environment.json", environment | {"device": "an abacus"})
    code, out, err = ssl_bench("rerun", folder, *shared)
    assert code == 0, err
    assert "is left out: knn is there under another protocol" in out
    assert "device was an abacus" in out


def test_rerun_of_what_is_not_there_is_no_success(
    run: Call, ssl_bench: Call, tmp_path: Path
) -> None:
    run("--evals", "none")
    folder = only_run(tmp_path)
    (folder / "encoder.safetensors").unlink()
    code, out, _ = ssl_bench("rerun", folder, "--runs-dir", tmp_path / "runs")
    assert code == 1
    assert "nothing of it could be compared" in out


def test_a_training_of_two_starts_says_so(run: Call, ssl_bench: Call, tmp_path: Path) -> None:
    run()
    folder = only_run(tmp_path)
    (folder / "checkpoint.pt").touch()
    run_folder.record_environment(folder, "another device")
    environment = load_json(folder / "environment.json")
    assert environment["device"] == "another device"
    [earlier] = environment["earlier"]
    assert earlier["device"] != "another device"
    assert "another device" in ssl_bench("show", folder, "--runs-dir", tmp_path / "runs")[1]


def test_show_tells_what_it_cannot_read(run: Call, ssl_bench: Call, tmp_path: Path) -> None:
    run()
    folder = only_run(tmp_path)
    [scores] = folder.glob("evals/*/scores.json")
    for path, content in [
        (scores, '{"environment": [3], "eval": "knn"}'),
        (scores, "{"),
        (folder / "environment.json", "[]"),
        (folder / "cost.json", "3"),
        (folder / "config.json", '{"method": "mae", "encoder": [1]}'),
    ]:
        path.write_text(content)
        code, out, err = ssl_bench("show", folder, "--runs-dir", tmp_path / "runs")
        assert code == 0, err
        assert "trained" in out
    assert out.count("cannot be read") == 3


def test_an_evaluation_that_fails_is_told_of(
    run: Call, ssl_bench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("the probe broke")

    with monkeypatch.context() as patched:
        patched.setattr("ssl_bench.evaluation.runner._evaluate", fail)
        assert run()[0] == 2
    folder = only_run(tmp_path)
    assert "the probe broke" in ssl_bench("show", folder, "--runs-dir", tmp_path / "runs")[1]
    assert "the probe broke" in ssl_bench("compare", "--runs-dir", tmp_path / "runs")[1]
    assert run()[0] == 0
    assert "the probe broke" not in ssl_bench("compare", "--runs-dir", tmp_path / "runs")[1]


def test_a_method_given_as_a_file_is_found_again(
    run: Call, ssl_bench: Call, tmp_path: Path
) -> None:
    method = EXAMPLE_METHOD
    run("--method", method)
    words = ("rerun", only_run(tmp_path), "--runs-dir", tmp_path / "runs")
    code, _, err = ssl_bench(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert str(method) in err and "--trust" in err
    code, out, err = ssl_bench(*words, "--trust")
    assert code == 0, err
    assert str(method) in out
    assert "came out the same" in out


def test_what_cannot_be_repeated_is_refused(
    run: Call, ssl_bench: Call, tmp_path: Path, image_folder: Path
) -> None:
    run()
    folder = only_run(tmp_path)
    shared = ("--runs-dir", tmp_path / "runs")
    weights = folder / "encoder.safetensors"
    code, _, err = ssl_bench(
        *("eval", "--weights", weights, "--data", image_folder, "--evals", "knn", *shared),
        *("--knn-neighbors", 3),
    )
    assert code == 0, err
    for words, message in [
        (("rerun", "weights-encoder"), "weights from elsewhere"),
        (("rerun", "nothing"), "does not exist"),
        (("rerun",), "say which run"),
        (("show",), "say which run"),
    ]:
        code, _, err = ssl_bench(*words, *shared)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    (folder / "encoder.json").unlink()
    assert "is not finished" in ssl_bench("rerun", folder, *shared)[2]
