"""FLOPs of a training image under each method's quick preset, for ``ssl-bench list methods``.

They are counted on the modules themselves, which takes torch, and kept where the list is made::

    python tests/method_costs.py
"""

from __future__ import annotations

import functools
import json
from typing import Any

from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.cli.commands.list import COSTS
from ssl_bench.data.embedded import scenes
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import flops, setup

_CHANNELS, _CLASSES = 1, 10
_IMAGES, _CLIPS = (28, 1), (32, 8)
"""Pixels a side and frames of the embedded images, and of the embedded clips."""


@functools.cache
def _captions() -> tuple[Any, ...]:
    """Those of the embedded scenes, which take seconds to make."""
    return tuple(scenes.read("train").captions or ())


def of(name: str) -> int:
    """FLOPs for each image of a step of that method."""
    run = flags.parse_run(["--method", name])
    config = run.method.real_config(run.method_config)
    backbone = run.settings.backbone
    columns = run.method.declared.columns
    size, frames = _CLIPS if "clip" in columns and "image" not in columns else _IMAGES
    patch_size = backbones.default_patch_size(backbone, size)
    spec = EncoderSpec(backbone, size, patch_size, _CHANNELS, (0.5,), (0.5,), frames=frames)
    kind = run.method.load_class()
    spec = setup.with_text(spec, kind, config, _captions())
    method = setup.build_method(kind, config, spec, _CLASSES, 0)
    return round(flops.of_step(method, spec, run.batch_on()) / run.batch_on())


if __name__ == "__main__":
    ours = [plugin.name for plugin in registry.discover("method").values() if plugin.is_ours]
    COSTS.write_text(json.dumps({name: of(name) for name in ours}, indent=1) + "\n")
