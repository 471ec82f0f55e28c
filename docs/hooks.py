"""What the site has beside the pages in this folder; MkDocs calls the functions ``on_...``.

There is a page for each method and each evaluation, made of its docstring, its declarations and its
``Config``, with the scores of the committed runs: a new file in ``methods/`` or ``evals/`` has one
without another line. README, CHANGELOG and the like are pages, too. A link from any page to another
file of the repository, such as a figure under ``results/``, is to a copy of that file.

Recipes show what methods do, which builds each of them on no device.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import posixpath
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.analysis.comparison.statistics import mean_interval
from ssl_bench.api import registry
from ssl_bench.api.plugins import Plugin
from ssl_bench.api.ranges import LogUniform, OneOf, Range
from ssl_bench.cli import flags
from ssl_bench.cli.commands import recipe
from ssl_bench.cli.commands.list import COSTS
from ssl_bench.cli.help_text import is_own
from ssl_bench.cli.parser import Flag, flags_with
from ssl_bench.config.checked import intervals
from ssl_bench.experiment.run_config import flag_prefix, text_of
from ssl_bench.sweep.ablation import as_number
from ssl_bench.utils.files import load_json

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SOURCES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "log.md": "results/LOG.md",
}
"""Pages that are files of the repository."""
FIGURES = {
    "accuracy-": "Each method under each evaluation; a point is a run, a bar a 95 % interval.",
    "cost-": "Accuracy over what the pre-training cost so far, and where each run ended.",
    "scores-": "Evaluations that count no right answers.",
    "training": "Losses during the pre-trainings.",
    "curve-low-shot": "Linear probes on few labels.",
    "curve-partial-finetune": "Fine-tuning the last blocks alone.",
    "robustness-": "A linear probe of clean images on corrupted ones.",
    "embedding-": "Test images' features in two dimensions, by t-SNE.",
    "attention-": "Where the class token looks in the last block.",
    "cka-cka": "How alike the methods' features are.",
    "cka-layers": "The same, block by block, for two methods.",
    "confusion-": "Which classes a method takes for each other.",
    "classes-": "Which classes one method knows better than another.",
    "reconstructions-": "Test images, three quarters of their patches hidden, reconstructed.",
}
"""Figures of a report, by the beginning of the file's name; of each kind the gallery has one."""
_LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)\s]+)\)")
_PRESETS = "<!-- every preset -->"
_NO_LINK = ("#", "http://", "https://", "mailto:")


# What MkDocs calls.


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put generated pages where the navigation names the folder that they are in."""
    config.nav = [_with_pages(entry) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files of the repository that any page links to."""
    from mkdocs.structure.files import File

    linked: dict[str, Path] = {}
    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=relocated(text, uri, linked)))
    for file in list(files.documentation_pages()):
        if file.src_uri not in pages():
            relocated(file.content_string, file.src_uri, linked)
    for uri, path in linked.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have a page's links to files of the repository lead to their copies, and name the presets."""
    uri = page.file.src_uri
    if uri in pages():
        return markdown
    return relocated(markdown.replace(_PRESETS, presets_table()), uri, {})


def relocated(text: str, uri: str, linked: dict[str, Path]) -> str:
    """The text of a page with links that hold on the site.

    Args:
        uri: of the page.
        linked: gets the files to copy, by where to.
    """
    source = ROOT / SOURCES.get(uri, f"docs/{uri}")
    by_path = {ROOT / path: page for page, path in SOURCES.items()}

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        place, hash_, anchor = target.partition("#")
        if target.startswith(_NO_LINK):
            return found[0]
        path = Path(posixpath.normpath(source.parent / place))
        if path in by_path:
            new = by_path[path]
        elif path.is_relative_to(DOCS):
            new = path.relative_to(DOCS).as_posix()
        elif path.is_file() and path.is_relative_to(ROOT):
            new = f"files/{path.relative_to(ROOT).as_posix()}"
            linked[new] = path
        elif path.is_dir():  # to look into, where the repository is
            return words
        else:
            return found[0]  # which MkDocs complains of
        return f"{mark}[{words}]({posixpath.relpath(new, posixpath.dirname(uri))}{hash_}{anchor})"

    return _LINK.sub(link, text)


