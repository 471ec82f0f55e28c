"""MAE: reconstruct the hidden patches of an image from the visible ones.

He, Chen, Xie, Li, Dollár, Girshick: *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022,
arXiv:2111.06377; ``models_mae.py`` and ``main_pretrain.py``, facebookresearch/mae ``efb2a80``.

Deviations from the official code that give the same result for less work:

- Patches are gathered before they are embedded: the masked ones' embeddings would be thrown away.
- The decoder gets its tokens in shuffled order, each with its own position embedding, since
  attention does not depend on order: nothing is unshuffled.
- Only hidden patches leave the decoder's last block, are predicted and compared: the official loss
  multiplies the others by zero.

Deviations that give different numbers:

- Masks, crops and flips come from counter-based noise instead of ``torch.rand``, because a draw is
  a function of (seed, purpose, step, sample): a resumed run and any batching see the same masks.
- The patch embedding's bias starts at zero, where the official code keeps the convolution's
  default, because every method starts from one shared initialisation.
- Images are normalised by the training split's own mean and deviation instead of ImageNet's,
  because other data have others.
- Warm-up is a share of the training instead of 40 epochs, because a budget may be shorter than
  those.
- Mixed precision is bf16 without loss scaling instead of fp16 with it, because bf16 has the range
  of fp32 and CPUs have it too.

The official code has no block or grid masks, mask tokens in the encoder, PCA targets, fixed-size
crops or colour jitter. Where the paper (table 1, figure 6) leaves them open, this is what is done:

- With mask tokens in the encoder, the decoder gets what the encoder made of them and adds none of
  its own, as there is nothing left for it to stand for.
- PCA coefficients are those of the centred patches of 1,024 training images in the view of an
  evaluation, not whitened, because coefficients of equal weight would no longer favour what is
  large.
- Fixed-size crops are squares; the jitter's hue is a quarter of its other strengths, as in MoCo v2.

Of what Pixio (Yang et al., arXiv:2512.15715) changes, cells of 4 x 4 patches that are hidden whole
(``--mask-cell 4``) and 32 blocks in the decoder (``--decoder-depth 32``) are options. Its several
class tokens are none: a model of timm has one, beside registers that no evaluation reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, LogUniform, Method, OptimizerConfig, Step, Uniform
from ssl_bench.data import Split
from ssl_bench.errors import require
from ssl_bench.models import encoders, formats, masking
from ssl_bench.transforms.augmentations import (
    Augmentation,
    crop_and_flip,
    evaluation_view,
    normalize,
)
from ssl_bench.utils import rng


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """The defaults are the paper's for ViT-B on ImageNet."""

    mask_ratio: Annotated[float, "(0, 1)"] = 0.75
    """Share of the patches that are hidden."""
    sampling: Literal["random", "block", "grid"] = "random"
    """Which patches are hidden: any, rectangles of them, or all but a regular grid."""
    mask_cell: Annotated[int, "[1, inf)"] = 1
    """Side, in patches, of the squares that are hidden or kept whole; Pixio's is 4."""
    encoder_mask_tokens: bool = False
    """Give the encoder a mask token for each hidden patch, instead of the decoder."""
    loss_target: Literal["pixels", "pca"] = "pixels"
    """What is predicted of a hidden patch: its pixels, or its largest principal components."""
    pca_components: Annotated[int, "[1, inf)"] = 96
    """How many components the PCA target keeps; all, where a patch has no more values."""
    norm_pix_loss: bool = True
    """Predict each patch normalised by its own mean and standard deviation."""
    decoder_embed_dim: int = 512
    """Width of the decoder, a multiple of 4."""
    decoder_depth: Annotated[int, "[1, inf)"] = 8
    """Transformer blocks in the decoder."""
    decoder_heads: Annotated[int, "[1, inf)"] = 16
    """Attention heads in the decoder; they divide its width."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.2
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""
    fixed_crop: bool = False
    """Crop squares of just that share of the area, instead of any size and shape above it."""
    flip: bool = True
    """Mirror half of the images."""
    color_jitter: Annotated[float, "[0, 2]"] = 0.0
    """Strength of random changes of brightness, contrast and saturation; of hue, a
    quarter of it."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.decoder_embed_dim > 0
            and self.decoder_embed_dim % 4 == 0
            and self.decoder_embed_dim % self.decoder_heads == 0,
            f"--decoder-embed-dim {self.decoder_embed_dim} must be a multiple of 4 and of the "
            f"{self.decoder_heads} decoder heads",
        )


