"""Run folders, plugins from outside, and what is installed."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import ssl_bench as package
from ssl_bench.api import registry
from ssl_bench.errors import UserError, above, unknown, within
from ssl_bench.runs import index, run_folder
from ssl_bench.runs.schema import Plan
from ssl_bench.utils.files import atomic, write_json

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(package.__file__).parent.parent
PLAN = Plan("mae", "code", {"mask_ratio": 0.75}, "data", "1234", {"backbone": "vit"}, 3, 32, 0,
            "fp32")  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Plan)])
def test_every_part_of_a_plan_changes_its_name(field: str) -> None:
    other: Any = {"changed": 1} if field in ("method_config", "encoder") else "other"
    assert dataclasses.replace(PLAN, **{field: other}).name != PLAN.name


def test_name_is_the_same_in_every_process() -> None:
    assert PLAN.name == dataclasses.replace(PLAN).name
    assert PLAN.name.startswith("mae-data-seed0-")


def test_atomic_leaves_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, 1)
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_find_takes_paths_names_and_unique_parts(tmp_path: Path) -> None:
    for name in ("mae-x-seed0-aa", "mae-x-seed1-bb"):
        run_folder.create(tmp_path, name, {})
    first = tmp_path / "mae-x-seed0-aa"
    assert run_folder.find(tmp_path, [str(first), first.name, "seed0"]) == [first] * 3
    assert len(run_folder.find(tmp_path, [])) == 2
    with pytest.raises(UserError, match="ambiguous"):
        run_folder.find(tmp_path, ["mae"])
    with pytest.raises(UserError, match="does not exist"):
        run_folder.find(tmp_path, ["dino"])


def test_lock_keeps_a_second_process_out(tmp_path: Path) -> None:
    with run_folder.locked(tmp_path):
        code = (
            "from pathlib import Path; from ssl_bench.runs import run_folder\n"
            f"with run_folder.locked(Path({str(tmp_path)!r})): pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert "in use by another process" in done.stderr


@pytest.mark.parametrize(
    "value,interval,fits",
    [(0, "[0, 1]", True), (0, "(0, 1]", False), (1, "[0, 1)", False), (1, "(0, 1]", True),
     (2, "[0, 1]", False), (5, "[0, inf)", True), (-1, "[0, inf)", False),
     (float("nan"), "[0, 1]", False)],
)  # fmt: skip
def test_within(value: float, interval: str, fits: bool) -> None:
    if fits:
        within("x", value, interval)
    else:
        with pytest.raises(UserError, match="x"):
            within("x", value, interval)


def test_above_refuses_the_bound_itself() -> None:
    with pytest.raises(UserError, match="epochs 0 is out of range; it must be above 0"):
        above("epochs", 0, 0)


def test_unknown_names_the_nearest_or_all() -> None:
    assert "did you mean 'mae'" in str(unknown("method", "MAEE", ["mae", "mocov3"]))
    assert "known: mae, mocov3" in str(unknown("method", "zzzzzz", ["mocov3", "mae"]))


METHOD = '''
"""Mine: a method from outside."""
from dataclasses import dataclass
from ssl_bench.transforms.augmentations import Augmentation
from ssl_bench.api import Method

@dataclass(frozen=True)
class Config:
    """Flags."""
    {field}: int = 3
    """A number."""

class Mine(Method):
    """Nothing."""
'''


def test_a_file_is_a_method(tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(METHOD.format(field="width"))
    plugin = registry.find("method", str(path))
    assert plugin.name == "my-method"
    assert plugin.summary == "Mine: a method from outside."
    assert [field.name for field in dataclasses.fields(plugin.config)] == ["width"]
    assert plugin.load_class().__name__ == "Mine"


def test_fingerprint_sees_code_but_not_comments(tmp_path: Path) -> None:
    prints = []
    for text in (
        METHOD.format(field="width"),
        METHOD.format(field="width").replace("A number.", "Another text.") + "\n# a comment\n",
        METHOD.format(field="width").replace("= 3", "= 4"),
    ):
        path = tmp_path / "mine.py"
        path.write_text(text)
        prints.append(registry.Plugin("method", "mine", path, "").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_fingerprint_is_the_same_under_every_version_of_python(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(METHOD.format(field="width"))
    assert registry.Plugin("method", "mine", path, "").fingerprint == "b97b7176933442ce"


@pytest.mark.parametrize(
    "text,message",
    [
        ("def broken(:\n", "is not valid Python"),
        ("x = 1\nfrom __future__ import annotations\n" + METHOD.format(field="width"),
         "is not valid Python"),
        ("import no_such_module\n" + METHOD.format(field="width"), "no_such_module"),
        ("x = 1\n", "defines no dataclass 'Config'"),
        (METHOD.format(field="epochs"), "'epochs' of Config"),
        (METHOD.format(field="width").replace("class Mine(Method)", "class Mine"),
         "'Method'"),
    ],
)  # fmt: skip
def test_a_broken_method_file_gets_one_line(
    ssl_bench: Callable[..., tuple[int, str, str]],
    image_folder: Path,
    tmp_path: Path,
    text: str,
    message: str,
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    runs_dir = tmp_path / "runs"
    code, _, err = ssl_bench(
        "run", "--method", path, "--data", image_folder, "--runs-dir", runs_dir
    )
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert str(path) in err
    assert not runs_dir.exists()


def test_entry_points_are_discovered(tmp_path: Path) -> None:
    """A distribution that declares an entry point is found without any other change."""
    (tmp_path / "third_party.py").write_text(METHOD.format(field="width"))
    metadata = tmp_path / "third_party-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[ssl_bench.methods]\ntheirs = third_party\n")
    code = "from ssl_bench.api import registry\n"
    code += "print(registry.find('method', 'theirs').load().__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.strip() == str(tmp_path / "third_party.py"), done.stderr


class TestNeighbours:
    """A distribution whose entry points cannot be used costs nobody else anything."""

    BROKEN: ClassVar[dict[str, tuple[str, dict[str, str], str]]] = {
        "not there": ("theirs = nowhere", {}, "nowhere"),
        "no file in the package": ("theirs = pack.mod", {"pack/__init__.py": ""}, "pack.mod"),
        "a folder without code": ("theirs = pack", {"pack/other.txt": ""}, "pack"),
        "package needs what is not there": (
            "theirs = pack.mod",
            {"pack/__init__.py": "import no_such_thing", "pack/mod.py": METHOD},
            "no_such_thing",
        ),
        "package is no Python": (
            "theirs = pack.mod",
            {"pack/__init__.py": "def (", "pack/mod.py": METHOD},
            "SyntaxError",
        ),
        "package ends the program": (
            "theirs = pack.mod",
            {"pack/__init__.py": "import sys; print('hi'); sys.exit(3)", "pack/mod.py": METHOD},
            "SystemExit",
        ),
        "package never ends": (
            "theirs = pack.mod",
            {"pack/__init__.py": "def f(): f()\nf()", "pack/mod.py": METHOD},
            "RecursionError",
        ),
        "module is no Python": ("theirs = mod", {"mod.py": "def ("}, "not valid Python"),
        "module holds zeros": ("theirs = mod", {"mod.py": "\0"}, "not valid Python"),
        "module needs what is not there": (
            "theirs = mod",
            {"mod.py": "import no_such_thing\n" + METHOD},
            "no_such_thing",
        ),
        "module raises": (
            "theirs = mod",
            {"mod.py": "raise ImportError('no')\n" + METHOD},
            "raises",
        ),
        "no Config": ("theirs = mod", {"mod.py": "x = 1"}, "Config"),
        "a flag of ours": (
            "theirs = mod",
            {"mod.py": METHOD.replace("{field}", "epochs")},
            "epochs",
        ),
        "a value must be given": (
            "theirs = mod",
            {"mod.py": METHOD.replace("int = 3", "int")},
            "width",
        ),
        "a type that is none": (
            "theirs = mod",
            {"mod.py": METHOD.replace("int = 3", "Nothing = 3")},
            "Nothing",
        ),
        "no presets": ("theirs = mod", {"mod.py": METHOD + "\n    presets = 5\n"}, "presets"),
        "our name": ("mae = mod", {"mod.py": METHOD}, "one of ours"),
        "a name that is none": ("my method = mod", {"mod.py": METHOD}, "letters"),
        "a name like a path": ("../mine = mod", {"mod.py": METHOD}, "letters"),
        "no module": ("theirs = mod!", {"mod.py": METHOD}, "mod!"),
    }

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A folder that distributions are found in, one that can be used among them."""
        place = tmp_path / "site"
        place.mkdir()
        self.install(place, "good = good_neighbour", {"good_neighbour.py": METHOD}, "good")
        monkeypatch.syspath_prepend(str(place))
        monkeypatch.chdir(tmp_path)
        before = set(sys.modules)
        self.forget()
        yield place
        self.forget()
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("pack", "mod", "good_neighbour"):
                del sys.modules[name]

    def forget(self) -> None:
        registry._installed.cache_clear()
        registry._told.clear()
        importlib.invalidate_caches()

    @pytest.mark.parametrize("kind", sorted(BROKEN))
    def test_is_left_out_and_named(
        self, ssl_bench: Command, place: Path, kind: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        points, texts, reason = self.BROKEN[kind]
        self.install(place, points, texts)
        name = points.split(" =")[0]
        if name != "mae":
            code, _, error = ssl_bench("run", "--method", name, "--evals", "none")
            assert code == 2 and reason in error
            assert len([line for line in error.splitlines() if line != "hi"]) == 1
        capsys.readouterr()
        for _ in range(2):
            found = registry.discover("method")
            assert {"mae", "good"} <= found.keys() and found.keys() & {"theirs", name} <= {"mae"}
            assert found["mae"].module == "ssl_bench.methods.mae"
        output, warning = capsys.readouterr()
        assert warning.count("\n") == 1 and repr(name) in warning and reason in warning
        assert "distribution bad" in warning and not output

    @pytest.mark.parametrize(
        "words",
        [
            ["list"],
            ["completion", "bash"],
            ["run", "--help"],
            ["sweep", "--epohcs", "1"],
            ["report"],
            ["recipe", "quick"],
        ],
    )
    def test_commands_go_on(self, ssl_bench: Command, place: Path, words: list[str]) -> None:
        healthy = ssl_bench(*words)
        self.install(place, "theirs = mod", {"mod.py": "import no_such_thing\n" + METHOD})
        self.install(place, "theirs = mod", {}, "bad_eval", "evals")
        self.forget()
        code, output, errors = ssl_bench(*words)
        assert (code, output) == healthy[:2]
        told = [line for line in errors.splitlines() if "left out" in line]
        assert [line for line in errors.splitlines() if line not in told] == healthy[2].splitlines()
        assert len(told) == len(set(told)) and all("no_such_thing" in line for line in told)

    @pytest.mark.parametrize(
        ("name", "field"),
        [("knn", "x"), ("knn-more", "width"), ("eval", "every"), ("mask", "ratio")],
    )
    def test_an_evaluation_takes_no_flag_of_others(
        self, place: Path, name: str, field: str
    ) -> None:
        """Its flags are there for every method, and two of one name would end every run."""
        text = METHOD.replace("{field}", field).replace("Method", "Evaluation")
        self.install(place, f"{name} = mod", {"mod.py": text}, "bad", "evals")
        found = registry.discover("eval")
        assert found["knn"].module == "ssl_bench.evals.knn"
        assert (name in found) == (name in ("knn", "knn-more"))

    def test_a_damaged_list_of_entry_points(self, ssl_bench: Command, place: Path) -> None:
        self.install(place, "theirs = mod", {"mod.py": METHOD})
        listed = place / "bad-1.dist-info" / "entry_points.txt"
        listed.write_bytes(b"[ssl_bench.methods\n\xff\n=\n")
        code, output, _ = ssl_bench("list", "methods")
        assert code == 0 and "mae" in output and "good" in output

    def install(
        self,
        place: Path,
        points: str,
        texts: dict[str, str],
        name: str = "bad",
        kind: str = "methods",
    ) -> None:
        metadata = place / f"{name}-1.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[ssl_bench.{kind}]\n{points}\n")
        for path, text in texts.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_text(text.replace("{field}", "width"))


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a source checkout")
class TestCheckout:
    """What the repository holds."""

    @pytest.mark.parametrize("folder", ["methods", "evals"])
    def test_top_level_folders_are_part_of_the_package(self, folder: str) -> None:
        link = ROOT / "ssl_bench" / folder
        assert link.is_symlink()
        assert os.readlink(link) == f"../{folder}"

    def test_wheel_holds_methods_evals_and_the_embedded_data(self, tmp_path: Path) -> None:
        copy = tmp_path / "checkout"
        for name in ("ssl_bench", "methods", "evals"):
            shutil.copytree(ROOT / name, copy / name, symlinks=True)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy / name)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir",
                   str(tmp_path), str(copy)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        [wheel] = tmp_path.glob("*.whl")
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        package = [*ROOT.glob("ssl_bench/*.py")]
        for folder in ROOT.glob("ssl_bench/*/"):
            package += [] if folder.is_symlink() else folder.rglob("*.py")
        plugins = [*ROOT.glob("methods/*.py"), *ROOT.glob("evals/*.py")]
        embedded = ROOT / "ssl_bench/data/embedded"
        wanted = {str(path.relative_to(ROOT)) for path in package}
        wanted |= {f"ssl_bench/{path.relative_to(ROOT)}" for path in plugins}
        wanted |= {str(path.relative_to(ROOT)) for path in embedded.glob("*.*")}
        wanted |= {str(path.relative_to(ROOT)) for path in ROOT.glob("ssl_bench/papers/*.toml")}
        wanted |= {"ssl_bench/data/embedded/LICENSE", "ssl_bench/py.typed"}
        wanted |= {"ssl_bench/cli/commands/costs.json"}
        wanted |= {
            f"ssl_bench/analysis/report/page.{ending}" for ending in ("css", "html.j2", "js")
        }
        assert names == wanted


def test_a_run_is_found_by_its_users_name_and_by_patterns(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name, called in (("mae-a", "best so far"), ("mae-b", ""), ("moco-c", "other")):
        settings = {"name": called, "tags": []}
        run_folder.create(runs, name, {"method": "mae", "settings": settings})
    found = lambda *names: [path.name for path in run_folder.find(runs, [*names])]  # noqa: E731
    assert found("mae-*") == ["mae-a", "mae-b"]
    assert found("best so far", "moco-c") == ["mae-a", "moco-c"]
    assert found("best*") == ["mae-a"]
    for name in ("x*", "nobody"):
        with pytest.raises(UserError, match=re.escape(repr(name))):
            found(name)
    run_folder.call(runs / "mae-b", "later", ["small"])
    assert found("later") == ["mae-b"]
    run_folder.call(runs / "mae-b", "", ())
    row = index.load(runs, ["mae-b"]).runs.iloc[0]
    assert (row["name"], row["tags"]) == ("later", '["small"]')
