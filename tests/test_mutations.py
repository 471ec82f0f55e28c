"""The table of mutations fits the code, and its runner tells what a test notices."""

from __future__ import annotations

import ast
import csv
import subprocess
from pathlib import Path

import pytest

from benchmarks import mutate


def test_each_mutation_is_one_place_of_a_file_and_can_be_compiled() -> None:
    mutations = mutate.load()
    assert len(mutations) >= 300
    for mutation in mutations:
        ast.parse(mutation.applied(mutate.ROOT))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a module, a test of a half of it, and a table of mutations."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "sums.py").write_text("def add(a, b):\n    return a + b\n\ndef idle():\n    return 1\n")
    (root / "test_sums.py").write_text(
        "import sums\n\ndef test_add():\n    assert sums.add(2, 3) == 5\n"
    )
    (root / "table.toml").write_text(
        "[[group]]\nfile = 'sums.py'\ntests = ['test_sums.py']\n"
        "changes = [['a + b', 'a - b'], ['return 1', 'return 2', 'nobody calls it']]\n"
    )
    subprocess.run(["git", "init", "-q", root], check=True)
    return root


def run(root: Path, *words: str) -> int:
    own = ("--root", str(root), "--table", str(root / "table.toml"), "--output", str(root / "out"))
    return mutate.main([*own, *words])


def test_what_tests_notice_is_told_and_not_tried_again(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "_PRELOADED", ())
    before = (checkout / "sums.py").read_bytes()
    assert run(checkout) == 0
    rows = list(csv.DictReader((checkout / "out/mutations.csv").open()))
    assert [row["result"] for row in rows] == ["noticed", "survived"]
    assert "nobody calls it" in (checkout / "out/README.md").read_text()
    assert (checkout / "sums.py").read_bytes() == before
    monkeypatch.setattr(mutate, "_passes", None)
    assert run(checkout) == 0


@pytest.mark.parametrize(
    "old,new",
    [("a + b", "a * c"), ("a + b", "return"), ("'a - b'", "'a + b'"), ("sums.py", "x.py")],
)
def test_a_table_that_does_not_fit_the_code_is_an_error(
    old: str, new: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = checkout / "table.toml"
    table.write_text(table.read_text().replace(old, new, 1))
    assert run(checkout) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (checkout / "out").exists()
