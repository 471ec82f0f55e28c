"""Denoising autoencoder: predict the noise that was added to an image.

Vincent et al.: *Extracting and Composing Robust Features with Denoising Autoencoders*, ICML 2008.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, Method, OptimizerConfig, Step
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """Flags of the denoising autoencoder."""

    noise: Annotated[float, "(0, inf)"] = 0.5
    """Standard deviation of the noise, in units of the pixels' own."""
    base_lr: float = 1e-3
    """Learning rate for a batch of 256."""


class Denoising(Method):
    """A linear head on the patch tokens predicts each patch's noise."""

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, encoders.require_vit(backbone, "denoising"), data)
        self.patch_size = self.encoder.patch_embed.patch_size[0]
        self.head = nn.Linear(self.encoder.embed_dim, self.patch_size**2 * data.channels)

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop, mirrored half of the time."""
        return {"image": Augmentation(size=self.data.image_size, crop_scale=(0.2, 1.0))}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Mean squared error of the predicted noise."""
        images_BCHW = batch.views["image"]
        noise = batch.rng.normal("noise", images_BCHW[0].numel()).view_as(images_BCHW)
        noisy_BCHW = images_BCHW + self.config.noise * noise
        tokens_BTD = self.encoder.forward_features(noisy_BCHW)
        predicted_BLP = self.head(tokens_BTD[:, self.encoder.num_prefix_tokens :])
        return (predicted_BLP - encoders.patchify(noise, self.patch_size)).square().mean()
