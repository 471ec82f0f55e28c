"""``--log``: what the tools have of a run, and what becomes of a run when they fail."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_bench.config.settings import LOGGERS
from ssl_bench.errors import UserError
from ssl_bench.experiment import log_follower, loggers
from ssl_bench.experiment.loggers import TOOLS, Sent

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Threads look often, and no tool finds anything outside of the test."""
    monkeypatch.setattr(log_follower, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder at its beginning."""
    found = tmp_path / "runs" / "mae-tiny"
    found.mkdir(parents=True)
    (found / "config.json").write_text(json.dumps({"method": "mae", "settings": {"epochs": 2}}))
    return found


@pytest.fixture
def run(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Call:
    """A run of a few seconds: its exit code, standard output and standard error."""

    def call(*args: object) -> tuple[int, str, str]:
        return ssl_bench(
            *("run", "--data", image_folder, "--runs-dir", tmp_path / "runs", "--epochs", 2),
            *("--batch-size", 12, "--backbone", "vit_nano", "--precision", "fp32"),
            *("--evals", "knn", "--eval-every", 1, *args),
        )

    return call


def train(folder: Path, first: int, last: int, speed: float = 9.0) -> None:
    """Steps of a training, as they are written."""
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(first, last + 1):
            values = {"step": step, "loss": 1 / step, "losses": {"variance": 0.5}, "spread": 0.9}
            file.write(json.dumps({**values, "images_per_second": speed}) + "\n")


def end(folder: Path) -> None:
    """The end of a training: a picture, and a score."""
    (folder / "figures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "figures/pictures.png")
    score(folder, "evals/knn-1", 40.0)
    (folder / "cost.json").write_text(json.dumps({"steps": 5}))
    (folder / "encoder.json").write_text("{}")


def score(folder: Path, name: str, top1: float) -> None:
    home = folder / name
    home.mkdir(parents=True)
    (home / "scores.json").write_text(json.dumps({"eval": "knn", "scores": {"top1": top1}}))


class Recorder:
    """A tool that keeps what it gets; it fails as often as it is told to."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: dict[str, float] = {}
        self.pictures: list[tuple[int, str]] = []
        self.ends: list[bool] = []
        self.opened: list[str] = []
        self.failures = 0
        self.got = threading.Event()

    def __call__(self, folder: Path, config: Mapping[str, Any], sent: Sent) -> Recorder:
        self.opened.append(sent.run)
        sent.run = "its own"
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("no network")
        self.steps.append(step)
        self.values |= values
        self.got.set()

    def picture(self, step: int, path: Path) -> None:
        self.pictures.append((step, path.name))

    def finish(self, failed: bool) -> None:
        self.ends.append(failed)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """In the place of W&B."""
    tool = Recorder()
    monkeypatch.setattr(loggers, "check", lambda names: None)
    monkeypatch.setitem(TOOLS, "wandb", tool)
    yield tool


def test_the_names_are_those_of_the_tools() -> None:
    assert set(LOGGERS) == set(TOOLS)


@pytest.mark.parametrize("name", ["tensorbord", "none"])
def test_an_unknown_logger_is_refused(run: Call, tmp_path: Path, name: str) -> None:
    code, _, err = run("--log", f"tensorboard,{name}")
    assert code == 2 and repr(name) in err and "wandb" in err
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_is_one_line_before_anything_is_made(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda n: None if n == "wandb" else find(n))
    code, _, err = run("--log", "wandb")
    assert code == 2 and len(err.splitlines()) == 1 and "pip install 'ssl-bench[wandb]'" in err
    assert not (tmp_path / "runs").exists()


def test_a_sweep_asks_for_the_packages_before_its_jobs(
    ssl_bench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    runs = ("--runs-dir", tmp_path / "runs")
    code, _, err = ssl_bench("sweep", "--seed", "0,1", "--log", "mlflow,trackio", *runs)
    assert code == 2 and "pip install 'ssl-bench[mlflow]'" in err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_its_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_such_tool").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no_such_tool"):
        loggers.check(["no_such_tool"])


def test_a_run_is_sent_once_and_is_the_same_run_without_a_logger(
    run: Call, tmp_path: Path, recorder: Recorder
) -> None:
    assert run()[0] == 0
    for _ in range(2):
        code, out, err = run("--log", "wandb")
        assert code == 0 and "reused" in out, err
    [folder] = (path.parent for path in (tmp_path / "runs").glob("*/metrics.jsonl"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    [final] = folder.glob("evals/*/scores.json")
    steps = [row["step"] for row in rows]
    assert recorder.steps == [*steps, 4, 8]  # kNN on the way, and at the end
    assert recorder.values["train/loss"] == rows[-1]["loss"]
    assert recorder.values["train/learning_rate"] == rows[-1]["learning_rate"]
    assert recorder.values["eval/knn/top1"] == json.loads(final.read_text())["scores"]["top1"]
    assert recorder.pictures == [(8, "pictures.png")]
    assert recorder.opened == ["", "its own"] and recorder.ends == [False, False]


def test_a_resumed_run_loses_no_step_and_repeats_none(folder: Path, recorder: Recorder) -> None:
    with pytest.raises(KeyboardInterrupt), log_follower.following(folder, ["wandb"]):
        train(folder, 1, 3)
        assert recorder.got.wait(10)
        raise KeyboardInterrupt
    (folder / "metrics.jsonl").write_text("")  # back to a checkpoint, from which steps come again
    with log_follower.following(folder, ["wandb"]):
        train(folder, 1, 2, speed=8.0)
        recorder.got.clear()
        train(folder, 3, 4, speed=8.0)
        assert recorder.got.wait(10)
        (folder / "metrics.jsonl").write_text("")  # meanwhile, and it grows past where it was
        train(folder, 1, 5, speed=77.123)
        end(folder)
    assert recorder.steps == [1, 2, 3, 4, 5, 5]
    assert recorder.ends == [True, False]
    assert recorder.values["collapse/spread"] == 0.9
    assert recorder.values["losses/variance"] == 0.5


def test_half_a_line_waits_for_its_other_half(folder: Path, recorder: Recorder) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with log_follower.following(folder, ["wandb"]):
        assert recorder.got.wait(10)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('ss": 1.0}\n')
    assert recorder.steps == [1, 2] and recorder.values["train/loss"] == 1.0


def test_another_protocol_is_another_curve(folder: Path, recorder: Recorder) -> None:
    end(folder)
    score(folder, "evals/knn-2", 50.0)
    with log_follower.following(folder, ["wandb"]):
        pass
    assert recorder.values == {"eval/knn/top1": 40.0, "eval/knn-2/top1": 50.0}


def test_what_failed_is_told_once_and_sent_later(
    folder: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.failures = 3
    with log_follower.following(folder, ["wandb"]):
        train(folder, 1, 5)
        assert recorder.got.wait(10)
    assert recorder.steps == [1, 2, 3, 4, 5]
    assert capsys.readouterr().out.count("no network") == 1


def test_a_logger_that_never_works_ends_no_run(
    run: Call, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.failures = 10**9
    code, out, err = run("--log", "wandb")
    assert code == 0 and "the same command sends what is missing" in out, err
    recorder.failures = 0
    assert run("--log", "wandb")[0] == 0
    assert recorder.steps == [*range(1, 9), 4, 8]


def test_a_logger_that_does_not_open_ends_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not logged in\nand a long story")

    monkeypatch.setitem(TOOLS, "wandb", refuse)
    with log_follower.following(folder, ["wandb"]):
        train(folder, 1, 1)
    told = capsys.readouterr().out
    assert "not logged in" in told and "story" not in told


def test_a_logger_that_hangs_does_not_hold_the_run(
    folder: Path,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(log_follower, "SECONDS_TO_FINISH", 0.05)
    monkeypatch.setattr(recorder, "finish", lambda failed: ended.wait(30))
    with log_follower.following(folder, ["wandb"]):
        train(folder, 1, 1)
    assert "does not end" in capsys.readouterr().out
    ended.set()


def accumulated(folder: Path) -> Any:
    """What TensorBoard reads."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    reader = pytest.importorskip(module).EventAccumulator
    return reader(str(folder / "tensorboard"), size_guidance=everything).Reload()


def test_tensorboard_has_the_curves_and_the_scores(run: Call, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code, _, err = run("--log", "tensorboard", "--method", "vicreg")
    assert code == 0, err
    [folder] = (path.parent for path in (tmp_path / "runs").glob("*/metrics.jsonl"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = accumulated(folder)
    for name in ("loss", "learning_rate", "images_per_second"):
        curve = [(event.step, event.value) for event in found.Scalars(f"train/{name}")]
        assert curve == [(row["step"], pytest.approx(row[name])) for row in rows]
    curve = [event.value for event in found.Scalars("collapse/effective_rank")]
    assert curve == [pytest.approx(row["effective_rank"]) for row in rows]
    for part in rows[0]["losses"]:
        curve = [event.value for event in found.Scalars(f"losses/{part}")]
        assert curve == [pytest.approx(row["losses"][part]) for row in rows]
    assert [event.step for event in found.Scalars("eval/knn/top1")] == [4, 8]
    [text] = found.Tensors("run/text_summary")
    assert str(folder.resolve()).encode() in text.tensor_proto.string_val[0]


def test_tensorboard_continues_after_a_kill(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    with log_follower.following(folder, ["tensorboard"]):
        train(folder, 1, 2)
    noted = (folder / "tensorboard/sent.json").read_text()
    with log_follower.following(folder, ["tensorboard"]):
        train(folder, 3, 4)
    (folder / "tensorboard/sent.json").write_text(noted)  # killed before it noted 3 and 4
    with log_follower.following(folder, ["tensorboard"]):
        train(folder, 5, 5)
        end(folder)
    found = accumulated(folder)
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    [picture] = found.Images("pictures")
    assert (picture.step, picture.width, picture.height) == (5, 30, 20)
    assert len(found.Tensors("run/text_summary")) == 1


def in_two_starts(folder: Path, name: str) -> Sent:
    """Log a run that is interrupted after step 3."""
    with pytest.raises(KeyboardInterrupt), log_follower.following(folder, [name]):
        train(folder, 1, 3)
        raise KeyboardInterrupt
    first = json.loads((folder / name / "sent.json").read_text())
    with log_follower.following(folder, [name]):
        train(folder, 4, 5)
        end(folder)
    last = json.loads((folder / name / "sent.json").read_text())
    assert (first["step"], last["step"]) == (3, 5) and first["run"] == last["run"]
    return Sent(**last)


def test_mlflow_continues_its_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)  # which MLflow itself sets
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        sent = in_two_starts(folder, "mlflow")
        client = mlflow.MlflowClient()
        [made] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        losses = client.get_metric_history(sent.run, "train/loss")
        [figure] = client.list_artifacts(sent.run, "figures")
    finally:
        mlflow.set_tracking_uri(before)
    assert made.info.run_id == sent.run and made.info.status == "FINISHED"
    assert sorted((each.step, each.value) for each in losses) == [(n, 1 / n) for n in range(1, 6)]
    assert made.data.metrics["eval/knn/top1"] == 40.0
    assert made.data.params["settings.epochs"] == "2"
    assert made.data.tags["run_folder"] == str(folder.resolve())
    assert figure.path.endswith("pictures.png")


def test_wandb_continues_its_run_offline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sent = in_two_starts(folder, "wandb")
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert [path.stem for path in files] == [f"run-{sent.run}"] * 2
    first, second = (path.read_bytes() for path in files)
    assert first.count(b"train/loss") and second.count(b"train/loss")
    assert b"eval/knn/top1" in second and b"eval/knn/top1" not in first
    assert str(folder.resolve()).encode() in second
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/pictures*.png"))


def test_trackio_continues_its_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads as it is imported
    pytest.importorskip("trackio")
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    if tmp_path / "trackio" != utils.TRACKIO_DIR:
        pytest.skip("trackio was imported before, and writes elsewhere")
    sent = in_two_starts(folder, "trackio")
    logs = SQLiteStorage.get_logs("ssl-bench", sent.run)
    curve = [(each["step"], each["train/loss"]) for each in logs if "train/loss" in each]
    assert curve == [(step, 1 / step) for step in range(1, 6)]
    assert [each["eval/knn/top1"] for each in logs if "eval/knn/top1" in each] == [40.0]
    assert [each["step"] for each in logs if "pictures" in each] == [5]
