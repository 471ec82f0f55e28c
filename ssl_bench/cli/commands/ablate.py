"""``ssl-bench ablate``: from its arguments to the runs that a paper's ablation is made of.

Nothing here imports torch until they are run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ssl_bench.api import registry
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import flags, help_text, parser
from ssl_bench.cli.argv import HELP, by_flag, joined
from ssl_bench.config.command_settings import AblateSettings
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.papers import Ablation
from ssl_bench.sweep.ablation import AblationCell, Study, as_number

_OWN = tuple(f"--{field.name}" for field in dataclasses.fields(AblateSettings))


def ablate(args: Sequence[str]) -> None:
    """Run an ablation, or print the help: ``ssl-bench ablate``."""
    study = parse(args)
    if study:
        from ssl_bench.sweep import ablation_results

        ablation_results.run(study)


def parse(args: Sequence[str]) -> Study | None:
    """What a command line asks for; ``None`` where that is help, which is printed."""
    name, own, common = _split([arg for arg in args if arg not in HELP])
    settings, run = parser.parse("ablate", AblateSettings, own), flags.parse_run(common, "ablate")
    if set(args) & HELP:
        print(_help(run.method), end="")
        return None
    ablation = _find(run.method, name)
    cells = _cells(name, ablation, settings, common, run)
    everywhere = [name for each in run.method.ablations().values() for name in _varied(each)]
    constant = [each for each in dict.fromkeys(everywhere) if each not in _varied(ablation)]
    return Study(run.method.name, name, ablation, cells, constant, run.settings.runs_dir)


def _varied(ablation: Ablation) -> list[str]:
    """The fields of the method's ``Config`` that an ablation varies."""
    args = [ablation.flag, *" ".join(ablation.cells.values()).split()]
    return [name.replace("-", "_") for name in _flag_names(args)]


def _find(method: Plugin, name: str) -> Ablation:
    known = method.ablations()
    if not known:
        others = [name for name, each in registry.discover("method").items() if each.ablations()]
        raise UserError(f"method {method.name!r} has no ablations; {', '.join(others)} have some")
    names = ", ".join(known)
    require(bool(name), f"say which ablation of {method.name}: {names}")
    require(name in known, f"unknown ablation {name!r}; {method.name} has {names}")
    return known[name]


def _cells(
    name: str, ablation: Ablation, settings: AblateSettings, common: Sequence[str], run: RunConfig
) -> list[AblationCell]:
    """Each value with each seed; ``run`` is what the arguments that all cells share make alone."""
    values = _values(name, ablation, settings.values)
    varied = {flag for args in values.values() for flag in _flag_names(args)}
    given = set(_flag_names(common))
    for flag in sorted(varied & given):
        raise UserError(f"ablation {name!r} sets --{flag} itself; --values says to what")
    require(
        not (settings.seeds and "seed" in given),
        "--seed and --seeds are both given; one of them will do",
    )
    require(run.settings.evals != ("none",), "an ablation needs --evals to measure")
    if not run.settings.evals:
        common = [*common, "--evals", ",".join(ablation.paper)]
        run = run.with_values({"evals": tuple(ablation.paper)})
    offer = flags.offer(common)
    flags.refuse_idle(offer, common)
    offered = [flag for flag in offer.flags if flag.option[2:] in varied]
    cells = []
    for value, args in values.items():
        config = run.with_values(parser.values_of("ablate", offered, args, ""))
        for seed in dict.fromkeys(settings.seeds or [config.settings.seed]):
            whole = [*common, *args, *(["--seed", str(seed)] if settings.seeds else [])]
            cells.append(AblationCell(value, config.with_values({"seed": seed}), whole))
    return cells


def _values(name: str, ablation: Ablation, asked: Sequence[str]) -> dict[str, list[str]]:
    """The arguments that each value stands for: those asked for, or the paper's."""
    if ablation.flag:
        numbers = [str(value) for value in asked or ablation.values]
        return {as_number(number): [ablation.flag, number] for number in numbers}
    known = {value: args.split() for value, args in ablation.cells.items()}
    for value in asked:
        require(
            value in known, f"ablation {name!r} has no value {value!r}; it has {', '.join(known)}"
        )
    return {value: known[value] for value in asked or known}


def _split(args: Sequence[str]) -> tuple[str, Sequence[str], Sequence[str]]:
    """The ablation's name, "" without one; the arguments of `AblateSettings`; those of a run."""
    groups = by_flag(args)
    is_named = bool(groups) and not groups[0][0].startswith("-")
    name, *surplus = groups.pop(0) if is_named else ("",)
    own = [group for group in groups if group[0] in _OWN]
    for flag, *values in own:
        require(bool("".join(values).strip(", ")), f"{flag} needs a value")
    return name, joined(own), joined([surplus, *(each for each in groups if each not in own)])


def _flag_names(args: Sequence[str]) -> list[str]:
    """The flags among arguments, whichever way they are set."""
    given = (arg[2:].partition("=")[0] for arg in args if arg.startswith("--"))
    return list(dict.fromkeys(name.replace("_", "-").removeprefix("no-") for name in given))


def _help(method: Plugin) -> str:
    lines = [
        "usage: ssl-bench ablate NAME [--values V,...] [--seeds S,...] [FLAGS OF ssl-bench run]",
        "",
        "Run what a paper varied, draw it beside the paper's own numbers.",
        "",
        f"ablations of {method.name}:",
    ]
    for name, ablation in method.ablations().items():
        values = map(as_number, ablation.values)
        text = f"{ablation.title} ({ablation.source}): {', '.join(values)}. {ablation.note}"
        lines += help_text.described(name, text)
    lines += ["", "flags:"]
    for name, text in registry.field_help(AblateSettings).items():
        lines += help_text.described(f"--{name}", text)
    lines += help_text.described(
        "...",
        "any flag of `ssl-bench run`, for every cell; --evals defaults to those of the preset, or "
        "else of the paper",
    )
    return "\n".join(lines) + "\n"
