"""``ssl-bench run``: its arguments read, the work begun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_bench.cli import argv, flags, parser
from ssl_bench.config.settings import ConfigFileSettings
from ssl_bench.distributed import launcher
from ssl_bench.errors import require
from ssl_bench.experiment import run_config
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.runs import run_folder
from ssl_bench.utils import imports


def run(args: Sequence[str]) -> int:
    """``ssl-bench run``: the exit code."""
    is_of_file = any(flag == "--config" for flag, *_ in argv.by_flag(args))
    config = _from_file(args) if is_of_file else flags.parse_run(args)

    def work() -> None:
        with imports.kept():
            from ssl_bench.experiment import running

        for line in running.run(config).conclusion:
            running.console.print(line)

    settings = config.settings
    return launcher.on_devices(
        *(["run", *args], settings.devices, settings.nodes, work, settings.strategy),
        run_folder.note_failure,
    )


def _from_file(args: Sequence[str]) -> RunConfig:
    from ssl_bench.cli import trust

    if not argv.HELP & set(args):
        argv.peek(args, "config")  # complains where it has no value
        known = parser.flags_of(ConfigFileSettings)
        for flag, *_ in argv.by_flag(args):
            require(
                not flag.startswith("--") or flag[2:].removeprefix("no-") in known,
                f"a config file describes the whole run: {flag} cannot go beside --config, only "
                "--wait and --trust can",
            )
    settings = parser.parse("run", ConfigFileSettings, args)

    def allow(files: Sequence[Path]) -> None:
        what = f"config {str(settings.config)!r} names"
        trust.ask(what, files, settings.config.parent, settings.trust)

    config = run_config.load(settings.config, allow)
    return config.with_values({"wait": True}) if settings.wait else config
