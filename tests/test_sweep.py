"""Sweeps from the command line: planned, submitted, followed, gone on with, chosen from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench import runs
from ssl_bench.files import read_json, write_json
from ssl_bench.sweep import cluster, standing, store
from ssl_bench.sweep.standing import Standing
from ssl_bench.sweep.store import Entry, Submitted, Sweep
from ssl_bench.sweep.submission import work_of

Call = Callable[..., tuple[int, str, str]]
SMALL = (
    *("--epochs", 1, "--batch-size", 16, "--precision", "fp32", "--backbone", "vit_nano"),
    *("--knn-neighbors", 1, "--linear-epochs", 1),
)


@pytest.fixture
def sweep(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Call:
    """``ssl-bench sweep`` on the small image folder, in this process."""

    def call(*words: object) -> tuple[int, str, str]:
        places = ("--data", image_folder, "--runs-dir", tmp_path / "runs", "--cluster", "debug")
        return ssl_bench("sweep", *places, *SMALL, *words)

    return call


@pytest.fixture
def status(ssl_bench: Call, tmp_path: Path) -> Callable[[], list[dict[str, object]]]:
    """The cells as ``ssl-bench status --json`` tells of them."""

    def call() -> list[dict[str, object]]:
        code, output, _ = ssl_bench("status", "--json", "--runs-dir", tmp_path / "runs")
        assert code == 0
        return json.loads(output)["cells"]

    return call


def trained(tmp_path: Path) -> dict[str, float]:
    """When each run's encoder was written."""
    found = (tmp_path / "runs").glob("*/encoder.json")
    return {path.parent.name: path.stat().st_mtime for path in found}


def test_a_sweep_shows_its_cost_and_then_does_what_is_missing(
    sweep: Call, status: Callable[[], list[dict[str, object]]], tmp_path: Path
) -> None:
    words = ("--method", "mae,random-init", "--mask-ratio", "0.5,0.75", "--evals", "knn")
    code, output, _ = sweep(*words, "--dry-run")
    assert code == 0 and "nothing is submitted" in output and "3 new" in output
    assert not (tmp_path / "runs").exists()

    code, output, _ = sweep(*words)
    assert code == 0
    first = trained(tmp_path)
    cells = status()
    assert len(first) == 3 and {cell["run"] for cell in cells} == set(first)
    assert [cell["state"] for cell in cells] == ["done"] * 3
    assert all(set(cell["scores"]) == {"knn"} for cell in cells)  # type: ignore[call-overload]

    code, output, _ = sweep(*words)
    assert code == 0 and "everything is done" in output
    code, output, _ = sweep(*words[:-1], "knn,linear", "--seed", 0)
    assert code == 0 and "pretrain" not in output.split("to be done")[0]
    assert trained(tmp_path) == first, "an evaluation that is added trains nothing again"
    assert all(set(cell["scores"]) == {"knn", "linear"} for cell in status())  # type: ignore[call-overload]


def test_a_cell_that_fails_leaves_the_others_and_is_tried_again_when_asked(
    sweep: Call,
    status: Callable[[], list[dict[str, object]]],
    tmp_path: Path,
) -> None:
    words = ("--method", "mae,random-init", "--evals", "knn")
    code, _, _ = sweep(*words)
    assert code == 0
    [entry] = [cell for cell in status() if str(cell["run"]).startswith("mae")]
    folder = tmp_path / "runs" / str(entry["run"])
    for path in folder.glob("evals/*/scores.json"):
        path.unlink()
    write_json(folder / "failed.json", {"error": "no such luck", "at": "now"})
    states = {str(cell["label"]): (cell["state"], cell["error"]) for cell in status()}
    assert ("failed", "no such luck") in states.values()
    code, output, _ = sweep(*words)
    assert code == 0 and "--retry-failed" in output and "1 failed" in output
    code, _, _ = sweep(*words, "--retry-failed")
    assert code == 0 and {cell["state"] for cell in status()} == {"done"}


