"""What README and documentation show is what is there."""

from __future__ import annotations

import re

import pytest
from docs_text import PAGES, ROOT, text_of
from rich.console import Console

from ssl_bench.analysis import comparison, tables
from ssl_bench.runs import index
from ssl_bench.utils.files import load_json


@pytest.fixture(scope="module")
def shown() -> str:
    return text_of("")


def test_every_package_has_a_line_in_the_tree(shown: str) -> None:
    listed = re.findall(r"^  (\w+)/ ", shown, flags=re.MULTILINE)
    packages = [path.parent.name for path in (ROOT / "ssl_bench").glob("[!me]*/__init__.py")]
    packages += ["evaluation", "experiment", "models"]
    assert sorted(listed) == sorted(packages)


def test_numbers_are_those_of_the_committed_runs() -> None:
    """Each score of a first run stands in a stored record, baselines and gains included."""
    records = [load_json(path) for path in ROOT.glob("results/quickstart/*/evals/*/scores.json")]
    first = text_of("README.md") + text_of("docs/tutorial.md").partition("## Your data")[0]
    rows = re.findall(r"^│ (finetune|knn|linear) +│ +(\S+) │(.*)│$", first, flags=re.MULTILINE)
    assert len(rows) == 6
    for name, score, others in rows:
        gains = re.findall(r"([\d.]+) \(([+-][\d.]+)\)", others)
        assert any(
            f"{record['scores']['top1']:.2f}" == score
            and {(f"{b['top1']:.2f}", f"{record['scores']['top1'] - b['top1']:+.2f}")
                 for b in record["baselines"].values()} == set(gains)
            for record in records
            if record["eval"] == name
        ), name  # fmt: skip


def test_the_comparisons_are_those_of_the_committed_runs() -> None:
    """Each row of scores, as ``ssl-bench compare`` prints it."""
    printed = set[str]()
    images = ("fashion-mnist", "fashion-mnist-finetuned", "presets")
    for folder in (*images, "fashion-motions", "fashion-captions"):
        # Trials are on data of another name.
        patterns = ["*-fashion-mnist-seed*"] if folder in images else []
        compared = comparison.compare(index.load(ROOT / "results" / folder, patterns))
        console = Console(width=84, markup=False)
        with console.capture() as capture:
            for table in tables.as_rich(compared, console.width):
                console.print(table)
        printed |= {" ".join(line.split()) for line in capture.get().splitlines()}
    of_results = text_of("README.md") + text_of("docs/results.md")
    rows = [
        row
        for row in re.findall(r"^│ .*\d.* │$", of_results, re.MULTILINE)
        if row.split()[1] not in ("finetune", "knn", "linear")  # of a first run
    ]
    tuned, finetuned, presets = 17 + 1, 2 + 3, (4 + 2) + (4 + 2)
    clips, captions = 2 + 2, (3 + 2) + (3 + 2) + 3 + (3 + 1) + 3
    assert len(set(rows)) == tuned + finetuned + presets + clips + captions
    assert all(" ".join(row.split()) in printed for row in rows)


def test_budgets_are_those_of_the_committed_runs() -> None:
    [table] = comparison.compare(index.load(ROOT / "results/fashion-mnist-budgets", [])).tables
    section = text_of("docs/results.md").partition("## Under several budgets")[2].partition("##")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    assert [method for method, _ in rows] == ["mae", "mocov3", "dino", "supervised"]
    for method, cells in rows:
        groups = [g for g in table.groups if g.method == method and not g.is_baseline]
        groups.sort(key=lambda group: group.costs["flops"] or 0.0)
        assert [round((group.costs["flops"] or 0.0) / 1.25e12) for group in groups] == [1, 4, 16]
        means = [
            table.cells[group.key, column.key].mean
            for column in table.columns
            if column.is_headline
            for group in groups
        ]
        assert cells.split(" | ") == [f"{m.mean:.1f} ± {m.half_width:.1f}" for m in means]


def test_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
