"""The commands: the purpose, the settings and the function of each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ssl_bench.utils import imports

if TYPE_CHECKING:
    from ssl_bench.api.registry import Kind

_BOTH: tuple[Kind, ...] = ("method", "eval")


@dataclass(frozen=True)
class Command:
    """A command of ``ssl-bench``.

    Attributes:
        does: module and function in this package, which may give an exit code.
        settings: module and class in ``config`` whose fields are its flags.
        plugins: the kinds of plugins whose settings are flags, too.
        about: one line about a command whose function is given the arguments; that of any other is
            given its settings, whose docstring tells.
    """

    does: str
    settings: tuple[str, ...] = ()
    plugins: tuple[Kind, ...] = ()
    about: str = ""

    @property
    def classes(self) -> list[type]:
        """The dataclasses whose fields are its flags."""
        paths = (each.split(":") for each in self.settings)
        return [getattr(importlib.import_module(f"ssl_bench.config.{m}"), n) for m, n in paths]

    @property
    def takes_runs(self) -> bool:
        """Whether names of runs are given to it, without a flag."""
        names = {field.name for cls in self.classes for field in fields(cls)}
        return bool(names & {"target", "runs"})

    @property
    def purpose(self) -> str:
        """One line about it."""
        told = self.about or (self.classes[0].__doc__ or "").partition(".")[0]
        return told[0].lower() + told[1:]

    def run(self, name: str, args: Sequence[str]) -> int:
        """Run it and return the exit code."""
        given: Any = args
        if not self.about:
            from ssl_bench.cli import parser

            [cls] = self.classes
            given = parser.parse(name, cls, args)  # before what the command needs is imported
        module, _, function = self.does.partition(":")
        with imports.kept():
            does = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return does(given) or 0


RESUMING = {"run", "ablate", "eval", "rerun", "sweep"}
"""Those that resume what was interrupted when they are given again."""

COMMANDS = {
    "run": Command(
        *("run:run", ("settings:Settings",), _BOTH),
        about="pre-train a method, evaluate it, show it beside its baselines",
    ),
    "ablate": Command(
        *("ablate:ablate", ("command_settings:AblateSettings", "settings:Settings"), _BOTH),
        about="vary what a paper varied, draw the curve beside the paper's",
    ),
    "sweep": Command(
        "sweep_help:sweep",
        ("sweep_settings:SweepSettings", "sweep_settings:ClusterSettings", "settings:Settings"),
        _BOTH,
        about="run a grid or a search of many runs, here or as jobs on Slurm",
    ),
    "status": Command("status:status", ("sweep_settings:StatusSettings",)),
    "cancel": Command("cancel:cancel", ("sweep_settings:CancelSettings",)),
    "recipe": Command(
        *("recipe:recipe", ("settings:Settings",), _BOTH),
        about="show a preset's every setting beside the paper's",
    ),
    "eval": Command(
        *("eval:evaluate", ("settings:EvalSettings",), ("eval",)),
        about="evaluate a run, or a file of weights",
    ),
    "compare": Command("compare:compare", ("command_settings:CompareSettings",)),
    "show": Command("show:show", ("command_settings:ShowSettings",)),
    "rerun": Command("rerun:rerun", ("command_settings:RerunSettings",)),
    "query": Command("query:query", ("command_settings:QuerySettings",)),
    "report": Command("report:report", ("command_settings:ReportSettings",)),
    "reconstruct": Command("reconstruct:reconstruct", ("command_settings:ReconstructSettings",)),
    "export": Command("export:export", ("command_settings:ExportSettings",)),
    "data": Command(
        *("data:data", ("command_settings:PrepareSettings",)),
        about="write a data set once as files that are read fast: data prepare SOURCE -o FOLDER",
    ),
    "list": Command("list:show", about="methods, evaluations, data sets, backbones, presets"),
    "completion": Command("completion:show", about="print shell completion for bash or zsh"),
}
