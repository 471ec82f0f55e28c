"""The Python interface: the same runs, settings and numbers as the command line's; the example."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_runs import make_run
from helpers import ROOT, write_images
from PIL import Image

import ssl_bench
from ssl_bench import notebook
from ssl_bench.experiment import running
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.results import Run, Runs
from ssl_bench.runs import index, schema
from ssl_bench.utils.files import load_json

Call = Callable[..., tuple[int, str, str]]
NOTEBOOK = ROOT / "examples/first_comparison.ipynb"
SMALL = {"batch_size": 16, "backbone": "vit_nano", "epochs": 1, "evals": ["knn", "linear"]}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Settings of a run of a second, in a folder that is worked in meanwhile."""
    home = tmp_path_factory.mktemp("home")
    with contextlib.chdir(home):
        yield {"data": write_images(home / "images"), **SMALL}


@pytest.fixture(scope="module")
def mae(there: dict[str, Any]) -> Run:
    return ssl_bench.run(method="mae", mask_ratio=0.5, **there)


def test_import_is_fast_and_offers_every_name() -> None:
    code = (
        "import sys, ssl_bench\n"
        "heavy = {'torch', 'timm', 'pandas', 'numpy', 'tyro', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'run', 'runs', 'sweep', 'compare', 'load_encoder'} <= set(dir(ssl_bench))\n"
        "assert callable(ssl_bench.runs) and callable(ssl_bench.sweep)\n"
        "import ssl_bench.runs.index, ssl_bench.sweep.grid\n"
        "assert callable(ssl_bench.runs) and callable(ssl_bench.sweep)\n"
        "assert ssl_bench.UserError and not hasattr(ssl_bench, 'nothing')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    "given, args",
    [
        ({"mask_ratio": 0.5, "seed": 3}, ["--mask-ratio", "0.5", "--seed", "3"]),
        ({"evals": ["knn", "cka"], "match": None}, ["--evals", "knn,cka"]),
        ({"wait": True, "keep_features": False}, ["--wait", "--no-keep-features"]),
        ({"seed": range(3), "flip": [True, False]}, ["--seed", "0,1,2", "--flip", "yes,no"]),
        ({"mask_ratio": np.array([0.5, 0.75])}, ["--mask-ratio", "0.5,0.75"]),
        ({"epochs": np.float64(0.1)}, ["--epochs", "0.1"]),
        ({"data": Path("-odd")}, ["--data=-odd"]),
        ({"mae.epochs": 4, "mae.flip": False}, ["--mae.epochs", "4", "--mae.no-flip"]),
    ],
)
def test_keywords_are_flags(given: dict[str, Any], args: list[str]) -> None:
    assert notebook._args(given) == args


