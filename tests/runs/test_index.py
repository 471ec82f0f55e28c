"""The index says what the folders say, whatever happens to them and to it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import tables
from ssl_bench import cli
from ssl_bench.cli.commands import query
from ssl_bench.errors import UserError
from ssl_bench.runs import index, run_folder, run_records
from ssl_bench.utils.files import write_json

PLAN: dict[str, Any] = {
    "method": "mae", "method_code": "code", "method_config": {"mask_ratio": 0.75}, "data": "shapes",
    "data_fingerprint": "1234", "encoder": {"backbone": "vit_nano", "image_size": 16},
    "epochs": 2, "batch_size": 32, "seed": 0, "precision": "fp32", "core_version": 1,
    "identity": "1a2b3c4d", "preset": "quick", "data_source": "shapes", "budget": None,
}  # fmt: skip
COST = {"steps": 9, "images_seen": 288, "flops": 10**20, "seconds": 1.5, "peak_memory_mib": 100,
        "encoder_parameters": 10, "trained_parameters": 20, "device": "CPU",
        "precision": "fp32"}  # fmt: skip


def record(name: str = "knn", **more: Any) -> dict[str, Any]:
    return {
        "eval": name, "protocol": "abcd", "data": "shapes", "data_fingerprint": "1234", "seed": 0,
        "note": "", "scores": {"top1": 80.0, "top5": 99.0}, "test_images": 20, "seconds": 1.0,
        "precision": "fp32", "baselines": {"raw pixels": {"top1": 70.0}},
    } | more  # fmt: skip


def make(runs_dir: Path, name: str = "mae-a", trained: bool = True, **plan: Any) -> Path:
    folder = runs_dir / name
    (folder / "evals/knn").mkdir(parents=True)
    write_json(folder / "config.json", PLAN | plan)
    environment = {"command": ["ssl-bench", "run"], "started": "2026-01-01T00:00:00+00:00",
                   "code": {"commit": "c0ffee", "dirty": False}, "device": "CPU"}  # fmt: skip
    write_json(folder / "environment.json", environment)
    (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 1}\n{"step": 9, "loss": 1}\n{"st')
    if trained:
        write_json(folder / "cost.json", COST)
        write_json(folder / "encoder.json", {})
        write_json(folder / "evals/knn/scores.json", record())
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were read, by name; a file may be trusted as soon as it is written."""
    found: list[str] = []
    read = run_records.read

    def noted(folder: str) -> run_records.RunRecord | None:
        found.append(Path(folder).name)
        return read(folder)

    monkeypatch.setattr(run_records, "read", noted)
    monkeypatch.setattr(index, "_SETTLED_NS", -(10**12))
    return found


def test_a_run_and_its_scores_are_rows(tmp_path: Path) -> None:
    folder = make(tmp_path)
    snapshot = folder / "snapshots/step-00000004"
    (snapshot / "evals/knn").mkdir(parents=True)
    write_json(snapshot / "cost.json", {"steps": 4, "images_seen": 128, "flops": 5, "seconds": 1})
    write_json(snapshot / "evals/knn/scores.json", record(unit="nats", better="lower"))
    found = index.load(tmp_path)
    [run] = found.runs.to_dict("records")
    assert found.problems == ()
    assert [*found.runs] == [*run_records.RUN_COLUMNS] and [*found.scores] == [
        *run_records.SCORE_COLUMNS
    ]
    wanted = {"run": "mae-a", "folder": str(folder), "state": "trained", "seed": 0, "step": 9,
              "flops": 1e20, "commit": "c0ffee", "dirty": False, "command": "ssl-bench run",
              "epochs": 2.0, "pretrained_on": "shapes", "peak_memory_mib": 100}  # fmt: skip
    assert {name: run[name] for name in wanted} == wanted
    assert pd.isna(run["error"])
    told = json.loads(run["settings"])
    assert told == {"mask_ratio": 0.75, "backbone": "vit_nano", "image_size": 16, "epochs": 2,
                    "batch_size": 32, "precision": "fp32"}  # fmt: skip
    final, snap = (found.scores[found.scores["step"].isna() == last] for last in (True, False))
    assert list(zip(final["score"], final["value"], final["is_headline"], strict=True)) == [
        ("top1", 80.0, True),
        ("top5", 99.0, False),
    ]
    assert final["unit"].iloc[0] == "top-1 accuracy (%)" and final["unit"].isna().iloc[1]
    assert json.loads(final["baselines"].iloc[0]) == {"raw pixels": {"top1": 70.0}}
    assert set(final["folder"]) == {str(folder / "evals/knn")}
    assert set(snap["step"]) == {4} and set(snap["images_seen"]) == {128}
    assert (final["better"].iloc[0], snap["better"].iloc[0]) == ("higher", "lower")
    assert set(snap["folder"]) == {str(snapshot / "evals/knn")}


