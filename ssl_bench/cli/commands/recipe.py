"""``ssl-bench recipe PRESET``: every setting beside the published one, with its source.

What the views, the optimisers and the modules of the method and of the evaluations tell is read off
them (`experiment.facts`), the rest off the flags alone, and each row says which; no data are read
and nothing is trained.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from rich.table import Table

from ssl_bench import papers
from ssl_bench.api import registry
from ssl_bench.api.registry import Plugin
from ssl_bench.cli import argv, flags, help_text
from ssl_bench.config.presets import PRESET_NOTES
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import RunConfig
from ssl_bench.papers import Published, Recipe
from ssl_bench.utils.formatting import many
from ssl_bench.utils.terminal import Console

DIFFERS, DISPUTED, UNCOMPARED = "!=", "~", "?"
NOT_CHECKED = "not checked"
_SHARED = ("backbone", "image_size", "patch_size", "epochs", "batch_size", "precision")
_SHARED_BY_CLIPS = ("frames", "stride", "test_clips", "test_crops")
_WIDTH = 120
_USAGE = f"""\
usage: ssl-bench recipe PRESET [FLAGS OF ssl-bench run]

Show every setting of a preset, changed by what flags are given, beside the published one and where
that is written. A preset for which nothing is published stands beside its method's first one for
which something is. A method's name stands for the first preset that it brings of its own.

marks:
  {DIFFERS:<4}ours is none of the published settings
  {DISPUTED:<4}the sources disagree, and ours is one of them
  {UNCOMPARED:<4}not compared: ours is as we state it, or not checked

ours is from:
  object  what a run builds: views, optimiser, modules, losses, votes
  flag    the flag's value, which nothing was seen to heed
  us      what we state

presets:
"""


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        name: the flag without its hyphens, or, with a space in it, what no flag changes.
        ours: what this project does.
        published: what others did, and where that is written; more than one where they disagree.
        basis: whether ours was read off an object, is what a flag says, is stated by us, or is not
            known.
    """

    name: str
    ours: str
    published: tuple[tuple[str, str], ...]
    basis: Literal["object", "flag", "stated", "not checked"] = "flag"

    @property
    def origin(self) -> str:
        """Where ours is from, as tables show it."""
        return {"stated": "us", "not checked": ""}.get(self.basis, self.basis)

    @property
    def mark(self) -> str:
        """Nothing where all that is published is like ours, "~" where some is, else "!=".

        What was not compared is "?", whatever it says.
        """
        if self.basis not in ("object", "flag"):
            return UNCOMPARED
        same = [value == self.ours for value, _ in self.published]
        return "" if all(same) else DISPUTED if any(same) else DIFFERS


@dataclass(frozen=True)
class Stage:
    """Pre-training or an evaluation.

    Attributes:
        beside: the preset whose published settings it is put beside, or "".
        sources: what these are quoted from.
    """

    title: str
    beside: str
    sources: str
    rows: tuple[Row, ...]

    @property
    def summary(self) -> str:
        """How much of what is published was compared, and how it came out."""
        rows = [row for row in self.rows if row.published]
        if not rows:
            return "nothing is published for this preset"
        marks = [row.mark for row in rows]
        bases = [row.basis for row in rows]
        read, flagged = bases.count("object"), bases.count("flag")
        return (
            f"{read + flagged} of {len(rows)} published settings were compared, {read} as read off "
            f"objects and {flagged} as a flag says: {marks.count(DIFFERS)} differ ({DIFFERS}), of "
            f"{marks.count(DISPUTED)} the sources disagree and one is taken ({DISPUTED}); "
            f"{bases.count('stated')} are stated and {bases.count('not checked')} not checked "
            f"({UNCOMPARED})"
        )


def recipe(args: Sequence[str]) -> None:
    """Print a preset's recipe: ``ssl-bench recipe``."""
    if argv.HELP & set(args):
        presets = registry.presets()
        width = max(map(len, presets)) + 2
        lines = [help_text.described(name, note, width) for name, note in presets.items()]
        print(_USAGE + "\n".join(itertools.chain(*lines)))
        return
    is_named = bool(args) and not args[0].startswith("-")
    require(
        is_named or bool(argv.peek(args, "preset")),
        "say which preset: ssl-bench recipe PRESET, one of `ssl-bench list presets`",
    )
    console = Console()
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = _WIDTH
    if is_named:
        args = ["--preset", _preset(args[0]), *args[1:]]
    for stage in stages(flags.parse_run(args, "recipe")):
        console.print(_table(stage))
        if stage.sources:
            console.print(f"tables and files of {stage.sources}", soft_wrap=False)
        console.print(f"{stage.summary}\n", soft_wrap=False)


def _preset(name: str) -> str:
    """The name itself, or for a method's the first preset that it brings of its own."""
    method = None if name in registry.presets() else registry.discover("method").get(name)
    own = [each for each in method.presets() if each not in PRESET_NOTES] if method else []
    return own[0] if own else name


