"""Flags, which are fields of dataclasses under a possibly longer name, read by tyro.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Optional, TypeVar

from ssl_bench.api import registry
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import complaints, habits, help_text
from ssl_bench.cli.argv import HELP, by_flag, joined, values_told_from_flags
from ssl_bench.config.checked import intervals
from ssl_bench.config.presets import BACKBONES
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import flag_prefix

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


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        field: of the dataclass that owns it; its own name may be longer.
        default: what a preset sets, or else the field's own; `dataclasses.MISSING` without one.
    """

    name: str
    field: str
    owner: type
    type: Any
    default: Any
    help: str

    @property
    def option(self) -> str:
        """As a person writes it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def metavar(self) -> str:
        """What its values are called where they stand without it; "" where they do not."""
        return _POSITIONAL.get(self.name, "")

    @property
    def short(self) -> list[str]:
        """Other names of it."""
        return _SHORT.get(self.name, [])


def flags_with(cls: type, prefix: str, preset: Mapping[str, Any]) -> list[Flag]:
    """The flags of a dataclass, under longer names, with a preset's defaults; its own first."""
    texts, types = registry.field_help(cls), typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    ends = {name: f" In {each}." for name, each in intervals(cls).items() if "inf" not in each}
    return [
        Flag(
            *(prefix + n, n, cls, types[n], preset.get(n, fields[n].default)),
            help=texts.get(n, "") + ends.get(n, ""),
        )
        for n in sorted(fields, key=lambda name: name not in cls.__annotations__)
    ]


def flags_of(cls: type) -> dict[str, Flag]:
    """The flags of a command that has no plugins, by their fields' names."""
    return {flag.name: flag for flag in flags_with(cls, "", {})}


def parse(command: str, cls: type[T], args: Sequence[str]) -> T:
    """The flags of a command that has no plugins."""
    return cls(**values_of(command, flags_with(cls, "", {}), args, cls.__doc__ or ""))


def read(flag: Flag, text: str) -> Any:
    """The value of a flag that is given alone."""
    return values_of("run", [flag], joined([(flag.option, text)]), "")[flag.name]


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
    unique = {flag.name: flag for cls, prefix in sources for flag in flags_with(cls, prefix, {})}
    choices = {
        name: tuple[choices[name], ...]  # type: ignore[valid-type]
        if name in unique
        and typing.get_origin(unique[name].type) is tuple
        and typing.get_origin(choices[name]) is not tuple
        else choices[name]
        for name in choices
    }
    # Of no default, or it would be a choice called None.
    shown = [
        replace(flag, type=_without_none(flag.type), default=dataclasses.MISSING)
        if flag.default is None
        else flag
        for flag in unique.values()
    ]
    return _as_dataclass(command, shown, choices)


def _without_none(type_: Any) -> Any:
    args = typing.get_args(type_)
    others = [each for each in args if each is not type(None)]
    return others[0] if len(others) == 1 < len(args) else type_


def values_of(
    command: str,
    flags: Sequence[Flag],
    args: Sequence[str],
    description: str,
    everyone: Sequence[Plugin] = (),
) -> dict[str, Any]:
    """The value of each flag, by name; or help, which ends the program.

    Args:
        everyone: the plugins that have flags here, for what is said of a flag that is not known.
    """
    if HELP & set(args):
        print(help_text.text(command, flags, description, everyone, "--help-all" in args), end="")
        raise SystemExit(0)
    given = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
    for arg in given:
        require(
            given.count(arg) == 1,
            f"flag {arg!r} is given {given.count(arg)} times; once will do",
        )
    # Mostly a variable of the shell that is not set, which must not mean "none" or "here".
    empty = {flag for flag, *values in by_flag(args) if values == [""]}
    for flag in flags:
        can_be = flag.type is str and flag.default != ""
        require(can_be or flag.option not in empty, f"{flag.option} needs a value")
    taking = {flag.option for flag in flags if flag.type is not bool}
    args = values_told_from_flags(args, taking)
    import tyro  # which help does without

    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            parsed: Any
            parsed, rest = tyro.cli(
                _as_dataclass(command, _to_read(flags, args)),
                args=args,
                return_unknown_args=True,
            )
        except SystemExit:
            types = {flag.name: flag.type for flag in flags}
            complaints.refuse_no_number(types, args)
            complaints.refuse_no_choice(types, args)
            raise UserError(complaints.without_box(output.getvalue() + errors.getvalue())) from None
    if rest:
        complaints.refuse_several(rest[0], {flag.option: flag.type for flag in flags}, args)
        complaints.refuse(rest, [flag.name for flag in flags], everyone)
    values = {flag.name: getattr(parsed, flag.name, flag.default) for flag in flags}
    if values.get("backbone"):
        values["backbone"] = _backbone(values["backbone"])
    return values


