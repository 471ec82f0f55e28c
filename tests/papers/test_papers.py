"""Published tables: what is read from them, what is refused, and whose file is whose."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import EXAMPLE_METHOD, METHODS

from ssl_bench import papers
from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.cli.commands import ablate, recipe
from ssl_bench.cli.commands.recipe import published
from ssl_bench.errors import UserError
from ssl_bench.papers import Paper, Published

Call = Callable[..., tuple[int, str, str]]
PUBLISHED = """
[published.mine."im"]
sources = "Somebody"
lr = { value = 0.5, source = "table 1" }
depth = [{ value = 3, source = "table 2" }, { value = 4, source = "code" }]
"kind of crop" = { value = "any", source = "code", ours = "none", unless = { flip = true } }

[published.mine."imagenet-"]
lr = { value = [0.1, 1], source = "table 3" }
"""
ABLATION = """
[ablations.depth]
title = "blocks"
source = "table 1"
setting = "everything else"
flag = "--depth"
values = [1, 2.5]
paper = { linear = [10, 20.5] }
"""
NAMED = """
[ablations.target]
title = "target"
source = "table 2"
setting = "everything else"
values = ["a", "b"]
paper = { linear = [10, 20] }
cells = { a = "--target a" }
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.toml"
        path.write_text(text)
        return path

    return write


def test_a_longer_prefix_wins_over_a_shorter_one(written: Callable[[str], Path]) -> None:
    paper = papers.read(written(PUBLISHED))
    short = papers.recipe_of([paper], "mine", "image")
    assert short.sources == "Somebody"
    assert short.settings["lr"] == (Published(0.5, "table 1"),)
    assert short.settings["depth"] == (Published(3, "table 2"), Published(4, "code"))
    assert short.settings["kind of crop"] == (Published("any", "code", "none", {"flip": True}),)
    long = papers.recipe_of([paper], "mine", "imagenet-x")
    assert (long.sources, long.settings["lr"]) == ("Somebody", (Published((0.1, 1), "table 3"),))
    assert list(long.settings) == list(short.settings)
    for stage, preset in (("mine", "quick"), ("other", "imagenet-x")):
        assert papers.recipe_of([paper], stage, preset) == papers.Recipe()


def test_ablations_have_numbers_or_names(written: Callable[[str], Path]) -> None:
    found = papers.read(written(ABLATION + NAMED)).ablations
    assert list(found) == ["depth", "target"]
    assert found["depth"].values == (1, 2.5)
    assert found["depth"].paper == {"linear": (10, 20.5)}
    assert (found["target"].values, found["target"].cells) == (("a", "b"), {"a": "--target a"})


def test_no_file_is_an_empty_paper(tmp_path: Path) -> None:
    assert papers.read(tmp_path / "none.toml") == Paper()


@pytest.mark.parametrize(
    "text,old,new,named",
    [
        ("", "", "a = ", "TOML"),
        ("", "", "presets = {}", "'presets'"),
        ("", "", "published = 3", "'published'"),
        ("", "", "published = { mine = 3 }", "published.mine"),
        ("", "", "published = { mine = { im = 3 } }", "'im'"),
        (PUBLISHED, '"Somebody"', "7", "'sources'"),
        (PUBLISHED, '{ value = 0.5, source = "table 1" }', "0.5", "'lr'"),
        (PUBLISHED, '{ value = 0.5, source = "table 1" }', "[]", "'lr'"),
        (PUBLISHED, '{ value = 0.5, source = "table 1" }', "[0.5]", "'lr'"),
        (PUBLISHED, "value = 0.5", "valeu = 0.5", "'valeu'"),
        (PUBLISHED, "value = 0.5,", "", "'value'"),
        (PUBLISHED, "value = 0.5", "value = 2020-01-01", "'value'"),
        (PUBLISHED, "value = 0.5", "value = [{}]", "'value'"),
        (PUBLISHED, ', source = "table 1"', "", "'source'"),
        (PUBLISHED, 'source = "table 1"', "source = 1", "'source'"),
        (PUBLISHED, "unless = { flip = true }", 'unless = "flip"', "'unless'"),
        (ABLATION, "[ablations.depth]", "[[ablations.depth]]", "depth"),
        (ABLATION, 'title = "blocks"', "", "'title'"),
        (ABLATION, "values", "value", "'value'"),
        (ABLATION, 'flag = "--depth"', "", "'flag'"),
        (ABLATION, "paper = {", 'cells = { a = "--x" }\npaper = {', "'flag'"),
        (ABLATION, "[1, 2.5]", "[]", "'values'"),
        (ABLATION, "[1, 2.5]", '[1, "two"]', "'values'"),
        (ABLATION, "[1, 2.5]", "[1, true]", "'values'"),
        (ABLATION, "[1, 2.5]", "[1, nan]", "'values'"),
        (ABLATION, "[1, 2.5]", "[1, 1.0]", "'values'"),
        (ABLATION, "[10, 20.5]", "[10]", "'linear'"),
        (ABLATION, "[10, 20.5]", "20.5", "'linear'"),
        (ABLATION, "[10, 20.5]", "[10, 205]", "'linear'"),
        (ABLATION, "[10, 20.5]", "[10, nan]", "'linear'"),
        (ABLATION, 'source = "table 1"', 'source = "t"\nshare_of_patches = 1',
         "'share_of_patches'"),
        (NAMED, '["a", "b"]', '["a", 2]', "'values'"),
        (NAMED, '["a", "b"]', '["a", "a"]', "'values'"),
        (NAMED, "{ a = ", "{ c = ", "'c'"),
        (NAMED, '"--target a"', "false", "'a'"),
    ],
)  # fmt: skip
def test_a_malformed_table_gets_one_line(
    written: Callable[[str], Path], text: str, old: str, new: str, named: str
) -> None:
    path = written(text.replace(old, new, 1) if old else new)
    with pytest.raises(UserError, match=re.escape(named)) as error:
        papers.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "b.toml").mkdir()
    for name in "ab":
        with pytest.raises(UserError, match=rf"{name}\.toml"):
            papers.read(tmp_path / f"{name}.toml")


