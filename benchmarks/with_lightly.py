"""MAE and MoCo v3 of lightly's modules and transforms, put together as its examples are."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.transforms import MAETransform
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.cases import Case

_STATISTICS = {"mean": [0.5] * 3, "std": [0.25] * 3}


class MAE(nn.Module):
    """lightly's masked Vision Transformer and decoder."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.encoder = MaskedVisionTransformerTIMM(vit=plain.encoder(case))
        width, depth, heads = case.decoder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.decoder = MAEDecoderTIMM(
                num_patches=self.encoder.vit.patch_embed.num_patches,
                patch_size=case.patch_size,
                embed_dim=case.width,
                decoder_embed_dim=width,
                decoder_depth=depth,
                decoder_num_heads=heads,
            )

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss of images ``(B, 3, H, W)`` under mask noise ``(B, L)``."""
        count = noise.shape[1]
        keep = int(count * (1 - self.case.mask_ratio))
        order = noise.argsort(dim=1) + 1  # the class token is first, and always kept
        first = torch.zeros_like(order[:, :1])
        idx_keep, idx_mask = torch.cat([first, order[:, :keep]], dim=1), order[:, keep:]
        encoded = self.decoder.embed(self.encoder.encode(images=images, idx_keep=idx_keep))
        masked = utils.repeat_token(self.decoder.mask_token, (len(images), count + 1))
        masked = utils.set_at_index(masked, idx_keep, encoded.type_as(masked))
        decoded = self.decoder.decode(masked)
        prediction = self.decoder.predict(utils.get_at_index(decoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, self.case.patch_size), idx_mask - 1)
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
        return nn.functional.mse_loss(prediction.float(), target)


class MoCoV3(nn.Module):
    """lightly's heads around timm's Vision Transformer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        hidden, out = case.projector
        self.encoder = plain.encoder(case)
        self.encoder.pos_embed.requires_grad_(False)
        self.encoder.patch_embed.proj.requires_grad_(False)
        self.projector = MoCoProjectionHead(case.width, hidden, out, num_layers=3, batch_norm=True)
        self.predictor = MoCoProjectionHead(out, hidden, out, num_layers=2, batch_norm=True)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views."""
        queries = [
            self.predictor(self.projector(self.encoder.forward_features(view)[:, 0]))
            for view in (first, second)
        ]
        with torch.no_grad():
            keys = [
                self.momentum_projector(self.momentum_encoder.forward_features(view)[:, 0])
                for view in (first, second)
            ]
        return plain.contrast(queries[0], keys[1]) + plain.contrast(queries[1], keys[0])

    def update(self) -> None:
        """Move the momentum networks."""
        utils.update_momentum(self.encoder, self.momentum_encoder, m=0.99)
        utils.update_momentum(self.projector, self.momentum_projector, m=0.99)


def transform(case: Case) -> Any:
    """lightly's view of an image; it has no transform of MoCo v3, so that is `plain`'s."""
    if case.method == "mae":
        return MAETransform(input_size=case.image_size, normalize=_STATISTICS)
    return plain.transforms(case)
