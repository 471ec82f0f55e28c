"""The command line: ``ssl-bench COMMAND``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench import __version__
from ssl_bench.cli import argv
from ssl_bench.errors import ToldElsewhere, UserError, in_one_line, unknown
from ssl_bench.utils import signals, streams
from ssl_bench.utils.formatting import plain
from ssl_bench.utils.signals import Interrupted

if TYPE_CHECKING:
    from ssl_bench.experiment.run_config import RunConfig

# OpenMP threads that wait by spinning starve each other when two processes share the cores: each
# ran at a fortieth of its speed. Spinning less makes that a seventh (results/LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Figures are drawn into files. A notebook hands on its own backend, which matplotlib may not even
# find here, and would complain of when the first figure is drawn: after the pre-training.
os.environ["MPLBACKEND"] = "Agg"

_USAGE = """\
usage: ssl-bench COMMAND [FLAGS]

Which self-supervised method is better, on your data, under your budget?

commands:
  run         pre-train a method, evaluate it, show it beside its baselines
  ablate      vary what a paper varied, draw the curve beside the paper's
  sweep       run a grid or a search of many runs, here or as jobs on Slurm
  status      show how far a sweep is, live
  cancel      end the jobs of a sweep
  recipe      show a preset's every setting beside the paper's
  eval        evaluate a run, or a file of weights
  compare     show runs side by side
  show        show where a run's numbers come from
  rerun       train and evaluate a run again, and say whether it came out the same
  query       ask about all runs in SQL
  report      write a page with tables and figures of runs, and the files for a paper
  reconstruct hide patches of images, draw what a masked autoencoder makes of the rest
  export      write an encoder in the format of timm, MAE or transformers
  data        write a data set once as files that are read fast: data prepare SOURCE -o FOLDER
  list        methods, evaluations, data sets, backbones, presets
  completion  print shell completion for bash or zsh

`ssl-bench COMMAND --help` shows a command's flags, `ssl-bench --version` the version.

