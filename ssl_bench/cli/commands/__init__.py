"""The commands: the purpose, the settings and the function of each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_bench.config import command_settings, sweep_settings
from ssl_bench.config.settings import EvalSettings, Settings

if TYPE_CHECKING:
    from ssl_bench.api.registry import Kind

_BOTH: tuple[Kind, ...] = ("method", "eval")


@dataclass(frozen=True)
class Command:
    """A command of ``ssl-bench``.

    Attributes:
        purpose: one line about it.
        does: module and function in this package, which may give an exit code.
        settings: the dataclasses whose fields are its flags.
        plugins: the kinds of plugins whose settings are flags, too.
        is_plain: whether the function is given the settings, or else the arguments.
    """

    purpose: str
    does: str
    settings: tuple[type, ...] = ()
    plugins: tuple[Kind, ...] = ()
    is_plain: bool = True

    def run(self, name: str, args: Sequence[str]) -> int:
        """Run it and return the exit code."""
        given: Any = args
        if self.is_plain:
            from ssl_bench.cli import parser

            [cls] = self.settings
            given = parser.parse(name, cls, args)  # before what the command needs is imported
        module, _, function = self.does.partition(":")
        does = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return does(given) or 0


RESUMING = {"run", "ablate", "eval", "rerun", "sweep"}
"""Those that resume what was interrupted when they are given again."""

COMMANDS = {
    "run": Command(
        "pre-train a method, evaluate it, show it beside its baselines",
        *("run:run", (Settings,), _BOTH, False),
    ),
    "ablate": Command(
        "vary what a paper varied, draw the curve beside the paper's",
        *("ablate:ablate", (command_settings.AblateSettings, Settings), _BOTH, False),
    ),
    "sweep": Command(
        "run a grid or a search of many runs, here or as jobs on Slurm",
        "sweep_help:sweep",
        (sweep_settings.SweepSettings, sweep_settings.ClusterSettings, Settings),
        *(_BOTH, False),
    ),
    "status": Command(
        "show how far a sweep is, live", "status:status", (sweep_settings.StatusSettings,)
    ),
    "cancel": Command("end the jobs of a sweep", "status:cancel", (sweep_settings.CancelSettings,)),
    "recipe": Command(
        "show a preset's every setting beside the paper's",
        *("recipe:recipe", (Settings,), _BOTH, False),
    ),
    "eval": Command(
        "evaluate a run, or a file of weights",
        *("run:evaluate", (EvalSettings,), ("eval",), False),
    ),
    "compare": Command(
        "show runs side by side", "compare:compare", (command_settings.CompareSettings,)
    ),
    "show": Command(
        "show where a run's numbers come from", "show:show", (command_settings.ShowSettings,)
    ),
    "rerun": Command(
        "train and evaluate a run again, and say whether it came out the same",
        *("rerun:rerun", (command_settings.RerunSettings,)),
    ),
    "query": Command("ask about all runs in SQL", "query:query", (command_settings.QuerySettings,)),
    "report": Command(
        "write a page with tables and figures of runs, and the files for a paper",
        *("compare:report", (command_settings.ReportSettings,)),
    ),
    "reconstruct": Command(
        "hide patches of images, draw what a masked autoencoder makes of the rest",
        *("reconstruct:reconstruct", (command_settings.ReconstructSettings,)),
    ),
    "export": Command(
        "write an encoder in the format of timm, MAE or transformers",
        *("export:export", (command_settings.ExportSettings,)),
    ),
    "data": Command(
        "write a data set once as files that are read fast: data prepare SOURCE -o FOLDER",
        *("run:data", (command_settings.PrepareSettings,), (), False),
    ),
    "list": Command(
        "methods, evaluations, data sets, backbones, presets", "list:show", is_plain=False
    ),
    "completion": Command(
        "print shell completion for bash or zsh", "completion:show", is_plain=False
    ),
}
