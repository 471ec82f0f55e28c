"""The pages that are made of files, and the site as a whole."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from docs_text import PAGES, ROOT
from helpers import EVALS, METHODS, named

from ssl_bench.api.plugins import Plugin
from ssl_bench.cli.commands.list import COSTS
from ssl_bench.utils.files import load_json


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_hooks"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("plugin", METHODS + EVALS, ids=named)
def test_a_page_tells_every_flag_and_preset(plugin: Plugin, hooks: ModuleType) -> None:
    folder = "methods" if plugin.kind == "method" else "evaluations"
    page = hooks.pages()[f"{folder}/{plugin.name}.md"]
    prefix = f"--{plugin.name}-" if plugin.kind == "eval" else "--"
    for field in dataclasses.fields(plugin.config):
        assert f"| `{prefix}{field.name.replace('_', '-')}` |" in page
    assert all(f"| `{preset}` |" in page for preset in plugin.presets())
    assert page.startswith(f"# {plugin.summary.partition(':')[0]}\n")


def test_the_table_of_methods_is_what_they_declare(hooks: ModuleType) -> None:
    costs = json.loads(COSTS.read_text())
    rows = re.findall(
        r"^\| \[`([\w-]+)`\]\(\1\.md\) \| (.*) \| (.*) \| ([\d.]+) \|$",
        hooks.pages()["methods/index.md"],
        re.MULTILINE,
    )
    assert rows == [
        (
            plugin.name,
            plugin.declared.paper or "-",
            ", ".join(plugin.declared.needs) or "-",
            f"{costs[plugin.name] / costs['mae']:.1f}",
        )
        for plugin in METHODS
    ]


def test_results_are_those_of_the_committed_runs(hooks: ModuleType) -> None:
    """A single seed's score as it is stored, and a baseline's five seeds counted once each."""
    [path] = ROOT.glob("results/quickstart/mae-*/evals/knn-*/scores.json")
    top = load_json(path)["scores"]["top1"]
    page = hooks.pages()["evaluations/knn.md"]
    assert f"| `quickstart` | `mae` | {top:.2f} |" in page
    assert re.search(r"^\| `fashion-mnist` \| `mae` \| [\d.]+ ± [\d.]+ \(n=5\) \|$", page, re.M)
    own = hooks.pages()["methods/mae.md"]
    [baseline] = re.findall(r"^\| `fashion-mnist` \| \*raw pixels\* \|.*$", own, re.M)
    assert set(re.findall(r"n=(\d+)", baseline)) == {"5"}
    of_images, of_text = (hooks.pages()[f"methods/{name}.md"] for name in ("albef", "bert"))
    assert "### On fashion-captions, its text alone" in of_text
    assert "### On fashion-captions" in of_images and "its text alone" not in of_images


def test_a_link_to_a_file_leads_to_its_copy(hooks: ModuleType) -> None:
    linked: dict[str, Path] = {}
    text = (
        "![a](../results/LOG.md) [b](own-method.md#x) [c](../CITATION.cff) [d](../methods) [e](#f)"
    )
    moved = hooks.relocated(text, "guide.md", linked)
    assert moved == "![a](log.md) [b](own-method.md#x) [c](files/CITATION.cff) d [e](#f)"
    assert linked == {"files/CITATION.cff": ROOT / "CITATION.cff"}
    assert hooks.relocated("[a](docs/clusters.md)", "index.md", {}) == "[a](clusters.md)"
    assert hooks.relocated("[a](../data.md)", "methods/mae.md", {}) == "[a](../data.md)"


def test_every_file_that_is_linked_is_there() -> None:
    generated = re.compile(r"^(methods|evaluations)/|^(gallery|changelog|contributing|log)\.md$")
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = target.partition("#")[0]
            if path and "://" not in target and not generated.match(path):
                assert (page.parent / path).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    named_there = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(named_there)


def test_the_site_is_built(tmp_path: Path) -> None:
    """As ``make docs`` does it, where MkDocs is there: a broken link ends it."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    code = (
        "import sys\nfrom mkdocs.__main__ import cli\n"
        "try: cli(sys.argv[1:])\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
    )
    command = [sys.executable, "-c", code, "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert 'href="methods/mae.html"' in home
    assert not re.search(r"""(src|href)="?https?://(?!\w*\.?(github|keepachangelog))""", home)
