"""MAE: reconstruct the hidden patches of an image from the visible ones.

He, Chen, Xie, Li, Dollár, Girshick: *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022,
arXiv:2111.06377; ``models_mae.py`` and ``main_pretrain.py``, facebookresearch/mae ``efb2a80``.

Deviations from the official code. Same result, less work: patches are gathered before they are
embedded, and the decoder gets its tokens in shuffled order, each with its own position embedding,
so nothing is unshuffled and only masked patches are predicted. Different numbers: masks come from
counter-based noise instead of ``torch.rand``; the patch embedding's bias starts at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ssl_bench import encoders, masking
from ssl_bench.augment import Augmentation, crop_and_flip
from ssl_bench.contract import Batch, Method
from ssl_bench.errors import above, require, within
from ssl_bench.settings import OptimizerConfig

PRESETS = {
    "quick": {
        "decoder_width": 64,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "base_lr": 4e-3,
        "crop_scale": 1.0,
    },
    "small": {"decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4, "base_lr": 1e-3},
}


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """The defaults are the paper's for ViT-B on ImageNet."""

    mask_ratio: float = 0.75
    """Share of the patches that are hidden, in (0, 1)."""
    sampling: Literal["random", "block", "grid"] = "random"
    """Which patches are hidden: any, rectangles of them, or all but a regular grid."""
    norm_pix_loss: bool = True
    """Predict each patch normalised by its own mean and standard deviation."""
    decoder_width: int = 512
    """Width of the decoder, a multiple of 4."""
    decoder_depth: int = 8
    """Transformer blocks in the decoder."""
    decoder_heads: int = 16
    """Attention heads in the decoder; they divide its width."""
    crop_scale: float = 0.2
    """Smallest share of an image's area that a random crop keeps, in (0, 1]; 1 crops nothing."""
    flip: bool = True
    """Mirror half of the images."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within("mask ratio", self.mask_ratio, "(0, 1)")
        within("crop scale", self.crop_scale, "(0, 1]")
        above("decoder depth", self.decoder_depth, 0)
        above("decoder heads", self.decoder_heads, 0)
        require(
            self.decoder_width > 0
            and self.decoder_width % 4 == 0
            and self.decoder_width % self.decoder_heads == 0,
            f"decoder width {self.decoder_width} must be a multiple of 4 and of the "
            f"{self.decoder_heads} decoder heads",
        )


class Pretraining(Method):
    """Encode the visible patches, decode all of them, compare the hidden ones."""

    def __init__(self, config: Config, encoder: VisionTransformer, num_classes: int) -> None:
        super().__init__(config, encoder, num_classes)
        width = config.decoder_width
        self.patch_size = encoder.patch_embed.patch_size[0]
        self.grid = encoder.patch_embed.grid_size
        self.kept = masking.count_kept(encoder.patch_embed.num_patches, config.mask_ratio)
        self.prefix = encoder.num_prefix_tokens
        rows, columns = self.grid
        positions_TD = encoders.sincos_2d(width, rows, columns, self.prefix)

        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(positions_TD[None], requires_grad=False)
        self.decoder_blocks = nn.Sequential(
            *(
                Block(width, config.decoder_heads, qkv_bias=True, norm_layer=layer_norm)
                for _ in range(config.decoder_depth)
            )
        )
        self.decoder_norm = layer_norm(width)
        pixels = self.patch_size**2 * encoder.patch_embed.proj.in_channels
        require(
            pixels > 1 or not config.norm_pix_loss,
            "a patch of one pixel cannot be normalised; --no-norm-pix-loss would work",
        )
        self.decoder_pred = nn.Linear(width, pixels)

        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            encoders.initialise_linear(module)
        nn.init.normal_(self.mask_token, std=0.02)

    def augmentations(self, image_size: int) -> tuple[Augmentation, ...]:
        """One view: a random crop, mirrored or not (appendix A.1)."""
        config = self.config
        return (crop_and_flip(image_size, config.crop_scale, 0.5 if config.flip else 0.0),)

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error over the hidden patches alone."""
        patches_BLP = encoders.patchify(batch.views[0], self.patch_size)
        keep_BK, hidden_BM = self.mask(batch.draws.uniform)
        prediction_BMP = self.predict(patches_BLP, keep_BK, hidden_BM)
        target_BMP = encoders.take(patches_BLP, hidden_BM)
        if self.config.norm_pix_loss:
            mean, deviation = _patch_statistics(target_BMP)
            target_BMP = (target_BMP - mean) / deviation
        return (prediction_BMP.float() - target_BMP).square().mean()

    def mask(self, noise: Callable[[str, int], Tensor]) -> tuple[Tensor, Tensor]:
        """Indices of the kept and of the hidden patches, from a source of uniform noise."""
        rows, columns = self.grid
        if self.config.sampling == "random":
            scores_BL = masking.random_scores(noise, rows, columns)
        elif self.config.sampling == "grid":
            scores_BL = masking.grid_scores(noise, rows, columns)
        else:
            hidden = rows * columns - self.kept
            scores_BL = masking.block_scores(noise, rows, columns, hidden)
        return masking.split(scores_BL, self.kept)

    def predict(self, patches_BLP: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """The hidden patches' pixels: ``(B, M, P)``, normalised if the target is."""
        encoded_BTD = encoders.encode_visible(self.encoder, patches_BLP, keep_BK)
        visible_BTD = self.decoder_embed(encoded_BTD)
        positions = self.decoder_pos_embed
        tokens_BTD = torch.cat(
            [
                visible_BTD[:, : self.prefix] + positions[:, : self.prefix],
                visible_BTD[:, self.prefix :] + encoders.take(positions[:, self.prefix :], keep_BK),
                self.mask_token + encoders.take(positions[:, self.prefix :], hidden_BM),
            ],
            dim=1,
        )
        decoded_BTD = self.decoder_blocks(tokens_BTD)
        return self.decoder_pred(self.decoder_norm(decoded_BTD[:, -hidden_BM.shape[1] :]))

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Original, masked and reconstructed images (figure 2).

        Where the target is normalised, the prediction gets the hidden patch's own mean and
        standard deviation back.
        """
        images = batch.views[0]
        patches_BLP = encoders.patchify(images, self.patch_size)
        keep_BK, hidden_BM = self.mask(batch.draws.uniform)
        prediction_BMP = self.predict(patches_BLP, keep_BK, hidden_BM).float()
        own = ""
        if self.config.norm_pix_loss:
            mean, deviation = _patch_statistics(encoders.take(patches_BLP, hidden_BM))
            prediction_BMP = prediction_BMP * deviation + mean
            own = "\n(own mean, std)"
        index_BMP = hidden_BM[..., None].expand_as(prediction_BMP)
        rows = {
            "original": patches_BLP,
            "masked": patches_BLP.scatter(1, index_BMP, torch.nan),
            f"reconstructed{own}": patches_BLP.scatter(1, index_BMP, prediction_BMP),
        }
        columns = self.grid[1]
        return {
            title: encoders.unpatchify(patches, self.patch_size, columns)
            for title, patches in rows.items()
        }


def _patch_statistics(patches_BMP: Tensor) -> tuple[Tensor, Tensor]:
    """Each patch's mean and standard deviation (unbiased, plus 1e-6 under the root)."""
    mean = patches_BMP.mean(dim=-1, keepdim=True)
    return mean, (patches_BMP.var(dim=-1, keepdim=True) + 1e-6).sqrt()
