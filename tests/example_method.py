"""Denoising autoencoder: predict the noise that was added to an image.

Vincent et al.: *Extracting and Composing Robust Features with Denoising Autoencoders*, ICML 2008.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.api import Batch, Method, OptimizerConfig
from ssl_bench.errors import above
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """Flags of the denoising autoencoder."""

    noise: float = 0.5
    """Standard deviation of the noise, in units of the pixels' own."""
    base_lr: float = 1e-3
    """Learning rate for a batch of 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above("noise", self.noise, 0)


class Denoising(Method):
    """A linear head on the patch tokens predicts each patch's noise."""

    def __init__(self, config: Config, encoder: VisionTransformer, num_classes: int) -> None:
        super().__init__(config, encoders.require_vit(encoder, "denoising"), num_classes)
        self.patch_size = encoder.patch_embed.patch_size[0]
        pixels = self.patch_size**2 * encoder.patch_embed.proj.in_channels
        self.head = nn.Linear(encoder.embed_dim, pixels)

    def augmentations(self, image_size: int) -> tuple[Augmentation, ...]:
        """One view: a random crop, mirrored half of the time."""
        return (Augmentation(size=image_size, crop_scale=(0.2, 1.0)),)

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the predicted noise."""
        images_BCHW = batch.views[0]
        noise = batch.draws.normal("noise", images_BCHW[0].numel()).view_as(images_BCHW)
        noisy_BCHW = images_BCHW + self.config.noise * noise
        tokens_BTD = self.encoder.forward_features(noisy_BCHW)
        predicted_BLP = self.head(tokens_BTD[:, self.encoder.num_prefix_tokens :])
        return (predicted_BLP - encoders.patchify(noise, self.patch_size)).square().mean()
