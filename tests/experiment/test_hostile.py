"""Somebody else's results: looked at by every command, nothing runs, hangs or leads outside."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_runs import make_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from ssl_bench import cli
from ssl_bench.analysis import report
from ssl_bench.analysis.report import drawing
from ssl_bench.api import registry
from ssl_bench.errors import UserError
from ssl_bench.models import checkpoints, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import run_folder
from ssl_bench.training import setup
from ssl_bench.utils import arrays, files, formatting
from ssl_bench.utils.files import Absent, Unreadable, load_json, write_json

SECRET = "SECRET-7261"
SECONDS = 120
EVIL = '"""A method."""\nopen({marker!r}, "a").write("ran")\nfrom ssl_bench.methods.mae import *\n'
ODD_TEXT = "\x1b]0;title\x07\x9b2J\u202e[red]=1+1"
LOOKS = ("compare", "show", "query", "status", "export", "reconstruct")


@dataclasses.dataclass(frozen=True)
class Place:
    """A copy of results beside things that nobody should touch."""

    home: Path
    run: Path

    @property
    def runs_dir(self) -> Path:
        return self.run.parent

    @property
    def outside(self) -> Path:
        return self.home / "outside"

    @property
    def marker(self) -> Path:
        return self.home / "RAN"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with everything that a command reads, weights too; nothing is trained for them."""
    folder = tmp_path_factory.mktemp("results") / "runs"
    spec = EncoderSpec("vit_nano", 16, 4, 3, (0.5,) * 3, (0.5,) * 3)
    plugin = registry.find("method", "mae")
    config = plugin.config(decoder_embed_dim=32, decoder_depth=1, decoder_heads=2)
    for seed in (0, 1):
        run = make_run(folder, "mae", seed)
        plan = load_json(run / "config.json")
        plan |= {"method_config": dataclasses.asdict(config), "encoder": dataclasses.asdict(spec)}
        write_json(run / "config.json", plan)
        method = setup.build_method(plugin.load_class(), config, spec, 3, seed)
        weights.save(method.encoder, spec, run)
        state = method.state_dict()
        own = {n: t.contiguous() for n, t in state.items() if not n.startswith("encoder.")}
        save_file(own, run / "method.safetensors")
    return folder


@pytest.fixture
def place(results: Path, tmp_path: Path) -> Place:
    return copied(results, tmp_path)


def copied(results: Path, home: Path) -> Place:
    shutil.copytree(results, home / "runs")
    (home / "outside" / "folder").mkdir(parents=True)
    (home / "outside" / "secret.json").write_text(json.dumps({"error": SECRET}))
    Image.new("RGB", (16, 16)).save(home / "image.png")
    [run] = (home / "runs").glob("mae-tiny-seed0-*")
    return Place(home, run)


def words_of(command: str, place: Place) -> list[str]:
    own = {
        "compare": ["--csv", str(place.home / "out.csv")],
        "show": [str(place.run)],
        "query": ["select * from runs join scores using (run)"],
        "status": [],
        "export": [str(place.run), "--output", str(place.home / "out.bin"), "--overwrite"],
        "reconstruct": [
            *(str(place.run), str(place.home / "image.png")),
            *("--output", str(place.home / "out.png")),
        ],
        "report": ["-o", str(place.home / "report")],
        "rerun": [str(place.run)],
        "eval": [str(place.run), "--evals", "knn"],
    }
    return [command, *own[command], "--runs-dir", str(place.runs_dir)]


