"""ALBEF: align image and text features before fusing them.

Li, Selvaraju, Gotmare, Joty, Xiong, Hoi: *Align before Fuse: Vision and Language Representation
Learning with Momentum Distillation*, NeurIPS 2021, arXiv:2107.07651; ``models/model_pretrain.py``,
salesforce/ALBEF ``b9727e4``.

Three losses, each of which ``--loss`` can leave out: image-text contrast (``itc``, equations 1, 2
and 6), image-text matching of pairs that the contrast finds hard to tell (``itm``, equation 4), and
hidden words predicted beside the image (``mlm``, equations 5 and 7). The image encoder is what is
handed over; the text encoder and the layers that fuse are kept with it, for evaluations that read
captions.

Deviations that give the same result:

- The momentum networks follow at the end of a step instead of before the next one's features.
- Temperature and queues change at the end of a step, too.

Deviations that give different numbers:

- Contrast and matching look at the whole batch, as on one device; the official code looks at each
  device's own images and texts.
- 1e-4 is added to the shares by which negatives are drawn, as the official code does in fine-tuning
  alone: where all but the right one underflow, there is something to draw.
- [SEP] is never hidden, and the temperature is not decayed.
- Nothing is initialised from other weights. The official image encoder was trained on ImageNet's
  labels and the text encoder is BERT's, so that published numbers are far above these.
- Views are crops alone: mirrored images would contradict "left of", and RandAugment is left out.
- Punctuation is kept, and nothing is cut after 30 words, but after ``--max-tokens``.
- The learning rate warms up and falls along a cosine at every step, to 0 instead of a tenth of the
  highest one (1e-5); images are normalised by the training split's own mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, LogUniform, Method, Step, TextConfig, Uniform
from ssl_bench.api.parts import Queue, follow, frozen_copy, in_float32
from ssl_bench.config.recipes import check_losses
from ssl_bench.distributed import collectives
from ssl_bench.errors import require
from ssl_bench.models import encoders, masked_tokens, text_encoder, vocabulary
from ssl_bench.models.text_encoder import ImageText
from ssl_bench.transforms.augmentations import Augmentation, crop_and_flip
from ssl_bench.utils.rng import SampleRng

_LOSSES = ("itc", "itm", "mlm")
_COLDEST, _HOTTEST = 0.001, 0.5
_LEAST_SHARE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Flags of ALBEF."""

    loss: tuple[str, ...] = _LOSSES
    """Losses to add, separated by commas: itc (contrast), itm (matching), mlm (hidden words)."""
    alpha: Annotated[float, "[0, 1]"] = 0.4
    """Share of the momentum networks' answers in the targets, reached after one epoch; 0 switches
    momentum distillation off."""
    queue_size: Annotated[int, "[1, inf)"] = 65536
    """Images and texts to tell a pair from, beside the batch's; a multiple of the batch size, and
    no more than training images, or each is among its own negatives."""
    temperature: Annotated[float, "[0.001, 0.5]"] = 0.07
    """Temperature of the contrast at the start; it is learned, between 0.001 and 0.5."""
    momentum: Annotated[float, "[0, 1]"] = 0.995
    """Momentum of the networks that give targets and keys."""
    proj_output_dim: Annotated[int, "[1, inf)"] = 256
    """Width of the features that the contrast compares."""
    fusion_depth: Annotated[int, "[1, inf)"] = 6
    """Layers of the text encoder that attend to the image, after those that read text alone."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.2
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""
    base_lr: float = 5e-5
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    weight_decay: float = 0.02
    """AdamW's decoupled weight decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_losses(self.loss, _LOSSES)

    @property
    def embed_dim(self) -> int:
        """Width of the space that images and texts are compared in; 0 where they are not."""
        return self.proj_output_dim if "itc" in self.loss else 0

    @property
    def matches(self) -> bool:
        """Whether a head for the matching is trained."""
        return "itm" in self.loss

    @property
    def predicts(self) -> bool:
        """Whether a head for hidden words is trained."""
        return "mlm" in self.loss


