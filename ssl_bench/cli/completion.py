"""``ssl-bench completion SHELL``: a script that completes commands, flags and names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from ssl_bench import data
from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.config.presets import BACKBONES
from ssl_bench.config.settings import (
    AblateSettings,
    CompareSettings,
    EvalSettings,
    ExportSettings,
    PrepareSettings,
    QuerySettings,
    ReconstructSettings,
    ReportSettings,
    RerunSettings,
    Settings,
    ShowSettings,
)
from ssl_bench.config.sweep_settings import (
    CancelSettings,
    ClusterSettings,
    StatusSettings,
    SweepSettings,
)
from ssl_bench.errors import require, unknown

_SHELLS = ("bash", "zsh")


@dataclass(frozen=True)
class _Nothing:
    """A command without flags."""


@dataclass(frozen=True)
class _Ablate(AblateSettings, Settings):
    """The flags of ``ssl-bench ablate``, those of a run among them."""

    ablation: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Sweep(ClusterSettings, SweepSettings, Settings):
    """The flags of ``ssl-bench sweep``, those of a run among them."""


@dataclass(frozen=True, kw_only=True)
class _Data(PrepareSettings):
    """The flags of ``ssl-bench data prepare``."""

    action: Literal["prepare"] = "prepare"


def show(words: Sequence[str]) -> None:
    """Print the completion script of a shell.

    Raises:
        UserError: there is no such shell.
    """
    require(len(words) == 1, f"say which shell: ssl-bench completion {'|'.join(_SHELLS)}")
    if words[0] not in _SHELLS:
        raise unknown("shell", words[0], _SHELLS)
    names: dict[str, Iterable[str]] = {
        "method": registry.discover("method"),
        "evals": registry.discover("eval"),
        "data": data.names(),
        "eval_data": data.names(),
        "backbone": BACKBONES,
        "preset": registry.presets(),
    }
    choices: dict[str, Any] = {flag: Literal[tuple(known)] | None for flag, known in names.items()}
    choices["evals"] = tuple[Literal[tuple(names["evals"])], ...]  # type: ignore[misc]
    ablations = dict.fromkeys(
        name for plugin in registry.discover("method").values() for name in plugin.ablations()
    )
    choices["ablation"] = tyro.conf.Positional[Literal[tuple(ablations)] | None]  # type: ignore[misc]
    choices["action"] = tyro.conf.Positional[Literal["prepare"]]  # type: ignore[misc]
    commands: dict[str, type] = {
        "run": flags.every_flag("run", Settings, ["method", "eval"], choices),
        "ablate": flags.every_flag("ablate", _Ablate, ["method", "eval"], choices),
        "sweep": flags.every_flag("sweep", _Sweep, ["method", "eval"], choices),
        "status": flags.every_flag("status", StatusSettings, [], choices),
        "cancel": flags.every_flag("cancel", CancelSettings, [], choices),
        "recipe": flags.every_flag("recipe", Settings, ["method", "eval"], choices),
        "eval": flags.every_flag("eval", EvalSettings, ["eval"], choices),
        "compare": flags.every_flag("compare", CompareSettings, [], choices),
        "show": flags.every_flag("show", ShowSettings, [], choices),
        "rerun": flags.every_flag("rerun", RerunSettings, [], choices),
        "query": flags.every_flag("query", QuerySettings, [], choices),
        "report": flags.every_flag("report", ReportSettings, [], choices),
        "reconstruct": flags.every_flag("reconstruct", ReconstructSettings, [], choices),
        "export": flags.every_flag("export", ExportSettings, [], choices),
        "data": flags.every_flag("data", _Data, [], choices),
        "list": flags.every_flag("list", _Nothing, [], {}),
        "completion": flags.every_flag("completion", _Nothing, [], {}),
    }
    union: Any = Union[  # noqa: UP007  built from a variable number of types
        tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in commands.items())
    ]
    tyro.cli(union, prog="ssl-bench", args=["--tyro-print-completion", words[0]])