def look(command: str, place: Place, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process: its exit code and all it says, held to what is right."""
    capsys.readouterr()
    before = outside_of(place)
    with limited():
        try:
            code = cli.main(words_of(command, place))
        except SystemExit as stop:
            code = int(stop.code or 0)
    said = capsys.readouterr()
    assert code in (0, 2), said.err
    assert code == 0 or said.err.count("\n") == 1, said.err
    assert not place.marker.exists(), f"{command} ran a file of the results"
    assert outside_of(place) == before, f"{command} touched something outside"
    text = said.out + said.err
    assert SECRET not in text
    assert not [c for c in text if formatting.plain(c) != c], repr(text)
    return code, text


class limited:
    """Fails a test that takes too long, as one does that waits for a pipe."""

    def __enter__(self) -> None:
        def end(*_: object) -> None:
            raise AssertionError("it took too long")

        self.before = signal.signal(signal.SIGALRM, end)
        signal.alarm(SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)


def outside_of(place: Place) -> str:
    digest = hashlib.sha256()
    for path in sorted(place.outside.rglob("*")):
        status = path.lstat()
        digest.update(f"{path} {status.st_mtime_ns} {status.st_mode}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def change(path: Path, **values: Any) -> None:
    write_json(path, load_json(path) | values)


def evil_file(place: Place) -> Path:
    path = place.run / "evil.py"
    path.write_text(EVIL.format(marker=str(place.marker)))
    return path


def scores_of(run: Path, name: str = "knn") -> Path:
    [path] = run.glob(f"evals/{name}-*/scores.json")
    return path


# What a folder of results may say, and what it may be.


def name_a_file_as_the_method(place: Place) -> None:
    change(place.run / "config.json", method=str(evil_file(place)))


def name_a_file_as_the_source(place: Place) -> None:
    path = evil_file(place)
    code = registry.find("method", str(path)).fingerprint
    change(place.run / "config.json", method_source=str(path), method_code=code)


def name_a_file_as_the_evaluation(place: Place) -> None:
    path = str(evil_file(place))
    change(scores_of(place.run), eval=path, source=path)


def name_a_file_as_the_backbone(place: Place) -> None:
    path = str(evil_file(place))
    for name in ("config.json", "encoder.json"):
        content = load_json(place.run / name)
        encoder = content["encoder"] if name == "config.json" else content
        encoder |= {"backbone": path, "architecture": {"checkpoint_path": path}}
        write_json(place.run / name, content)


def lead_every_name_outside(place: Place) -> None:
    up = "../../outside/x"
    change(place.run / "config.json", method=up, data=up, data_source=up, preset=up)
    change(scores_of(place.run), eval=up, protocol=up, data=up, precision=up, seed=0)


def use_the_seed_as_a_path(place: Place) -> None:
    change(place.run / "config.json", seed="../../outside/x")


def pickle_instead_of_arrays(place: Place) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (open, (str(place.marker), "w"))

    for path in place.run.glob("evals/*/*.npz"):
        names = arrays.names(path)
        np.savez(path, **dict.fromkeys(names, np.array([Payload()], dtype=object)))  # type: ignore[arg-type]
    torch.save({"model": Payload()}, place.run / "method.safetensors")
    torch.save(Payload(), place.run / "checkpoint.pt")


def make_bombs(place: Place) -> None:
    for path in place.run.glob("evals/*/*.npz"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("predictions", "labels", "images", "attention", "block_0", "index"):
                header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
                start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
                archive.writestr(f"{name}.npy", start + bytes(5_000_000))
    png = place.run / "figures/pictures.png"
    Image.new("1", (20_000, 20_000)).save(png)
    size = (2**40).to_bytes(8, "little")
    (place.run / "method.safetensors").write_bytes(size + b'{"a":')


def lead_files_outside(place: Place) -> None:
    for path in [*place.run.rglob("*.json"), *place.run.rglob("*.npz"), *place.run.rglob("*.png")]:
        if path.name != "config.json":
            path.unlink()
            path.symlink_to(place.outside / "secret.json")


def lead_the_plan_outside(place: Place) -> None:
    (place.run / "config.json").unlink()
    (place.run / "config.json").symlink_to(place.outside / "secret.json")


def lead_folders_outside(place: Place) -> None:
    for name in ("evals", "snapshots", "figures"):
        shutil.move(place.run / name, place.outside / name)
        (place.run / name).symlink_to(place.outside / name)


def lead_the_index_outside(place: Place) -> None:
    (place.runs_dir / ".index").symlink_to(place.outside)


def lead_the_lock_outside(place: Place) -> None:
    (place.run / ".lock").symlink_to(place.outside / "made")


def put_pipes_in_place_of_files(place: Place) -> None:
    for path in [p for p in place.run.rglob("*") if p.is_file() and p.name != "config.json"]:
        path.unlink()
        os.mkfifo(path)
    os.mkfifo(place.run / ".lock")


def put_a_pipe_in_place_of_the_plan(place: Place) -> None:
    (place.run / "config.json").unlink()
    os.mkfifo(place.run / "config.json")


def put_devices_in_place_of_files(place: Place) -> None:
    for name in ("cost.json", "environment.json", "metrics.jsonl", "figures/pictures.png"):
        (place.run / name).unlink()
        (place.run / name).symlink_to("/dev/zero")


def nest_without_end(place: Place) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    for path in place.run.rglob("*.json"):
        path.write_text(deep if path.name != "config.json" else f'{{"method": "mae", "a": {deep}}}')


def nest_just_so_deep(place: Place) -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    for name in ("environment.json", "cost.json"):
        (place.run / name).write_text(deep)


def use_numbers_beyond_all(place: Place) -> None:
    digits = "9" * 4000
    for path in place.run.rglob("*.json"):
        text = json.dumps(load_json(path))
        path.write_text(text.replace(": 0,", f": {digits},").replace(": 1,", ": 1e999,"))
    (place.run / "cost.json").write_text(f'{{"flops": {"9" * 300}, "seconds": NaN}}')


def use_names_that_command(place: Place) -> None:
    for path in place.run.rglob("*.json"):
        content = load_json(path)
        for name, value in list(content.items()):
            if isinstance(value, str):
                content[name] = f"{value}{ODD_TEXT}\ud800"
        write_json(path, content | {ODD_TEXT: ODD_TEXT, "error": ODD_TEXT, "classes": [ODD_TEXT]})
    place.run.rename(place.run.with_name(f"mae-{ODD_TEXT}"))


PLANTS: list[Callable[[Place], None]] = [
    name_a_file_as_the_method, name_a_file_as_the_source, name_a_file_as_the_evaluation,
    name_a_file_as_the_backbone, lead_every_name_outside, use_the_seed_as_a_path,
    pickle_instead_of_arrays, make_bombs, lead_files_outside, lead_the_plan_outside,
    lead_folders_outside, lead_the_index_outside, lead_the_lock_outside,
    put_pipes_in_place_of_files, put_a_pipe_in_place_of_the_plan, put_devices_in_place_of_files,
    nest_without_end, nest_just_so_deep, use_numbers_beyond_all, use_names_that_command,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
def test_looking_runs_and_touches_nothing(
    plant: Callable[[Place], None], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(place)
    if plant is use_names_that_command:
        place = Place(place.home, place.run.with_name(f"mae-{ODD_TEXT}"))
    codes = {command: look(command, place, capsys)[0] for command in LOOKS}
    assert codes["compare"] == codes["query"] == 0


@pytest.fixture
def quick_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_DOTS_PER_INCH", 40)
    slow = ("by_evaluation", "against_cost", "class_differences", "by_corruption")
    quick = [draw for draw in report._FIGURES if draw.__name__ not in slow]
    monkeypatch.setattr(report, "_FIGURES", quick)


@pytest.mark.usefixtures("quick_drawing")
@pytest.mark.parametrize(
    "plants",
    [(name_a_file_as_the_source, make_bombs, use_names_that_command), (lead_files_outside,),
     (pickle_instead_of_arrays, use_numbers_beyond_all), (put_pipes_in_place_of_files,)],
)  # fmt: skip
def test_a_report_runs_and_touches_nothing(
    plants: tuple[Callable[[Place], None], ...], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for plant in plants:
        plant(place)
    code, _ = look("report", place, capsys)
    assert code == 0
    for path in (place.home / "report").rglob("*"):
        if path.suffix in (".html", ".csv", ".md", ".tex"):
            text = path.read_text()
            assert SECRET not in text
            assert formatting.plain(text) == text


@pytest.mark.parametrize("command", ["rerun", "eval"])
@pytest.mark.parametrize(
    "plant",
    [name_a_file_as_the_method, name_a_file_as_the_source, name_a_file_as_the_backbone,
     lead_every_name_outside, use_the_seed_as_a_path, lead_files_outside, lead_folders_outside,
     put_pipes_in_place_of_files, nest_without_end],
)  # fmt: skip
def test_working_on_it_is_refused(
    plant: Callable[[Place], None], command: str, place: Place,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plant(place)
    assert look(command, place, capsys)[0] == 2


@pytest.mark.parametrize(
    "plant", [lead_files_outside, lead_folders_outside, put_pipes_in_place_of_files]
)
def test_nobody_works_where_something_leads_out(
    plant: Callable[[Place], None], place: Place
) -> None:
    plant(place)
    (place.run / ".lock").unlink(missing_ok=True)
    before = outside_of(place)
    with limited(), pytest.raises(UserError, match="cannot be used"), run_folder.locked(place.run):
        (place.run / "evals/new").mkdir(parents=True)
    assert outside_of(place) == before


def test_baselines_are_not_written_through_links(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--method", "random-init", "--data", str(small_data(place.home / "data"))]
    words += ["--backbone", "vit_nano", "--evals", "knn", "--runs-dir", str(place.runs_dir)]
    assert cli.main(words) == 0
    [made] = place.runs_dir.glob("random-init-data-*")
    [baseline] = place.runs_dir.glob("baselines/pixels-data-*")
    shutil.rmtree(made / "evals")
    shutil.rmtree(baseline / "evals")
    (baseline / "evals").symlink_to(place.outside / "folder")
    before = outside_of(place)
    capsys.readouterr()
    assert cli.main(words) == 2
    assert str(baseline) in capsys.readouterr().err
    assert outside_of(place) == before


def small_data(folder: Path) -> Path:
    for split, value in (("train", 0), ("test", 99)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for number in range(4):
                color = (value + number, 200 * (label == "b"), 9 * number)
                Image.new("RGB", (16, 16), color).save(folder / split / label / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["x.pth", "model.safetensors"])
def test_weights_that_are_a_pipe_are_not_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(path := tmp_path / name)
    told = {"model_type": "vit", "image_size": 16, "patch_size": 4, "num_attention_heads": 2}
    write_json(tmp_path / "config.json", told)
    source = path if name == "x.pth" else tmp_path
    words = ["eval", "--weights", str(source), "--data", "fashion-mnist", "--evals", "knn"]
    with limited():
        assert cli.main([*words, "--runs-dir", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1


def test_shards_are_of_their_own_folder(place: Place) -> None:
    save_file({"a": torch.ones(1)}, place.outside / "x.safetensors")
    folder = place.home / "model"
    folder.mkdir()
    told = {"model_type": "vit", "image_size": 16, "patch_size": 4, "num_attention_heads": 2}
    write_json(folder / "config.json", told)
    index = {"weight_map": {"a": "../outside/x.safetensors"}}
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(UserError, match="outside"):
        checkpoints.load_encoder(folder)


def test_a_file_that_goes_meanwhile_is_not_strange(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "walk", lambda home: [(str(home), [], [".x.1-00000000.tmp"])])
    assert files.strange(place.run) == []


class TestTrust:
    """A file that a run names is run where somebody says that it may be, and only if it is it."""

    def ask(self, place: Place, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([*words_of("rerun", place), *words])
        return code, capsys.readouterr().err

    def test_the_file_is_named(self, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
        name_a_file_as_the_source(place)
        code, said = self.ask(place, capsys)
        assert code == 2
        assert str(place.run / "evil.py") in said
        assert f"inside {place.run.name!r}" in said and "--trust" in said
        assert not place.marker.exists()

    def test_an_evaluation_is_named(self, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
        path, record = evil_file(place), load_json(scores_of(place.run))
        plugin = registry.find("eval", str(path))
        record |= {"eval": plugin.name, "source": str(path), "code": plugin.fingerprint}
        shutil.rmtree(place.run / "evals")
        (place.run / "evals/mine").mkdir(parents=True)
        write_json(place.run / "evals/mine/scores.json", record)
        code, said = self.ask(place, capsys)
        assert code == 2 and str(path) in said and "--trust" in said
        path.write_text(path.read_text() + "more = 1\n")
        code, said = self.ask(place, capsys, "--trust")
        assert code == 2 and str(path) in said
        assert not place.marker.exists()

    def test_a_changed_file_is_refused(
        self, place: Place, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name_a_file_as_the_source(place)
        path = place.run / "evil.py"
        path.write_text(path.read_text() + "more = 1\n")
        code, said = self.ask(place, capsys, "--trust")
        assert code == 2 and str(path) in said
        assert not place.marker.exists()

    def test_trust_runs_it(self, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
        name_a_file_as_the_source(place)
        self.ask(place, capsys, "--trust")
        assert place.marker.exists()

    @pytest.mark.parametrize("answer,runs_it", [("y\n", True), ("\n", False), ("no\n", False)])
    def test_a_terminal_is_asked(
        self, place: Place, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch, answer: str, runs_it: bool,
    ) -> None:  # fmt: skip
        name_a_file_as_the_source(place)
        stdin = io.StringIO(answer)
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        self.ask(place, capsys)
        assert place.marker.exists() == runs_it


def test_a_seed_is_no_path(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    use_the_seed_as_a_path(place)
    code, said = look("eval", place, capsys)
    assert code == 2 and "seed" in said


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".", "..", "", "a\0b", "é" * 200])
def test_a_name_is_one_of_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run_folder.create(tmp_path / "runs", name, {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["mae-data [1]-seed0-abcd", "weights-x.pth", "-", "a" * 255])
def test_other_names_stay(name: str) -> None:
    assert files.checked_name(name) == name


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"a": 1, "a": 2}', "[" * 100 + "]" * 100, "[" * 100_000, "1" * 400, '"\xff',
     b"\xff\xfe{}", b'{"a": "\x01"}'],
)  # fmt: skip
def test_json_that_is_none(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("latin-1") if isinstance(content, str) else content)
    with pytest.raises(Unreadable):
        load_json(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as own, limited():
        own.bind(os.path.relpath(tmp_path / "socket"))
        for name in ("pipe", "folder", "zero", "loop", "socket"):
            with pytest.raises(Unreadable) as raised:
                load_json(tmp_path / name)
            assert not isinstance(raised.value, Absent)
        with pytest.raises(Absent):
            load_json(tmp_path / "nothing")
        with pytest.raises(Absent):
            load_json(tmp_path / "a\0b")


def test_a_file_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.json"
    path.touch()
    os.truncate(path, 10**12)
    with pytest.raises(Unreadable, match="bytes"):
        load_json(path)


@pytest.mark.parametrize(
    "name,fails",
    [("good", False), ("object", True), ("text", True), ("bomb", True), ("lie", True)],
)
def test_arrays_are_checked_before_memory_is_asked_for(
    name: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    content = {
        "object": np.array([{}], dtype=object),
        "text": np.array(["a"]),
        "bomb": np.zeros(10_000, np.int64),
    }.get(name, np.arange(5))
    np.savez_compressed(path, a=content)
    monkeypatch.setattr(arrays, "_LARGEST", 70_000)
    if name == "lie":
        with zipfile.ZipFile(path) as archive:
            stored = archive.read("a.npy").replace(b"(5,)", b"(9,)")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", stored)
    if fails:
        with pytest.raises(UserError, match="cannot be read"):
            arrays.read(path, ["a"])
    else:
        assert arrays.read(path, ["a"])["a"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@a", "\t=1", "\x1b=1", "\uff1d1", "\r=1"])
def test_no_table_runs_in_a_spreadsheet(
    value: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    change(place.run / "config.json", method=value)
    output = place.home / "out.csv"
    assert look("compare", place, capsys)[0] == 0
    rows = [*csv.reader(output.open())]
    words = ["query", 'select method, 1 as "=1" from runs', "--csv", str(output)]
    assert cli.main([*words, "--runs-dir", str(place.runs_dir)]) == 0
    rows += csv.reader(output.open())
    assert any(cell.startswith("'") for row in rows for cell in row)
    assert not [c for row in rows for c in row if c[:1] in ("=", "+", "@", "\t", "\r", "\x1b")]


@pytest.mark.parametrize(
    "sql",
    ["select * from read_csv('{outside}/secret.json')", "select * from '{outside}/secret.json'",
     "select * from glob('{outside}/*')", "select * from read_blob('{outside}/secret.json')",
     "copy (select 1) to '{outside}/made'", "attach '{outside}/made'", "install httpfs",
     "load '{outside}/secret.json'", "export database '{outside}/made'",
     "select getenv('PATH')", "set enable_external_access = true", "reset enable_external_access",
     "set lock_configuration = false", "pragma enable_profiling",
     "set log_query_path = '{outside}/made'", "create secret (type s3)",
     "select * from read_text('{outside}/secret.json')", "import database '{outside}'"],
)  # fmt: skip
def test_sql_reaches_nothing(sql: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = outside_of(place)
    words = ["query", sql.format(outside=place.outside), "--runs-dir", str(place.runs_dir)]
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and SECRET not in said.out + said.err
    assert outside_of(place) == before


LONG = [
    "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range % 7 = 3",
    "select list_sort(range(200000000))[1]",
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("sql", LONG)
def test_a_long_query_heeds_signals(sql: str, number: signal.Signals, place: Place) -> None:
    # A background job of a shell ignores SIGINT, and so would its children.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    ready = "import duckdb; from ssl_bench.cli.commands import query; print(flush=True)"
    code = f"{heeds}\n{ready}\nfrom ssl_bench.cli import entry; entry()"
    words = [sys.executable, "-c", code, "query", sql, "--runs-dir", str(place.runs_dir)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    patience = threading.Timer(60, child.kill)
    patience.start()
    try:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        time.sleep(1.5)
        assert child.poll() is None
        started = time.monotonic()
        child.send_signal(number)
        said = child.stderr.readline()
        assert time.monotonic() - started < 5  # a second, on a machine with nothing else to do
        assert child.wait(timeout=10) == 128 + number
        assert said.startswith("ssl-bench: ")
    finally:
        patience.cancel()
        child.kill()


def test_a_folder_at_another_place_of_the_users_own_is_read(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "runs").symlink_to(place.runs_dir)
    shutil.move(place.run, tmp_path / "elsewhere")
    place.run.symlink_to(tmp_path / "elsewhere")
    own = Place(place.home, other / "runs" / place.run.name)
    for command in LOOKS:
        code, text = look(command, own, capsys)
        assert "link" not in text
        assert code == 0 or command == "status"


# Damage of any kind.


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([ODD_TEXT, "../x", "\ud800", 10**200, -(2**63), "x" * 30_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def to_damage(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield copied(results, tmp_path_factory.mktemp("damaged"))


def paths_of(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in items:
        yield (*path, name)
        if isinstance(value, dict | list):
            yield from paths_of(value, (*path, name))


@settings(max_examples=15, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_damaged_json_is_told_in_a_line(
    to_damage: Place, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    found = sorted(to_damage.run.rglob("*.json"))
    path = data.draw(st.sampled_from(found), label="file")
    before = path.read_bytes()
    content = json.loads(before)
    *way, last = data.draw(st.sampled_from([*paths_of(content)] or [("a",)]), label="place")
    owner = content
    for name in way:
        owner = owner[name]
    owner[last] = data.draw(JSON, label="value")
    path.write_text(json.dumps(content))
    try:
        for command in ("show", "compare", "query", "export"):
            look(command, to_damage, capsys)
    finally:
        path.write_bytes(before)


@settings(max_examples=12, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_damaged_bytes_are_told_in_a_line(
    to_damage: Place, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    found = sorted(p for p in to_damage.run.rglob("*") if p.is_file() and p.name != ".lock")
    path = data.draw(st.sampled_from(found), label="file")
    before = path.read_bytes()
    after = bytearray(before[: data.draw(st.integers(0, len(before)), label="length")])
    for place in data.draw(st.lists(st.integers(0, max(0, len(after) - 1)), max_size=4)):
        if after:
            after[place] ^= data.draw(st.sampled_from([1, 32, 128, 255]))
    path.write_bytes(after)
    try:
        for command in ("show", "compare", "query", "export"):
            look(command, to_damage, capsys)
    finally:
        path.write_bytes(before)


@pytest.mark.usefixtures("quick_drawing")
@settings(max_examples=3, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_report_of_damaged_arrays_is_written(
    to_damage: Place, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted(to_damage.run.glob("evals/*/*.npz"))))
    before = path.read_bytes()
    kinds = st.sampled_from([np.uint8, np.int64, np.float32, np.bool_])
    shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
    stored: dict[str, Any] = {
        n: np.ones(data.draw(shapes), data.draw(kinds)) for n in arrays.names(path)
    }
    np.savez(path, **stored)
    try:
        assert look("report", to_damage, capsys)[0] == 0
    finally:
        path.write_bytes(before)
