"""``ssl-bench list``: everything that has a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from ssl_bench import data
from ssl_bench.api import registry
from ssl_bench.config.presets import BACKBONES
from ssl_bench.config.settings import Settings
from ssl_bench.errors import unknown
from ssl_bench.utils.terminal import Console

Rows = list[tuple[str, str]]
_PATHS = "a folder of class folders or of images, or Parquet files with an image column"


def show(args: Sequence[str]) -> None:
    """Print the kinds asked for, or all."""
    for arg in args:
        if arg in ("-h", "--help"):
            print(f"usage: ssl-bench list [{'] ['.join(_KINDS)}]")
            return
        if arg not in _KINDS:
            raise unknown("kind", arg, _KINDS)
    console = Console()
    for kind in args or _KINDS:
        title = f"{kind} (* run by default)" if kind == "evals" else kind
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for row in _KINDS[kind](bool(args)):
            table.add_row(*row)
        console.print(table)
        console.print()


def _plugins(kind: registry.Kind) -> Rows:
    return [
        (name + (" *" if kind == "eval" and plugin.declared.is_default else ""), plugin.summary)
        for name, plugin in registry.discover(kind).items()
    ]


def _backbones(is_detailed: bool) -> Rows:
    own = [
        (name, f"{spec['embed_dim']} wide, {spec['depth']} blocks, {spec['num_heads']} heads")
        for name, spec in BACKBONES.items()
    ]
    if not is_detailed:
        return [*own, ("any of timm", "Vision Transformers, Swin, ConvNeXt, ResNet and the others")]
    import timm

    count = len(timm.list_models())
    examples = "vit_base_patch16_224, swin_tiny_patch4_window7_224, convnext_atto, resnet18"
    names = 'python -c "import timm; print(*timm.list_models())" names them'
    return [*own, ("any of timm", f"{count:,} image models, such as {examples}; {names}")]


_KINDS: dict[str, Callable[[bool], Rows]] = {
    "methods": lambda is_detailed: _plugins("method"),
    "evals": lambda is_detailed: _plugins("eval"),
    "datasets": lambda is_detailed: [*data.names().items(), ("PATH", _PATHS)],
    "backbones": _backbones,
    "presets": lambda is_detailed: [
        (name + (" (default)" if name == Settings.preset else ""), note)
        for name, note in registry.presets().items()
    ],
}