def stages(config: RunConfig) -> list[Stage]:
    """What a run would do, stage by stage."""
    method = config.method
    # The preset itself where something is published for it, else the method's first such one.
    presets = (config.settings.preset, *method.presets())
    beside = next((each for each in presets if published(method, each, method).settings), "")
    names = (*_SHARED, *_SHARED_BY_CLIPS) if "clip" in method.declared.columns else _SHARED
    shared = {name: getattr(config.settings, name) for name in names}
    shared |= {"epochs": config.epochs_on(), "batch_size": config.batch_on()}
    values = shared | vars(config.method_config)
    found = [_stage(method, values, method, beside, _facts(config) if beside else {})]
    facts = _facts_of_evaluations(config) if beside else {}
    for plugin, own in config.evals.items():
        found.append(_stage(plugin, vars(own), method, beside, facts.get(plugin.name, {})))
    return found


def published(plugin: Plugin, preset: str, method: Plugin) -> Recipe:
    """What papers publish of a method or an evaluation for a preset of a method.

    What comes with a method of ours is not about somebody else's evaluation of the same name.

    Raises:
        UserError: a file of published values makes no sense.
    """
    applies = plugin.is_ours or not method.is_ours
    found = []
    for each in dict.fromkeys([plugin, method] if applies else [plugin]):
        found.append(papers.read(each.paper_file))
        strange = set(found[-1].published) - {each.name, *registry.discover("eval")}
        require(
            not strange,
            f"{each.paper_file}: stage {min(strange, default='')!r} is neither {each.name!r} nor "
            "an evaluation",
        )
    return papers.recipe_of(found, plugin.name, preset)


def _facts(config: RunConfig) -> Mapping[str, str]:
    """What the configured method does; nothing where it cannot be built, which a run will say."""
    from ssl_bench.experiment import facts

    try:
        return facts.of_run(config)
    except UserError:
        return {}


def _facts_of_evaluations(config: RunConfig) -> Mapping[str, Mapping[str, str]]:
    """By evaluation, as `_facts`."""
    from ssl_bench.experiment import facts

    try:
        return facts.of_evaluations(config)
    except UserError:
        return {}


def _stage(
    plugin: Plugin,
    values: Mapping[str, Any],
    method: Plugin,
    beside: str,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> Stage:
    quoted = published(plugin, beside, method) if beside else Recipe()
    title = f"{'pre-training' if plugin.kind == 'method' else 'evaluation'}: {plugin.name}"
    _check_names(title, quoted.settings, values)
    # Each flag's where there is such a flag; what all evaluations have in common, where compared.
    shown = {*values, *quoted.settings}
    if plugin.kind == "method":
        shown |= {name for name in facts if " " in name}
    facts = {name: text for name, text in facts.items() if name in shown}
    rows = tuple(_rows(values, quoted.settings, facts))
    return Stage(title, beside if quoted.settings else "", quoted.sources, rows)


def _check_names(
    title: str, published: Mapping[str, tuple[Published, ...]], values: Mapping[str, Any]
) -> None:
    """Require flags to be flags: a misspelt one would be shown as what is fixed and the same."""
    for name, entries in published.items():
        used = {name for each in entries for name in each.unless}
        wrong = (used if " " in name else {*used, name}) - values.keys()
        require(
            not wrong,
            f"{title} has no flag {min(wrong, default='')!r}, which is among what is published; "
            "what no flag changes has a space in its name",
        )


def _rows(
    values: Mapping[str, Any],
    published: Mapping[str, tuple[Published, ...]],
    facts: Mapping[str, str],
) -> Iterator[Row]:
    """The settings in their own order, then what no flag changes."""
    known = {name: _text(name, value, values) for name, value in values.items()} | {**facts}
    for name in dict.fromkeys([*values, *published, *facts]):
        entries = published.get(name, ())
        sources = tuple((_text("", each.value, values), each.source) for each in entries)
        if name in known:
            yield Row(name, known[name], sources, "object" if name in facts else "flag")
        else:
            yield _underived(name, entries, sources, values)
        if name == "base_lr" and "batch_size" in values:
            rate = values["base_lr"] * values["batch_size"] / 256
            yield Row("peak lr", f"{rate:g} = base lr x batch size / 256", ())


def _underived(
    name: str,
    entries: Sequence[Published],
    sources: tuple[tuple[str, str], ...],
    values: Mapping[str, Any],
) -> Row:
    """A row about what neither a flag nor an object tells: never counted as equal."""
    [entry, *_] = entries
    if any(values[flag] == value for flag, value in entry.unless.items()):
        return Row(name, "not used", sources)
    if entry.ours:
        return Row(name, entry.ours, sources, "stated")
    return Row(name, NOT_CHECKED, sources, "not checked")


def _text(name: str, value: Any, values: Mapping[str, Any]) -> str:
    """A value for a reader: a warm-up in epochs, which papers count it in, not as a share."""
    if name == "warmup":
        return many(round(value * values["epochs"], 3), "epoch")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(_text("", each, values) for each in value)
    return "-" if value in (None, "") else str(value)


def _table(stage: Stage) -> Table:
    title = stage.title + (f", beside {stage.beside}" if stage.beside else "")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("setting", "ours", "from", "", "published", "source"):
        ratio = None if name in ("setting", "from", "") else 3
        table.add_column(name, ratio=ratio, no_wrap=ratio is None, overflow="fold")
    for row in stage.rows:
        (value, source), *others = row.published or (("-", ""),)
        mark = row.mark if row.published else ""
        table.add_row(row.name.replace("_", " "), row.ours, row.origin, mark, value, source)
        for value, source in others:
            table.add_row("", "", "", "", value, source)
    return table
