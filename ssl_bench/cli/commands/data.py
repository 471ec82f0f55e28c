"""``ssl-bench data``, of which there is ``prepare`` alone: its arguments read, the work begun."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_bench.cli import argv, parser
from ssl_bench.config.command_settings import PrepareSettings
from ssl_bench.errors import UserError


def data(args: Sequence[str]) -> None:
    """``ssl-bench data prepare``."""
    if args[:1] != ["prepare"] and not argv.HELP & set(args):
        raise UserError("say what to do with data: ssl-bench data prepare SOURCE -o FOLDER")
    settings = parser.parse("data prepare", PrepareSettings, args[1:] or args)
    from ssl_bench.cli.commands.prepare import prepare

    prepare(settings)
