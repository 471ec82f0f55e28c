"""The command line: ``ssl-bench COMMAND``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from ssl_bench import __version__
from ssl_bench.errors import UserError, unknown

# OpenMP threads that wait by spinning starve each other when two processes share the cores: each
# ran at a fortieth of its speed. Spinning less makes that a seventh (results/LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

_USAGE = """\
usage: ssl-bench COMMAND [FLAGS]

Which self-supervised method is better, on your data, under your budget?

commands:
  run         pre-train a method, evaluate it, show it beside its baselines
  eval        evaluate a run, or a file of weights
  compare     show runs side by side
  list        methods, evaluations, data sets, backbones, presets
  completion  print shell completion for bash or zsh

`ssl-bench COMMAND --help` shows a command's flags, `ssl-bench --version` the version.

examples:
  ssl-bench run --method mae --mask-ratio 0.75
  ssl-bench run --method mocov3 --data cifar10 --preset small
  ssl-bench compare
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(_USAGE, end="")
        elif words[0] == "--version":
            print(f"ssl-bench {__version__}")
        elif words[0] in _COMMANDS:
            _COMMANDS[words[0]](words[1:])
        else:
            raise unknown("command", words[0], _COMMANDS)
    except UserError as error:
        print(f"ssl-bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f" {error.filename!r}" if error.filename else ""
        print(f"ssl-bench: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print("ssl-bench: out of GPU memory; a smaller --batch-size may fit", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "ssl-bench: interrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    return 0


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _run(words: Sequence[str]) -> None:
    from ssl_bench import flags

    request = flags.parse_run(words)
    from ssl_bench import commands

    commands.run(request)


def _eval(words: Sequence[str]) -> None:
    from ssl_bench import flags, runs

    request = flags.parse_eval(words)
    preset = runs.preset_of(request.settings.runs_dir, request.settings.target)
    if preset:
        request = flags.parse_eval(words, preset)
    from ssl_bench import commands

    commands.evaluate(request)


def _compare(words: Sequence[str]) -> None:
    from ssl_bench import flags
    from ssl_bench.settings import CompareSettings

    settings = flags.parse("compare", CompareSettings, words)
    from ssl_bench import commands

    commands.compare(settings)


def _list(words: Sequence[str]) -> None:
    from ssl_bench import listing

    listing.show(words)


def _completion(words: Sequence[str]) -> None:
    from ssl_bench import completion

    completion.show(words)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": _run,
    "eval": _eval,
    "compare": _compare,
    "list": _list,
    "completion": _completion,
}