def _with_pages(entry: Any) -> Any:
    """An entry of the navigation, a folder of generated pages in place of its name."""
    if not isinstance(entry, dict):
        return entry
    [(title, value)] = entry.items()
    if isinstance(value, list):
        return {title: [_with_pages(each) for each in value]}
    if isinstance(value, str) and value.endswith("/"):
        return {title: sorted(uri for uri in pages() if uri.startswith(value))}
    return entry


# The pages.


@cache
def pages() -> Mapping[str, str]:
    """The generated pages by their place in the documentation."""
    found = {uri: (ROOT / path).read_text() for uri, path in SOURCES.items()}
    methods, evals = (list(registry.discover(kind).values()) for kind in ("method", "eval"))
    found["methods/index.md"] = methods_table(methods)
    found |= {f"methods/{plugin.name}.md": method_page(plugin) for plugin in methods}
    found["evaluations/index.md"] = evals_table(evals)
    found |= {f"evaluations/{plugin.name}.md": eval_page(plugin) for plugin in evals}
    found["gallery.md"] = gallery()
    return found


def methods_table(methods: Sequence[Plugin]) -> str:
    """Each method with its paper, its needs and its cost."""
    rows = [
        (f"[`{each.name}`]({each.name}.md)", each.declared.paper or "-", needs(each), cost(each))
        for each in methods
    ]
    return (
        "# Methods\n\nEach is one file in `methods/`, on any backbone that meets its needs. The "
        "cost is that of a training image in FLOPs, MAE's being 1, counted with `--preset quick`; "
        "`ssl-bench list methods` shows it, too. [Your own](../own-method.md) is one file. "
        "A training whose features become alike is reported to have collapsed.\n\n"
        + table(("`--method`", "paper", "needs", "cost"), rows)
    )


def evals_table(evals: Sequence[Plugin]) -> str:
    """Each evaluation, and whether it is run without being asked for."""
    rows = [
        (
            f"[`{each.name}`]({each.name}.md)",
            each.summary.partition(": ")[2].rstrip("."),
            "yes" if each.declared.is_default else "",
            "yes" if "label" in each.declared.columns else "",
            "all" if each.declared.sharded else "one",
        )
        for each in evals
    ]
    return (
        "# Evaluations\n\nEach is one file in `evals/`; `--evals` names those to run, `ssl-bench "
        "eval RUN --evals NAME` runs one later. [What they have in common](../protocols.md) is why "
        "their numbers can be compared; [your own](../own-evaluation.md) is one file, too.\n\n"
        + table(("`--evals`", "what it asks", "by default", "needs labels", "devices"), rows)
    )


def method_page(plugin: Plugin) -> str:
    """All that a method's file says of it, and what committed runs scored."""
    found = plugin.declared
    facts = {
        "paper": found.paper,
        "needs": needs(plugin) if found.needs else "",
        "cost of a training image": f"{cost(plugin)} times MAE's" if cost(plugin) != "-" else "",
        "reads": ", ".join(sorted(found.columns)),
        "file": f"`methods/{plugin.path.name}`",
    }
    parts = [
        *_head(plugin, facts),
        f"```sh\nssl-bench run --method {plugin.name}\n```",
        "## What it does",
        prose(plugin),
        *_settings(plugin),
        *_presets(plugin),
        *_search_space(plugin),
        *_ablations(plugin),
        *_recipes(plugin),
        *_results("method", plugin.name),
    ]
    return "\n\n".join(parts) + "\n"


