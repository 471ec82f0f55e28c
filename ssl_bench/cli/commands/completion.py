"""``ssl-bench completion SHELL``: tyro's script, told of all commands, flags and names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union

import tyro

from ssl_bench import data
from ssl_bench.api import registry
from ssl_bench.cli import parser
from ssl_bench.cli.commands import COMMANDS
from ssl_bench.config.presets import BACKBONES
from ssl_bench.errors import require

_SHELLS = ("bash", "zsh")
_OUTPUT = "    # Output one completion per line.\n"
_RUNS = """\
    import glob
    import os

    start = words[current_index] if current_index < len(words) else ""
    takes_runs = words[1:2] and words[1] in %r and not words[current_index - 1].startswith("-")
    if (takes_runs or words[current_index - 1] == "--match") and not start.startswith("-"):
        folder = words[words.index("--runs-dir") + 1] if "--runs-dir" in words[:-1] else "runs"
        named = os.path.join(glob.escape(folder), glob.escape(start) + "*", "config.json")
        found = glob.glob(named)
        if found:  # rather than files
            completions = [each for each in completions if not each.startswith("__TYRO")]
        completions += sorted(os.path.basename(os.path.dirname(path)) for path in found)
"""
"""Goes into tyro's script, which is Python inside: the names of runs, as they are then."""
_HELP = f"""\
usage: ssl-bench completion {"|".join(_SHELLS)}

Print a script that completes commands, flags and names in that shell.

  source <(ssl-bench completion bash)                          # in ~/.bashrc
  ssl-bench completion zsh > ~/.zsh/completions/_ssl-bench     # a folder that is in fpath
"""


def show(args: Sequence[str]) -> None:
    """Print the completion script of a shell."""
    if {"-h", "--help"} & set(args):
        print(_HELP, end="")
        return
    require(len(args) == 1, f"say which shell: ssl-bench completion {'|'.join(_SHELLS)}")
    require(args[0] in _SHELLS, f"unknown shell {args[0]!r}; known: {', '.join(_SHELLS)}")
    names: dict[str, Iterable[str]] = {
        "method": registry.discover("method"),
        "data": data.names(),
        "backbone": BACKBONES,
        "preset": registry.presets(),
    }
    choices: dict[str, Any] = {flag: Literal[tuple(known)] for flag, known in names.items()}
    choices["evals"] = tuple[Literal[tuple(registry.discover("eval"))], ...]  # type: ignore[misc]
    classes = [
        Annotated[
            parser.every_flag(name, each.classes, each.plugins, choices),
            tyro.conf.subcommand(name),
        ]
        for name, each in COMMANDS.items()
    ]
    union: Any = Union[tuple(classes)]  # noqa: UP007  built from a variable number of types
    script = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):
        tyro.cli(union, prog="ssl-bench", args=["--tyro-print-completion", args[0]])
    take_runs = [n for n, each in COMMANDS.items() if each.takes_runs]
    print(script.getvalue().replace(_OUTPUT, _RUNS % take_runs + _OUTPUT), end="")