def test_the_best_trial_by_held_out_images_is_run_on_all(
    sweep: Call, status: Callable[[], list[dict[str, object]]], tmp_path: Path
) -> None:
    words = ("--method", "mae", "--search", "random", "--trials", 2, "--evals", "knn,linear")
    code, _, _ = sweep(*words, "--choose-by", "knn", "--seed", "0,1")
    assert code == 0
    cells = status()
    trials, finals = cells[:2], cells[2:]
    assert len(finals) == 2 and all(cell["state"] == "done" for cell in cells)
    assert all(set(cell["scores"]) == {"knn"} for cell in trials)  # type: ignore[call-overload]
    assert all(set(cell["scores"]) == {"knn", "linear"} for cell in finals)  # type: ignore[call-overload]
    plans = [read_json(tmp_path / "runs" / str(cell["run"]) / "config.json") for cell in cells]
    assert {plan["data"] for plan in plans[:2]} == {"images-validation"}
    assert {plan["data"] for plan in plans[2:]} == {"images"}
    best = max((0, 1), key=lambda k: trials[k]["scores"]["knn"])  # type: ignore[index]
    assert [plan["method_config"] for plan in plans[2:]] == [plans[best]["method_config"]] * 2
    assert [plan["seed"] for plan in plans[2:]] == [0, 1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--mask-ratio", "0.5,1.5"], "mask ratio"),
        (["--temperature", "0.1"], "method 'mocov3' has it"),
        (["--budget-time", "10m"], "--budget-flops would work"),
        (["--batch-size", "16,4096"], "larger than the"),
        (["--cluster", "nowhere"], "nowhere"),
        (["--seed", "5..1"], "5..1"),
    ],
)
def test_an_impossible_sweep_gets_one_line_and_leaves_nothing(
    ssl_bench: Call, image_folder: Path, tmp_path: Path, words: list[str], complaint: str
) -> None:
    small = [str(word) for word in SMALL if str(word) not in words]
    if "--batch-size" in words:
        small = [w for w in small if w != "16"]
    places = ("--data", image_folder, "--runs-dir", tmp_path / "runs")
    if "--budget-time" in words:
        small = small[2:]
    code, _, errors = ssl_bench("sweep", *places, *small, *words)
    assert code == 2
    assert errors.count("\n") == 1 and complaint in errors, errors
    assert not list((tmp_path / "runs").glob("*/config.json"))


@pytest.mark.parametrize("command", ["status", "cancel"])
def test_a_sweep_that_is_not_there_is_named(ssl_bench: Call, tmp_path: Path, command: str) -> None:
    code, _, errors = ssl_bench(command, "mine", "--runs-dir", tmp_path)
    assert code == 2 and errors.count("\n") == 1 and "ssl-bench sweep" in errors


ENTRY = Entry("mae, seed 0", ("--method", "mae"), "mae-x", {"knn": "knn-1"}, 10, 4, 1000, None, 1.0)

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
entries = st.builds(
    Entry,
    label=names,
    words=st.lists(names).map(tuple),
    run=names,
    evals=st.dictionaries(names, names, max_size=2),
    steps=st.integers(0, 10**6),
    batch_size=st.integers(1, 10**4),
    flops=st.integers(0, 10**20),
    pretrain_seconds=st.none() | st.floats(0, 1e9),
    eval_seconds=st.none() | st.floats(0, 1e9),
    trial=st.booleans(),
)
jobs = st.builds(
    Submitted,
    run=names,
    stage=st.sampled_from(["pretrain", "evaluate"]),
    job=names,
    at=names,
    evals=st.lists(names, max_size=2).map(tuple),
)


@given(entries=st.lists(entries, max_size=3), submitted=st.lists(jobs, max_size=3))
def test_a_sweep_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], submitted: list[Submitted]
) -> None:
    folder = tmp_path_factory.mktemp("runs") / "sweeps" / "one"
    sweep = Sweep(folder, "local", ("--seed", "1"), tuple(entries), tuple(submitted))
    store.write(sweep)
    assert store.read(folder) == sweep


def stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: Mapping[str, str], *jobs: Submitted
) -> Standing:
    """How far the entry is, where the cluster says that of its jobs."""
    monkeypatch.setattr(cluster, "states", lambda ids, _: {i: states[i] for i in ids})
    monkeypatch.setattr(cluster, "reasons", lambda ids, _: dict.fromkeys(ids, "Resources"))
    monkeypatch.setattr(cluster, "failure", lambda *_: ["out of", "luck"])
    sweep = Sweep(tmp_path / "sweeps" / "s", "slurm", (), (ENTRY,), jobs)
    [found] = standing.of(sweep, [sweep])
    return found