def eval_page(plugin: Plugin) -> str:
    """All that an evaluation's file says of it, and what committed runs scored."""
    found = plugin.declared
    facts = {
        "run by default": "yes" if found.is_default else f"no: `--evals {plugin.name}`",
        "reads": ", ".join(sorted(found.columns)),
        "several devices": "share the work" if found.sharded else "one of them does it",
        "file": f"`evals/{plugin.path.name}`",
    }
    parts = [
        *_head(plugin, facts),
        f"```sh\nssl-bench eval RUN --evals {plugin.name}\n```",
        "## Protocol",
        prose(plugin),
        *_settings(plugin),
        *_presets(plugin),
        *_results("evaluation", plugin.name),
    ]
    return "\n\n".join(parts) + "\n"


def presets_table() -> str:
    """Every preset with its note."""
    rows = ((f"`{name}`", note) for name, note in registry.presets().items())
    return table(("`--preset`", "what it is"), rows)


def gallery() -> str:
    """One figure of each kind that the committed runs have."""
    parts = ["# Gallery", "Figures of the runs that are committed under `results/`."]
    for report in sorted(ROOT.glob("results/*/report")):
        parts += [f"## `ssl-bench report` on {report.parent.name}"]
        if (page := report / "index.html").exists():
            parts += [f"The whole report is [one page]({_link(page)})."]
        for start, caption in FIGURES.items():
            for path in sorted((report / "figures").glob(f"{start}*.png"))[:1]:
                parts += [f"### {caption.rstrip('.')}", f"![{caption}]({_link(path)})"]
    parts += ["## `ssl-bench ablate`"]
    for path in sorted(ROOT.glob("results/*/ablations/*/figure.png")):
        parts += [f"![Accuracy over what was varied, ours and the paper's]({_link(path)})"]
    parts += ["## `python -m benchmarks`"]
    for path in sorted(ROOT.glob("results/speed/*.png")):
        parts += [f"![Images a second, {path.stem}]({_link(path)})"]
    return "\n\n".join(parts) + "\n"


def _link(path: Path) -> str:
    return f"../{path.relative_to(ROOT).as_posix()}"


# Their parts.


def _head(plugin: Plugin, facts: Mapping[str, str]) -> Iterator[str]:
    title, colon, rest = plugin.summary.partition(": ")
    yield f"# {title}"
    yield f"{rest[:1].upper()}{rest[1:]}" if colon else plugin.summary
    yield "\n".join(f"- **{name}**: {value}" for name, value in facts.items() if value)


def prose(plugin: Plugin) -> str:
    """The docstring of a plugin's file after its first line, as Markdown."""
    text = inspect.cleandoc(plugin.outline().__doc__ or "").partition("\n")[2].strip()
    return _markdown(text) or "The file says no more."


def _markdown(text: str) -> str:
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"(?<!\n)\n(- )", r"\n\n\1", text)  # a list begins after an empty line
    return re.sub(r"::\n", ":\n", text)


def _settings(plugin: Plugin) -> Iterator[str]:
    """Each flag with its default, that of the quick preset, its range and its meaning."""
    quick = plugin.presets().get("quick", {})
    ranges = intervals(plugin.config)
    found = flags_with(plugin.config, flag_prefix(plugin), {})
    if not found:
        return
    yield "## Settings"
    yield "Defaults are those of the `Config`; a preset may set others, and a flag wins over both."
    groups = {"### Its own": [flag for flag in found if is_own(flag)]}
    groups["### What it shares with others"] = [flag for flag in found if not is_own(flag)]
    for title, members in groups.items():
        if not members:
            continue
        yield title
        rows = [
            (
                f"`{flag.option}`",
                code(flag.default),
                code(quick[flag.field]) if flag.field in quick else "",
                _range(flag, ranges.get(flag.field, "")),
                re.sub(r" In [\[(][^ ]+ [^ ]+[\])]\.$", "", flag.help),
            )
            for flag in members
        ]
        yield table(("flag", "default", "quick", "range", "meaning"), rows)