class ALBEF(Method):
    """Encoders of images and texts, layers that fuse them, networks that follow, two queues.

    Attributes:
        share: float32; how much the momentum networks have to say in this step.
    """

    version = 2
    paper = "Li et al., NeurIPS 2021"
    needs = ("captions", "ViT", "momentum encoder", "queue")
    columns = frozenset({"image", "caption"})
    smallest_batch = 2
    tuned = {"quick": "by hand: learning rate, batch and queue, on held-out scenes"}
    presets = {
        "quick": {
            "epochs": 1,
            "data": "fashion-captions",
            "evals": ("retrieval", "zero-shot", "masked-words", "linear", "knn"),
            "batch_size": 16,
            "base_lr": 1e-2,
            "text_width": 64,
            "text_depth": 2,
            "fusion_depth": 2,
            "text_dropout": 0.0,
            "alpha": 0.0,  # networks that begin at random have nothing to distil
            "proj_output_dim": 64,
            "queue_size": 32,  # encoders that move fast tell older negatives by their age
            "crop_scale": 1.0,
        },
        "small": {
            "data": "fashion-captions",
            "base_lr": 2.5e-4,
            "text_heads": 3,
            "text_depth": 4,
            "fusion_depth": 4,
            "queue_size": 4096,
            "crop_scale": 1.0,
        },
        "albef-vitb16": {
            "data": "./captions",
            "backbone": "vit_base_patch16_224",
            "image_size": 256,
            "epochs": 30,
            "batch_size": 512,
            "text_heads": 12,
            "max_tokens": 25,
            "warmup": 1 / 30,
            "patch_size": 16,
            "precision": "fp32",
            "evals": ("retrieval",),
        },
    }

    share: Tensor

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, encoders.require_vit(backbone, "albef"), data)
        require(
            self.encoder.cls_token is not None,
            "albef compares class tokens, and this backbone has none; vit_tiny_patch16_224 would "
            "work",
        )
        assert data.text is not None
        self.text = data.text
        self.text_side = ImageText(data.text)
        if config.loss == ("itc",):  # which reaches no layer that fuses
            self.text_side.text.fusion.requires_grad_(False)
        self.slow_encoder, self.slow_side = map(frozen_copy, (self.encoder, self.text_side))
        self.register_buffer("share", torch.zeros(()))
        if config.embed_dim:
            # A vector, because FSDP shards no scalars.
            self.temperature = nn.Parameter(torch.tensor([config.temperature]))
            self.images, self.texts = (Queue(config.queue_size, config.embed_dim) for _ in range(2))
        self.keys: tuple[Tensor, Tensor] | None = None

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """A tokenizer that cannot be read, or queues, if there are any, that whole batches of
        different pairs do not fill."""
        vocabulary.given_vocabulary(config)
        return Queue.refuses(config.queue_size, batch_size, images) if config.embed_dim else None

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop, never mirrored, so that left stays left."""
        return {"image": crop_and_flip(self.data.image_size, self.config.crop_scale, 0.0)}

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """The wanted ones of the three losses, by name."""
        assert batch.captions_BL is not None
        wanted, side, ids_BL = self.config.loss, self.text_side, batch.captions_BL
        image_BSD = self.encoder.forward_features(batch.views["image"])
        slow_BSD = None
        if "itc" in wanted or ("mlm" in wanted and self.config.alpha):
            with torch.no_grad():
                slow_BSD = self.slow_encoder.forward_features(batch.views["image"])
        losses = {}
        if wanted != ("mlm",):
            hidden_BLD = side.text(ids_BL)
            alike_2BN = image_BSD.new_zeros(2, len(batch), len(batch) * collectives.world_size())
        if "itc" in wanted:
            assert slow_BSD is not None
            losses["itc"], alike_2BN = self._contrast(image_BSD, hidden_BLD, slow_BSD, ids_BL)
        if "itm" in wanted:
            losses["itm"] = self._matching(image_BSD, hidden_BLD, ids_BL, alike_2BN, batch.rng)
        if "mlm" in wanted:
            losses["mlm"] = self._hidden_words(image_BSD, slow_BSD, ids_BL, batch.rng)
        return losses

    def _contrast(
        self, image_BSD: Tensor, hidden_BLD: Tensor, slow_BSD: Tensor, ids_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The contrastive loss; logits of each text among the batch's images, and the reverse."""
        side, slow = self.text_side, self.slow_side
        image_BD, text_BD = side.embed_images(image_BSD[:, 0]), side.embed_texts(hidden_BLD)
        self.watch(image_BD)
        with torch.no_grad():
            slow_image_BD = slow.embed_images(slow_BSD[:, 0])
            slow_text_BD = slow.embed_texts(slow.text(ids_BL))
            self.keys = collectives.gather(slow_image_BD), collectives.gather(slow_text_BD)
            alike_2BN = torch.stack([text_BD @ self.keys[0].T, image_BD @ self.keys[1].T])
        loss = contrast(
            *(image_BD, text_BD, slow_image_BD, slow_text_BD),
            torch.cat([self.keys[0], self.images.rows_KD]),
            torch.cat([self.keys[1], self.texts.rows_KD]),
            self.temperature,
            self.share,
        )
        return loss, alike_2BN / self.temperature.detach()

    def _matching(
        self,
        image_BSD: Tensor,
        hidden_BLD: Tensor,
        ids_BL: Tensor,
        alike_2BN: Tensor,
        rng: SampleRng,
    ) -> Tensor:
        """Cross-entropy of pairs that belong together, and of each part with a hard other one."""
        images_NSD, texts_NLD = map(collectives.gather_with_gradient, (image_BSD, hidden_BLD))
        ids_NL = collectives.gather(ids_BL)
        image_B = hard_negatives(alike_2BN[0], rng.uniform("negative image", 1))
        text_B = hard_negatives(alike_2BN[1], rng.uniform("negative text", 1))
        logits_PC = self.text_side.matching(
            torch.cat([hidden_BLD, hidden_BLD, texts_NLD[text_B]]),
            torch.cat([ids_BL, ids_BL, ids_NL[text_B]]),
            torch.cat([image_BSD, images_NSD[image_B], image_BSD]),
        )
        belongs_P = torch.zeros(len(logits_PC), dtype=torch.int64, device=logits_PC.device)
        belongs_P[: len(ids_BL)] = 1
        return F.cross_entropy(logits_PC, belongs_P)

    def _hidden_words(
        self, image_BSD: Tensor, slow_BSD: Tensor | None, ids_BL: Tensor, rng: SampleRng
    ) -> Tensor:
        """Mean loss of the hidden words; targets are partly the momentum networks' answers."""
        masked = masked_tokens.mask_tokens(ids_BL, self.text, rng, self.config.mask_share)

        def logits(side: ImageText, image_BSD: Tensor) -> Tensor:
            hidden_BLD = side.text(masked.ids_BL)
            return side.text.predict(side.text.fuse(hidden_BLD, masked.ids_BL, image_BSD))

        logits_BLV = logits(self.text_side, image_BSD)
        loss = masked_tokens.masked_loss(logits_BLV, masked.targets_BL)
        if self.config.alpha:
            assert slow_BSD is not None
            with torch.no_grad():
                soft_BLV = text_encoder.wide(logits(self.slow_side, slow_BSD)).softmax(dim=-1)
            soft = masked_tokens.masked_loss(logits_BLV, masked.targets_BL, soft_BLV)
            loss = (1 - self.share) * loss + self.share * soft
        hidden = collectives.mean(masked_tokens.count_hidden(masked.targets_BL)).clamp_min(1)
        return loss / hidden

    @torch.no_grad()
    def after_optimizer_step(self, step: Step) -> None:
        """Keep the temperature in range, move the momentum networks, put features into queues."""
        follow(self.slow_encoder, self.encoder, self.config.momentum)
        follow(self.slow_side, self.text_side, self.config.momentum)
        self.share.fill_(self.config.alpha * min(1.0, (step.number + 1) / step.per_epoch))
        if self.keys is None:
            return
        self.temperature.clamp_(_COLDEST, _HOTTEST)
        self.images.push(self.keys[0])
        self.texts.push(self.keys[1])
        self.keys = None

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Images, and what the whole caption attends to in the last layer that sees them."""
        assert batch.captions_BL is not None
        images_BCHW, ids_BL, reader = batch.views["image"], batch.captions_BL, self.text_side.text
        image_BSD = self.encoder.forward_features(images_BCHW)
        attended_BS = text_encoder.attended(reader, reader(ids_BL), ids_BL, image_BSD)[:, 0]
        prefix, grid = self.encoder.num_prefix_tokens, self.encoder.patch_embed.grid_size
        map_B1RC = attended_BS[:, prefix:].unflatten(1, grid)[:, None]
        shown_B1RC = map_B1RC / map_B1RC.amax(dim=(2, 3), keepdim=True)
        shown_B1HW = F.interpolate(shown_B1RC, images_BCHW.shape[2:], mode="nearest")
        darkest_B111 = images_BCHW.amin(dim=(1, 2, 3), keepdim=True)
        lit_BCHW = darkest_B111 + (images_BCHW - darkest_B111) * (0.15 + 0.85 * shown_B1HW)
        return {"original": images_BCHW, "where its\ncaption looks": lit_BCHW}

    search_space = {
        "base_lr": LogUniform(1e-4, 1e-2),
        "weight_decay": LogUniform(0.01, 0.3),
        "momentum": Uniform(0.98, 0.999),
        "alpha": Uniform(0.0, 0.6),
        "crop_scale": Uniform(0.2, 1.0),
    }


@in_float32
def contrast(
    image_BD: Tensor,
    text_BD: Tensor,
    slow_image_BD: Tensor,
    slow_text_BD: Tensor,
    images_KD: Tensor,
    texts_KD: Tensor,
    temperature: Tensor,
    share: Tensor,
) -> Tensor:
    """Half the sum of the cross-entropies of images among texts and of texts among images.

    Args:
        image_BD, text_BD: of this rank's pairs; features of length 1, as all others.
        slow_image_BD, slow_text_BD: their momentum features.
        images_KD, texts_KD: momentum features to choose among, those of all ranks' pairs first.
        share: of the momentum features' softmax in the targets.
    """

    def one_way(query_BD: Tensor, slow_BD: Tensor, keys_KD: Tensor) -> Tensor:
        own_B = collectives.own_rows(len(query_BD), query_BD.device)
        with torch.no_grad():
            soft_BK = (slow_BD @ keys_KD.T / temperature).softmax(dim=1)
            target_BK = share * soft_BK + (1 - share) * F.one_hot(own_B, len(keys_KD))
        logits_BK = query_BD @ keys_KD.T / temperature
        return -(target_BK * logits_BK.log_softmax(dim=1)).sum(dim=1).mean()

    images = one_way(image_BD, slow_image_BD, texts_KD)
    return (images + one_way(text_BD, slow_text_BD, images_KD)) / 2


def hard_negatives(similarity_BN: Tensor, uniform_B1: Tensor) -> Tensor:
    """For each row another one's column, the likelier the more similar: int64 ``(B,)``.

    Args:
        similarity_BN: logits of this rank's rows, whose own columns are `collectives.own_rows`.
        uniform_B1: a number in [0, 1) for each row, which decides.
    """
    share_BN = text_encoder.wide(similarity_BN).softmax(dim=1) + _LEAST_SHARE
    own_B = collectives.own_rows(len(share_BN), share_BN.device)
    share_BN.scatter_(1, own_B[:, None], 0.0)
    ends_BN = share_BN.double().cumsum(dim=1)
    drawn_B = torch.searchsorted(ends_BN, uniform_B1.double() * ends_BN[:, -1:], right=True)[:, 0]
    return drawn_B.clamp_max(share_BN.shape[1] - 1)
