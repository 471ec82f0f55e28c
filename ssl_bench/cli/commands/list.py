"""``ssl-bench list``: everything that has a name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ssl_bench import data
from ssl_bench.api import registry
from ssl_bench.cli.argv import HELP
from ssl_bench.config.presets import BACKBONES
from ssl_bench.config.settings import Settings
from ssl_bench.errors import unknown
from ssl_bench.utils.terminal import Console

Rows = list[tuple[str, str]]
COSTS = Path(__file__).with_name("costs.json")
"""FLOPs of a training image under the quick preset, by method; ``tests/method_costs.py`` counts."""
_PATHS = "images or videos in folders, Parquet or tar files, captions beside images, texts"


def show(args: Sequence[str]) -> None:
    """Print the kinds asked for, or all."""
    for arg in args:
        if arg in HELP:
            print(f"usage: ssl-bench list [{'] ['.join(KINDS)}]")
            return
        if arg not in KINDS:
            raise unknown("kind", arg, KINDS)
    console = Console()
    for kind in args or KINDS:
        console.print(_methods() if args and kind == "methods" else _table(kind, bool(args)))
        console.print()


def _table(kind: str, is_detailed: bool) -> Table:
    title = f"{kind} (* run by default)" if kind == "evals" else kind
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for row in KINDS[kind](is_detailed):
        table.add_row(*row)
    return table


def _methods() -> Table:
    """Each method with its paper, what it needs, and what an image costs."""
    costs = json.loads(COSTS.read_text())
    unit = Settings.method
    title = f"methods (cost: FLOPs of a training image, in those of {unit}; --preset quick)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column("what it does, and its paper", ratio=1)
    table.add_column("needs", max_width=16)
    table.add_column("cost", justify="right", no_wrap=True)
    for name, plugin in registry.discover("method").items():
        declared = plugin.declared
        about = "\n".join(filter(None, (plugin.summary, declared.paper)))
        known = plugin.is_ours and name in costs
        cost = f"{costs[name] / costs[unit]:.1f}" if known else "-"
        table.add_row(name, about, ", ".join(map(str, declared.needs)) or "-", cost)
    return table


def _plugins(kind: registry.Kind) -> Rows:
    return [
        (name + (" *" if kind == "eval" and plugin.declared.is_default else ""), plugin.summary)
        for name, plugin in registry.discover(kind).items()
    ]


def _backbones(is_detailed: bool) -> Rows:
    own = [
        (
            name,
            f"{spec['embed_dim']} wide, {_of_stages(spec, 'depth')} blocks, "
            f"{_of_stages(spec, 'num_heads')} heads",
        )
        for name, spec in BACKBONES.items()
    ]
    if not is_detailed:
        return [*own, ("any of timm", "Vision Transformers, Swin, ConvNeXt, ResNet and the others")]
    import timm

    count = len(timm.list_models())
    examples = "vit_base_patch16_224, swin_tiny_patch4_window7_224, convnext_atto, resnet18"
    names = 'python -c "import timm; print(*timm.list_models())" names them'
    return [*own, ("any of timm", f"{count:,} image models, such as {examples}; {names}")]


def _of_stages(spec: Mapping[str, Any], name: str) -> str:
    """A number of a backbone's, or those of a Swin Transformer's stages: "2 + 2 + 2"."""
    value = spec.get(name, spec.get(f"{name}s"))
    return " + ".join(map(str, value)) if isinstance(value, tuple) else str(value)


KINDS: dict[str, Callable[[bool], Rows]] = {
    "methods": lambda is_detailed: _plugins("method"),
    "evals": lambda is_detailed: _plugins("eval"),
    "datasets": lambda is_detailed: [*data.names().items(), ("PATH", _PATHS)],
    "backbones": _backbones,
    "presets": lambda is_detailed: [
        (name + (" (default)" if name == Settings.preset else ""), note)
        for name, note in registry.presets().items()
    ],
}
