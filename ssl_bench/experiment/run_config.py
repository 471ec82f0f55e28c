"""A run's settings as one object, for command lines, files, sweeps and reruns alike.

Its JSON is what ``config.json`` holds beside what was found out about the run, what a sweep stores
of each cell, and what ``ssl-bench run --config FILE`` reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ssl_bench.api import registry
from ssl_bench.api.registry import Kind, Plugin
from ssl_bench.config.chosen import ChosenBy
from ssl_bench.config.presets import (
    DEFAULT_BATCH,
    DEFAULT_EPOCHS,
    SIZED_BY_STEPS,
    SIZED_FOR,
    merged,
    shared_defaults,
)
from ssl_bench.config.settings import EvalSettings, Settings
from ssl_bench.errors import UserError, require
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable, load_json

Evaluations = Mapping[Plugin, Any]
"""Each evaluation's ``Config``."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        settings: those that belong to no plugin.
        method_config: the method's ``Config``.
        evals_on_the_way: of ``--eval-every``.
        search: what has chosen the method's settings, or drawn them for a trial, if a search did.
    """

    settings: Settings
    method: Plugin
    method_config: Any
    evals: Evaluations
    evals_on_the_way: Evaluations
    search: ChosenBy | None = None

    def to_json(self) -> dict[str, Any]:
        """Names and values of JSON; `from_json` takes them, and ignores what lies beside them."""
        return {
            "method": self.method.name,
            "method_source": self.method.source,
            "method_config": _plain(self.method_config),
            "settings": _plain(self.settings),
            "evals": _to_json(self.evals),
            "evals_on_the_way": _to_json(self.evals_on_the_way),
            "chosen_by": self.chosen_by,
        }

    @property
    def chosen_by(self) -> dict[str, Any]:
        """How the method's settings were chosen, as JSON; empty where it has none to choose.

        A search's choice that was changed since is nobody's but the user's own.
        """
        config, preset = _plain(self.method_config), self.settings.preset
        if not config:
            return {}
        if self.search and self.search.config == config:
            return _plain(self.search)
        usual = json.loads(json.dumps(_defaults(self.method, preset), default=str))
        flags = [name for name in usual if config[name] != usual[name]]
        tuned = self.method.declared.tuned.get(preset, "")
        return {"preset": preset, "tuned": tuned, "flags": flags}

    @classmethod
    def from_json(cls, content: Any) -> RunConfig:
        """The settings that `to_json` wrote, which may have been edited since.

        A method or an evaluation that was a file is read from there, as after ``--method FILE``.

        Raises:
            UserError: something is missing, of another type, out of range, or not installed.
        """
        stored = _stored(content)
        method = _plugin("method", stored.method, stored.method_source)
        return cls(
            settings=stored.settings,
            method=method,
            method_config=method.config_of(stored.method_config),
            evals=_from_json(stored.evals),
            evals_on_the_way=_from_json(stored.evals_on_the_way),
            search=search_of(content),
        )

    def chosen_by_search(self, search: ChosenBy) -> RunConfig:
        """The same run, whose settings that search has chosen, or drawn for a trial."""
        return replace(self, search=replace(search, config=_plain(self.method_config)))

    def epochs_on(self, images: int = SIZED_FOR) -> float:
        """How many passes over so many training images the run makes, where no budget says so.

        The default preset makes as many steps with few images as with `SIZED_FOR`.
        """
        settings = self.settings
        if settings.epochs is not None:
            return settings.epochs
        usual = self._of_preset("epochs", DEFAULT_EPOCHS)
        if settings.preset != SIZED_BY_STEPS:
            return usual
        # A batch made smaller by few images must not make more steps.
        sized = usual * SIZED_FOR * self.batch_on(images)
        return max(usual, sized // (max(1, images) * self.batch_on()))

    def batch_on(self, images: int = SIZED_FOR) -> int:
        """How many images a step takes, where there are so many to train on."""
        settings = self.settings
        if settings.batch_size is not None:
            return settings.batch_size
        most = 1 << max(0, images.bit_length() - 1)  # a power of two, which processes can divide
        usual = self._of_preset("batch_size", DEFAULT_BATCH)
        return max(settings.devices * settings.nodes, min(usual, most))

    def _of_preset(self, name: str, otherwise: Any) -> Any:
        preset = self.settings.preset
        return merged(preset, self.method.presets().get(preset, {})).get(name, otherwise)

    def command(self) -> list[str]:
        """The ``ssl-bench run`` that makes this run: what differs from its preset, as flags."""
        preset = self.settings.preset
        defaults = shared_defaults(preset, self.method.presets().get(preset, {}))
        defaults = _fields(Settings()) | defaults | {"preset": Settings.preset}
        given = {"method": "", **_fields(self.settings)}  # which is to come first
        given["method"] = self.method.source or self.method.name
        args = _changed(given, defaults | {"method": "", "wait": self.settings.wait})
        args += _changed(_fields(self.method_config), _defaults(self.method, preset))
        for plugin, own in {**self.evals_on_the_way, **self.evals}.items():
            args += _changed(_fields(own), _defaults(plugin, preset), flag_prefix(plugin))
        return ["ssl-bench", "run", *args]

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """The same run with other values of some flags, by the names of their fields.

        What is said of an evaluation that the run does not have changes nothing.

        Args:
            values: such as ``{"epochs": 3.0, "mask_ratio": 0.5, "knn_neighbors": (1, 5)}``.

        Raises:
            UserError: a value is out of range, or an evaluation does not exist.
        """
        settings = replace(self.settings, **_own(Settings, values))
        evals: Iterable[Plugin] = self.evals
        on_the_way: Iterable[Plugin] = self.evals_on_the_way
        if "evals" in values:
            evals = evaluations(settings.evals)
        if "eval_every_with" in values:
            on_the_way = [registry.find("eval", name) for name in settings.eval_every_with]
        known = {self.method: self.method_config, **self.evals_on_the_way, **self.evals}

        def config_of(plugin: Plugin) -> Any:
            own = _own(plugin.config, values, flag_prefix(plugin))
            if plugin not in known:
                return plugin.checked_config({**plugin.presets().get(settings.preset, {}), **own})
            return plugin.checked_config(_fields(known[plugin]) | own) if own else known[plugin]

        return RunConfig(
            settings,
            self.method,
            config_of(self.method),
            {plugin: config_of(plugin) for plugin in evals},
            {plugin: config_of(plugin) for plugin in on_the_way},
            self.search,
        )


@dataclass(frozen=True)
class EvalConfig:
    """All settings of ``ssl-bench eval``."""

    settings: EvalSettings
    evals: Evaluations


@dataclass(frozen=True)
class _Content:
    """What `RunConfig.to_json` makes."""

    method: str
    method_source: str
    method_config: Mapping[str, Any]
    settings: Settings
    evals: Mapping[str, _Evaluation]
    evals_on_the_way: Mapping[str, _Evaluation]
    chosen_by: ChosenBy = field(default_factory=ChosenBy)


@dataclass(frozen=True)
class _Evaluation:
    source: str
    config: Mapping[str, Any]


def settings_of(content: Any) -> Settings:
    """The settings in what `RunConfig.to_json` made, without a look at any plugin.

    Raises:
        UserError: something is missing, of another type, or out of range.
    """
    return _stored(content).settings


def search_of(content: Any) -> ChosenBy | None:
    """The search that a run's settings are of, in what `RunConfig.to_json` made.

    Raises:
        UserError: something is missing, of another type, or out of range.
    """
    chosen_by = _stored(content).chosen_by
    return chosen_by if chosen_by.trials or chosen_by.trial else None


def load(path: Path, allow: Callable[[Sequence[Path]], None]) -> RunConfig:
    """The run that a JSON file describes: `RunConfig.to_json`'s, or a run folder's ``config.json``.

    Args:
        allow: called with the files that would be run and are no part of the installation, before
            any of them is; it raises where they may not be.

    Raises:
        UserError: it cannot be read, or describes no run.
    """
    try:
        content = load_json(path)
        stored = _stored(content)
    except (Unreadable, UserError) as error:
        raise UserError(f"config {str(path)!r} cannot be used: {error}") from error
    evals = (*stored.evals.values(), *stored.evals_on_the_way.values())
    named = {stored.method_source, *(each.source for each in evals)} - {""}
    allow([Path(source).expanduser().resolve() for source in sorted(named)])
    try:
        return RunConfig.from_json(content)
    except UserError as error:
        raise UserError(f"config {str(path)!r} cannot be used: {error}") from error


def _stored(content: Any) -> _Content:
    known = content
    if isinstance(content, dict):
        known = {n: v for n, v in content.items() if n in _Content.__dataclass_fields__}
    try:
        return typed_json.of(_Content, known)
    except Unreadable as error:
        raise UserError(str(error)) from None


def evaluations(names: Sequence[str]) -> list[Plugin]:
    """The evaluations that ``--evals`` names; without a name, those that are run unasked.

    Raises:
        UserError: there is none of that name.
    """
    if not names:
        found = registry.discover("eval").values()
        return [plugin for plugin in found if plugin.declared.is_default]
    return [] if tuple(names) == ("none",) else [registry.find("eval", name) for name in names]


def real_configs(evals: Evaluations) -> dict[Plugin, Any]:
    """Instances of each evaluation's own ``Config``, for what evaluates.

    Raises:
        UserError: one cannot be imported, or refuses its settings.
    """
    return {plugin: plugin.real_config(own) for plugin, own in evals.items()}


def flag_prefix(plugin: Plugin) -> str:
    """What the names of a plugin's flags begin with, as fields: of an evaluation, its own name."""
    return plugin.name.replace("-", "_") + "_" if plugin.kind == "eval" else ""