def test_each_of_our_files_is_about_known_stages_and_presets() -> None:
    """A misspelt stage or prefix would be shown nowhere."""
    evaluations = registry.discover("eval")
    plugins = [*registry.discover("method").values(), *evaluations.values()]
    owners = {plugin.paper_file: plugin for plugin in plugins if plugin.is_ours}
    files = list(papers.HERE.glob("*.toml"))
    assert len(files) >= 4
    for path in files:
        paper = papers.read(path)
        assert set(paper.published) <= {owners[path].name, *evaluations}, path
        for prefix in {each for stage in paper.published.values() for each in stage}:
            assert any(preset.startswith(prefix) for preset in registry.presets()), (path, prefix)
        assert owners[path].kind == "method" or not paper.ablations


@pytest.mark.parametrize(
    "method,name", [(plugin.name, name) for plugin in METHODS for name in plugin.ablations()]
)
def test_an_ablation_has_a_run_of_its_own_for_each_value(method: str, name: str) -> None:
    study = ablate.parse([name, "--method", method])
    assert study and len(study.cells) > 1
    configs = [cell.config.method_config for cell in study.cells]
    assert len({repr(config) for config in configs}) == len(configs)
    assert {cell.config.method.name for cell in study.cells} == {method}


def test_nothing_heavy_is_imported_for_them() -> None:
    code = (
        "import sys\nfrom ssl_bench import papers\n"
        "assert all(papers.read(path).published for path in papers.HERE.glob('*.toml'))\n"
        "heavy = {'torch', 'numpy', 'pandas', 'tyro'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestOfAPlugin:
    """A file beside that of somebody's own method."""

    @pytest.fixture
    def mine(self, tmp_path: Path) -> Path:
        return Path(shutil.copy(EXAMPLE_METHOD, tmp_path / "mine.py"))

    def stages(self, method: Path, *words: str) -> dict[str, recipe.Stage]:
        request = flags.parse_run(["--preset", "quick", "--method", str(method), *words], "recipe")
        return {stage.title.split(": ")[1]: stage for stage in recipe.stages(request)}

    def test_its_settings_and_those_of_its_evaluations_are_shown(self, mine: Path) -> None:
        words = ("--evals", "knn,finetune")
        plain = Path(shutil.copy(mine, mine.with_name("plain.py")))
        assert not any(stage.beside for stage in self.stages(plain, *words).values())
        mine.with_suffix(".paper.toml").write_text(
            '[published.mine.quick]\nsources = "Me"\nbase_lr = { value = 2, source = "table 1" }\n'
            '[published.knn.qui]\ntemperature = { value = 7, source = "table 2" }\n'
        )
        found = self.stages(mine, *words)
        assert [found[name].beside for name in ("mine", "knn", "finetune")] == ["quick"] * 2 + [""]
        assert found["mine"].sources == "Me"
        for name, flag, expected in (
            ("mine", "base_lr", (("2", "table 1"),)),
            ("knn", "temperature", (("7", "table 2"),)),
        ):
            [row] = [row for row in found[name].rows if row.name == flag]
            assert row.published == expected

    @pytest.mark.parametrize(
        "text,named",
        [
            ('[published.fintune.quick]\nepochs = { value = 1, source = "x" }\n', "'fintune'"),
            ('[published.mine.quick]\nbase-lr = { value = 1, source = "x" }\n', "'base-lr'"),
            ('[published.mine.quick]\n"a b" = { value = "c", source = "x", unless = { d = 1 } }\n',
             "'d'"),
            ("[published.mine.quick]\nbase_lr = 1\n", "'base_lr'"),
        ],
    )  # fmt: skip
    def test_what_is_misspelt_gets_one_line(
        self, ssl_bench: Call, mine: Path, text: str, named: str
    ) -> None:
        mine.with_suffix(".paper.toml").write_text(text)
        code, _, err = ssl_bench("recipe", "quick", "--method", mine, "--evals", "knn")
        assert (code, err.count("\n")) == (2, 1), err
        assert named in err

    def test_its_ablations_are_offered(self, ssl_bench: Call, mine: Path) -> None:
        mine.with_suffix(".paper.toml").write_text(ABLATION)
        code, out, err = ssl_bench("ablate", "--help", "--method", mine)
        assert code == 0, err
        assert "blocks (table 1): 1, 2.5." in out
        assert "ablations of mine" in out and "mask-ratio" not in out

    def test_the_name_of_one_of_ours_does_not_bring_our_papers(self, tmp_path: Path) -> None:
        method, evaluation = tmp_path / "mae.py", tmp_path / "finetune.py"
        shutil.copy(EXAMPLE_METHOD, method)
        shutil.copy(registry.find("eval", "finetune").path, evaluation)
        copy, theirs = registry.find("method", str(method)), registry.find("eval", str(evaluation))
        mae = registry.find("method", "mae")
        assert not copy.ablations() and mae.ablations()
        assert not published(copy, "imagenet-mae-vitb", copy).settings
        assert not published(theirs, "imagenet-mae-vitb", mae).settings
        assert published(registry.find("eval", "finetune"), "imagenet-mae-vitb", mae).settings