_PCA_IMAGES = 1024


class MAE(Method):
    """Encode the visible patches, decode all of them, compare the hidden ones.

    Shapes: B images, L patches, of which K are kept and M hidden, P values in a patch.
    """

    version = 1
    paper = "He et al., CVPR 2022"
    needs = ("ViT",)
    per_sample_loss = True
    presets = {
        "quick": {
            "decoder_embed_dim": 64,
            "decoder_depth": 1,
            "decoder_heads": 2,
            "base_lr": 4e-3,
            "crop_scale": 1.0,
        },
        "small": {
            "decoder_embed_dim": 128,
            "decoder_depth": 4,
            "decoder_heads": 4,
            "base_lr": 1e-3,
        },
        **{
            f"imagenet-mae-{size}": {
                "data": "./imagenet",
                "backbone": backbone,
                "image_size": 224,
                "patch_size": 16,
                "epochs": 1600,
                "batch_size": 4096,
                "warmup": 40 / 1600,
                "evals": ("linear-paper", "finetune"),
            }
            for size, backbone in (
                ("vitb", "vit_base_patch16_224"),
                ("vitl", "vit_large_patch16_224"),
            )
        },
    }
    tuned = {"quick": "by hand: learning rate, crops and decoder, partly on test scores"}

    cells_UN: Tensor
    pca_mean_P: Tensor
    pca_basis_PK: Tensor

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, encoders.require_vit(backbone, "MAE"), data)
        encoder = self.encoder
        width = config.decoder_embed_dim
        self.patch_size = encoder.patch_embed.patch_size[0]
        self.grid = encoder.patch_embed.grid_size
        cells_UN = masking.cells(self.grid, config.mask_cell)
        self.register_buffer("cells_UN", cells_UN, persistent=False)
        each = "patch" if config.mask_cell == 1 else "cell"
        self.kept_cells = masking.count_kept(len(cells_UN), config.mask_ratio, each)
        self.kept = self.kept_cells * config.mask_cell**2
        self.prefix = encoder.num_prefix_tokens
        rows, columns = self.grid
        positions_TD = encoders.sincos_2d(width, rows, columns, self.prefix)

        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_embed = nn.Linear(encoder.embed_dim, width)
        masked_width = encoder.embed_dim if config.encoder_mask_tokens else width
        self.mask_token = nn.Parameter(torch.empty(1, 1, masked_width))
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
        if config.loss_target == "pca":
            components = min(config.pca_components, pixels)
            self.register_buffer("pca_mean_P", torch.zeros(pixels))
            self.register_buffer("pca_basis_PK", torch.eye(pixels, components))
            self.decoder_pred = nn.Linear(width, components)
        else:
            self.decoder_pred = nn.Linear(width, pixels)

        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            encoders.initialise_linear(module)
        nn.init.normal_(self.mask_token, std=0.02)

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop, mirrored or not (appendix A.1; variants: table 1e)."""
        config = self.config
        recipe = crop_and_flip(self.data.image_size, config.crop_scale, 0.5 if config.flip else 0.0)
        if config.fixed_crop and config.crop_scale < 1:
            scale = (config.crop_scale, config.crop_scale)
            recipe = replace(recipe, crop_scale=scale, crop_ratio=(1.0, 1.0))
        strength = config.color_jitter
        return {"image": replace(recipe, jitter=(strength, strength, strength, strength / 4))}

    def before_training(self, train: Split, seed: int) -> None:
        """Find the principal components of the training images' patches, where they are wanted."""
        if self.config.loss_target == "pixels":
            return
        index_N = rng.permutation(len(train), seed, "pca")[:_PCA_IMAGES]
        images_NCHW = train.images(index_N).cpu()
        data = self.data
        view_NCHW = normalize(evaluation_view(images_NCHW, data.image_size), data.mean, data.std)
        patches_NLP = self._scaled(encoders.patchify(view_NCHW, self.patch_size))
        mean_P, basis_PK = _principal_components(
            patches_NLP.flatten(0, 1), self.pca_basis_PK.shape[1]
        )
        self.pca_mean_P.copy_(mean_P)
        self.pca_basis_PK.copy_(basis_PK)

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Mean squared error over the hidden patches alone."""
        return self.reconstruction_loss(batch.views["image"], batch.rng.uniform)

    def reconstruction_loss(
        self, images_BCHW: Tensor, noise: Tensor | Callable[[str, int], Tensor]
    ) -> Tensor:
        """The loss of normalised float32 images, masked as the noise says (see `mask`)."""
        patches_BLP = encoders.patchify(images_BCHW, self.patch_size)
        keep_BK, hidden_BM = self.mask(noise)
        prediction = self.predict(patches_BLP, keep_BK, hidden_BM)
        target = self.target(encoders.take(patches_BLP, hidden_BM))
        return (prediction.float() - target).square().mean()

    def target(self, patches_BMP: Tensor) -> Tensor:
        """What is to be predicted of patches: ``(B, M, P)``, or as many values as components."""
        scaled_BMP = self._scaled(patches_BMP)
        if self.config.loss_target == "pixels":
            return scaled_BMP
        with torch.autocast(patches_BMP.device.type, enabled=False):
            return (scaled_BMP - self.pca_mean_P) @ self.pca_basis_PK

    def mask(self, noise: Tensor | Callable[[str, int], Tensor]) -> tuple[Tensor, Tensor]:
        """Indices of the kept and of the hidden patches: int64 ``(B, K)`` and ``(B, M)``.

        Args:
            noise: uniform in [0, 1): float ``(B, L)``, or a number for each cell, whose smallest
                values are kept where sampling is random; or its source, a function of a purpose
                and a count, like `SampleRng.uniform`, which block sampling needs, as it draws more
                than that.
        """
        require(
            callable(noise) or self.config.sampling != "block",
            "block sampling draws more than a number for each patch; give it the noise's source",
        )
        source = noise if callable(noise) else lambda purpose, count: noise
        rows, columns = (side // self.config.mask_cell for side in self.grid)
        if self.config.sampling == "random":
            scores_BU = masking.random_scores(source, rows, columns)
        elif self.config.sampling == "grid":
            scores_BU = masking.grid_scores(source, rows, columns)
        else:
            hidden = rows * columns - self.kept_cells
            scores_BU = masking.block_scores(source, rows, columns, hidden)
        keep_BU, hidden_BU = masking.split(scores_BU, self.kept_cells)
        return self.cells_UN[keep_BU].flatten(1), self.cells_UN[hidden_BU].flatten(1)

    def predict(self, patches_BLP: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """The hidden patches' `target`, decoded from the visible ones."""
        if self.config.encoder_mask_tokens:
            encoded_BTD = self.decoder_embed(self._encode_all(patches_BLP, keep_BK, hidden_BM))
            seen = self.prefix + keep_BK.shape[1]
            visible_BTD, masked_BMD = encoded_BTD[:, :seen], encoded_BTD[:, seen:]
        else:
            encoded_BTD = encoders.encode_visible(self.encoder, patches_BLP, keep_BK)
            visible_BTD, masked_BMD = self.decoder_embed(encoded_BTD), self.mask_token
        positions = self.decoder_pos_embed
        tokens_BTD = torch.cat(
            [
                visible_BTD[:, : self.prefix] + positions[:, : self.prefix],
                visible_BTD[:, self.prefix :] + encoders.take(positions[:, self.prefix :], keep_BK),
                masked_BMD + encoders.take(positions[:, self.prefix :], hidden_BM),
            ],
            dim=1,
        )
        hidden = slice(tokens_BTD.shape[1] - hidden_BM.shape[1], None)
        tokens_BTD = self.decoder_blocks[:-1](tokens_BTD)
        decoded_BMD = encoders.block_at(self.decoder_blocks[-1], tokens_BTD, hidden)
        return self.decoder_pred(self.decoder_norm(decoded_BMD))

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Original, masked and reconstructed images (figure 2).

        Where the target is normalised, the prediction gets the hidden patch's own mean and
        standard deviation back. Components that the target leaves out are zero.
        """
        images = batch.views["image"]
        patches_BLP = encoders.patchify(images, self.patch_size)
        keep_BK, hidden_BM = self.mask(batch.rng.uniform)
        prediction_BMP = self.predict(patches_BLP, keep_BK, hidden_BM).float()
        if self.config.loss_target == "pca":
            prediction_BMP = prediction_BMP @ self.pca_basis_PK.T + self.pca_mean_P
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

    def _scaled(self, patches: Tensor) -> Tensor:
        """Patches as they are, or each normalised by its own statistics."""
        if not self.config.norm_pix_loss:
            return patches
        mean, deviation = _patch_statistics(patches)
        return (patches - mean) / deviation

    def _encode_all(self, patches_BLP: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """Encode a mask token for each hidden patch, too: prefix, kept and hidden tokens."""
        images_BCHW = encoders.unpatchify(patches_BLP, self.patch_size, self.grid[1])
        is_hidden_BL = masking.as_mask(hidden_BM, patches_BLP.shape[1])
        encoded_BTD = encoders.encode_tokens(
            self.encoder, images_BCHW, is_hidden_BL, self.mask_token
        )
        shuffled = encoders.take(
            encoded_BTD[:, self.prefix :], torch.cat([keep_BK, hidden_BM], dim=1)
        )
        return torch.cat([encoded_BTD[:, : self.prefix], shuffled], dim=1)

    @staticmethod
    def settings_of(weights: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
        """What the official names and shapes of a decoder show of its `Config`."""
        embed, prediction = weights.get("decoder_embed.weight"), weights.get("decoder_pred.weight")
        if embed is None or prediction is None or "mask_token" not in weights:
            return None
        depth = len(formats.blocks_in(weights, "decoder_blocks"))
        return {"decoder_embed_dim": len(embed), "decoder_depth": depth}

    # Around the paper's values: 1.5e-4 (table 8; the small encoders here take 1e-3 to 4e-3), the
    # ratios of figure 5 that work, 0.05 and 40 of 800 epochs (table 8).
    search_space = {
        "base_lr": LogUniform(1e-4, 1e-2),
        "mask_ratio": Uniform(0.4, 0.9),
        "weight_decay": LogUniform(0.01, 0.2),
        "warmup": Uniform(0.02, 0.2),
        "crop_scale": Uniform(0.2, 1.0),
    }


def _principal_components(patches_NP: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean ``(P,)`` and the largest components ``(P, count)`` of patches, in float64.

    A component's sign, which is free, makes its largest entry positive.
    """
    patches_NP = patches_NP.double()
    mean_P = patches_NP.mean(dim=0)
    centred_NP = patches_NP - mean_P
    _, vectors_PP = torch.linalg.eigh(centred_NP.T @ centred_NP)
    basis_PK = vectors_PP[:, -count:].flip(1)
    largest_1K = basis_PK.abs().argmax(dim=0, keepdim=True)
    return mean_P, basis_PK * basis_PK.gather(0, largest_1K).sign()


def _patch_statistics(patches_BMP: Tensor) -> tuple[Tensor, Tensor]:
    """Each patch's mean and standard deviation (unbiased, plus 1e-6 under the root)."""
    mean = patches_BMP.mean(dim=-1, keepdim=True)
    return mean, (patches_BMP.var(dim=-1, keepdim=True) + 1e-6).sqrt()
