"""The page: one self-contained HTML file, from a template that escapes every name."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ssl_bench.analysis.report import exports
from ssl_bench.analysis.report.source import slug
from ssl_bench.analysis.tables import as_csv

_TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv;charset=utf-8"}


def render(content: Mapping[str, Any]) -> str:
    """The page; its content security policy allows no requests, and no script but its own."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"slug": slug, "data_uri": data_uri}
    environment.globals["csv_of"] = lambda table: data_uri(as_csv(table.data), "csv")
    environment.globals["latex_of"] = lambda table: data_uri(exports.as_latex(table).encode())
    environment.globals["markdown_of"] = lambda table: data_uri(exports.as_markdown(table).encode())
    style, script = ((here / f"page.{extension}").read_text("utf-8") for extension in ("css", "js"))
    # Of the exact text between two tags.
    style_hash, script_hash = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (style, script)
    )
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src {style_hash}; script-src {script_hash}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = environment.get_template("page.html.j2")
    return template.render(content, policy=policy, style=Markup(style), script=Markup(script))


def data_uri(content: bytes, extension: str = "txt") -> str:
    """A URI that holds the content itself."""
    kind = _TYPES.get(extension, "text/plain;charset=utf-8")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
