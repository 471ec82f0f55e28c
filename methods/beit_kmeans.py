"""BEiT with k-means tokens: predict which entry of a codebook each hidden patch is nearest to.

Bao, Dong, Piao, Wei: *BEiT: BERT Pre-Training of Image Transformers*, ICLR 2022, arXiv:2106.08254;
``beit/``, microsoft/unilm ``768a3c8``. On plain Vision Transformers, and on timm's ``beit_*``,
which have the paper's layer scales and relative positions.

The tokens are not BEiT's, hence the name. The paper's come from DALL-E's tokenizer, a network that
was trained on other images than those compared here, 250 million of them, and that is published as
a pickle, whose code would have to be run. Here a token is the number of the nearest of K centres:
of a k-means of the training images' own patches, or of the codebook in a file of the user's.

Deviations, which all give different numbers:

- The tokens, as above. They are of the same view that the encoder gets, at its own size instead of
  at half of it. The k-means is of distinct patches of unaugmented images, each counted once: blank
  ones would otherwise take much of the codebook.
- Where blocks hide too few patches, as no further one fits, the rest is drawn patch by patch; the
  official code hides 66 to 75 of 196. A block that is as long as the grid may stay, and a longer
  one is cut to it, where others are drawn there. Other grids' blocks have the same smallest share.
- A plain Vision Transformer has every method's fixed absolute positions and Xavier initialisation.
  timm's ``beit_*`` has a table of relative positions for each block, as the official fine-tuning
  has it, where the pre-training shares one among all; its patches start from PyTorch's default.
- Colours change after the crop instead of before it. Warm-up begins at zero instead of at a
  millionth. Images are normalised by the training split's own mean and deviation; draws are
  counter-based noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.api import (
    Batch,
    DataInfo,
    LogUniform,
    Method,
    OneOf,
    OptimizerChoiceConfig,
    OptimizerSpec,
    Step,
    Uniform,
)
from ssl_bench.api.optimizers import recipe
from ssl_bench.data import Split
from ssl_bench.errors import require
from ssl_bench.models import codebook, encoders, masking
from ssl_bench.transforms.augmentations import (
    Augmentation,
    crop_and_flip,
    evaluation_view,
    normalize,
)
from ssl_bench.utils import rng
from ssl_bench.utils.rng import SampleRng

_IMAGES = 2048
_PATCHES_PER_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's for ViT-B on ImageNet, but for drop path and schedule."""

    base_lr: float = 1.875e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    beta2: float = 0.98
    """AdamW's decay of the second moment."""
    tokenizer: str = ""
    """A safetensors file with a codebook of your own, instead of one fitted to the training images
    by k-means: a float tensor "codebook" with a row for each token, which is a patch, row by row
    and pixel by pixel, colours side by side, in [0, 1]."""
    tokenizer_hash: str = ""
    """Of that codebook; the run notes it, and is refused if it is another."""
    codebook_size: Annotated[int, "[2, 65536]"] = 8192
    """How many tokens there are; those of --tokenizer, if there is one."""
    mask_ratio: Annotated[float, "(0, 1)"] = 0.4
    """Share of the patches that are hidden, in rectangles."""
    drop_path: Annotated[float, "[0, 1)"] = 0.0
    """Stochastic depth of the last block; the paper's is 0.1."""
    clip_grad: Annotated[float, "(0, inf)"] = 3.0
    """Largest norm of the gradient."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""
    color_jitter: Annotated[float, "[0, 2]"] = 0.4
    """Strength of random changes of brightness, contrast and saturation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.tokenizer) or not self.tokenizer_hash,
            f"tokenizer hash {self.tokenizer_hash} is of a file; say which one, by --tokenizer",
        )


