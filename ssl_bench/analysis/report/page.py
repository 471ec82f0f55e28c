"""The page: one self-contained HTML file, from a template that escapes every name."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from ssl_bench.analysis.report import exports
from ssl_bench.analysis.report.drawing import Figure, Missing
from ssl_bench.analysis.report.origins import Provenance
from ssl_bench.analysis.report.source import slug
from ssl_bench.analysis.report.tables import Table
from ssl_bench.analysis.tables import as_csv

_TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv;charset=utf-8"}


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Attributes:
        facts: titles and texts for its head.
        further: the other scores of a table, by the table's name.
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
        """Every table that is also written to files."""
        return (*self.tables, *self.further.values(), *self.pairs, self.runs)


def render(content: Content) -> str:
    """The page; its content security policy allows no requests, and no script but its own."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssl_bench", "analysis/report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"slug": slug, "data_uri": data_uri}
    environment.globals["csv_of"] = lambda table: data_uri(as_csv(table.data), "csv")
    environment.globals["latex_of"] = lambda table: data_uri(exports.as_latex(table).encode())
    environment.globals["markdown_of"] = lambda table: data_uri(exports.as_markdown(table).encode())
    style, script = (_asset(environment, f"page.{extension}") for extension in ("css", "js"))
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    template = environment.get_template("page.html.j2")
    return template.render(
        content=content, policy=policy, style=Markup(style), script=Markup(script)
    )


def data_uri(content: bytes, extension: str = "txt") -> str:
    """A URI that holds the content itself."""
    kind = _TYPES.get(extension, "text/plain;charset=utf-8")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _asset(environment: jinja2.Environment, name: str) -> str:
    loader: Any = environment.loader
    source, *_ = loader.get_source(environment, name)
    return re.sub(r"\r\n?", "\n", source)


def _digest(text: str) -> str:
    """The hash that a content security policy has of the exact text between two tags."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