def _to_read(flags: Sequence[Flag], args: Sequence[str]) -> list[Flag]:
    """The flags that are given, or stand without their name: many would take tyro long."""
    given = {arg.partition("=")[0].replace("_", "-") for arg in args}
    return [
        flag
        for flag in flags
        if flag.metavar
        or flag.default is dataclasses.MISSING
        or given & {flag.option, f"--no-{flag.option[2:]}", *flag.short}
    ]


def _backbone(name: str) -> str:
    meant = habits.backbone(name)
    if meant is None or meant[0] == name or name in BACKBONES:
        return name
    own, patch_size = meant
    if patch_size is not None and not re.fullmatch(r"(vit|deit)_\w+_patch\d+_\d+", name):
        raise UserError(
            f"--backbone {name!r}: patches have a flag of their own; --backbone {own} "
            f"--patch-size {patch_size} would work"
        )
    return name if patch_size is not None else own


def _sequence(flag: Flag) -> Any:
    """The type of several values, which a flag takes in one argument, separated by commas.

    For a plain ``tuple[int, ...]`` tyro would import typeguard, which takes 0.2 s.
    """
    import tyro

    [item, *_] = typing.get_args(flag.type)
    is_positional = bool(flag.metavar)

    def read(args: list[str]) -> tuple[Any, ...]:
        texts = args if is_positional else args[0].split(",")
        parts = [part for each in texts for part in [each.strip()] if part]
        require(is_positional or bool(parts), f"{flag.option} needs a value")
        try:
            return tuple(map(item, parts))
        except ValueError:
            complaints.refuse_no_number({flag.name: flag.type}, joined([(flag.option, args[0])]))
            raise

    spec: Any = tyro.constructors.PrimitiveConstructorSpec(
        nargs="*" if is_positional else 1,
        metavar="A,B,...",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )
    return Annotated[object, spec]


def _as_dataclass(
    command: str, flags: Iterable[Flag], choices: Mapping[str, Any] | None = None
) -> Any:
    import tyro

    fields: list[Any] = []
    for flag in flags:
        is_positional = bool(flag.metavar)
        is_sequence = typing.get_origin(flag.type) is tuple
        value_type = _sequence(flag) if is_sequence else flag.type
        value_type = (choices or {}).get(flag.name, value_type)
        if flag.default is None:  # not X | None, which takes tyro an import of 0.2 s
            value_type = Optional[value_type]  # noqa: UP045
        metavar = flag.metavar or ("A,B,..." if is_sequence else None)
        argument = tyro.conf.arg(help=flag.help, metavar=metavar, aliases=flag.short or None)
        type_: Any = Annotated[value_type, argument]
        if is_positional:
            type_ = tyro.conf.Positional[type_]  # type: ignore[misc]
        default = [] if flag.default is dataclasses.MISSING else [flag.default]
        fields.append((flag.name, type_, *default))
    return dataclasses.make_dataclass(command, fields, frozen=True, kw_only=True)
