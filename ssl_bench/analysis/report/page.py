"""The page: one HTML file that needs nothing else, from a template that escapes every name."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from ssl_bench.analysis.report import exports, numbers
from ssl_bench.analysis.report.drawing import Drawing, Files, Missing
from ssl_bench.analysis.report.origins import Provenance
from ssl_bench.analysis.report.source import slug
from ssl_bench.analysis.report.tables import Table

_TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv;charset=utf-8"}


@dataclass(frozen=True)
class Figure:
    """A drawing as the page shows it.

    Attributes:
        name: of its files, and on the page.
        image, csv: data URIs; the latter is empty where there are no numbers.
    """

    name: str
    drawing: Drawing
    image: str
    csv: str
    shown: str
    width: int
    height: int


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Attributes:
        facts: title and text, to stand at its head.
        further: by name of a table, the scores that did not find room in it.
        figures: by theme, in order.
        problems: what could not be read, one line each.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    further: Mapping[str, Table]
    pairs: Sequence[Table]
    runs: Table
    figures: Mapping[str, Sequence[Figure]]
    missing: Sequence[Missing]
    provenance: Sequence[Provenance]
    notes: Sequence[str]
    problems: Sequence[str]

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """Every table that becomes files."""
        return (*self.tables, *self.further.values(), *self.pairs, self.runs)


def figure(name: str, drawing: Drawing, files: Files) -> Figure:
    """The drawing with its image and its numbers inside."""
    shown = files.shown
    return Figure(
        name,
        drawing,
        data_uri(files.contents[shown], shown),
        data_uri(files.contents["csv"], "csv") if "csv" in files.contents else "",
        shown,
        files.width,
        files.height,
    )


def by_theme(figures: Iterable[Figure]) -> dict[str, list[Figure]]:
    """Figures under their headings, in the order in which these first appear."""
    themes: dict[str, list[Figure]] = {}
    for each in figures:
        themes.setdefault(each.drawing.theme, []).append(each)
    return themes


def render(content: Content) -> str:
    """The page.

    Its content security policy lets it load nothing, and run the one script that is in it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssl_bench", "analysis/report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["slug"] = slug
    environment.globals["csv_of"] = lambda table: data_uri(numbers.as_csv(table.data), "csv")
    environment.globals["latex_of"] = lambda table: _text_uri(exports.as_latex(table))
    environment.globals["markdown_of"] = lambda table: _text_uri(exports.as_markdown(table))
    style, script = (_asset(environment, f"page.{ending}") for ending in ("css", "js"))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src 'sha256-{_digest(style)}'",
            f"script-src 'sha256-{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    template = environment.get_template("page.html.j2")
    return template.render(
        content=content, policy=policy, style=Markup(style), script=Markup(script)
    )


def data_uri(content: bytes, ending: str) -> str:
    """The content as an address that holds it."""
    return f"data:{_TYPES[ending]};base64,{base64.b64encode(content).decode()}"


def _text_uri(text: str) -> str:
    return f"data:text/plain;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _asset(environment: jinja2.Environment, name: str) -> str:
    loader: Any = environment.loader
    source, *_ = loader.get_source(environment, name)
    return re.sub(r"\r\n?", "\n", source)


def _digest(text: str) -> str:
    """As a content security policy writes it: of exactly what stands between the tags."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
