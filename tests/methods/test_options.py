"""That what a flag says reaches what it is about, at other values than the default."""

from __future__ import annotations

import dataclasses
from typing import Any

import helpers
import pytest
from helpers import METHODS

from ssl_bench.api.registry import Plugin
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup

SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, helpers.SHAPE)


def fields(plugin: Plugin) -> set[str]:
    return {field.name for field in dataclasses.fields(plugin.load().Config)}


def having(name: str) -> list[Plugin]:
    return [plugin for plugin in METHODS if name in fields(plugin)]


def build(plugin: Plugin, **changes: Any) -> Any:
    """The method in small, with the decoder of convolutions as wide as it needs to be."""
    if "decoder_groups" in fields(plugin):
        changes["decoder_groups"] = 4
    config = dataclasses.replace(helpers.small(plugin), **changes)
    is_of_clips = "clips" in plugin.load_class().needs
    spec = dataclasses.replace(SPEC, frames=4) if is_of_clips else SPEC
    spec = helpers.with_text(plugin, spec, config)
    return setup.build_method(plugin.load_class(), config, spec, 3, seed=0)


@pytest.mark.parametrize("plugin", having("crop_scale"), ids=helpers.named)
def test_crops_are_as_small_as_asked_for(plugin: Plugin) -> None:
    """Small ones beside the large ones are as large as that at most."""
    views = build(plugin, crop_scale=0.37).transforms()
    for name, view in views.items():
        expected = (0.05, 0.37) if name.startswith("local") else (0.37, 1.0)
        assert view.crop_scale == expected, name
    if len(views) == 1:
        [whole] = build(plugin, crop_scale=1.0).transforms().values()
        assert whole.crop_scale is None


@pytest.mark.parametrize("plugin", having("clip_grad"), ids=helpers.named)
def test_gradients_are_clipped_where_asked_for(plugin: Plugin) -> None:
    assert build(plugin, clip_grad=0.7).optimizer().clip_norm == 0.7


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_colours_change_as_much_as_asked_for(strength: float) -> None:
    plugins = {plugin.name: plugin for plugin in METHODS}
    for view in build(plugins["simclr"], color_strength=strength).transforms().values():
        assert view.jitter == pytest.approx([0.8 * strength] * 3 + [0.2 * strength])
    [view] = build(plugins["beit-kmeans"], color_jitter=strength).transforms().values()
    assert view.jitter == (strength, strength, strength, 0.0)
    [view] = build(plugins["mae"], color_jitter=strength).transforms().values()
    assert view.jitter == (strength, strength, strength, strength / 4)


@pytest.mark.parametrize("plugin", having("blur"), ids=helpers.named)
def test_nothing_is_blurred_where_asked_for(plugin: Plugin) -> None:
    for blurs, share in ((True, 0.5), (False, 0.0)):
        views = build(plugin, blur=blurs).transforms().values()
        assert {view.blur for view in views} == {share}