def _range(flag: Flag, interval: str) -> str:
    if typing.get_origin(flag.type) is typing.Literal:
        return " or ".join(f"`{each}`" for each in typing.get_args(flag.type))
    return f"`{interval}`" if interval else "yes, no" if flag.type is bool else ""


def _presets(plugin: Plugin) -> Iterator[str]:
    presets = plugin.presets()
    if not presets:
        return
    yield "## Presets"
    yield "What each sets; `ssl-bench recipe PRESET` shows every value, beside the paper's."
    rows = (
        (f"`{name}`", ", ".join(f"`{key.replace('_', '-')}` {text_of(value)}"
                                for key, value in values.items()))
        for name, values in presets.items()
    )  # fmt: skip
    yield table(("`--preset`", "sets"), rows)
    if plugin.kind == "method":
        for name, how in plugin.declared.tuned.items():
            yield f"`{name}` was tuned {how}."


def _search_space(plugin: Plugin) -> Iterator[str]:
    if not plugin.search():
        return
    yield "## Search space"
    yield "`ssl-bench sweep --search random` draws from it."
    rows = ((f"`--{name.replace('_', '-')}`", _drawn(r)) for name, r in plugin.search().items())
    yield table(("flag", "range"), rows)


def _drawn(values: Range) -> str:
    if isinstance(values, OneOf):
        return "one of " + ", ".join(code(each) for each in values.values)
    kind = ", logarithmic" if isinstance(values, LogUniform) else ", whole" if values.whole else ""
    return f"`{values.low:g}` to `{values.high:g}`{kind}"


def _ablations(plugin: Plugin) -> Iterator[str]:
    if not plugin.ablations():
        return
    yield "## Ablations of the paper"
    yield f"`ssl-bench ablate NAME --method {plugin.name}` runs one."
    rows = (
        (f"`{name}`", each.title, each.source, ", ".join(map(as_number, each.values)))
        for name, each in plugin.ablations().items()
    )
    yield table(("name", "what is varied", "source", "values"), rows)


def _recipes(plugin: Plugin) -> Iterator[str]:
    """The settings of each published preset beside those of the paper."""
    named = [name for name in plugin.presets() if recipe.published(plugin, name, plugin).settings]
    if not named:
        return
    yield "## Beside the paper"
    yield (
        f"`{recipe.DIFFERS}` marks what is none of the published settings, `{recipe.DISPUTED}` "
        f"what the sources disagree on, `{recipe.UNCOMPARED}` what was not compared. Ours is read "
        "off an object that a run builds, is the flag's value, or is what we state."
    )
    for name in named:
        stage = recipe.stages(flags.parse_run(["--preset", name, "--method", plugin.name]))[0]
        rows = []
        for row in stage.rows:
            if row.published:
                values = "<br>".join(value for value, _ in row.published)
                sources = "<br>".join(source for _, source in row.published)
                setting = row.name.replace("_", " ")
                rows.append((setting, row.ours, row.origin, row.mark, values, sources))
        body = table(("setting", "ours", "from", "", "published", "source"), rows)
        indented = "\n".join(f"    {line}" for line in body.splitlines())
        yield f'??? note "{name}: tables and files of {stage.sources}"\n\n{indented}'


def needs(plugin: Plugin) -> str:
    """What a method takes, in words."""
    return ", ".join(plugin.declared.needs) or "-"


@cache
def _costs() -> Mapping[str, float]:
    return json.loads(COSTS.read_text())


def cost(plugin: Plugin) -> str:
    """A method's FLOPs for an image in those of MAE."""
    costs = _costs()
    return f"{costs[plugin.name] / costs['mae']:.1f}" if plugin.name in costs else "-"


# Committed runs.


@dataclass(frozen=True)
class Scored:
    """A headline of a committed run.

    Attributes:
        folder: of the runs, under ``results/``.
        settings: what tells it from other runs of its method there.
        is_baseline: of what stands beside the run, such as raw pixels.
    """

    folder: str
    method: str
    settings: str
    evaluation: str
    score: str
    unit: str
    data: str
    seed: int
    value: float
    is_baseline: bool = False


