"""From the words of a command line to settings, and back to a one-line complaint.

The flags of a run are the fields of `Settings`, of the method's ``Config``, and of each
evaluation's ``Config`` under the evaluation's name: ``--epochs``, ``--mask-ratio``,
``--finetune-epochs``. Their defaults come from the preset. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

import tyro

from ssl_bench.api import registry
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import complaints, habits
from ssl_bench.cli.argv import joined, peek, split_commas, values_told_from_flags
from ssl_bench.config.presets import BACKBONES, PRESETS
from ssl_bench.config.settings import BUDGETS, EvalSettings, Settings
from ssl_bench.errors import UserError, require, unknown
from ssl_bench.experiment.run_config import EvalConfig, RunConfig, evaluations, flag_prefix

T = TypeVar("T")
_POSITIONAL = {
    "images": "IMAGE...",
    "runs": "[RUN...]",
    "source": "SOURCE",
    "sql": "[SQL]",
    "sweep": "[SWEEP]",
    "target": "TARGET",
}
"""How their values are called; brackets where there may be none."""
_SHORT = {"output": ["-o"]}
_CHOOSING = ("preset", "method", "evals", "eval-every-with")
"""Flags that decide which other flags there are, and their defaults."""


def parse_run(words: Sequence[str], command: str = "run") -> RunConfig:
    """The config of ``ssl-bench run``, or of a command that takes the same flags.

    A preset that methods alone define picks the first of these, where no method is named.

    Raises:
        UserError: a flag, a value or a name is wrong.
    """
    method = method_of(words)
    _refuse_two_lengths(words)
    offer, values = _parse(command, words, Settings, method, Settings.preset)
    return offer.run_config(values)


def defaults(words: Sequence[str], required: Mapping[str, Any]) -> RunConfig:
    """The run with nothing but defaults: those of the preset and the method that the words name.

    Args:
        required: values for flags that have no default, as far as they are given.

    Raises:
        UserError: a name is wrong, or a value that is required is not given.
    """
    offer = _offer(words, Settings, method_of(words), Settings.preset)
    values = {flag.name: flag.default for flag in offer.flags}
    for name in [name for name, value in values.items() if value is dataclasses.MISSING]:
        require(name in required, f"--{name.replace('_', '-')} needs a value")
        values[name] = required[name]
    return offer.run_config(values)


def run_flags(words: Sequence[str]) -> dict[str, Flag]:
    """Every flag that ``ssl-bench run`` has with these words, by its field's name.

    Raises:
        UserError: a method, an evaluation or a preset that they name does not exist.
    """
    offer = _offer(words, Settings, method_of(words), Settings.preset)
    return {flag.name: flag for flag in offer.flags}


def flags_of(cls: type) -> dict[str, Flag]:
    """The flags of a command that has no plugins, by their fields' names."""
    return {flag.name: flag for flag in _flags(cls, "", {})}


def method_of(words: Sequence[str]) -> Plugin:
    """The method that ``ssl-bench run`` takes with these words.

    Raises:
        UserError: there is none of that name, or the preset belongs to another one.
    """
    [preset, *_] = peek(words, "preset") or [Settings.preset]
    owners = [] if preset in PRESETS else _owners(preset)
    [name, *_] = peek(words, "method") or [*owners, Settings.method]
    method = _method(name)
    require(
        not owners or preset in method.presets(),
        f"preset {preset!r} belongs to another method than {method.name!r}; "
        f"--method {' or '.join(owners)} would work",
    )
    return method


def parse_eval(words: Sequence[str], preset: str = EvalSettings.preset) -> EvalConfig:
    """The config of ``ssl-bench eval``, whose defaults are those of a preset.

    Raises:
        UserError: a flag, a value or a name is wrong.
    """
    offer, values = _parse("eval", words, EvalSettings, None, preset)
    return offer.eval_config(values)


def parse(command: str, cls: type[T], words: Sequence[str]) -> T:
    """The flags of a command that has no plugins."""
    return cls(**_values(command, _flags(cls, "", {}), words, cls.__doc__ or ""))


def read(flag: Flag, text: str) -> Any:
    """The value of a flag that is given alone.

    Raises:
        UserError: the text is no value for it.
    """
    return _values("run", [flag], joined([(flag.option, text)]), "")[flag.name]