def test_a_score_that_says_otherwise_which_is_better_ranks_nobody(tmp_path: Path) -> None:
    write_json(make(tmp_path) / "evals/knn/scores.json", record(better="sideways"))
    scores = index.load(tmp_path).scores
    assert scores.loc[scores["is_headline"], "better"].tolist() == ["neither"]


def test_a_group_is_what_differs_in_the_seed_alone(tmp_path: Path) -> None:
    make(tmp_path, "a")
    make(tmp_path, "b", seed=1, preset="small", data_source="elsewhere", budget="1e15", epochs=2.0)
    make(tmp_path, "c", epochs=3, identity="5e6f7a8b")
    silent = {name: value for name, value in PLAN.items() if name != "identity"}
    for name, other in (("d", {"epochs": 3}), ("e", {}), ("f", {"seed": 1})):
        write_json(make(tmp_path, name) / "config.json", silent | other)
    group = index.load(tmp_path).runs.set_index("run")["group"]
    assert group["a"] == group["b"] and group["e"] == group["f"]
    assert group.nunique() == 4


def put(run: Path, **contents: Any) -> None:
    """Write JSON files, named by their paths with ``__`` for ``/``."""
    for name, content in contents.items():
        path = run / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def fail(run: Path) -> None:
    (run / "encoder.json").unlink()
    put(run, failed={"error": "the loss is nan", "at": "now"})