class BEiTKMeans(Method):
    """An encoder of visible patches and mask tokens, and a linear layer that predicts tokens.

    Shapes: B images, L patches in R rows and C columns, of which M are hidden, P values in a patch;
    K tokens.
    """

    version = 1
    paper = "Bao et al., ICLR 2022; k-means tokens"
    needs = ("ViT or BEiT's",)
    per_sample_loss = True
    presets = {
        "quick": {
            "epochs": 3,
            "base_lr": 2e-3,
            "codebook_size": 256,
            "crop_scale": 1.0,
            "color_jitter": 0.0,
        },
        "small": {"base_lr": 5e-4, "codebook_size": 2048},
        "imagenet-beit-kmeans-vitb": {
            "data": "./imagenet",
            "backbone": "beit_base_patch16_224",
            "image_size": 224,
            "patch_size": 16,
            "epochs": 800,
            "batch_size": 2048,
            "warmup": 10 / 800,
            "final_lr": 1 / 150,
            "mask_ratio": 0.38,
            "drop_path": 0.1,
            "evals": ("finetune",),
        },
    }

    codebook_KP: Tensor

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        entries_KP = None
        if config.tokenizer:
            entries_KP, found = codebook.read(config.tokenizer)
            require(
                config.tokenizer_hash in ("", found),
                f"tokenizer {config.tokenizer!r} is not the one that the run was made with: its "
                f"hash is {found}, not {config.tokenizer_hash}",
            )
            config = replace(config, tokenizer_hash=found, codebook_size=len(entries_KP))
        super().__init__(config, backbone, data)
        reason = encoders.why_no_vit(backbone, "BEiT")
        require(
            encoders.is_beit(backbone) or reason is None,
            f"{reason}, and so would timm's beit_base_patch16_224",
        )
        encoders.drop_paths(backbone, config.drop_path)
        patches = self.encoder.patch_embed
        self.patch_size, self.grid = patches.patch_size[0], patches.grid_size
        self.kept = masking.count_kept(patches.num_patches, config.mask_ratio)
        values = self.patch_size**2 * data.channels
        self.register_buffer("codebook_KP", torch.zeros(config.codebook_size, values))
        if entries_KP is not None:
            require(
                entries_KP.shape[1] == values,
                f"tokenizer {config.tokenizer!r} is for patches of {entries_KP.shape[1]} values, "
                f"and {self.patch_size} x {self.patch_size} pixels in {data.channels} channels are "
                f"{values}; another --patch-size or another tokenizer would work",
            )
            pixels_KLC = entries_KP.unflatten(1, (-1, data.channels))
            scaled_KLC = (pixels_KLC - torch.tensor(data.mean)) / torch.tensor(data.std)
            self.codebook_KP.copy_(scaled_KLC.flatten(1))
        self.mask_token = nn.Parameter(torch.empty(1, 1, patches.proj.out_channels))
        self.head = nn.Linear(self.encoder.num_features, config.codebook_size)
        for weight in (self.mask_token, self.head.weight):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.head.bias)

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop, mirrored half of the time, in other colours."""
        strength = self.config.color_jitter
        view = crop_and_flip(self.data.image_size, self.config.crop_scale, flip=0.5)
        return {"image": replace(view, jitter=(strength, strength, strength, 0.0))}

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """A tokenizer that cannot be read, before any image is decoded."""
        if config.tokenizer:
            codebook.read(config.tokenizer)
        return None

    def before_training(self, train: Split, seed: int) -> None:
        """Fit the codebook to patches of training images, where no tokenizer is given."""
        if self.config.tokenizer:
            return
        data, found, tokens = self.data, [], len(self.codebook_KP)
        index_N = rng.permutation(len(train), seed, "codebook images")[:_IMAGES]
        each = math.ceil(_PATCHES_PER_TOKEN * tokens / len(index_N))
        generator = rng.generator(seed, "codebook patches")
        for part_N in index_N.split(128):
            view_NCHW = evaluation_view(train.images(part_N).cpu(), data.image_size)
            view_NCHW = normalize(view_NCHW, data.mean, data.std)
            patches_NLP = encoders.patchify(view_NCHW, self.patch_size)
            order_NL = torch.rand(patches_NLP.shape[:2], generator=generator).argsort(dim=1)
            found.append(encoders.take(patches_NLP, order_NL[:, :each]).flatten(0, 1))
        self.codebook_KP.copy_(codebook.fit(torch.cat(found), tokens, seed))

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Cross-entropy of the hidden patches' tokens."""
        images_BCHW = batch.views["image"]
        hidden_BM = self.mask(batch.rng)
        patches_BLP = encoders.patchify(images_BCHW, self.patch_size)
        tokens_BM = codebook.nearest(encoders.take(patches_BLP, hidden_BM), self.codebook_KP)
        logits_BMK = self.predict(images_BCHW, hidden_BM)
        return F.cross_entropy(logits_BMK.flatten(0, 1).float(), tokens_BM.flatten())

    def mask(self, draws: SampleRng) -> Tensor:
        """The hidden patches of each image, which lie in rectangles: int64 ``(B, M)``."""
        rows, columns = self.grid
        scores_BL = masking.block_scores(draws.uniform, rows, columns, rows * columns - self.kept)
        return masking.split(scores_BL, self.kept)[1]

    def predict(self, images_BCHW: Tensor, hidden_BM: Tensor) -> Tensor:
        """The logits of the hidden patches' tokens: ``(B, M, K)``."""
        hidden_BRC = masking.as_mask(hidden_BM, math.prod(self.grid)).unflatten(1, self.grid)
        tokens = encoders.encode_masked(self.encoder, images_BCHW, hidden_BRC, self.mask_token)
        return self.head(encoders.take(tokens.flatten(1, 2), hidden_BM))

    def optimizer(self) -> OptimizerSpec:
        """AdamW with clipping; class token and positions are not decayed.

        (``optim_factory.py``; tables of relative positions are decayed.)
        """
        exempt = ["encoder.cls_token", "encoder.pos_embed"]
        return replace(recipe(self, self.config, exempt), clip_norm=self.config.clip_grad)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Original images, all of their tokens' patches, and what is seen and predicted of them."""
        patches_BLP = encoders.patchify(batch.views["image"], self.patch_size)
        hidden_BM = self.mask(batch.rng)
        predicted_BM = self.predict(batch.views["image"], hidden_BM).argmax(dim=-1)
        tokens_BLP = self.codebook_KP[codebook.nearest(patches_BLP, self.codebook_KP)]
        index_BMP = hidden_BM[..., None].expand(-1, -1, patches_BLP.shape[-1])
        rows = {
            "original": patches_BLP,
            "tokens": tokens_BLP,
            "masked": patches_BLP.scatter(1, index_BMP, torch.nan),
            "predicted": patches_BLP.scatter(1, index_BMP, self.codebook_KP[predicted_BM]),
        }
        return {
            title: encoders.unpatchify(patches, self.patch_size, self.grid[1])
            for title, patches in rows.items()
        }

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "mask_ratio": Uniform(0.25, 0.75),
        "codebook_size": OneOf((256, 512, 1024, 2048)),
        "crop_scale": Uniform(0.08, 1.0),
        "weight_decay": LogUniform(0.01, 0.2),
    }
