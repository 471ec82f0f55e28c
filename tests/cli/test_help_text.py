"""What ``--help`` shows of a long list of flags, and ``--help-all``."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers import METHODS
from helpers import named as of_name

from ssl_bench import cli
from ssl_bench.api.plugins import Plugin
from ssl_bench.cli import flags

_HEADING = re.compile(r"^(\w.*):$", re.MULTILINE)
_FLAG = re.compile(r"^  (?:-o, )?(--[\w\[\]-]+)", re.MULTILINE)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*args: str) -> str:
        try:
            code = cli.main(args)
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert code == 0
        return capsys.readouterr().out

    return call


def named(text: str) -> list[str]:
    """The flags that a help shows."""
    return [flag.replace("[no-]", "") for flag in _FLAG.findall(text)]


@pytest.mark.parametrize("plugin", METHODS, ids=of_name)
def test_twenty_flags_are_shown(plugin: Plugin, told: Callable[..., str]) -> None:
    shown = named(told("run", "--method", plugin.name, "--help"))
    assert len(shown) <= 20
    needed = {
        "--method",
        "--data",
        "--epochs",
        "--evals",
        "--seed",
        "--devices",
        "--match",
        "--log",
    }
    assert needed <= set(shown)


def test_a_methods_first_flags_are_shown(told: Callable[..., str]) -> None:
    assert "--mask-ratio" in named(told("run", "-h"))
    assert "--mask-ratio" not in named(told("run", "--method", "mocov3", "-h"))


@pytest.mark.parametrize("args", [[], ["--method", "mocov3"], ["--preset", "imagenet-mae-vitb"]])
def test_help_all_shows_every_flag_once(args: Sequence[str], told: Callable[..., str]) -> None:
    text = told("run", *args, "--help-all")
    assert sorted(named(text)) == sorted([*(f.option for f in flags.offer(args).flags), "--config"])
    headings = _HEADING.findall(text)
    own = ["method and encoder", "training", "data", "evaluation", "machine and files"]
    assert headings[:5] == own and "evaluation knn" in headings


def test_the_shorter_help_counts_what_it_leaves_out(told: Callable[..., str]) -> None:
    for command in ("run", "eval"):
        brief, whole = told(command, "--help"), told(command, "--help-all")
        [count] = re.findall(rf"`ssl-bench {command} --help-all` shows (\d+) more", brief)
        assert len(named(brief)) + int(count) == len(named(whole)) > 60
        assert "--help-all" not in whole
        assert len(brief.splitlines()) < 80


def test_defaults_are_those_of_the_preset(told: Callable[..., str]) -> None:
    text = told("run", "--preset", "small", "--help")
    assert "Default: 200." in text and "Default: vit_tiny_patch16_224." in text
    assert "Default: 0." in text  # the seed's: nothing is not no number


def test_lists_that_are_short_are_whole(told: Callable[..., str]) -> None:
    text = told("report", "--help")
    assert text == told("report", "--help-all")
    assert {"--title", "--output"} <= set(named(text))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_terminal(
    told: Callable[..., str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, told("run", "--help-all").splitlines())) <= min(columns, 100)


def test_help_is_fast(tmp_path: Path) -> None:
    """In seconds of the processor, or in what a few modules of Python's own take to be imported."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def cost(*args: str) -> float:
        """The least of some times, the first of which compiles what is imported."""
        times = []
        for _ in range(4):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, *args], check=True, capture_output=True, env=environment
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    bare = cost("-c", "import ast, dataclasses, difflib, importlib.metadata, json, typing")
    assert cost("-m", "ssl_bench", "run", "--help") < max(0.6, 6 * bare)
