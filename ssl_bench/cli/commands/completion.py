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
from ssl_bench.cli.argv import HELP
from ssl_bench.cli.commands import COMMANDS
from ssl_bench.cli.commands.list import KINDS
from ssl_bench.config.presets import BACKBONES
from ssl_bench.config.settings import LOGGERS
from ssl_bench.errors import require

_SHELLS = ("bash", "zsh")
_OUTPUT = "    # Output one completion per line.\n"
_NAMES = """\
    import glob
    import os

    for command in COMPLETION_SPEC["subcommands"].values():
        for option in command["options"]:
            option["nargs"] = None  # several values are separated by commas
    for at in [i for i, word in enumerate(words) if word == "="][::-1]:  # bash cuts --flag=value
        if at == current_index:
            words[at] = ""
        else:
            del words[at]
            current_index -= at < current_index
    start = words[current_index] if current_index < len(words) else ""
    before, comma, last = start.rpartition(",")
    words[current_index:] = [last]
    completions = get_completions(words, current_index, COMPLETION_SPEC)
    if comma:
        completions = [before + comma + each for each in completions if each[:1] not in "-_"]
    if current_index == 2:
        known = %r.get(words[1], [])
        completions = [each for each in known if each.startswith(start)] or completions
    takes_runs = words[1:2] and words[1] in %r and not words[current_index - 1].startswith("-")
    if (takes_runs or words[current_index - 1] == "--match") and not start.startswith("-"):
        folder = words[words.index("--runs-dir") + 1] if "--runs-dir" in words[:-1] else "runs"
        named = os.path.join(glob.escape(folder), glob.escape(start) + "*", "config.json")
        found = glob.glob(named)
        if found:  # rather than files
            completions = [each for each in completions if not each.startswith("__TYRO")]
        completions += sorted(os.path.basename(os.path.dirname(path)) for path in found)
"""
"""Goes into tyro's script, which is Python inside: the names of runs, as they are then, the words
that a command takes, and values after ``=`` and commas."""
_FILES = {
    'if [[ "$completions" ==': 'if [[ -z "$completions" || "$completions" ==',
    'COMPREPLY=($(compgen -f -- "$cur"))': "COMPREPLY=()",
    "complete -F ": "complete -o default -F ",
}
"""What replaces what in tyro's script, so that it leaves the rest to the shell's own: files."""
_HELP = f"""\
usage: ssl-bench completion {"|".join(_SHELLS)}

Print a script that completes commands, flags and names in that shell.

  source <(ssl-bench completion bash)                          # in ~/.bashrc
  ssl-bench completion zsh > ~/.zsh/completions/_ssl-bench     # a folder that is in fpath
"""


def show(args: Sequence[str]) -> None:
    """Print the completion script of a shell."""
    if HELP & set(args):
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
    evals: Any = Literal[tuple(registry.discover("eval"))]
    for flag, known in {"evals": evals, "eval_every_with": evals, "log": Literal[LOGGERS]}.items():
        choices[flag] = tuple[known, ...]
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
    text = script.getvalue().replace(_OUTPUT, _NAMES % (_words(), take_runs) + _OUTPUT)
    for there, instead in _FILES.items():
        text = text.replace(there, instead)
    print(text, end="")


def _words() -> dict[str, list[str]]:
    """What may stand behind a command, by the command."""
    methods = registry.discover("method").values()
    return {
        "ablate": sorted({name for method in methods for name in method.ablations()}),
        "completion": list(_SHELLS),
        "data": ["prepare"],
        "list": list(KINDS),
        "recipe": sorted(registry.presets()),
    }
