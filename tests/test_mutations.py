"""The table of mutations fits the code, and its runner tells what a test notices."""

from __future__ import annotations

import ast
import csv
import shutil
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
    told = (checkout / "out/README.md").read_text()
    assert "nobody calls it" in told
    assert "the rest" not in told, "nothing is left"
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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        (b"[[group", "is not TOML"),
        (b"\xff", "is not TOML"),
        (b"", "has no [[group]]"),
        (b"group = 3", "has no [[group]]"),
        (b"group = [3]", "group 1 has no file"),
        (b"[[group]]\nfile = 'sums.py'\nchanges = [['a', 'b']]", "group 1 has no tests"),
        (b"[[group]]\nfile = 'sums.py'\ntests = ['test_sums.py']", "group 1 has no changes"),
        (b"[[group]]\nfile = 'sums.py'\ntests = ['test_sums.py']\nchanges = 3", "no changes"),
        (b"[[group]]\nfile = 'sums.py'\ntests = [3]\nchanges = [['a', 'b']]", "[3] is no mutation"),
        (b"[[group]]\nfile = 'sums.py'\ntests = ['t']\nchanges = [['a']]", "['a'] with"),
        (b"[[group]]\nfile = 'sums.py'\ntests = ['t']\nchanges = [['a', 3]]", "['a', 3] with"),
        (b"[[group]]\nfile = 'sums.py'\ntests = ['t']\nchanges = ['ab']", "'ab' with"),
    ],
)
def test_a_table_that_is_none_is_told_in_one_line(
    text: bytes | None, told: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is None:
        (checkout / "table.toml").unlink()
    else:
        (checkout / "table.toml").write_bytes(text)
    assert run(checkout) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert "table.toml" in message and told in message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--only", "sum.py"), "unknown file 'sum.py'; did you mean 'sums.py'?"),
        (("--only", "sums", "elsewhere"), "unknown file 'elsewhere'; known: sums.py (see "),
        (("--minutes", "nan"), "--minutes nan is out of range; it must be finite and above 0"),
        (("--minutes", "-3"), "--minutes -3.0 is out of range; it must be above 0"),
        (("--minutes", "0"), "--minutes 0.0 is out of range"),
    ],
)
def test_words_that_mean_nothing_are_told_in_one_line(
    words: tuple[str, ...], told: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkout, *words) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {told}") and message.count("\n") == 1
    assert not (checkout / "out").exists()


def test_results_of_what_is_no_longer_in_the_table_are_dropped(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "_passes", lambda copy, tests, is_first=False: is_first)
    assert run(checkout) == 0
    table = checkout / "table.toml"
    table.write_text(table.read_text().replace("'a - b'", "'a * b'"))
    assert run(checkout, "--only", "sums") == 0
    rows = list(csv.DictReader((checkout / "out/mutations.csv").open()))
    assert sorted(row["new"] for row in rows) == ["a * b", "return 2"]
    told = (checkout / "out/README.md").read_text()
    assert "Of 2 small mutations" in told and "2 were tried" in told


def test_the_report_says_who_tries_what_is_left() -> None:
    mutations = mutate.load()[:2]
    row = {"result": "noticed"}
    assert "tries the rest" in mutate.report(mutations, {mutations[0].key: row})
    assert "the rest" not in mutate.report(mutations, {each.key: row for each in mutations})


def test_a_root_that_is_no_checkout_is_told_in_one_line(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(checkout / ".git")
    assert run(checkout) == 2
    message = capsys.readouterr().err
    assert "is no checkout" in message and message.count("\n") == 1