@cache
def scored() -> Sequence[Scored]:
    """The headlines of all committed runs but the trials of searches."""
    found = []
    paths = sorted(ROOT.glob("results/*/*/config.json"))
    runs = {
        path.parent: config
        for path in paths
        if not (config := load_json(path))["data"].endswith("-validation")
    }
    for folder, config in runs.items():
        peers = [
            each["method_config"] for other, each in runs.items()
            if other.parent == folder.parent and each["method"] == config["method"]
        ]  # fmt: skip
        told = ", ".join(
            f"{name.replace('_', ' ')} {text_of(value)}"
            for name, value in config["method_config"].items()
            if any(peer.get(name) != value for peer in peers)
        )
        for path in sorted(folder.glob("evals/*/scores.json")):
            record = load_json(path)
            score = next(iter(record["scores"]))
            unit = record.get("unit") or "top-1 accuracy (%)"
            of_text = ", its text alone" if record.get("reads") == "text" else ""
            shared = (record["eval"], score, unit, f"{record['data']}{of_text}", record["seed"])
            where = folder.parent.name
            value = record["scores"][score]
            found.append(Scored(where, config["method"], told, *shared, value))
            for label, scores in record.get("baselines", {}).items():
                if score in scores:
                    found.append(Scored(where, label, "", *shared, scores[score], True))
    return found


def _results(axis: str, name: str) -> Iterator[str]:
    """What committed runs of a method, or under an evaluation, scored."""
    own = [each for each in scored() if name in (each.method, each.evaluation)]
    places = {(each.folder, each.evaluation, each.data) for each in own}
    beside = [e for e in scored() if (e.folder, e.evaluation, e.data) in places]
    shown = [each for each in beside if each in own or (each.is_baseline and axis == "method")]
    if not shown:
        return
    yield "## Results"
    yield (
        "Of the runs that are committed under `results/`: headlines, means ± half of the 95 % t "
        "interval over seeds, where there are several. Rows of different folders had different "
        "budgets; only those of one folder are to be compared."
    )
    for data in sorted({each.data for each in shown}):
        yield f"### On {data}"
        yield _scores([each for each in shown if each.data == data])


def _scores(shown: Sequence[Scored]) -> str:
    """A table of scores on one data set."""
    columns = list(dict.fromkeys((e.evaluation, e.score, e.unit) for e in shown))
    rows: dict[tuple[str, ...], dict[Any, dict[int, float]]] = {}
    for each in sorted(shown, key=lambda e: (e.folder, e.is_baseline)):
        label = f"*{each.method}*" if each.is_baseline else f"`{each.method}`"
        key = (f"`{each.folder}`", f"{label} {each.settings}".strip())
        column = (each.evaluation, each.score, each.unit)
        rows.setdefault(key, {}).setdefault(column, {})[each.seed] = each.value
    return table(
        ("folder", "method", *(f"{evaluation}: {unit}" for evaluation, _, unit in columns)),
        (
            (*key, *(_mean(cells.get(each, {}).values()) for each in columns))
            for key, cells in rows.items()
        ),
    )


def _mean(values: Iterable[float]) -> str:
    values = list(values)
    if not values:
        return "-"
    found = mean_interval(values)
    spread = f" ± {found.half_width:.2f}" if found.half_width is not None else ""
    return f"{found.mean:.2f}{spread}" + (f" (n={found.n})" if found.n > 1 else "")


# Markdown.


def code(value: Any) -> str:
    """A value as code; what is nothing is a dash."""
    if value is dataclasses.MISSING:
        return ""
    return "-" if value in (None, "", ()) and value is not False else f"`{text_of(value)}`"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    cells = ([str(each).replace("|", "\\|") for each in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