def every_flag(
    command: str,
    settings: Sequence[type],
    kinds: Sequence[registry.Kind],
    choices: Mapping[str, Any],
) -> type:
    """A dataclass with a command's flags whatever the method, for shell completion.

    Args:
        choices: a narrower type for some flags, by name.
    """
    sources = [(cls, "") for cls in settings]
    for kind in kinds:
        sources += [(each.config, flag_prefix(each)) for each in registry.discover(kind).values()]
    unique = {flag.name: flag for cls, prefix in sources for flag in _flags(cls, prefix, {})}
    return _as_dataclass(command, unique.values(), choices)


@dataclass(frozen=True)
class Flag:
    """One flag: a dataclass field under a possibly longer name, with a preset's default."""

    name: str
    owner: type
    field: dataclasses.Field[Any]
    help: str
    preset: Mapping[str, Any]

    @property
    def option(self) -> str:
        """As a person writes it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def type(self) -> Any:
        """Of its value."""
        return _type_hints(self.owner)[self.field.name]

    @property
    def default(self) -> Any:
        """Its value where none is given."""
        return self.preset.get(self.field.name, self.field.default)


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@dataclass(frozen=True)
class _Offer:
    """The flags of a command line, whatever is given for most of them.

    Attributes:
        base: the class of the settings that belong to no plugin.
        chosen, on_the_way: evaluations.
        everyone: every plugin that has flags here.
    """

    base: type
    method: Plugin | None
    chosen: Sequence[Plugin]
    on_the_way: Sequence[Plugin]
    everyone: Sequence[Plugin]
    flags: Sequence[Flag]

    def run_config(self, values: Mapping[str, Any]) -> RunConfig:
        """The run that a value for each flag makes."""
        assert self.method
        return RunConfig(
            settings=self.base(**_of(self.base, values)),
            method=self.method,
            method_config=self.method.checked_config(_of(self.method.config, values)),
            evals=_evals(self.chosen, values),
            evals_on_the_way=_evals(self.on_the_way, values),
        )

    def eval_config(self, values: Mapping[str, Any]) -> EvalConfig:
        """The evaluation that a value for each flag makes."""
        return EvalConfig(self.base(**_of(self.base, values)), _evals(self.chosen, values))


def _of(cls: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a dataclass's fields."""
    return {f.name: values[prefix + f.name] for f in dataclasses.fields(cls)}


def _evals(plugins: Iterable[Plugin], values: Mapping[str, Any]) -> dict[Plugin, Any]:
    return {p: p.checked_config(_of(p.config, values, flag_prefix(p))) for p in plugins}


def _parse(
    command: str, words: Sequence[str], base: type, method: Plugin | None, preset: str
) -> tuple[_Offer, dict[str, Any]]:
    offer = _offer(words, base, method, preset)
    description = _description(command, method)
    return offer, _values(command, offer.flags, words, description, offer.everyone)


def _offer(words: Sequence[str], base: type, method: Plugin | None, preset: str) -> _Offer:
    [preset, *_] = peek(words, "preset") or [preset]
    source = method or next(map(_method, _owners(preset)), None)
    preset_evals = source.presets().get(preset, {}).get("evals", ()) if source else ()
    chosen = evaluations(peek(words, "evals") or preset_evals)
    names = peek(words, "eval-every-with") or Settings.eval_every_with
    on_the_way = [registry.find("eval", name) for name in names] if method else []
    offered = list(dict.fromkeys([*chosen, *on_the_way, *registry.discover("eval").values()]))
    everyone = [plugin for plugin in (method, *offered) if plugin]
    known = {*PRESETS, *(name for plugin in everyone for name in plugin.presets())}
    if preset not in known:
        raise unknown("preset", preset, known)
    own = {plugin: plugin.presets().get(preset, {}) for plugin in everyone}
    shared = dict(PRESETS.get(preset, {}))
    if method:
        shared |= {**own[method], "method": method.name}

    flags = _flags(base, "", shared | {"preset": preset})
    if method:
        flags += _flags(method.config, "", own[method])
    for plugin in offered:
        flags += _flags(plugin.config, flag_prefix(plugin), own[plugin])
    _refuse_twins(flags, everyone)
    return _Offer(base, method, chosen, on_the_way, everyone, flags)


def _refuse_two_lengths(words: Sequence[str]) -> None:
    for budget in BUDGETS:
        flag = f"--{budget.replace('_', '-')}"
        require(
            not (peek(words, flag[2:]) and peek(words, "epochs")),
            f"--epochs and {flag} each fix the length of the training; one will do",
        )