PRETRAIN = Submitted("mae-x", "pretrain", "7_0", "1")
EVALUATE = Submitted("mae-x", "evaluate", "8_0", "2", ("knn-1",))


@pytest.mark.parametrize(
    ("jobs", "expected", "to_do"),
    [
        ({}, "new", ["pretrain", "evaluate"]),
        ({"7_0": "pending", "8_0": "pending"}, "pending", []),
        ({"7_0": "requeued", "8_0": "pending"}, "pending", []),
        ({"7_0": "running", "8_0": "pending"}, "running", []),
        ({"7_0": "running"}, "running", ["evaluate"]),
        ({"7_0": "failed", "8_0": "cancelled"}, "failed", []),
        ({"7_0": "out of memory", "8_0": "pending"}, "failed", []),
        ({"7_0": "timeout", "8_0": "cancelled"}, "stopped", ["pretrain", "evaluate"]),
        ({"7_0": "cancelled", "8_0": "cancelled"}, "stopped", ["pretrain", "evaluate"]),
        ({"7_0": "lost", "8_0": "lost"}, "stopped", ["pretrain", "evaluate"]),
        ({"7_0": "unknown", "8_0": "unknown"}, "unknown", []),
        ({"7_0": "killed", "8_0": "cancelled"}, "stopped", ["pretrain", "evaluate"]),
    ],
)
def test_what_is_to_be_done_follows_from_jobs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jobs: dict[str, str],
    expected: str,
    to_do: list[str],
) -> None:
    known = [job for job in (PRETRAIN, EVALUATE) if job.job in jobs]
    found = stand(tmp_path, monkeypatch, jobs, *known)
    assert found.state == expected
    assert found.waits_for == ("Resources" if expected == "pending" else "")
    assert [stage for work in work_of([found], False) for stage in work.stages] == to_do
    again = [stage for work in work_of([found], True) for stage in work.stages]
    assert again == (["pretrain", "evaluate"] if expected == "failed" else to_do)
    if expected == "failed":
        assert found.error == "out of\nluck"
    if to_do == ["evaluate"]:
        assert work_of([found], False)[0].after == "7_0"


def test_what_is_to_be_done_follows_from_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mae-x"
    (folder / "evals" / "knn-1").mkdir(parents=True)
    write_json(folder / "config.json", {})
    record = {"step": 4, "loss": 0.5, "images_per_second": 6.0}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + '\n{"step": 5')
    found = stand(tmp_path, monkeypatch, {"7_0": "running"}, PRETRAIN)
    assert (found.step, found.loss, found.seconds_left) == (4, 0.5, (10 - 4) * 4 / 6.0)
    assert stand(tmp_path, monkeypatch, {}).state == "stopped"
    write_json(folder / "failed.json", {"error": "no space"})
    assert stand(tmp_path, monkeypatch, {}).error == "no space"
    assert stand(tmp_path, monkeypatch, {"7_0": "pending"}, PRETRAIN).state == "pending"
    with runs.locked(folder):
        assert stand(tmp_path, monkeypatch, {}).state == "running"
    write_json(folder / "encoder.json", {})
    (folder / "failed.json").unlink()
    found = stand(tmp_path, monkeypatch, {})
    assert (found.state, found.stage) == ("new", "evaluate")
    assert [work.stages for work in work_of([found], False)] == [("evaluate",)]
    other = replace(EVALUATE, evals=("linear-1",))
    found = stand(tmp_path, monkeypatch, {"8_0": "running"}, other)
    assert found.uncovered == ("knn",) and work_of([found], False)[0].stages == ("evaluate",)
    # A result without its baselines is half of one.
    write_json(folder / "evals" / "knn-1" / "scores.json", {"scores": {"top1": 80.0}})
    assert stand(tmp_path, monkeypatch, {}).state == "new"
    assert stand(tmp_path, monkeypatch, {"8_0": "killed"}, EVALUATE).state == "stopped"
    whole = {"scores": {"top1": 80.0}, "baselines": {}}
    write_json(folder / "evals" / "knn-1" / "scores.json", whole)
    found = stand(tmp_path, monkeypatch, {})
    assert found.state == "done" and found.scores == {"knn": 80.0}
    assert not work_of([found], True)
