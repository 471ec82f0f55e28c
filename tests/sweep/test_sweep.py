"""Sweeps from the command line: planned, submitted, followed, gone on with, chosen from."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from helpers import stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_bench.cli.commands.sweep import work_of
from ssl_bench.runs import run_folder
from ssl_bench.sweep import manifest
from ssl_bench.sweep.backends import clusters, records, slurm_queue
from ssl_bench.sweep.backends.records import Record
from ssl_bench.sweep.jobs import Job
from ssl_bench.sweep.manifest import Entry, Submitted, Sweep
from ssl_bench.sweep.status import CellStatus, statuses_of
from ssl_bench.utils.files import load_json, write_json
from ssl_bench.utils.locks import taken

Call = Callable[..., tuple[int, str, str]]
STAGES: tuple[manifest.Stage, ...] = ("pretrain", "evaluate")
SMALL = (
    *("--epochs", 1, "--batch-size", 16, "--precision", "fp32", "--backbone", "vit_nano"),
    *("--knn-neighbors", 1),
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
    search = ("--method", "mae", "--search", "random", "--trials", 2)
    words = (*search, "--evals", "knn,linear", "--linear-epochs", 1)
    code, output, _ = sweep(*words, "--choose-by", "knn", "--seed", "0,1")
    assert code == 0
    told = [
        note for note in " ".join(output.split()).split("note: ") if note.startswith("2 cells of")
    ]
    assert ["choose what moves least" in note for note in told] == [True, False]
    cells = status()
    trials, finals = cells[:2], cells[2:]
    assert len(finals) == 2 and all(cell["state"] == "done" for cell in cells)
    assert all(set(cell["scores"]) == {"knn"} for cell in trials)  # type: ignore[call-overload]
    assert all(set(cell["scores"]) == {"knn", "linear"} for cell in finals)  # type: ignore[call-overload]
    plans = [load_json(tmp_path / "runs" / str(cell["run"]) / "config.json") for cell in cells]
    assert {plan["data"] for plan in plans[:2]} == {"images-validation"}
    assert {plan["data"] for plan in plans[2:]} == {"images"}
    best = max((0, 1), key=lambda k: trials[k]["scores"]["knn"])  # type: ignore[index]
    assert [plan["method_config"] for plan in plans[2:]] == [plans[best]["method_config"]] * 2
    assert [plan["seed"] for plan in plans[2:]] == [0, 1]
    for plan in plans[2:]:
        chosen_by = plan["chosen_by"]
        assert (chosen_by["trials"], chosen_by["judged_by"]) == (2, "knn")
        assert (chosen_by["tried"], chosen_by["better"]) == (2, "higher")
        assert chosen_by["judged_on"].endswith("@validation")
        assert chosen_by["config"] == plan["method_config"]
        assert chosen_by["scores"] == [trial["scores"]["knn"] for trial in trials]  # type: ignore[index]
        costs = [tmp_path / "runs" / str(cell["run"]) / "cost.json" for cell in trials]
        assert chosen_by["flops"] == sum(load_json(path)["flops"] for path in costs)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--mask-ratio", "0.5,1.5"], "mask ratio"),
        (["--temperature", "0.1"], "simclr have it"),
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


ENTRY = Entry("mae, seed 0", stored(), "mae-x", {"knn": "knn-1"}, 10, 4, 1000, None, 1.0)

texts = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
names = texts.filter(lambda text: text not in (".", ".."))
ids = st.from_regex(
    r"[0-9]{1,9}(_[0-9]{1,3})?|(local|debug)-[1-9]/[0-9]{3}-(pretrain|evaluate)", fullmatch=True
)
entries = st.builds(
    Entry,
    label=names,
    config=st.dictionaries(names, st.none() | st.booleans() | st.integers() | texts, max_size=3),
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
    job=ids,
    at=names,
    evals=st.lists(names, max_size=2).map(tuple),
)


@settings(deadline=None)
@given(entries=st.lists(entries, max_size=3), submitted=st.lists(jobs, max_size=3))
def test_a_sweep_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], submitted: list[Submitted]
) -> None:
    folder = tmp_path_factory.mktemp("runs") / "sweeps" / "one"
    sweep = Sweep(folder, "local", ("--seed", "1"), tuple(entries), tuple(submitted))
    manifest.write(sweep)
    assert manifest.read(folder) == sweep


def stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: Mapping[str, str], *jobs: Submitted
) -> CellStatus:
    """How far the entry is, where the cluster says that of its jobs."""
    monkeypatch.setattr(clusters, "states", lambda ids, _: {i: states[i] for i in ids})
    monkeypatch.setattr(clusters, "reasons", lambda ids: dict.fromkeys(ids, "Resources"))
    monkeypatch.setattr(clusters, "failure", lambda *_: ["out of", "luck"])
    sweep = Sweep(tmp_path / "sweeps" / "s", "slurm", (), (ENTRY,), jobs)
    [found] = statuses_of(sweep, [sweep])
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
    with run_folder.locked(folder):
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


class TestDamage:
    """What becomes of a sweep some of whose files are damaged, and of the others."""

    @pytest.fixture
    def runs_dir(self, tmp_path: Path) -> Path:
        """Two sweeps, one of them of this machine's: a cell done, one that failed, one to come."""
        runs_dir = tmp_path / "runs"
        sweeps = runs_dir / "sweeps"
        entries = tuple(replace(ENTRY, label=f"mae, seed {n}", run=f"mae-{n}") for n in range(3))
        folder = sweeps / "sweep-mae-1" / "jobs"
        cells = [
            [Job(stored("--seed", n), entry.run, stage, "/") for stage in STAGES]
            for n, entry in enumerate(entries)
        ]
        batch = records.new_batch(folder, "local", cells)
        submitted = [
            Submitted(entry.run, stage, job, "1", ("knn-1",) * (stage == "evaluate"))
            for entry, ids in zip(entries, batch.ids(), strict=True)
            for stage, job in zip(STAGES, ids, strict=True)
        ]
        done, failed = Record("done", 1, 0), Record("failed", 1, 1, ["no such luck"])
        for job, record in zip(
            [*batch.ids()[0], batch.ids()[1][0]], [done, done, failed], strict=True
        ):
            records.write(folder / job, record)
        manifest.write(Sweep(sweeps / "sweep-mae-1", "local", (), entries, tuple(submitted)))
        scores = runs_dir / "mae-0" / "evals" / "knn-1"
        scores.mkdir(parents=True)
        write_json(scores / "scores.json", {"scores": {"top1": 80.0}, "baselines": {}})
        for home in (runs_dir / "mae-0", runs_dir / "mae-1"):
            home.mkdir(exist_ok=True)
            write_json(home / "config.json", {})
            line = {"step": 4, "loss": 0.5, "images_per_second": 6.0}
            (home / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        write_json(runs_dir / "mae-0" / "encoder.json", {})
        write_json(runs_dir / "mae-1" / "failed.json", {"error": "no luck", "at": "now"})
        other = replace(entries[0], run="mae-other")
        manifest.write(Sweep(sweeps / "sweep-mae-2", "local", (), (other,), ()))
        return runs_dir

    def test_of_a_healthy_one(self, ssl_bench: Call, runs_dir: Path) -> None:
        found = self.cells(ssl_bench, runs_dir, "mae-1")
        assert [cell["state"] for cell in found] == ["done", "failed", "stopped"]

    def cells(self, ssl_bench: Call, runs_dir: Path, name: str) -> list[dict[str, Any]]:
        code, output, _ = ssl_bench("status", name, "--json", "--runs-dir", runs_dir)
        assert code == 0
        return json.loads(output)["cells"]

    @pytest.mark.parametrize("how", ["gone", "half", "a list", "a FIFO", "another folder's"])
    def test_of_its_record(self, ssl_bench: Call, runs_dir: Path, how: str) -> None:
        """The other sweep is shown, this one named with what helps, and its jobs can be ended."""
        path = runs_dir / "sweeps" / "sweep-mae-1" / "sweep.json"
        text = path.read_text()
        path.unlink()
        if how == "a FIFO":
            os.mkfifo(path)
        elif how != "gone":
            damaged = {"half": text[: len(text) // 2], "a list": "[]"}
            path.write_text(damaged.get(how, text.replace('"mae-1"', '"../mae-1"')))
        code, output, errors = ssl_bench("status", "--runs-dir", runs_dir)
        assert code == 0 and "sweep-mae-2: 1 new" in output
        assert errors.count("\n") == 1 and str(path) in errors
        code, output, errors = ssl_bench("status", "mae-1", "--json", "--runs-dir", runs_dir)
        assert code == 2 and not output and errors.count("\n") == 1
        assert "ssl-bench sweep" in errors and "ssl-bench cancel sweep-mae-1" in errors
        batch = path.parent / "jobs" / "local-1"
        assert not list(batch.glob("*.cancel"))
        with taken(batch / "worker-0.lock", 0):  # somebody is about to do what is to come
            code, output, _ = ssl_bench("cancel", "mae-1", "--runs-dir", runs_dir)
        assert code == 0 and "3 jobs" in output
        begun = {each.name for each in batch.glob("*.cancel")}
        assert begun == {"001-evaluate.cancel", "002-pretrain.cancel", "002-evaluate.cancel"}
        assert ssl_bench("cancel", "mae-2", "--runs-dir", runs_dir)[0] == 0

    @pytest.mark.parametrize("name", ["--flag", "7; rm", "local-1/../../x", "7_0\n", "٣"])
    def test_of_a_job_that_is_none(self, ssl_bench: Call, runs_dir: Path, name: str) -> None:
        path = runs_dir / "sweeps" / "sweep-mae-1" / "sweep.json"
        write_json(
            path, json.loads(path.read_text().replace('"local-1/000-pretrain"', json.dumps(name)))
        )
        code, _, errors = ssl_bench("status", "mae-1", "--runs-dir", runs_dir)
        assert code == 2 and errors.count("\n") == 1 and str(path) in errors

    def test_of_a_stage(self, ssl_bench: Call, runs_dir: Path) -> None:
        """Its cell says so, where nobody is at it, and the other cells stand as they did."""
        batch = runs_dir / "sweeps" / "sweep-mae-1" / "jobs" / "local-1"
        (runs_dir / "mae-1" / "failed.json").unlink()
        (batch / "001-pretrain.json").write_text('{"state": "flying"}')
        found = self.cells(ssl_bench, runs_dir, "mae-1")
        assert [cell["state"] for cell in found] == ["done", "stopped", "stopped"]
        assert "001-pretrain.json" in found[1]["error"] and "flying" in found[1]["error"]

    def test_a_result_of_slurm_is_told_without_loading_it(self, tmp_path: Path) -> None:
        """Whose bytes may do anything."""

        class Payload:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "made"),)

        for outcome, expected in (("success", "done"), ("error", "failed")):
            content = (outcome, Payload())
            (tmp_path / "7_0_0_result.pkl").write_bytes(pickle.dumps(content))
            assert slurm_queue._result("7_0", tmp_path) == expected
        (tmp_path / "7_0_0_result.pkl").write_bytes(b"nothing")
        assert slurm_queue._result("7_0", tmp_path) is None
        assert not (tmp_path / "made").exists()

    def test_the_same_command_writes_a_record_again(
        self, sweep: Call, status: Callable[[], list[dict[str, object]]], tmp_path: Path
    ) -> None:
        words = ("--method", "random-init", "--evals", "knn")
        assert sweep(*words)[0] == 0
        before = status()
        [path] = (tmp_path / "runs").glob("sweeps/*/sweep.json")
        path.write_text("{")
        code, output, _ = sweep(*words, "--dry-run")
        assert code == 0 and path.read_text() == "{"
        code, output, errors = sweep(*words)
        assert code == 0 and "sweep.json" in output and "everything is done" in output, errors
        assert [cell["state"] for cell in status()] == [cell["state"] for cell in before]
        [batch] = path.parent.glob("jobs/*/batch.json")
        path.unlink()
        (batch.parent / "000-evaluate.json").unlink()
        with taken(batch.parent / "worker-0.lock", 0):
            code, _, errors = sweep(*words)
        assert code == 2 and errors.count("\n") == 1 and "ssl-bench cancel" in errors

    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_of_anything(self, ssl_bench: Call, runs_dir: Path, data: st.DataObject) -> None:
        """Every command comes to an end with a line for each mistake at most, and no traceback."""
        with TemporaryDirectory() as place:
            home = Path(place) / "runs"
            shutil.copytree(runs_dir, home)
            files = sorted(path for path in home.rglob("*.json*") if "mae-2" not in str(path))
            for path in data.draw(
                st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)
            ):
                damage(path, data.draw)
            for words in (["status"], ["status", "--json"], ["cancel"]):
                for name in ("mae-1", "mae-2", ""):
                    asked = [words[0], *filter(None, [name]), *words[1:]]
                    code, output, errors = ssl_bench(*asked, "--runs-dir", home)
                    assert code in (0, 2) and errors.count("\n") <= 1, errors
                    assert code == 0 or name == "mae-1"
                    assert all(line.startswith("ssl-bench: ") for line in errors.splitlines())
                    if words[-1] == "--json" and code == 0:
                        json.loads(output, parse_constant=pytest.fail)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**40, -(10**20)])
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def damage(path: Path, draw: Callable[[Any], Any]) -> None:
    """Do something to a file of JSON that no program of this project does."""
    content = path.read_bytes()
    kind = draw(
        st.sampled_from(
            ["gone", "cut", "bytes", "other", "within", "deep", "FIFO", "folder", "loop"]
        )
    )
    if kind in ("gone", "FIFO", "folder", "loop"):
        path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "cut":
        path.write_bytes(content[: draw(st.integers(0, len(content)))])
    elif kind == "bytes":
        path.write_bytes(draw(st.binary(max_size=20)))
    elif kind == "deep":
        path.write_text("[" * 100_000)
    elif kind == "other":
        path.write_text(json.dumps(draw(anything)) + "\n")
    elif kind == "within":
        whole = json.loads(content)
        place, parents = whole, []
        while place and isinstance(place, dict | list) and draw(st.integers(0, 4)):
            key = draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            parents.append((place, key))
            place = place[key]
        value = draw(anything)
        if parents:
            parents[-1][0][parents[-1][1]] = value
        path.write_text(json.dumps(whole if parents else value) + "\n")