def _owners(preset: str) -> list[str]:
    """The methods that define a preset."""
    methods = registry.discover("method").values()
    return [plugin.name for plugin in methods if preset in plugin.presets()]


def _method(name: str) -> Plugin:
    return registry.find("method", name)


def _values(
    command: str,
    flags: Sequence[Flag],
    words: Sequence[str],
    description: str,
    everyone: Sequence[Plugin] = (),
) -> dict[str, Any]:
    """The value of each flag, by name."""
    if any(word in ("-h", "--help") for word in words):
        tyro.cli(
            _as_dataclass(command, flags),
            prog=f"ssl-bench {command}",
            description=description,
            args=["--help"],
        )
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    for word in given:
        require(
            given.count(word) == 1,
            f"flag {word!r} is given {given.count(word)} times; once will do",
        )
    sequences = {flag.name for flag in flags if typing.get_origin(flag.type) is tuple}
    taking = {f"--{f.name.replace('_', '-')}" for f in flags if f.type is not bool}
    words = values_told_from_flags(words, taking)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            parsed: Any
            parsed, rest = tyro.cli(
                _as_dataclass(command, flags),
                args=split_commas(words, sequences),
                return_unknown_args=True,
            )
        except SystemExit:
            complaints.refuse_no_number({flag.name: flag.type for flag in flags}, words)
            raise UserError(complaints.without_box(output.getvalue() + errors.getvalue())) from None
    if rest:
        complaints.refuse(rest[0], [flag.name for flag in flags], everyone)
    values = {flag.name: getattr(parsed, flag.name) for flag in flags}
    if values.get("backbone"):
        values["backbone"] = _backbone(values["backbone"])
    return values


def _backbone(name: str) -> str:
    """The backbone that is meant.

    Raises:
        UserError: its name gives a patch size, which is a flag of its own here.
    """
    meant = habits.backbone(name)
    if meant is None or meant[0] == name or name in BACKBONES:
        return name
    own, patch_size = meant
    if patch_size is not None and not re.fullmatch(r"(vit|deit)_\w+_patch\d+_\d+", name):
        raise UserError(
            f"backbone {name!r}: patches have a flag of their own; --backbone {own} --patch-size "
            f"{patch_size} would work"
        )
    return name if patch_size is not None else own


def _as_dataclass(
    command: str, flags: Iterable[Flag], choices: Mapping[str, Any] | None = None
) -> Any:
    fields: list[Any] = []
    for flag in flags:
        value_type = (choices or {}).get(flag.name, flag.type)
        is_positional = flag.name in _POSITIONAL
        is_sequence = typing.get_origin(flag.type) is tuple
        metavar = _POSITIONAL.get(flag.name, "A,B,..." if is_sequence else None)
        # A default that is nothing says nothing.
        hint = "" if is_positional or flag.default in (None, "", ()) else None
        argument = tyro.conf.arg(
            help=flag.help,
            metavar=metavar,
            help_behavior_hint=hint,
            aliases=_SHORT.get(flag.name),
        )
        type_: Any = Annotated[value_type, argument]
        if is_positional:
            type_ = tyro.conf.Positional[type_]  # type: ignore[misc]
        default = (
            ()
            if flag.default is dataclasses.MISSING
            else (dataclasses.field(default=flag.default),)
        )
        fields.append((flag.name, type_, *default))
    return dataclasses.make_dataclass(command, fields, frozen=True, kw_only=True)


def _flags(cls: type, prefix: str, preset: Mapping[str, Any]) -> list[Flag]:
    texts = registry.field_help(cls)
    return [
        Flag(prefix + field.name, cls, field, texts.get(field.name, ""), preset)
        for field in dataclasses.fields(cls)
    ]


def _refuse_twins(flags: Sequence[Flag], everyone: Sequence[Plugin]) -> None:
    """Two flags of one name cannot be told apart."""
    seen: dict[str, type] = {}
    for flag in flags:
        if flag.name in seen:
            files = " or ".join(
                str(plugin.path) for plugin in everyone if plugin.config is flag.owner
            )
            raise UserError(
                f"field {flag.field.name!r} of Config in {files} has the name of another flag; "
                "rename it"
            )
        seen[flag.name] = flag.owner


def _description(command: str, method: Plugin | None) -> str:
    if method is None:
        return "Evaluate a run, or a file of weights."
    return (
        f"Pre-train {method.name}, evaluate it, show it beside its baselines. {method.summary} "
        "`ssl-bench run --config FILE` runs what a run's config.json, or a file like it, describes."
    )
