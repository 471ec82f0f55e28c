"""What an evaluation receives: an encoder that gives features, or a copy of itself to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_bench import encoders, progress
from ssl_bench.augment import evaluation_view, normalize
from ssl_bench.data import Split
from ssl_bench.encoders import EncoderSpec
from ssl_bench.hardware import Hardware

_IMAGES_AT_ONCE = 1000


class Encoder:
    """A pre-trained encoder under evaluation.

    Attributes:
        spec: image size, channels and normalisation it was trained with.
        hardware: where evaluations compute.
        seed: of its pre-training; an evaluation's own draws use it too.
    """

    def __init__(
        self, module: VisionTransformer, spec: EncoderSpec, hardware: Hardware, seed: int
    ) -> None:
        self._module = module.to(hardware.device).eval().requires_grad_(False)
        self._features: dict[Split, Mapping[str, Tensor]] = {}
        self.spec, self.hardware, self.seed = spec, hardware, seed

    def features(self, split: Split) -> Mapping[str, Tensor]:
        """Frozen features of all images by pooling: float32 ``(N, D)`` each, extracted once."""
        if split not in self._features:
            parts = [
                self.encode(prepare(images, self.spec, self.hardware))
                for images in self._chunks(split)
            ]
            self._features[split] = {
                name: torch.cat([part[name] for part in parts]) for name in parts[0]
            }
        return self._features[split]

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Mapping[str, Tensor]:
        """Frozen features of a batch by pooling: float32 ``(B, D)`` each, on its device.

        ``cls`` is the class token and ``avg`` the mean of the patch tokens, both after the final
        norm; an encoder without a class token has ``avg`` alone. Where the norm comes after the
        mean, as in encoders that were fine-tuned so, ``avg`` is normed there.

        Args:
            images_BCHW: normalised float32 of the encoder's size and channels, on its device.
        """
        with self.hardware.autocast():
            tokens_BTD = self._module.forward_features(images_BCHW).float()
            mean_BD = tokens_BTD[:, self._module.num_prefix_tokens :].mean(dim=1)
            pooled = {"avg": self._module.fc_norm(mean_BD).float()}
        if self._module.cls_token is not None:
            pooled["cls"] = tokens_BTD[:, 0]
        return pooled

    def trainable_copy(self, **overrides: Any) -> VisionTransformer:
        """The encoder again, all of its parameters trainable.

        Args:
            overrides: arguments of ``timm.create_model`` that add no parameter, such as
                ``drop_path_rate``.
        """
        module = encoders.build(self.spec, self.seed, **overrides)
        module.load_state_dict(self._module.state_dict())
        return module.to(self.hardware.device).requires_grad_(True)

    def _chunks(self, split: Split) -> Any:
        with progress.bar("features", len(split)) as bar:
            done = 0
            for images in split.chunks(_IMAGES_AT_ONCE):
                yield images
                done += len(images)
                bar.update(done)


class RawPixels:
    """The baseline without an encoder: the image's own pixels as its features."""

    def __init__(self, spec: EncoderSpec, hardware: Hardware, seed: int) -> None:
        self.spec, self.hardware, self.seed = spec, hardware, seed
        self._features: dict[Split, Mapping[str, Tensor]] = {}

    def features(self, split: Split) -> Mapping[str, Tensor]:
        """``pixels``: normalised values of the evaluation view, float32 ``(N, C * H * W)``."""
        if split not in self._features:
            parts = [
                prepare(images, self.spec, self.hardware).flatten(1)
                for images in split.chunks(_IMAGES_AT_ONCE)
            ]
            self._features[split] = {"pixels": torch.cat(parts)}
        return self._features[split]


def prepare(
    images_BCHW: Tensor,
    spec: EncoderSpec,
    hardware: Hardware,
    view: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Turn stored uint8 images into an encoder's input: a view, channels, normalised.

    Args:
        view: from uint8 images on the device to float32 ones in [0, 1] of the encoder's size.
            Default: the centre view.
    """
    images_BCHW = images_BCHW.to(hardware.device)
    views = view(images_BCHW) if view else evaluation_view(images_BCHW, spec.image_size)
    return normalize(match_channels(views, spec.channels), spec.mean, spec.std)


def match_channels(images_BCHW: Tensor, channels: int) -> Tensor:
    """Grey images repeated to three channels, or colour ones reduced to luma (ITU-R 601-2)."""
    if images_BCHW.shape[1] == channels:
        return images_BCHW
    if channels == 3:
        return images_BCHW.expand(-1, 3, -1, -1)
    weights = images_BCHW.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images_BCHW * weights).sum(dim=1, keepdim=True)
