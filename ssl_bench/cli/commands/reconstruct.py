"""``ssl-bench reconstruct``: what a masked autoencoder makes of anyone's images or clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.method import DataInfo, Method, total
from ssl_bench.api.registry import Plugin
from ssl_bench.api.step import Batch, Step
from ssl_bench.config.command_settings import ReconstructSettings
from ssl_bench.data import clips
from ssl_bench.data.images import opened, to_rgb
from ssl_bench.data.listing import Picture
from ssl_bench.data.sampling import Sampling
from ssl_bench.data.sources.videos import EXTENSIONS
from ssl_bench.errors import UserError, no_choice, require
from ssl_bench.evaluation.features import match_channels
from ssl_bench.experiment import figures
from ssl_bench.models import checkpoints, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.checkpoints import Checkpoint
from ssl_bench.runs import run_folder, schema
from ssl_bench.transforms.augmentations import evaluation_view, normalize
from ssl_bench.utils.files import writing
from ssl_bench.utils.formatting import plain
from ssl_bench.utils.rng import SampleRng


@torch.no_grad()
def reconstruct(settings: ReconstructSettings) -> None:
    """Draw images, what is left of them, and what the decoder makes of that; say what was found."""
    for name in settings.images:
        require(Path(name).is_file(), f"image {name!r} does not exist")
    source = settings.target
    if not checkpoints.is_foreign(source):
        source = str(run_folder.find_trained(settings.runs_dir, source))
    checkpoint = checkpoints.read(source, settings)
    spec = checkpoint.spec
    view_BCHW = torch.cat([_view(Path(name), spec, _stride(source)) for name in settings.images])
    index_B = torch.arange(len(view_BCHW))
    draws = SampleRng(settings.seed, 0, index_B, "reconstruct/")
    method, batch, note = _restore(checkpoint, source, settings, view_BCHW, draws)
    rows = method.pictures(batch)
    require(bool(rows), f"{source!r}: its method draws no pictures")
    title = (
        f"{plain(Path(source).name)}, mask ratio {method.config.mask_ratio:g}, seed {settings.seed}"
    )
    with writing(settings.output):
        figures.picture_rows(rows, spec, title, settings.output)
    for line in (*checkpoint.notes, note, f"pictures: {settings.output}"):
        print(plain(line))


def _restore(
    checkpoint: Checkpoint,
    source: str,
    settings: ReconstructSettings,
    view_BCHW: Tensor,
    draws: SampleRng,
) -> tuple[Method, Batch, str]:
    """The pre-training method with its weights, its batch, and what had to be worked out."""
    plugin, shown = _method_of(checkpoint, source)
    asked = {name: getattr(settings, name) for name in ("sampling", "mask_ratio", "decoder_heads")}
    asked["norm_pix_loss"] = {"yes": True, "no": False}.get(settings.norm_pix_loss)
    given = {name: value for name, value in asked.items() if value is not None}
    told = {name: value for name, value in checkpoint.settings.items() if name != "sampling"}
    known = {**told, **shown, **given}
    require(
        "decoder_heads" in known,
        f"{source!r} does not tell the attention heads of its decoder; say --decoder-heads, which "
        f"divide its width of {shown['decoder_embed_dim']}",
    )
    names = {field.name for field in fields(plugin.config)}
    ways = get_args(get_type_hints(plugin.config).get("sampling"))
    if settings.sampling and settings.sampling not in ways:
        raise no_choice("--sampling", settings.sampling, ways)
    stored = {name: value for name, value in known.items() if name in names}
    config = plugin.real_config(plugin.config_of(stored))
    method = plugin.load_class()(config, checkpoint.encoder, DataInfo.of(checkpoint.spec, 0))
    encoder = {f"encoder.{k}": v for k, v in checkpoint.encoder.state_dict().items()}
    weights.load_strictly(method, {**checkpoint.decoder, **encoder}, repr(source), what="decoder")
    method.eval()
    batch = Batch(dict.fromkeys(method.transforms(), view_BCHW), draws)
    if "norm_pix_loss" in known:
        return method, batch, f"predicts {_target(config.norm_pix_loss)} patches"
    return method, batch, _work_out_target(method, batch, view_BCHW)


def _work_out_target(method: Method, batch: Batch, view_BCHW: Tensor) -> str:
    """Have the method predict the target that its weights fit better; says which, and how well."""
    config, step, errors = method.config, Step(0, 1, 1, len(batch)), {}
    # Beside a constant prediction: each patch's own mean, or what all patches have in common.
    for normalised in (True, False):
        method.config = replace(config, norm_pix_loss=normalised)
        scale = 1.0 if normalised else view_BCHW.var().item()
        errors[normalised] = total(method.loss(batch, step)).item() / scale
    best = min(errors, key=errors.__getitem__)
    if errors[best] >= 1:
        method.config = replace(config, norm_pix_loss=False)
        return (
            "taken to predict raw patches, as the official code does unasked; but its prediction "
            "is worse than a constant for raw and normalised ones alike: are the weights trained?"
        )
    method.config = replace(config, norm_pix_loss=best)
    return (
        f"taken to predict {_target(best)} patches: its error there is {errors[best]:.2f} of the "
        f"target's variance, and {errors[not best]:.2f} of that of {_target(not best)} ones "
        "(--norm-pix-loss yes or no overrules)"
    )


def _method_of(checkpoint: Checkpoint, source: str) -> tuple[Plugin, Mapping[str, Any]]:
    """The method whose decoder this is, and the settings that its weights show."""
    for plugin in registry.discover("method").values():
        shown = plugin.load_class().settings_of(checkpoint.decoder)
        if shown is not None:
            return plugin, shown
    unseen = (
        schema.warn_of_method_file(Path(source)) if (Path(source) / schema.CONFIG).exists() else ""
    )
    require(
        not unseen,
        f"{unseen}, and no installed method knows its decoder; installed under the entry point "
        "ssl_bench.methods, it would draw",
    )
    raise UserError(
        f"{source!r} holds no decoder, so nothing can be reconstructed; of MAE's files, those "
        "called mae_pretrain_vit_*_full.pth or mae_visualize_vit_*.pth have one"
    )


def _view(path: Path, spec: EncoderSpec, stride: int) -> Tensor:
    """The image or video as the encoder's input: normalised float32 ``(1, frames * C, H, W)``."""
    if spec.frames > 1 and path.suffix.lower() in EXTENSIONS:
        image_BCHW = clips.middle(path, spec.image_size, Sampling(spec.frames, stride))
    else:
        with opened(Picture(str(path), path, 0)) as image:
            pixels_HWC = np.asarray(to_rgb(image))
        image_BCHW = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)[None]
    view = evaluation_view(image_BCHW, spec.image_size)
    return normalize(match_channels(view, spec.channels, spec.frames), spec.mean, spec.std)


def _stride(source: str) -> int:
    """From one frame to the next of the clips that a run has learned from, or the usual one."""
    settings = schema.mapping(schema.peek(Path(source) / schema.CONFIG).get("settings"))
    return settings.get("stride") or clips.USUAL.stride


def _target(is_normalised: bool) -> str:
    return "normalised" if is_normalised else "raw"