class TestRun:
    """A run of a second."""

    def test_it_is_the_run_of_the_command_line(
        self, mae: Run, there: dict[str, Any], ssl_bench: Call
    ) -> None:
        words = ("--data", there["data"], "--batch-size", 16, "--backbone", "vit_nano")
        code, out, err = ssl_bench(
            "run", *words, "--mask-ratio", 0.5, "--epochs", 1, "--evals", "knn,linear"
        )
        assert code == 0, err
        assert "reused" in out and str(mae.folder) in out
        assert RunConfig.from_json(load_json(mae.folder / schema.CONFIG)).settings.batch_size == 16

    def test_its_numbers_are_those_of_its_files(self, mae: Run) -> None:
        records = [load_json(path) for path in schema.score_files(mae.folder)]
        scores = mae.scores
        own = scores[~scores["is_baseline"] & scores["is_headline"]]
        assert dict(zip(own["eval"], own["value"], strict=True)) == {
            each["eval"]: each["scores"]["top1"] for each in records
        }
        beside = scores[scores["is_baseline"]].set_index(["eval", "method"])["value"]
        assert dict(beside) == {
            (each["eval"], label): values["top1"]
            for each in records
            for label, values in each["baselines"].items()
        }
        assert list(mae.metrics["step"]) == [1, 2, 3] and mae.metrics["loss"].notna().all()
        assert mae.cost["images_seen"] == 48
        assert mae.pictures().size == Image.open(mae.folder / "figures/pictures.png").size
        page = mae._repr_html_()
        assert page.count("data:image/png;base64,") == 2 and "random init" in page
        states = ssl_bench.runs().set_index("run")["state"]
        assert states[mae.name] == "trained"

    def test_its_curve_is_drawn_by_the_readers_own_backend(self, mae: Run) -> None:
        import matplotlib

        with matplotlib.rc_context({"axes.titlesize": 3.0}):
            axes = mae.plot_loss()
            assert mae.plot_loss(ax=axes) is axes
            assert matplotlib.rcParams["axes.titlesize"] == 3.0
        assert len(axes.lines) == 2
        np.testing.assert_array_equal(np.asarray(axes.lines[0].get_ydata()), mae.metrics["loss"])

    def test_its_features_are_its_encoders(self, mae: Run, there: dict[str, Any]) -> None:
        values, labels = mae.features("test")
        assert (values.shape, values.dtype, labels.dtype) == ((12, 64), np.float32, np.int64)
        encoder = ssl_bench.load_encoder(mae.name[:8])
        told = encoder.pretrained_cfg
        images = [np.asarray(Image.open(path)) for path in _in_order(there["data"] / "test")]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(told[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        assert told["input_size"] == (3, *pixels.shape[2:])
        with torch.no_grad():
            tokens = encoder.forward_features((pixels - mean) / std)
        np.testing.assert_allclose(values, tokens[:, 0], atol=1e-4)
        means = mae.features("test", pooling="avg").values
        np.testing.assert_allclose(means, tokens[:, 1:].mean(dim=1), atol=1e-4)
        assert list(labels) == [0] * 6 + [1] * 6
        for wrong in ({"split": "val"}, {"pooling": "max"}, {"data": "nowhere/"}):
            with pytest.raises(ssl_bench.UserError):
                mae.features(**wrong)


def _in_order(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.png"))


def test_a_sweep_gives_its_runs(there: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = there | {"evals": "knn"}
    runs = ssl_bench.sweep(method=["mae", "simmim"], seed=range(1, 2), **settings)
    assert [each.name.split("-images-seed1")[0] for each in runs] == ["mae", "simmim"]
    assert list(runs.table["state"]) == ["trained"] * 2 and runs.table["knn"].notna().all()
    assert list(runs.metrics.groupby("run").size()) == [3, 3]
    assert list(runs.cost["images_seen"]) == [48, 48]
    assert runs.pictures().height == sum(each.pictures().height for each in runs)
    assert list(runs.features("train")) == [each.name for each in runs]
    legend = runs.plot_loss().get_legend()
    assert legend is not None and len(legend.texts) == 2
    monkeypatch.setattr(running, "run", pytest.fail)  # everything is done
    assert [each.folder for each in ssl_bench.sweep(method="mae", seed=1, **settings)] == [
        runs[0].folder
    ]


class TestCompare:
    """Of finished runs."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        for method, seed in (("mae", 0), ("mae", 1), ("mocov3", 0)):
            make_run(tmp_path / "runs", method, seed)
        return tmp_path / "runs"

    def test_whatever_stands_for_runs_is_taken(self, home: Path) -> None:
        every = ssl_bench.runs(home)
        some = every[every["method"] == "mae"]
        folders = list(some["folder"])
        run = ssl_bench.load_run("mocov3", home)
        for runs, count in (
            (None, 3), (some, 2), (folders, 2), ("mocov3", 1), (run, 1), ([run, *folders], 3),
            (Runs(map(Path, folders)), 2),
        ):  # fmt: skip
            compared = ssl_bench.compare(runs, runs_dir=home)
            assert len(compared) == count
            assert compared.table["n"].max() == min(count, 2) or count == 1
            assert compared._repr_html_().count("<table>") >= 2

    def test_its_numbers_are_those_of_the_command(
        self, home: Path, tmp_path: Path, ssl_bench: Call
    ) -> None:
        code, _, err = ssl_bench("compare", "--runs-dir", home, "--csv", tmp_path / "all.csv")
        assert code == 0, err
        import pandas as pd

        written = pd.read_csv(tmp_path / "all.csv")
        assert list(written["mean"]) == pytest.approx(
            list(notebook.compare(runs_dir=home).table["mean"])
        )

    def test_names_of_others_are_no_html(self, home: Path) -> None:
        run = make_run(home, "<script>alert(1)</script>", 0)
        for shown in (Run(run), ssl_bench.compare(runs_dir=home), Runs([run])):
            assert "<script>" not in shown._repr_html_()

    def test_what_is_damaged_or_not_begun_is_told(self, home: Path) -> None:
        run = ssl_bench.load_run("mocov3", home)
        (run.folder / schema.COST).write_text("{")
        [scores, *_] = schema.score_files(run.folder)
        scores.write_text('{"eval": 3}')
        (run.folder / schema.METRICS).write_bytes(b'{"step": 1, "loss": 2.0, "epoch": 1}\n{"st')
        assert "cannot be shown" in run._repr_html_()
        assert list(run.metrics["step"]) == [1]  # another process is writing the next line
        (run.folder / "figures/pictures.png").unlink()
        for ask in (run.pictures, Runs([home / "later"]).plot_loss, Run(home / "later").encoder):
            with pytest.raises(ssl_bench.UserError):
                ask()
        assert "none of these runs has begun" in Runs([home / "later"])._repr_html_()


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for ask, words in (
        (lambda: ssl_bench.run(mask_ratios=0.5), "--mask-ratio"),
        (lambda: ssl_bench.run(method="mea"), "'mae'"),
        (lambda: ssl_bench.run(epochs="many"), "'many'"),
        (lambda: ssl_bench.run(help=True), "--help"),
        (lambda: ssl_bench.run(data="nowhere/"), "nowhere/"),
        (lambda: ssl_bench.run(devices=2), "devices 2"),
        (lambda: ssl_bench.sweep(mask_ratio=[0.5, 2]), "--mask-ratio 2"),
        (lambda: ssl_bench.sweep("grid.yaml"), "grid.yaml"),
        (lambda: ssl_bench.compare(), "no run"),
        (lambda: ssl_bench.compare([]), "no runs to compare"),
        (lambda: ssl_bench.compare("a", at="once"), "once"),
        (lambda: ssl_bench.runs("nowhere"), "nowhere"),
        (lambda: ssl_bench.load_run("mae"), "no run"),
        (lambda: ssl_bench.load_encoder("nowhere.pth"), "nowhere.pth"),
    ):
        with pytest.raises(ssl_bench.UserError, match=words) as error:
            ask()
        assert "\n" not in str(error.value)
        assert error.value._render_traceback_() == [f"UserError: {error.value}"]


def test_what_the_machine_lacks_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device", "runs")

    monkeypatch.setattr(index, "load", full)
    with pytest.raises(ssl_bench.UserError, match="No space left"):
        ssl_bench.runs("runs")


def test_a_run_that_has_no_encoder_yet_is_told_from_other_folders(tmp_path: Path) -> None:
    folder = tmp_path / "runs/mae-x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "environment.json").write_text('{"command": ["ssl-bench", "run", "--seed", "3"]}')
    for source in (folder, "mae-x"):
        with pytest.raises(ssl_bench.UserError, match=r"not finished.*ssl-bench run --seed 3"):
            ssl_bench.load_encoder(source, runs_dir=tmp_path / "runs")


def test_first_comparison(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # which the command line has set here
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = {cell.source: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert not any(cell.outputs or cell.execution_count for cell in cells.values())
    [parameters] = [
        each for each in cells.values() if "parameters" in each.metadata.get("tags", [])
    ]
    small = {"data": str(image_folder), "backbone": "vit_nano", "batch_size": 16}
    parameters.source = f"shared, epochs = {small | {'evals': ['knn', 'linear']}}, 20"
    mistake = nbformat.v4.new_code_cell('ssl_bench.run(method="mea")')
    mistake.metadata["tags"] = ["raises-exception"]
    notebook.cells.append(mistake)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    def cell_of(source: str) -> Any:
        [cell] = [cell for own, cell in cells.items() if f"{own}\n".startswith(source)]
        return cell

    def shown(source: str, kind: str) -> list[str]:
        return [o.data[kind] for o in cell_of(source).outputs if kind in o.get("data", {})]

    assert shown("mae = ", "text/html") == [""]  # the bar, which was there and is gone
    log = [o.text for o in cell_of("mae = ").outputs if o.output_type == "stream"]
    assert "run folder:" in "".join(log)
    [page] = shown("mae\n", "text/html")
    assert page.count("data:image/png;base64,") == 2 and "<td>linear</td>" in page
    assert len(shown("mae.plot_loss", "image/png")) == 1
    [page] = shown("both", "text/html")
    assert "<td>mae</td>" in page and "<td>mocov3</td>" in page
    assert len(shown("scores", "image/png")) == 1
    assert len(shown("from sklearn", "image/png")) == 1
    [told] = shown("import timm", "text/plain")
    assert "'input_size': (3, 16, 16)" in told
    [error] = mistake.outputs
    assert (error.ename, len(error.traceback)) == ("UserError", 1)
    assert "'mae'" in error.traceback[0]
    complaints = [o.text for cell in cells.values() for o in cell.outputs if _is_complaint(o)]
    assert not complaints


def _is_complaint(output: Any) -> bool:
    return output.output_type == "stream" and output.name == "stderr"
