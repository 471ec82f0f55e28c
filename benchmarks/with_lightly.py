"""Methods of lightly's modules and transforms, put together as its examples are.

One thing differs: SimCLR's and LeJEPA's projectors see all views in one batch, as in the papers'
code, and not each view, or each size, in its own. Factors before a loss are those by which it
differs from the paper's.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightly import loss, transforms
from lightly.models import utils
from lightly.models.modules import (
    IJEPAPredictorTIMM,
    MAEDecoderTIMM,
    MaskedVisionTransformerTIMM,
    heads,
)
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.transforms.ijepa_transform import IJEPATransform
from torch import Tensor, nn

from benchmarks import masks, plain, plain_teachers
from benchmarks.cases import LOCAL_CROPS, QUEUE, Case

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


class Views(plain.Views):
    """lightly's heads and losses around timm's Vision Transformer."""

    def heads(self, case: Case) -> tuple[nn.Module, nn.Module]:
        """Projector and predictor."""
        (hidden, out), width = case.projector, case.width
        widths = width, hidden, out
        match case.method:
            case "mocov3":
                return (
                    heads.MoCoProjectionHead(*widths, num_layers=3, batch_norm=True),
                    heads.MoCoProjectionHead(out, hidden, out, num_layers=2, batch_norm=True),
                )
            case "simclr":
                return heads.SimCLRProjectionHead(*widths, num_layers=3), nn.Identity()
            case "vicreg":
                return heads.VICRegProjectionHead(*widths), nn.Identity()
            case "barlow-twins":
                return heads.BarlowTwinsProjectionHead(*widths), nn.Identity()
            case "byol":
                predictor = heads.BYOLPredictionHead(out, hidden, out)
                return heads.BYOLProjectionHead(*widths), predictor
            case "simsiam":
                predictor = heads.SimSiamPredictionHead(out, hidden // 4, out)
                return heads.SimSiamProjectionHead(*widths), predictor
            case "moco":
                return heads.MoCoProjectionHead(width, width, out), nn.Identity()
        return heads.LeJEPAProjectionHead(*widths), nn.Identity()

    def start(self, case: Case) -> None:
        """Make the loss; MoCo v3's is `plain`'s."""
        keys = (QUEUE, case.projector[1])
        match case.method:
            case "simclr":
                self.loss: Any = loss.NTXentLoss(0.1)
            case "vicreg":
                self.loss = loss.VICRegLoss()
            case "barlow-twins":
                self.loss = loss.BarlowTwinsLoss(0.0051)
            case "byol" | "simsiam":
                self.loss = loss.NegativeCosineSimilarity()
            case "moco":
                self.loss = loss.NTXentLoss(0.2, memory_bank_size=keys)
            case "lejepa":
                self.loss = loss.LeJEPALoss()

    def compare(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """The loss of features of each view, and of targets."""
        match self.case.method:
            case "mocov3":
                return super().compare(features, targets)
            case "simclr":
                return 2 * self.loss(*features)
            case "byol" | "simsiam":
                forth, back = map(self.loss, features, reversed(targets))
                mean = 0.5 * (forth + back)
                return 4 + 4 * mean if self.case.method == "byol" else mean
            case "moco":
                return self.loss(features[0], targets[0])
            case "lejepa":
                large, small = torch.stack(features[:2]), torch.stack(features[2:])
                return self.loss(global_proj=large, local_proj=small)
        return self.loss(*features)

    def update(self, momentum: float = 0.99) -> None:
        """Move the momentum networks, if there are any."""
        if self.has_momentum:
            utils.update_momentum(self.encoder, self.momentum_encoder, m=momentum)
            utils.update_momentum(self.projector, self.momentum_projector, m=momentum)


def _masked_vit(case: Case, mask_token: nn.Parameter | None = None) -> MaskedVisionTransformerTIMM:
    encoder = MaskedVisionTransformerTIMM(vit=plain.encoder(case), mask_token=mask_token)
    encoder.vit.pos_embed.requires_grad_(False)
    return encoder


class SimMIM(plain.SimMIM):
    """lightly's masked Vision Transformer; the head sees hidden patches alone."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        del self.mask_token  # the encoder has it

    def network(self, case: Case) -> nn.Module:
        """The encoder."""
        return _masked_vit(case)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss of images ``(B, 3, H, W)`` under mask noise ``(B, L)``."""
        hidden = self.hide(noise)
        tokens = self.encoder.encode(images=images, idx_mask=hidden + 1)
        predicted = self.projector(utils.get_at_index(tokens, hidden + 1))
        target = utils.get_at_index(utils.patchify(images, self.case.patch_size), hidden)
        return nn.functional.l1_loss(predicted.float(), target)


class Crops(plain_teachers.Crops):
    """lightly's heads and losses; its centre of patches is that of the hidden ones alone."""

    def network(self, case: Case) -> nn.Module:
        """The encoder."""
        return _masked_vit(case, nn.Parameter(torch.zeros(1, case.width)))

    def head(self, case: Case) -> nn.Module:
        """The projector."""
        hidden, prototypes = case.projector
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return heads.DINOProjectionHead(case.width, hidden, 256, prototypes)

    def start(self, case: Case) -> None:
        """Make the losses."""
        self.loss = loss.DINOLoss(case.projector[1])
        self.patch_loss = loss.IBOTPatchLoss(case.projector[1])

    def ibot(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """With masks; heads see no patch but the hidden ones."""
        large, small = torch.cat(views[:2]), torch.cat(views[2:])
        hidden = masks.hidden_patches(self.case, noise)
        mask = nn.functional.pad(hidden, (1, 0))
        with torch.no_grad():
            tokens = self.tokens(self.momentum_encoder, large)
            teacher = self.momentum_projector(tokens[:, 0])
            teacher_patches = self.momentum_projector(tokens[mask])
        tokens = self.encoder.encode(large, mask=mask)
        small_tokens = self.tokens(self.encoder, small)[:, 0]
        student = [self.projector(each) for each in (tokens[:, 0], small_tokens)]
        side = self.case.image_size // self.case.patch_size
        patches = self.patch_loss(
            teacher_patches, self.projector(tokens[mask]), hidden.unflatten(1, (side, side))
        )
        return self.between_views(torch.cat(student), teacher) + patches

    def tokens(self, encoder: Any, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """After the last norm, the class token first."""
        return encoder.encode(images)

    def between_views(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Cross-entropy of pairs of two different views."""
        views = student.chunk(len(self.case.view_sizes))
        return self.loss(list(teacher.chunk(2)), list(views))

    def update(self, momentum: float = 0.99) -> None:
        """Move the teacher."""
        utils.update_momentum(self.encoder, self.momentum_encoder, m=momentum)
        utils.update_momentum(self.projector, self.momentum_projector, m=momentum)


class IJEPA(plain_teachers.IJEPA):
    """lightly's predictor, and its masked Vision Transformer as both encoders."""

    def network(self, case: Case) -> nn.Module:
        """The encoder."""
        return _masked_vit(case)

    def narrow(self, case: Case) -> nn.Module:
        """The predictor."""
        width, depth, heads = case.decoder
        return IJEPAPredictorTIMM(case.patches, depth, case.width, width, heads)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss of images ``(B, 3, H, W)`` under mask noise ``(B, L)``."""
        context, targets = masks.blocks(self.case, noise)
        with torch.no_grad():
            features = self.momentum_encoder.encode(images)[:, 1:].float()
            features = nn.functional.layer_norm(features, features.shape[-1:])
            wanted = utils.apply_masks(features, targets)
        kept = nn.functional.pad(context + 1, (1, 0))  # the class token is first, and always kept
        seen = self.encoder.encode(images, idx_keep=kept)[:, 1:]
        predicted = self.predictor(seen, [context], targets)
        return nn.functional.smooth_l1_loss(predicted.float(), wanted)

    def update(self, momentum: float = 0.99) -> None:
        """Move the target encoder."""
        utils.update_momentum(self.encoder, self.momentum_encoder, m=momentum)


def build(case: Case) -> nn.Module:
    """The case's method."""
    own: dict[str, Any] = {
        "mae": MAE, "simmim": SimMIM, "ijepa": IJEPA, "dino": Crops, "ibot": Crops
    }  # fmt: skip
    return own.get(case.method, Views)(case)


def transform(case: Case) -> Any:
    """lightly's views of an image; it has no transform of MoCo v3, so that is `plain`'s."""
    own: dict[str, Any] = {"input_size": case.image_size, "normalize": _STATISTICS}
    match case.method:
        case "mae" | "simmim":
            return transforms.MAETransform(**own)
        case "ijepa":
            return IJEPATransform(**own)
        case "simclr":
            return transforms.SimCLRTransform(**own)
        case "vicreg":
            return transforms.VICRegTransform(**own)
        case "barlow-twins" | "byol":
            views = BYOLView1Transform(**own), BYOLView2Transform(**own)
            return transforms.BYOLTransform(*views)
        case "simsiam":
            return transforms.SimSiamTransform(**own)
        case "moco":
            return transforms.MoCoV2Transform(**own)
        case "lejepa" | "dino" | "ibot":
            crops: dict[str, Any] = {
                "global_crop_size": case.image_size,
                "local_crop_size": case.view_sizes[-1],
                "n_local_views": LOCAL_CROPS,
                "normalize": _STATISTICS,
            }
            if case.method != "lejepa":
                is_dino = case.method == "dino"
                return (transforms.DINOTransform if is_dino else transforms.IBOTTransform)(**crops)
            return transforms.DINOTransform(
                **crops,
                global_crop_scale=(0.3, 1.0),
                local_crop_scale=(0.05, 0.3),
                gaussian_blur=(0.5, 0.5, 0.5),
            )
    return plain.transforms(case)
