"""MAE and MoCo v3 of lightly's modules and transforms, put together as its examples are."""

from __future__ import annotations

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


class MoCoV3(plain.MoCoV3):
    """lightly's heads around timm's Vision Transformer."""

    def heads(self, case: Case) -> tuple[nn.Module, nn.Module]:
        """Projector and predictor."""
        hidden, out = case.projector
        return (
            MoCoProjectionHead(case.width, hidden, out, num_layers=3, batch_norm=True),
            MoCoProjectionHead(out, hidden, out, num_layers=2, batch_norm=True),
        )

    def update(self, momentum: float = 0.99) -> None:
        """Move the momentum networks."""
        utils.update_momentum(self.encoder, self.momentum_encoder, m=momentum)
        utils.update_momentum(self.projector, self.momentum_projector, m=momentum)


def transform(case: Case) -> Any:
    """lightly's view of an image; it has no transform of MoCo v3, so that is `plain`'s."""
    if case.method == "mae":
        return MAETransform(input_size=case.image_size, normalize=_STATISTICS)
    return plain.transforms(case)
