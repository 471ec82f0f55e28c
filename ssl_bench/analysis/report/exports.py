"""Tables as Markdown and LaTeX."""

from __future__ import annotations

import re

from ssl_bench.analysis.report.tables import Table

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
    # At the start of a row, these would be arguments of the command that ends the row before.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "…": r"\ldots{}",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$])")


def as_markdown(table: Table) -> str:
    """A GitHub table under its title."""
    rules = ["--:" if index in table.numeric else "---" for index in range(len(table.columns))]
    head, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in table.texts]
    lines = [f"**{markdown(table.title)}**", "", head, "| " + " | ".join(rules) + " |", *body, ""]
    notes = [markdown(table.caption), *(f"- {markdown(note)}" for note in table.notes)]
    return "\n".join([*lines, *notes]) + "\n"


def as_latex(table: Table) -> str:
    """A table environment for the packages booktabs and graphicx, no wider than the line."""
    columns = "".join("r" if index in table.numeric else "l" for index in range(len(table.columns)))
    head, *body = [" & ".join(map(latex, row)) + r" \\" for row in table.texts]
    sentences = (table.title, table.caption, *table.notes)
    caption = " ".join(f"{sentence.removesuffix('.')}." for sentence in sentences)
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
    """The text, escaped for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def markdown(text: str) -> str:
    """The text in one line, escaped for Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)