examples:
  ssl-bench run --method mae --mask-ratio 0.75
  ssl-bench run --method mocov3 --data cifar10 --preset small
  ssl-bench sweep --method mae,mocov3 --mask-ratio 0.5,0.75,0.9 --seed 0..4
  ssl-bench compare
  ssl-bench report -o report/
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    What it does is done to its end where nobody reads what it prints.

    Returns:
        The exit code: 0, 1 where a run did not come out the same again, 2 for a user's mistake, or
        where the output cannot be written, 130 when interrupted, 128 and the signal's number when
        stopped by SIGTERM, SIGUSR2 or SIGHUP.
    """
    words = list(sys.argv[1:] if words is None else words)
    with streams.lenient() as output:
        code = _heed(words)
        output.flush()
        why = streams.reason(output)
        if why:
            print(f"ssl-bench: the output cannot be written: {why}", file=sys.stderr)
        return code or (2 if why else 0)


def _heed(words: Sequence[str]) -> int:
    """Run a command, and tell why it ends where it ends early: the exit code."""
    try:
        with signals.raise_on_signal():
            return _do(words)
    except ToldElsewhere as elsewhere:
        return elsewhere.code
    except Exception as error:
        told = in_one_line(error)
        if told is None:
            raise
        print(told, file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        _say_ended("interrupted", words, str(error))
        return 130
    except Interrupted as error:
        _say_ended(f"stopped by {error.signal.name}", words, str(error))
        return 128 + error.signal


def _do(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
    elif words[0] == "--version":
        print(f"ssl-bench {__version__}")
    elif words[0] in _COMMANDS:
        return _COMMANDS[words[0]](words[1:]) or 0
    else:
        raise unknown("command", words[0], _COMMANDS)
    return 0


def _say_ended(how: str, words: Sequence[str], saved: str) -> None:
    """Tell how the program ended, what it saved, and what the same command would do."""
    goes_on = f"the same command goes on from {'there' if saved else 'the last checkpoint'}"
    parts = [how, saved, goes_on if set(words[:1]) & _RESUMING else ""]
    print(f"ssl-bench: {'; '.join(filter(None, parts))}", file=sys.stderr)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _run(words: Sequence[str]) -> int:
    from ssl_bench.cli import flags
    from ssl_bench.distributed import launcher

    config = _from_file(words) if argv.peek(words, "config") else flags.parse_run(words)

    def work() -> None:
        from ssl_bench.experiment import commands

        commands.run(config)

    settings = config.settings
    devices, nodes = settings.devices, settings.nodes
    return launcher.on_devices(["run", *words], devices, nodes, work, settings.strategy)


def _from_file(words: Sequence[str]) -> RunConfig:
    """The run of ``ssl-bench run --config FILE``."""
    from ssl_bench.cli import flags, trust
    from ssl_bench.config.settings import ConfigFileSettings
    from ssl_bench.experiment import run_config

    settings = flags.parse("run --config", ConfigFileSettings, words)

    def allow(files: Sequence[Path]) -> None:
        what = f"config {str(settings.config)!r} names"
        trust.ask(what, files, settings.config.parent, settings.trust)

    config = run_config.load(settings.config, allow)
    if not settings.wait:
        return config
    return replace(config, settings=replace(config.settings, wait=True))


def _ablate(words: Sequence[str]) -> None:
    from ssl_bench.cli.commands import ablate

    ablate.main(words)


def _sweep(words: Sequence[str]) -> None:
    if {"-h", "--help"} & set(words):
        from ssl_bench.cli.commands import sweep_help

        print(sweep_help.text(), end="")
        return
    from ssl_bench.cli.commands import sweep

    sweep.main(words)


def _status(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.sweep_settings import StatusSettings

    settings = flags.parse("status", StatusSettings, words)
    from ssl_bench.cli.commands import status

    status.status(settings)


def _cancel(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.sweep_settings import CancelSettings

    settings = flags.parse("cancel", CancelSettings, words)
    from ssl_bench.cli.commands import status

    status.cancel(settings)


def _recipe(words: Sequence[str]) -> None:
    from ssl_bench.cli.commands import recipe

    recipe.show(words)


def _eval(words: Sequence[str]) -> int:
    from ssl_bench.cli import flags
    from ssl_bench.distributed import launcher
    from ssl_bench.runs import run_folder

    config = flags.parse_eval(words)
    settings = config.settings
    preset = run_folder.preset_of(settings.runs_dir, settings.target) if settings.target else None
    if preset:
        config = flags.parse_eval(words, preset)

    def work() -> None:
        from ssl_bench.experiment import commands

        commands.evaluate(config)

    devices, nodes = config.settings.devices, config.settings.nodes
    return launcher.on_devices(["eval", *words], devices, nodes, work)


def _compare(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import CompareSettings

    settings = flags.parse("compare", CompareSettings, words)
    from ssl_bench.cli.commands import compare

    compare.compare(settings)


def _show(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import ShowSettings

    settings = flags.parse("show", ShowSettings, words)
    from ssl_bench.cli.commands import show

    show.show(settings)


def _rerun(words: Sequence[str]) -> int:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import RerunSettings

    settings = flags.parse("rerun", RerunSettings, words)
    from ssl_bench.cli.commands import rerun

    return 0 if rerun.rerun(settings) else 1


def _query(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import QuerySettings

    settings = flags.parse("query", QuerySettings, words)
    from ssl_bench.cli.commands import query

    query.query(settings)


def _report(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import ReportSettings

    settings = flags.parse("report", ReportSettings, words)
    from ssl_bench.analysis import report

    print("\n".join(map(plain, report.write(settings))))


def _reconstruct(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import ReconstructSettings

    settings = flags.parse("reconstruct", ReconstructSettings, words)
    from ssl_bench.cli.commands import reconstruct

    print(plain(reconstruct.reconstruct(settings)))


def _export(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import ExportSettings

    settings = flags.parse("export", ExportSettings, words)
    from ssl_bench.cli.commands import export

    export.export(settings)


def _data(words: Sequence[str]) -> None:
    from ssl_bench.cli import flags
    from ssl_bench.config.settings import PrepareSettings

    if words[:1] != ["prepare"] and not {"-h", "--help"} & set(words):
        raise UserError("say what to do with data: ssl-bench data prepare SOURCE -o FOLDER")
    settings = flags.parse("data prepare", PrepareSettings, words[1:] or words)
    from ssl_bench.experiment import commands

    commands.prepare(settings)


def _list(words: Sequence[str]) -> None:
    from ssl_bench.cli.commands import listing

    listing.show(words)


def _completion(words: Sequence[str]) -> None:
    from ssl_bench.cli import completion

    completion.show(words)


_RESUMING = {"run", "ablate", "eval", "rerun", "sweep"}

_COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "run": _run,
    "ablate": _ablate,
    "sweep": _sweep,
    "status": _status,
    "cancel": _cancel,
    "recipe": _recipe,
    "eval": _eval,
    "compare": _compare,
    "show": _show,
    "rerun": _rerun,
    "query": _query,
    "report": _report,
    "reconstruct": _reconstruct,
    "export": _export,
    "data": _data,
    "list": _list,
    "completion": _completion,
}
