"""The flags of ``ssl-bench run`` and ``eval``: from arguments to a config.

The flags of a run are the fields of `Settings`, of the method's ``Config``, and of each
evaluation's ``Config`` under the evaluation's name: ``--epochs``, ``--mask-ratio``,
``--finetune-epochs``. Their defaults come from the preset. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_bench.api import registry
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import complaints
from ssl_bench.cli.argv import HELP, by_flag, peek
from ssl_bench.cli.parser import Flag, flags_with, values_of
from ssl_bench.config.presets import PRESETS, shared_defaults
from ssl_bench.config.settings import BUDGETS, ConfigFileSettings, EvalSettings, Settings
from ssl_bench.errors import UserError, require, unknown
from ssl_bench.experiment.run_config import EvalConfig, RunConfig, evaluations, flag_prefix


def parse_run(args: Sequence[str], command: str = "run") -> RunConfig:
    """The config of ``ssl-bench run``, or of a command that takes the same flags.

    A preset that methods alone define picks the first of these, where no method is named.
    """
    method = method_of(args)
    refuse_two_lengths([n for n in ("epochs", *BUDGETS) if peek(args, n.replace("_", "-"))])
    offered = _offer(args, Settings, method, Settings.preset)
    about = (
        f"Pre-train {method.name}, evaluate it, show it beside its baselines. {method.summary} "
        "`ssl-bench run --config FILE` runs what a run's config.json, or a file like it, describes."
    )
    shown = list(offered.flags)
    if command == "run" and HELP & set(args):  # with it, another parser reads the flags
        of_file = flags_with(ConfigFileSettings, "", {"config": None})
        shown += [flag for flag in of_file if flag.name == "config"]
    config = offered.run_config(values_of(command, shown, args, about, offered.everyone))
    if command == "run":
        refuse_idle(offered, args)
    return config


def offer(args: Sequence[str]) -> Offer:
    """What ``ssl-bench run`` takes with these arguments."""
    return _offer(args, Settings, method_of(args), Settings.preset)


def method_of(args: Sequence[str]) -> Plugin:
    """The method that ``ssl-bench run`` takes with these arguments."""
    [preset, *_] = peek(args, "preset") or [Settings.preset]
    owners = [] if preset in PRESETS else _owners(preset)
    [name, *_] = peek(args, "method") or [*owners, Settings.method]
    method = registry.find("method", name)
    require(
        not owners or preset in method.presets(),
        f"--preset {preset!r} belongs to another method than {method.name!r}; "
        f"--method {' or '.join(owners)} would work",
    )
    return method


def parse_eval(args: Sequence[str], preset: str = EvalSettings.preset) -> EvalConfig:
    """The config of ``ssl-bench eval``, whose defaults are those of a preset."""
    offered = _offer(args, EvalSettings, None, preset)
    about = "Evaluate a run, or a file of weights."
    values = values_of("eval", offered.flags, args, about, offered.everyone)
    refuse_idle(offered, args)
    return EvalConfig(EvalSettings(**_of(EvalSettings, values)), _evals(offered.chosen, values))


@dataclass(frozen=True)
class Offer:
    """The flags of a command line, whatever is given for most of them.

    Attributes:
        chosen, on_the_way: evaluations.
        everyone: every plugin that has flags here.
        idle: the evaluation that has a flag and is not run, by the flag's name.
    """

    method: Plugin | None
    chosen: Sequence[Plugin]
    on_the_way: Sequence[Plugin]
    everyone: Sequence[Plugin]
    flags: Sequence[Flag]
    idle: Mapping[str, Plugin]

    def run_config(self, values: Mapping[str, Any]) -> RunConfig:
        """The run that a value for each flag makes."""
        assert self.method
        return RunConfig(
            settings=Settings(**_of(Settings, values)),
            method=self.method,
            method_config=self.method.checked_config(_of(self.method.config, values)),
            evals=_evals(self.chosen, values),
            evals_on_the_way=_evals(self.on_the_way, values),
        )


def _of(cls: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {f.name: values[prefix + f.name] for f in dataclasses.fields(cls)}


def _evals(plugins: Iterable[Plugin], values: Mapping[str, Any]) -> dict[Plugin, Any]:
    return {p: p.checked_config(_of(p.config, values, flag_prefix(p))) for p in plugins}


def _offer(args: Sequence[str], base: type, method: Plugin | None, preset: str) -> Offer:
    [preset, *_] = peek(args, "preset") or [preset]
    sources = [method] if method else [registry.find("method", name) for name in _owners(preset)]
    preset_evals = sources[0].presets().get(preset, {}).get("evals", ()) if sources else ()
    chosen = evaluations(peek(args, "evals") or preset_evals)
    names = peek(args, "eval-every-with") or Settings.eval_every_with
    on_the_way = [registry.find("eval", name) for name in names] if method else []
    offered = list(dict.fromkeys([*chosen, *on_the_way, *registry.discover("eval").values()]))
    everyone = [plugin for plugin in (method, *offered) if plugin]
    known = {*PRESETS, *(name for plugin in (*sources, *everyone) for name in plugin.presets())}
    if preset not in known:
        raise unknown("preset", preset, known)
    own = {plugin: plugin.presets().get(preset, {}) for plugin in everyone}
    shared = shared_defaults(preset, own[method] if method else {})
    if method:
        shared["method"] = method.name

    flags = flags_with(base, "", shared | {"preset": preset})
    if method:
        flags += flags_with(method.config, "", own[method])
    for plugin in offered:
        flags += flags_with(plugin.config, flag_prefix(plugin), own[plugin])
    _refuse_twins(flags, everyone)
    is_run = {*chosen, *(on_the_way if peek(args, "eval-every") else ())}
    owners = {plugin.config: plugin for plugin in offered if plugin not in is_run}
    idle = {flag.name: owners[flag.owner] for flag in flags if flag.owner in owners}
    return Offer(method, chosen, on_the_way, everyone, flags, idle)


def refuse_idle(offered: Offer, args: Sequence[str]) -> None:
    """Complain about flags of evaluations that are not run, of which nothing would come."""
    names = {
        f: f.removeprefix("--").removeprefix("no-").replace("-", "_") for f, *_ in by_flag(args)
    }
    idle = {flag: offered.idle[name] for flag, name in names.items() if name in offered.idle}
    complaints.refuse_idle(idle, offered.chosen)


def refuse_two_lengths(given: Collection[str]) -> None:
    """Require one flag at most, by the names of fields, that fixes the length of a training."""
    for budget in BUDGETS:
        require(
            not {"epochs", budget} <= {*given},
            f"--epochs and --{budget.replace('_', '-')} each fix the length of the training; one "
            "will do",
        )


def _owners(preset: str) -> list[str]:
    methods = registry.discover("method").values()
    return [plugin.name for plugin in methods if preset in plugin.presets()]


def _refuse_twins(flags: Sequence[Flag], everyone: Sequence[Plugin]) -> None:
    """Two flags of one name cannot be told apart."""
    seen: dict[str, type] = {}
    for flag in flags:
        if flag.name in seen:
            files = " or ".join(
                str(plugin.path) for plugin in everyone if plugin.config is flag.owner
            )
            raise UserError(
                f"field {flag.field!r} of Config in {files} has the name of another flag; rename it"
            )
        seen[flag.name] = flag.owner
