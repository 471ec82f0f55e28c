"""Tables as Markdown and LaTeX."""

from __future__ import annotations

import re

from ssl_bench.analysis.report.tables import Table, rows_of

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    # At the start of a row, these would be arguments of the command that ends the last one.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "†": r"\dag{}",
    "…": r"\ldots{}",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$])")


def as_markdown(table: Table) -> str:
    """A GitHub table under its title."""
    marks = ["--:" if place in table.numeric else "---" for place in range(len(table.columns))]
    rows = [table.columns, *rows_of(table)]
    head, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    lines = [f"**{markdown(table.title)}**", "", head, "| " + " | ".join(marks) + " |", *body, ""]
    notes = [markdown(table.caption), *(f"- {markdown(note)}" for note in table.notes)]
    return "\n".join([*lines, *notes]) + "\n"


def as_latex(table: Table) -> str:
    """A table environment for the packages booktabs and graphicx, no wider than the line."""
    columns = "".join("r" if place in table.numeric else "l" for place in range(len(table.columns)))
    head, *body = [" & ".join(map(latex, row)) + r" \\" for row in [table.columns, *rows_of(table)]]
    caption = " ".join([f"{table.title}.", table.caption, *table.notes])
    lines = [
        "% Needs \\usepackage{booktabs,graphicx}.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """The text so that LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def markdown(text: str) -> str:
    """The text so that Markdown prints it, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)
