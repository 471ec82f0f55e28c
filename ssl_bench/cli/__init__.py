"""The command line: ``ssl-bench COMMAND``.

Whatever a person can mend is raised as `UserError`, by any function here, and told in one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ssl_bench import __version__
from ssl_bench.cli.commands import COMMANDS, RESUMING
from ssl_bench.errors import ToldElsewhere, in_one_line, unknown
from ssl_bench.utils import signals, streams
from ssl_bench.utils.signals import Interrupted

# OpenMP threads that wait by spinning starve each other when two processes share the cores: each
# ran at a fortieth of its speed. Spinning less makes that a seventh (results/LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

_USAGE = """\
usage: ssl-bench COMMAND [FLAGS]

Which self-supervised method is better, on your data, under your budget?

commands:
{commands}

`ssl-bench COMMAND --help` shows a command's flags, `ssl-bench --version` the version.

examples:
  ssl-bench run --method mae --mask-ratio 0.75
  ssl-bench run --method mocov3 --data cifar10 --preset small
  ssl-bench sweep --method mae,mocov3 --mask-ratio 0.5,0.75,0.9 --seed 0..4
  ssl-bench compare
  ssl-bench report -o report/
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    It is done to its end even where nobody reads what it prints.

    Returns:
        The exit code: 0, 1 where a run did not come out the same again, 2 for a user's mistake, or
        where the output cannot be written, 130 when interrupted, 128 and the signal's number when
        stopped by SIGTERM, SIGUSR2 or SIGHUP.
    """
    args = list(sys.argv[1:] if args is None else args)
    # Figures are drawn into files. A notebook hands on its own backend, which matplotlib may not
    # even find here, and would complain of when the first figure is drawn: after the pre-training.
    os.environ["MPLBACKEND"] = "Agg"
    with streams.lenient() as output:
        code = _told(args)
        output.flush()
        why = streams.reason(output)
        if why:
            print(f"ssl-bench: the output cannot be written: {why}", file=sys.stderr)
        return code or (2 if why else 0)


def _told(args: Sequence[str]) -> int:
    """Run a command, and tell why where it ends early: the exit code."""
    try:
        with signals.raise_on_signal():
            return _do(args)
    except ToldElsewhere as elsewhere:
        return elsewhere.code
    except Exception as error:
        told = in_one_line(error)
        if told is None:
            raise
        print(told, file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        _say_ended("interrupted", args, str(error))
        return 130
    except Interrupted as error:
        _say_ended(f"stopped by {error.signal.name}", args, str(error))
        return 128 + error.signal


def _do(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<11} {command.purpose}" for name, command in COMMANDS.items())
        print(_USAGE.format(commands="\n".join(lines)), end="")
    elif args[0] == "--version":
        print(f"ssl-bench {__version__}")
    elif args[0] in COMMANDS:
        return COMMANDS[args[0]].run(args[0], args[1:])
    else:
        raise unknown("command", args[0], COMMANDS)
    return 0


def _say_ended(how: str, args: Sequence[str], saved: str) -> None:
    """Tell how the program ended, what it saved, and what the same command would do."""
    parts = [how, saved]
    if RESUMING & set(args[:1]):
        parts.append(f"the same command resumes from {'there' if saved else 'the last checkpoint'}")
    print(f"ssl-bench: {'; '.join(filter(None, parts))}", file=sys.stderr)


def entry() -> None:
    """The console script."""
    sys.exit(main())