def text_of(value: Any) -> str:
    """A value of a flag for a reader, as a command line has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(text_of, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _own(cls: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: values[prefix + name] for name in names if prefix + name in values}


def _fields(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}


def _defaults(plugin: Plugin, preset: str) -> dict[str, Any]:
    return _fields(plugin.checked_config(_own(plugin.config, plugin.presets().get(preset, {}))))


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The flags of those values that are not the default."""
    args = []
    for name, value in values.items():
        option = f"{prefix}{name}".replace("_", "-")
        if value == defaults[name]:
            continue
        if isinstance(value, bool):
            args.append(f"--{'' if value else 'no-'}{option}")
        elif (text := text_of(value)).startswith("-"):
            args.append(f"--{option}={text}")
        else:
            args += [f"--{option}", text]
    return args


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=str))


def _to_json(evals: Evaluations) -> dict[str, Any]:
    return {
        plugin.name: {"source": plugin.source, "config": _plain(config)}
        for plugin, config in evals.items()
    }


def _from_json(stored: Mapping[str, _Evaluation]) -> dict[Plugin, Any]:
    found = {}
    for name, each in stored.items():
        plugin = _plugin("eval", name, each.source)
        found[plugin] = plugin.config_of(each.config)
    return found


def _plugin(kind: Kind, name: str, source: str) -> Plugin:
    if not source:
        require(not name.endswith(".py"), f"{name!r} is no name of an installed {kind}")
        return registry.find(kind, name)
    require(source.endswith(".py"), f"{kind} {source!r} is no Python file")
    return registry.find(kind, source)
