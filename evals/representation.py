"""Representation: how many directions the test images' features use, and how they are spread.

Without labels, of each pooling's features as they are:

- ``rankme``: RankMe (Garrido et al., *RankMe: Assessing the Downstream Performance of Pretrained
  Self-Supervised Representations by Their Rank*, ICML 2023, arXiv:2210.02885, equations 1 and 2):
  exp of the entropy of the singular values, scaled to sum to 1, plus 1e-7;
- ``effective_rank``: that of their covariance (Roy and Vetterli, *The Effective Rank*, EUSIPCO
  2007): exp of the entropy of its eigenvalues, which are squares of RankMe's singular values but
  for the centring;

and of the features scaled to length 1 (Wang and Isola, *Understanding Contrastive Representation
Learning through Alignment and Uniformity on the Hypersphere*, ICML 2020, arXiv:2005.10242):

- ``alignment``: mean squared distance (alpha = 2) of two views of an image, each a random crop of
  20 % to 100 % of its area, mirrored half of the time, colours as they are;
- ``uniformity``: log of the mean of exp(-2 * squared distance) (t = 2) over pairs of images.

RankMe's authors take it of the projector's output too, which not every method has. The headline is
that of the mean of the patch tokens, which every encoder has; ``_cls`` are the class token's, and
of raw pixels there is one kind. The test images are the same for every method and every seed. Sums
are float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.errors import require
from ssl_bench.evaluation.features import prepare
from ssl_bench.evaluation.metrics import subset
from ssl_bench.models.spread import TINY, effective_rank, spectrum
from ssl_bench.transforms.augmentations import augment, crop_and_flip
from ssl_bench.utils import progress
from ssl_bench.utils.rng import SampleRng

_EPSILON = 1e-7
_SMALLEST_CROP = 0.2
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of the representation's metrics."""

    section: ClassVar[str] = "representation"

    images: Annotated[int, "[2, inf)"] = 10000
    """Test images whose features are measured; many times the features' number, or
    the ranks are low for want of images."""
    pairs: Annotated[int, "[1, inf)"] = 2000
    """Test images that alignment takes two views of."""


class Representation(Evaluation):
    """Rank, alignment and uniformity of the features."""

    version = 1
    columns = frozenset({"image"})
    compared_with = ("pixels", "random")

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether there are images to compare."""
        if len(data.test) < 2:
            return f"it compares test images, and {data.name} has {len(data.test)}"
        return None

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Measure the features of each pooling, the headline's first."""
        index_N = subset(len(data.test), self.config.images, data.fingerprint)
        features = encoder.features(data.test)
        for pooling, features_ND in features.items():
            require(
                bool(features_ND.isfinite().all()),
                f"features of pooling {pooling!r} hold numbers that are not finite; the encoder "
                "diverged, and a smaller --base-lr may help",
            )
        alignments = _alignments(encoder, data, self.config)
        scores: dict[str, float] = {}
        for pooling in sorted(features, key=lambda name: name != "avg"):
            features_ND = features[pooling][index_N.to(features[pooling].device)]
            scores |= {
                f"rankme_{pooling}": rankme(features_ND),
                f"effective_rank_{pooling}": effective_rank(features_ND),
                f"alignment_{pooling}": alignments[pooling],
                f"uniformity_{pooling}": uniformity(features_ND),
            }
        return Result(scores, unit="RankMe", better="neither")


def rankme(features_ND: Tensor) -> float:
    """RankMe, from 1 to the smaller of N and D, but for what epsilon adds."""
    values_K = spectrum(features_ND, torch.zeros_like(features_ND[0])).sqrt()
    share_K = values_K / values_K.sum().clamp_min(TINY) + _EPSILON
    return torch.special.entr(share_K).sum().exp().item()


def uniformity(features_ND: Tensor) -> float:
    """Uniformity over all pairs of distinct images, from -8 (nothing is so far apart) to 0."""
    points_ND = F.normalize(features_ND.double(), dim=1)
    count, total = len(points_ND), 0.0
    for start in range(0, count, _IMAGES_AT_ONCE):
        cosine_BN = points_ND[start : start + _IMAGES_AT_ONCE] @ points_ND[start:].T
        # |x - y|^2 = 2 - 2 x.y for points of length 1; each pair once, and none with itself.
        total += torch.exp(4 * cosine_BN - 4).triu(diagonal=1).sum().item()
    return math.log(total / (count * (count - 1) / 2))


def alignment(first_ND: Tensor, second_ND: Tensor) -> float:
    """Mean squared distance of features of the same images, scaled to length 1: from 0 to 4."""
    first_ND, second_ND = (F.normalize(each.double(), dim=1) for each in (first_ND, second_ND))
    return (first_ND - second_ND).square().sum(dim=1).mean().item()


def _alignments(encoder: FrozenEncoder, data: Dataset, config: Config) -> dict[str, float]:
    """The alignment of two views of some test images, by pooling."""
    recipe = crop_and_flip(encoder.spec.image_size, _SMALLEST_CROP, flip=0.5)
    index_N = subset(len(data.test), config.pairs, data.fingerprint)
    parts = index_N.split(_IMAGES_AT_ONCE)
    total: dict[str, float] = {}
    done = 0
    with progress.bar("views", len(index_N)) as bar:
        for index_B, images_BCSS in zip(parts, data.test.read(parts), strict=True):
            rows = SampleRng(
                encoder.seed, 0, index_B.to(encoder.hardware.device), "representation/"
            )
            views = (
                prepare(
                    images_BCSS,
                    encoder.spec,
                    encoder.hardware,
                    partial(augment, recipe=recipe, draws=rows.within(f"view{number}")),
                )
                for number in (0, 1)
            )
            first, second = map(encoder.encode, views)
            for pooling, rows_BD in first.items():
                mean = alignment(rows_BD, second[pooling])
                total[pooling] = total.get(pooling, 0.0) + mean * len(index_B)
            done += len(index_B)
            bar.update(done)
    return {pooling: each / done for pooling, each in total.items()}
