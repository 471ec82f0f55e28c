"""VideoMAE: reconstruct the hidden tubelets of a clip from the few that are visible.

Tong, Song, Wang, Wang: *VideoMAE: Masked Autoencoders are Data-Efficient Learners for
Self-Supervised Video Pre-Training*, NeurIPS 2022, arXiv:2203.12602; ``modeling_pretrain.py``,
``engine_for_pretraining.py`` and ``masking_generator.py``, MCG-NJU/VideoMAE ``14ef8d8``, from which
no line is taken. The encoder is a Vision Transformer whose patches are tubelets,
`ssl_bench.models.video`.

Deviations from the official code that give the same result for less work:

- Tubelets are gathered before they are embedded, and only hidden ones leave the decoder's last
  block.
- Keys have a bias, too, as timm's attention has it: it adds the same number to all scores of a
  query, which the softmax takes away again.

Deviations that give different numbers:

- Masks and crops come from counter-based noise, because a draw is a function of (seed, purpose,
  step, sample).
- The tubelet embedding starts as a matrix of Xavier-uniform weights without a bias instead of with
  torch's default of a convolution, because every method starts from one shared initialisation.
- Clips are normalised by the training split's own mean and deviation instead of ImageNet's.
- A crop is one of any size and shape above ``--crop-scale``, at any place of the square in the
  middle of the frame, instead of one of four sizes at one of thirteen places of the whole frame.
- Warm-up is a share of the training, and starts from zero instead of 1e-6.
- Mixed precision is bf16 without loss scaling instead of fp16 with it.

The paper's table 1c compares tube masks with those of whole frames and of random tubelets, which
the official code leaves out: there, frames are pairs of them, of which ``--mask-ratio`` are hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_bench.api import (
    Batch,
    DataInfo,
    LogUniform,
    Method,
    OptimizerChoiceConfig,
    OptimizerSpec,
    Step,
    Uniform,
)
from ssl_bench.api.optimizers import recipe
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import require
from ssl_bench.models import checkpoints, encoders, formats, masking, video, weights
from ssl_bench.transforms.augmentations import Augmentation, crop_and_flip


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's for ViT-B on Kinetics-400."""

    mask_ratio: Annotated[float, "(0, 1)"] = 0.9
    """Share of the tubelets that are hidden."""
    sampling: Literal["tube", "frame", "random"] = "tube"
    """Which tubelets are hidden: those at some places in all frames, all of some pairs of frames,
    or any."""
    norm_pix_loss: bool = True
    """Predict each channel of a tubelet normalised by its own mean and standard deviation."""
    decoder_embed_dim: Annotated[int, "[1, inf)"] = 384
    """Width of the decoder."""
    decoder_depth: Annotated[int, "[1, inf)"] = 4
    """Transformer blocks in the decoder."""
    decoder_heads: Annotated[int, "[1, inf)"] = 6
    """Attention heads in the decoder; they divide its width."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.43
    """Smallest share of a frame's area that a random crop keeps, the same in all frames of a clip;
    1 crops nothing."""
    init: str = ""
    """An image encoder of the same backbone and patches to start from, such as MAE's: a run's
    folder, or anyone's weights, as `ssl-bench eval` takes them."""
    init_hash: str = ""
    """Of its weights; the run notes it, and is refused if they are others."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    final_lr: float = 1 / 15
    """Where the cosine ends, as a share of the highest learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.decoder_embed_dim % self.decoder_heads == 0,
            f"--decoder-embed-dim {self.decoder_embed_dim} must be a multiple of the "
            f"{self.decoder_heads} decoder heads",
        )
        require(
            bool(self.init) or not self.init_hash,
            f"init hash {self.init_hash} is of an encoder; say which one, by --init",
        )