CHANGES: dict[str, Callable[[Path], object]] = {
    "config edited in place": lambda run: edit(run / "config.json", '"seed": 0', '"seed": 7'),
    "config replaced": lambda run: put(run, config=PLAN | {"seed": 7}),
    "evaluation added": lambda run: put(run, evals__linear__scores=record("linear")),
    "evaluation finished": lambda run: put(run, evals__begun__scores=record("begun")),
    "evaluation removed": lambda run: shutil.rmtree(run / "evals/knn"),
    "scores replaced": lambda run: put(run, evals__knn__scores=record(scores={"top1": 81.0})),
    "scores edited in place": lambda run: edit(run / "evals/knn/scores.json", "80.0", "81.0"),
    "scores removed": lambda run: (run / "evals/knn/scores.json").unlink(),
    "cost replaced": lambda run: put(run, cost=COST | {"flops": 1}),
    "snapshot added": lambda run: put(
        run, snapshots__step2__cost=COST | {"steps": 2}, snapshots__step2__evals__a__scores=record()
    ),
    "snapshot evaluated": lambda run: put(run, snapshots__step1__evals__a__scores=record()),
    "no longer trained": lambda run: (run / "encoder.json").unlink(),
    "failed": fail,
    "damaged": lambda run: (run / "cost.json").write_text("{"),
    "removed": shutil.rmtree,
    "renamed": lambda run: run.rename(run.with_name("new")),
    "copied": lambda run: shutil.copytree(run, run.with_name("copy")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found(tmp_path: Path, change: str, reads: list[str]) -> None:
    for name in ("mae-a", "mae-b"):
        run = make(tmp_path, name)
        (run / "evals/begun").mkdir()
        put(run, snapshots__step1__cost=COST | {"steps": 1})
    before = index.load(tmp_path)
    reads.clear()
    CHANGES[change](tmp_path / "mae-a")
    after = index.load(tmp_path)
    assert set(reads) <= {"mae-a", "new", "copy"}, "a run that did not change was read again"
    shutil.rmtree(tmp_path / ".index")
    truth = index.load(tmp_path)
    pd.testing.assert_frame_equal(after.runs, truth.runs)
    pd.testing.assert_frame_equal(after.scores, truth.scores)
    assert after.problems == truth.problems
    assert not (before.runs.equals(after.runs) and before.scores.equals(after.scores))


def test_what_did_not_change_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    for number in range(5):
        make(tmp_path, f"mae-{number}")
    first = index.load(tmp_path)
    assert len(reads) == 5
    reads.clear()
    second = index.load(tmp_path)
    assert not reads
    pd.testing.assert_frame_equal(first.scores, second.scores)
    assert list(index.load(tmp_path, ["mae-3", "mae-1"]).runs["run"]) == ["mae-3", "mae-1"]
    assert not reads


def test_what_changed_a_moment_ago_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write in the same tick of the clock leaves the same stamp."""
    run = make(tmp_path)
    monkeypatch.setattr(run_records, "_stamp", lambda path: (index._clock(tmp_path), 0, 0))
    monkeypatch.setattr(run_records, "_digest", lambda stamps: "the same")
    assert index.load(tmp_path).runs["seed"].item() == 0
    write_json(run / "config.json", PLAN | {"seed": 1})
    assert index.load(tmp_path).runs["seed"].item() == 1


def test_names_are_those_of_find(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    make(home, "mae-a")
    make(home, "mae-b")
    outside = make(elsewhere, "mae-a", seed=5)
    (make(home, "mocov3") / "config.json").write_text("{")
    found = index.load(home, ["-b", "mae-a", str(home / "mae-b"), "moco"])
    assert list(found.runs["run"]) == ["mae-b", "mae-a", "mocov3"]
    assert list(found.runs["state"]) == ["trained", "trained", "broken"]
    assert len(found.problems) == 1
    both = index.load(home, [str(outside), "mae-a"]).runs
    assert list(both["run"]) == [str(outside), str(home / "mae-a")], "two of one name"
    assert list(both["seed"]) == [5, 0]
    assert not (elsewhere / ".index").exists()
    with pytest.raises(UserError, match="ambiguous"):
        index.load(home, ["mae"])
    with pytest.raises(UserError, match="does not exist"):
        index.load(home, ["dino"])
    with pytest.raises(UserError, match="no run in"):
        index.load(tmp_path / "nothing")


def test_other_things_may_lie_beside_runs(tmp_path: Path) -> None:
    make(tmp_path)
    write_json(tmp_path / "note.json", {})
    for name in ("baselines/pixels-x", "ablations/mask-ratio"):
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "config.json", {})
    (tmp_path / "mae-a/evals/README").write_text("")
    assert list(index.load(tmp_path).runs["run"]) == ["mae-a"]
    assert index.load(tmp_path).problems == ()


DAMAGE: dict[str, tuple[str, str | bytes]] = {
    "config cut short": ("config.json", "{"),
    "config empty": ("config.json", ""),
    "config of nothing": ("config.json", "{}"),
    "config null": ("config.json", "null"),
    "config a list": ("config.json", "[]"),
    "config deep": ("config.json", "[" * 100_000),
    "config no text": ("config.json", b"\xff\xfe\x00"),
    "config of wrong kinds": ("config.json", json.dumps(PLAN | {"seed": "a", "epochs": [1]})),
    "config of wrong shapes": (
        "config.json",
        json.dumps(PLAN | {"encoder": 1, "method_config": [2], "batch_size": 10**30}),
    ),
    "environment": ("environment.json", "}"),
    "cost": ("cost.json", "nothing"),
    "cost of text": ("cost.json", '{"seconds": "2"}'),
    "scores": ("evals/knn/scores.json", "["),
    "no scores": ("evals/knn/scores.json", '{"eval": "knn", "protocol": "abcd"}'),
    "scores that are text": (
        "evals/knn/scores.json",
        json.dumps(record(scores={"top1": "high"})),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_not_raised(tmp_path: Path, damage: str) -> None:
    run, _ = make(tmp_path), make(tmp_path, "mae-b")
    path, content = DAMAGE[damage]
    (run / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = index.load(tmp_path)
    assert list(found.runs["state"]) == ["broken", "trained"]
    assert found.problems and all(line.startswith("mae-a: ") for line in found.problems)
    assert "\n" not in "".join(found.problems)
    assert found.runs["error"].iloc[0] in found.problems[0]
    assert (found.scores["run"] == "mae-b").sum() == 2


def test_scores_that_are_no_numbers_stay_and_are_named(tmp_path: Path) -> None:
    run = make(tmp_path)
    scores = {"top1": math.nan, "top5": math.inf, "loss": None}
    write_json(run / "evals/knn/scores.json", record(scores=scores))
    found = index.load(tmp_path)
    assert len(found.scores) == 3 and found.runs["state"].item() == "trained"
    assert [line.split(": ")[-1] for line in found.problems] == [
        "score top1 is nan", "score top5 is inf", "score loss is nan",
    ]  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_json_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run = make(tmp_path_factory.mktemp("runs"))
    for name, content in (("config.json", PLAN), ("cost.json", COST),
                          ("evals/knn/scores.json", record())):  # fmt: skip
        changed = data.draw(st.dictionaries(st.sampled_from([*content]), JSON, max_size=3))
        (run / name).write_text(json.dumps(content | changed))
    found = index.load(run.parent)
    assert len(found.runs) == 1
    again = index.load(run.parent)
    pd.testing.assert_frame_equal(found.scores, again.scores)


def test_states(tmp_path: Path) -> None:
    make(tmp_path, "trained")
    make(tmp_path, "unfinished", trained=False)
    failed = make(tmp_path, "failed", trained=False)
    write_json(failed / "failed.json", {"error": "the loss is nan"})
    running = make(tmp_path, "running", trained=False)
    ended = make(tmp_path, "ended", trained=False)
    (ended / ".lock").touch()
    with run_folder.locked(running):
        found = index.load(tmp_path).runs.set_index("run")
        assert [*found["state"]] == ["unfinished", "failed", "running", "trained", "unfinished"]
    assert found["error"]["failed"] == "the loss is nan"
    assert found["step"]["running"] == 9 and math.isnan(found["images_seen"]["running"])
    assert index.load(tmp_path).runs.set_index("run")["state"]["running"] == "unfinished"
    assert not (tmp_path / "unfinished/.lock").exists()


def test_asking_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    code = (
        "import sys; from pathlib import Path; from ssl_bench.runs import run_folder\n"
        "print(flush=True)\n"
        f"while not sys.stdin.closed: run_folder.is_locked(Path({str(tmp_path)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as asking:
        assert asking.stdout
        asking.stdout.readline()
        for _ in range(20):
            with run_folder.locked(tmp_path):
                pass
        asking.kill()


@pytest.mark.parametrize("how", ["nothing", "garbage", "cut", "flipped", "foreign", "folder"])
def test_a_damaged_index_is_made_again(tmp_path: Path, how: str, reads: list[str]) -> None:
    make(tmp_path)
    truth = index.load(tmp_path)
    path = tmp_path / ".index/runs.parquet"
    good = path.read_bytes()
    if how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "foreign":
        pd.DataFrame({"run": ["mae-a"]}).to_parquet(path)
    elif how == "flipped":
        path.write_bytes(good[:100] + bytes(b ^ 255 for b in good[100:140]) + good[140:])
    else:
        path.write_bytes({"nothing": b"", "garbage": b"PAR1" * 50, "cut": good[:-20]}[how])
    reads.clear()
    found = index.load(tmp_path)
    assert reads == ["mae-a"]
    pd.testing.assert_frame_equal(found.scores, truth.scores)
    reads.clear()
    index.load(tmp_path)
    assert bool(reads) == (how == "folder")


def test_an_index_of_other_code_is_not_read(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    index.load(tmp_path)
    other = index._schema().with_metadata({"version": "other"})
    monkeypatch.setattr(index, "_schema", lambda: other)
    index.load(tmp_path)
    assert reads == ["mae-a", "mae-a"]


def test_a_folder_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)

    def refuse(*arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(index.load(tmp_path).runs) == 1
    assert sorted(os.listdir(tmp_path)) == ["mae-a"]


def _come_and_go(runs_dir: Path, source: Path, rounds: int) -> None:
    for number in range(rounds):
        name = runs_dir / f"moving-{os.getpid()}-{number % 5}"
        shutil.rmtree(name, ignore_errors=True)
        shutil.copytree(source, name)


def _look(runs_dir: Path, rounds: int, out: Any) -> None:
    seen = []
    for _ in range(rounds):
        found = index.load(runs_dir)
        stay = found.runs[found.runs["run"].str.startswith("stay")]
        scores = found.scores[found.scores["run"].str.startswith("stay")]
        seen.append((len(stay), set(stay["state"]), len(scores), len(found.problems)))
    out.put(seen)


def test_many_look_while_runs_come_and_go(tmp_path: Path) -> None:
    home, source = tmp_path / "runs", make(tmp_path / "source", "run")
    for number in range(10):
        make(home, f"stay-{number}")
    context = get_context("fork")
    out = context.Queue()
    looking = [context.Process(target=_look, args=(home, 15, out)) for _ in range(3)]
    moving = [context.Process(target=_come_and_go, args=(home, source, 60)) for _ in range(2)]
    for process in (*looking, *moving):
        process.start()
    answers = [out.get(timeout=60) for _ in looking]
    for process in (*looking, *moving):
        process.join(60)
        assert process.exitcode == 0
    for stay, states, scores, _ in (each for answer in answers for each in answer):
        assert (stay, states, scores) == (10, {"trained"}, 20)
    final = index.load(home)
    shutil.rmtree(home / ".index")
    pd.testing.assert_frame_equal(final.runs, index.load(home).runs)
    assert not list(home.glob(".index/*.tmp"))


def test_neither_index_nor_query_imports_torch() -> None:
    code = "import sys; from ssl_bench.cli.commands import query\n"
    code += "print({'torch', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def ask(runs_dir: Path, *words: str) -> int:
    return cli.main(["query", *words, "--runs-dir", str(runs_dir)])


def test_query(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        make(tmp_path, f"mae-{number}", seed=number)
    output = tmp_path / "out.csv"
    sql = (
        "select runs.seed, scores.value, scores.step from runs join scores using (run) "
        "where is_headline order by runs.seed"
    )
    assert ask(tmp_path, sql, "--csv", str(output)) == 0
    shown = capsys.readouterr().out
    assert [line.split("┃" if "┃" in line else "│")[1].strip() for line in shown.splitlines()
            if "┃" in line or "│" in line] == ["seed", "0", "1", "2"]  # fmt: skip
    assert "│    - │" in shown
    assert output.read_text().splitlines() == ["seed,value,step", *(f"{n},80.0," for n in range(3))]


def test_query_shows_so_many_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    assert ask(tmp_path, "select * from range(1234)") == 0
    assert "more rows; --csv" in capsys.readouterr().out
    assert ask(tmp_path, "select * from range(100)") == 0
    assert "more rows" not in capsys.readouterr().out


def test_query_writes_an_answer_as_it_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    output = tmp_path / "out.csv"
    assert ask(tmp_path, "select range as r from range(30_000)", "--csv", str(output)) == 0
    assert output.read_text().split() == ["r", *map(str, range(30_000))]
    output.unlink()
    late = "select cast(if(range < 25_000, '1', 'x') as int) as r from range(30_000)"
    assert ask(tmp_path, late, "--csv", str(output)) == 2
    assert "Could not convert" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_query_takes_so_much_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    monkeypatch.setattr(query, "_MEMORY", "30MB")
    monkeypatch.chdir(tmp_path)
    sql = "select repeat('x', 1000) || range as y from range(100_000) order by y"
    assert ask(tmp_path, sql) == 2
    error = capsys.readouterr().err
    assert "takes more than 30MB of memory" in error and error.count("\n") == 1
    assert sorted(os.listdir()) == [".index", "mae-a"]


def test_query_lets_no_name_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "mae-\x1b]0;title\x07-\x9b2J")
    assert ask(tmp_path, 'select run, chr(27) as "a\x1bb" from runs') == 0
    shown = capsys.readouterr().out
    assert "mae-]0;title-2J" in shown
    assert not {"\x1b", "\x07", "\x9b"} & {*shown}


@pytest.mark.parametrize(
    "sql,message",
    [
        ("select evl from scores", '"evl" not found.*"eval"'),
        ("selec 1", "syntax error"),
        ("copy runs to 'x.csv'", "disabled by configuration"),
        ("select * from 'config.json'", "disabled by configuration"),
        ("select * from read_text('/etc/hostname')", "disabled by configuration"),
        ("attach 'x.db'", "disabled by configuration"),
        ("set enable_external_access = true", "locked"),
        ("select * from found", "does not exist"),
    ],
)
def test_query_refuses_in_one_line(
    tmp_path: Path,
    sql: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs/mae-a")
    assert ask(tmp_path / "runs", sql) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert pd.Series([error]).str.contains(message).all(), error


def test_query_without_runs_or_sql(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "select 1") == 2
    assert "no run in" in capsys.readouterr().err
    assert ask(tmp_path) == ask(tmp_path, "--schema") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*run_records.RUN_COLUMNS, *run_records.SCORE_COLUMNS))


def test_the_benchmark_reads_the_same_as_its_peer(tmp_path: Path) -> None:
    tables.synthetic(tmp_path, 12)
    ours, (plain_runs, plain_scores) = index.load(tmp_path), tables.plain(tmp_path)
    assert ours.problems == ()
    same = ["run", "method", "seed", "flops", "images_seen"]
    pd.testing.assert_frame_equal(ours.runs[same], plain_runs[same])
    same = ["run", "eval", "score", "value"]
    pd.testing.assert_frame_equal(ours.scores[same], plain_scores[same])
