"""``ssl-bench eval``: its arguments read, the work begun."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_bench.cli import flags
from ssl_bench.distributed import launcher
from ssl_bench.runs import run_folder
from ssl_bench.utils import imports


def evaluate(args: Sequence[str]) -> int:
    """``ssl-bench eval``, whose preset is the run's unless another is asked for: the exit code."""
    config = flags.parse_eval(args)
    settings = config.settings
    preset = run_folder.preset_of(settings.runs_dir, settings.target) if settings.target else None
    if preset:
        config = flags.parse_eval(args, preset)

    def work() -> None:
        with imports.kept():
            from ssl_bench.experiment import evaluating

        evaluating.evaluate(config)

    return launcher.on_devices(
        ["eval", *args], settings.devices, settings.nodes, work, note=run_folder.note_failure
    )