class VideoMAE(Method):
    """Encode the visible tubelets, decode all of them, compare the hidden ones.

    Shapes: B clips of T pairs of frames, L tubelets in a pair and N = T * L in a clip, of which K
    are kept and M hidden, P values in a tubelet.
    """

    version = 1
    columns = frozenset({"clip"})
    paper = "Tong et al., NeurIPS 2022"
    needs = ("ViT", "clips")
    per_sample_loss = True
    tuned = {"quick": "by hand: size of clips, patches and batch, learning rate, on held-out clips"}
    presets = {
        "quick": {
            "data": "fashion-motions",
            "epochs": 2,
            "batch_size": 64,
            "mask_ratio": 0.75,
            "decoder_embed_dim": 64,
            "decoder_depth": 1,
            "decoder_heads": 2,
            "base_lr": 6e-3,
            "final_lr": 0.0,
            "crop_scale": 1.0,
        },
        "small": {
            "decoder_embed_dim": 128,
            "decoder_heads": 4,
            "base_lr": 1e-3,
        },
        "kinetics-videomae-vitb": {
            "data": "./kinetics400",
            "backbone": "vit_base_patch16_224",
            "image_size": 224,
            "patch_size": 16,
            "frames": 16,
            "stride": 4,
            "test_clips": 5,
            "test_crops": 3,
            "epochs": 1600,
            "batch_size": 2048,
            "warmup": 40 / 1600,
            "crop_scale": 0.66**2,
            "evals": ("finetune",),
        },
    }

    decoder_pos_embed_1ND: Tensor
    std_C: Tensor
    mean_C: Tensor

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        require(data.frames > 1, "VideoMAE learns from clips; --frames 2 or more would work")
        if config.init:
            config = _start(encoders.require_vit(backbone, "VideoMAE"), config)
        super().__init__(config, encoders.require_vit(backbone, "VideoMAE"), data)
        encoder, width = self.encoder, config.decoder_embed_dim
        self.patch_size = encoder.patch_embed.patch_size[0]
        self.grid = encoder.patch_embed.grid_size
        self.pairs = encoder.patch_embed.pairs
        self.places = self.grid[0] * self.grid[1]
        units, each = {
            "tube": (self.places, "tube"),
            "frame": (self.pairs, "pair of frames"),
            "random": (self.places * self.pairs, "tubelet"),
        }[config.sampling]
        self.units = units
        self.kept_units = masking.count_kept(units, config.mask_ratio, each, hides_fewer=True)

        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        self.encoder_to_decoder = nn.Linear(encoder.embed_dim, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        positions_ND = video.sinusoids(self.pairs * self.places, width)
        self.register_buffer("decoder_pos_embed_1ND", positions_ND[None], persistent=False)
        self.decoder_blocks = nn.Sequential(
            *(
                Block(width, config.decoder_heads, qkv_bias=True, norm_layer=layer_norm)
                for _ in range(config.decoder_depth)
            )
        )
        self.decoder_norm = layer_norm(width)
        self.head = nn.Linear(width, self.patch_size**2 * video.TUBELET * data.channels)
        self.register_buffer("std_C", torch.tensor(data.std), persistent=False)
        self.register_buffer("mean_C", torch.tensor(data.mean), persistent=False)
        for module in (self.encoder_to_decoder, self.decoder_blocks, self.head):
            encoders.initialise_linear(module)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """An encoder to start from that cannot be read, before any video is decoded."""
        if config.init:
            checkpoints.read(config.init, WeightSettings())
        return None

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop, never mirrored (appendix, table 8)."""
        return {"clip": crop_and_flip(self.data.image_size, self.config.crop_scale, flip=0.0)}

    def optimizer(self) -> OptimizerSpec:
        """AdamW, whose weight decay leaves the mask token alone, too."""
        return recipe(self, self.config, exempt=("mask_token",))

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Mean squared error over the hidden tubelets alone."""
        return self.reconstruction_loss(batch.views["clip"], batch.rng.uniform)

    def reconstruction_loss(
        self, clips_BCHW: Tensor, noise: Callable[[str, int], Tensor]
    ) -> Tensor:
        """The loss of normalised float32 clips, masked as the noise says (see `mask`)."""
        tubelets_BNP = self.tubelets(clips_BCHW)
        keep_BK, hidden_BM = self.mask(noise)
        prediction_BMP = self.predict(tubelets_BNP, keep_BK, hidden_BM)
        target_BMP, _, _ = self.target(encoders.take(tubelets_BNP, hidden_BM))
        return (prediction_BMP.float() - target_BMP).square().mean()

    def tubelets(self, clips_BCHW: Tensor) -> Tensor:
        """A clip cut into tubelets, pair by pair, the channels of both frames fastest."""
        pairs_NCHW = video.as_frames(clips_BCHW, self.pairs)
        patches_NLP = encoders.patchify(pairs_NCHW, self.patch_size)
        return patches_NLP.unflatten(0, (-1, self.pairs)).flatten(1, 2)

    def clips(self, tubelets_BNP: Tensor) -> Tensor:
        """The inverse of `tubelets`."""
        patches_NLP = tubelets_BNP.unflatten(1, (self.pairs, -1)).flatten(0, 1)
        pairs_NCHW = encoders.unpatchify(patches_NLP, self.patch_size, self.grid[1])
        return video.as_clips(pairs_NCHW, self.pairs)

    def mask(self, noise: Callable[[str, int], Tensor]) -> tuple[Tensor, Tensor]:
        """Indices of the kept and of the hidden tubelets: int64 ``(B, K)`` and ``(B, M)``.

        Args:
            noise: a function of a purpose and a count, like `SampleRng.uniform`: numbers in [0, 1),
                one for each tube, pair of frames or tubelet, whose smallest are kept.
        """
        keep_BU, hidden_BU = masking.split(noise("mask", self.units), self.kept_units)
        place_L = torch.arange(self.places, device=keep_BU.device)
        pair_T = torch.arange(self.pairs, device=keep_BU.device)

        def of_units(unit_BU: Tensor) -> Tensor:
            if self.config.sampling == "tube":
                return (pair_T[:, None] * self.places + unit_BU[:, None]).flatten(1)
            if self.config.sampling == "frame":
                return (unit_BU[..., None] * self.places + place_L).flatten(1)
            return unit_BU

        return of_units(keep_BU), of_units(hidden_BU)

    def predict(self, tubelets_BNP: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """The hidden tubelets' `target`, decoded from the visible ones."""
        encoded_BKD = encoders.encode_visible(self.encoder, tubelets_BNP, keep_BK)
        positions_1ND = self.decoder_pos_embed_1ND
        tokens_BND = torch.cat(
            [
                self.encoder_to_decoder(encoded_BKD) + encoders.take(positions_1ND, keep_BK),
                self.mask_token + encoders.take(positions_1ND, hidden_BM),
            ],
            dim=1,
        )
        tokens_BND = self.decoder_blocks[:-1](tokens_BND)
        hidden = slice(keep_BK.shape[1], None)
        decoded_BMD = encoders.block_at(self.decoder_blocks[-1], tokens_BND, hidden)
        return self.head(self.decoder_norm(decoded_BMD))

    def target(self, tubelets_BMP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is to be predicted, of pixels in [0, 1], and what takes it back to the views' units.

        Of each channel of a tubelet ``(x - mean) / (deviation + 1e-6)``, the deviation unbiased and
        over both frames (``engine_for_pretraining.py``), or the pixels themselves.

        Returns:
            The target, and a factor and a summand, ``(B, M, P)`` each.
        """
        values_BMVC = tubelets_BMP.unflatten(-1, (-1, self.data.channels))
        pixels_BMVC = values_BMVC * self.std_C + self.mean_C
        mean, deviation = self.mean_C.new_zeros(()), self.mean_C.new_ones(())
        if self.config.norm_pix_loss:
            mean = pixels_BMVC.mean(dim=-2, keepdim=True)
            deviation = pixels_BMVC.var(dim=-2, keepdim=True).sqrt() + 1e-6
        factor = (deviation / self.std_C).expand_as(pixels_BMVC)
        summand = ((mean - self.mean_C) / self.std_C).expand_as(pixels_BMVC)
        target_BMVC = (pixels_BMVC - mean) / deviation
        return target_BMVC.flatten(-2), factor.flatten(-2), summand.flatten(-2)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Original, masked and reconstructed clips (figure 5), their frames side by side.

        Where the target is normalised, the prediction gets the hidden tubelet's own mean and
        standard deviation back.
        """
        tubelets_BNP = self.tubelets(batch.views["clip"])
        keep_BK, hidden_BM = self.mask(batch.rng.uniform)
        prediction_BMP = self.predict(tubelets_BNP, keep_BK, hidden_BM).float()
        _, factor_BMP, summand_BMP = self.target(encoders.take(tubelets_BNP, hidden_BM))
        index_BMP = hidden_BM[..., None].expand_as(prediction_BMP)
        own = "\n(own mean, std)" if self.config.norm_pix_loss else ""
        rows = {
            "original": tubelets_BNP,
            "masked": tubelets_BNP.scatter(1, index_BMP, torch.nan),
            f"reconstructed{own}": tubelets_BNP.scatter(
                1, index_BMP, prediction_BMP * factor_BMP + summand_BMP
            ),
        }
        return {
            title: video.strips(self.clips(each), self.data.frames) for title, each in rows.items()
        }

    @staticmethod
    def settings_of(weights: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
        """What a decoder's names and shapes show of its `Config`, with nothing to start from."""
        bridge = weights.get("encoder_to_decoder.weight")
        if bridge is None:
            return None
        depth = len(formats.blocks_in(weights, "decoder_blocks"))
        sizes = {"decoder_embed_dim": len(bridge), "decoder_depth": depth}
        return {**sizes, "init": "", "init_hash": ""}

    # Around the paper's values: 1.5e-4 (table 8; small encoders take more), ratios of figure 3.
    search_space = {
        "base_lr": LogUniform(1e-4, 1e-2),
        "mask_ratio": Uniform(0.6, 0.9),
        "weight_decay": LogUniform(0.01, 0.2),
        "warmup": Uniform(0.02, 0.2),
        "crop_scale": Uniform(0.2, 1.0),
    }


def _start(backbone: nn.Module, config: Config) -> Config:
    """Give an encoder of clips the weights of ``config.init``; the settings with their hash.

    Raises:
        UserError: they cannot be read, are others than the run was made with, or do not fit.
    """
    found = checkpoints.read(config.init, WeightSettings())
    digest = weights.digest(found.encoder)[:16]
    require(
        config.init_hash in ("", digest),
        f"init {config.init!r} is not the encoder that the run was made with: its hash is "
        f"{digest}, not {config.init_hash}",
    )
    encoder = encoders.require_vit(found.encoder, "--init")
    require(not encoders.is_video(encoder), f"init {config.init!r} is an encoder of clips already")
    state = video.inflate(encoder.state_dict(), backbone)
    weights.load_strictly(backbone, state, f"init {config.init!r}", what="backbone")
    return replace(config, init_hash=digest)
