"""Standard output and error: closed, full, or in an encoding that lacks what is written."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench import cli
from ssl_bench.cli.commands import list as list_command
from ssl_bench.utils import streams
from ssl_bench.utils.streams import Stream

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
FULL = (errno.ENOSPC, errno.EDQUOT)
HELP = [sys.executable, "-m", "ssl_bench", "list", "methods"]


class Broken(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, number: int, on_flush: bool) -> None:
        super().__init__()
        self.number, self.on_flush = number, on_flush

    def _fail(self) -> NoReturn:
        raise OSError(self.number, os.strerror(self.number))

    def write(self, text: str) -> int:
        return super().write(text) if self.on_flush else self._fail()

    def flush(self) -> None:
        self._fail()


@pytest.mark.parametrize("on_flush", [False, True])
@pytest.mark.parametrize(("number", "code"), [*((n, 0) for n in GONE), *((n, 2) for n in FULL)])
def test_a_command_goes_on_without_output(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
    on_flush: bool,
) -> None:
    """Its work is done; what somebody wanted to keep and is lost is told."""
    done = []

    def work(words: Any) -> None:
        for _ in range(3):
            print("something", flush=True)
        done.append(True)

    broken = Broken(number, on_flush)
    monkeypatch.setattr(list_command, "show", work)
    monkeypatch.setattr(sys, "stdout", broken)
    assert cli.main(["list"]) == code
    assert done
    assert sys.stdout is broken
    err = capsys.readouterr().err
    assert err.count("\n") == bool(code)
    assert (os.strerror(number) in err) == bool(code)


def test_the_exit_code_of_the_work_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(words: Any) -> int:
        print("something")
        return 7

    monkeypatch.setattr(list_command, "show", work)
    for number in (errno.EPIPE, errno.ENOSPC):
        monkeypatch.setattr(sys, "stdout", Broken(number, on_flush=True))
        assert cli.main(["list"]) == 7
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", Broken(errno.EIO, on_flush=False))
    assert cli.main(["list"]) == 7
    assert cli.main(["lits"]) == 2


@given(text=st.text(), encoding=st.sampled_from(["ascii", "latin-1", "utf-8", "cp1252", "gb2312"]))
def test_any_text_can_be_written_in_any_encoding(text: str, encoding: str) -> None:
    """Also a file's name that is no UTF-8, which Python hands over as half a character."""
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding=encoding, newline=""))
    for part in (text, "\udcff", "0.5 ± 0.1"):
        stream.write(part)
    stream.flush()
    assert stream.lost is None
    written = raw.getvalue().decode(encoding)
    assert written.endswith("0.1")
    try:
        assert written.startswith(text.encode(encoding).decode(encoding))
    except UnicodeEncodeError:
        assert "?" in written
    if encoding == "ascii":
        assert written.endswith("0.5 +- 0.1")


def call(command: list[str], redirection: str, **environment: str) -> tuple[int, bytes, bytes]:
    """A command in a shell, with its output redirected."""
    words = " ".join(f"'{word}'" for word in command)
    found = subprocess.run(
        ["sh", "-c", f"{words} {redirection}"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        check=False,
    )
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), (">&- 2>&- <&-", 0), ("| true; exit $?", 0), (">/dev/full", 2)],
)
def test_output_that_goes_nowhere(redirection: str, code: int) -> None:
    found, out, err = call(HELP, redirection)
    assert found == code, err
    assert out == b""
    assert err.count(b"\n") == (code == 2)


def test_a_file_does_not_take_the_place_of_a_closed_output(tmp_path: Path) -> None:
    """The next file that is opened would have its number, and get what is written to it."""
    path = tmp_path / "file"
    program = (
        "import os, sys\nfrom ssl_bench.utils import streams\n"
        "with streams.lenient():\n"
        f"    with open({str(path)!r}, 'w') as file:\n"
        "        os.system('echo to the output')\n"
        "        assert file.fileno() > 2\n"
    )
    code, _, err = call([sys.executable, "-c", program.replace("'", '"')], ">&- <&-")
    assert code == 0, err
    assert path.read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_is_not_utf8(
    run_and_compare: Callable[..., tuple[int, bytes, bytes]], encoding: str
) -> None:
    code, out, err = run_and_compare(
        PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C", PYTHONCOERCECLOCALE="0"
    )
    assert code == 0, err
    assert "interval" in out.decode(encoding)
    assert ("±" if encoding == "latin-1" else "+-") in out.decode(encoding)


@pytest.fixture
def run_and_compare(tmp_path: Path) -> Callable[..., tuple[int, bytes, bytes]]:
    """``compare`` on two seeds of a run, by hand, on data of an odd name."""
    import json

    for seed, score in enumerate((50.0, 52.0)):
        folder = tmp_path / "runs" / f"mae-{seed}"
        home = folder / "evals" / "knn-x"
        home.mkdir(parents=True)
        plan = {"method": "mae", "data": "sp ace 😀", "seed": seed, "epochs": 1}
        record = {"eval": "knn", "protocol": "x", "data": "sp ace 😀", "data_fingerprint": "f",
                  "test_images": 10, "seed": seed, "scores": {"top1": score}, "config": {},
                  "note": "", "precision": "fp32", "baselines": {}}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(plan))
        (folder / "encoder.json").write_text("{}")
        (home / "scores.json").write_text(json.dumps(record, ensure_ascii=False), "utf-8")

    def compare(**environment: str) -> tuple[int, bytes, bytes]:
        runs_dir = str(tmp_path / "runs")
        return call([*HELP[:3], "compare", "--runs-dir", runs_dir], "", **environment)

    return compare


def test_reason_is_for_what_somebody_wanted() -> None:
    stream = Stream(io.StringIO())
    assert streams.reason(stream) == ""
    for number in GONE:
        stream.lost = OSError(number, "gone")
        assert streams.reason(stream) == ""
    stream.lost = OSError(errno.ENOSPC, "full")
    assert streams.reason(stream) == "full"
