"""Embedding: a map of test images' features in two dimensions, by t-SNE.

van der Maaten, Hinton: *Visualizing Data using t-SNE*, JMLR 2008; Barnes-Hut's approximation and
an initialisation by principal components, as scikit-learn has them. The headline says how far the
map can be trusted, not how good the features are: the trustworthiness of Venna and Kaski (*Neural
Networks* 19, 2006), which falls with each neighbour on the map that is none among the features.

Euclidean distances of the features as they are. The pooling is the class token, which the papers'
linear probes take, or the mean of the patch tokens where an encoder has none. Labels choose which
images are drawn, as many of each class, and have no say in the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from sklearn.manifold import TSNE, trustworthiness
from threadpoolctl import threadpool_limits

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.errors import require
from ssl_bench.evaluation.metrics import balanced_order
from ssl_bench.utils import rng

_FEWEST = 4


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of the embedding."""

    section: ClassVar[str] = "embedding"

    images: Annotated[int, "[4, inf)"] = 2000
    """Test images on the map, class-balanced, the same ones for every method."""
    pooling: Literal["cls", "avg"] = "cls"
    """What is shown: the class token, where there is one, or the mean of the patch tokens."""
    perplexity: Annotated[float, "(1, inf)"] = 30.0
    """Neighbours that t-SNE attends to, roughly; no more than a third of the images."""
    neighbors: Annotated[int, "[1, inf)"] = 5
    """Neighbours on the map that the trustworthiness looks at; less than half of the images."""


class Embedding(Evaluation):
    """A map of the features in two dimensions."""

    version = 1
    columns = frozenset({"label"})
    compared_with = ("pixels", "random")

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether there are enough images for neighbours."""
        count = len(data.test)
        if count < _FEWEST:
            return f"it takes {_FEWEST} test images or more; {data.name} has {count}"
        return None

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Map a class-balanced part of the test images.

        Arrays: ``points``, float32 ``(N, 2)``; ``labels`` and ``index``, int64 ``(N,)``: each
        point's class, and its image's place in the test split.
        """
        config = self.config
        count = min(config.images, len(data.test))
        order_N = balanced_order(data.test.labels_N, "embedding", data.fingerprint)
        index_N = order_N[:count].sort().values
        features = encoder.features(data.test)
        pooling = config.pooling if config.pooling in features else next(iter(features))
        features_ND = features[pooling].cpu()[index_N].numpy()
        require(
            bool(np.isfinite(features_ND).all()),
            "embedding needs features that are finite numbers; those of this encoder are not",
        )
        # A collapsed encoder's features have no principal components.
        is_collapsed = bool((features_ND == features_ND[0]).all())
        # The order in which threads add up would show in the map.
        with threadpool_limits(1):
            points_N2 = TSNE(
                init="random" if is_collapsed else "pca",
                perplexity=min(config.perplexity, (count - 1) / 3),
                random_state=rng.key(encoder.seed, "embedding") % 2**32,
            ).fit_transform(features_ND)
        neighbors = min(config.neighbors, (count - 1) // 2)
        trust = trustworthiness(features_ND, points_N2, n_neighbors=neighbors)
        return Result(
            scores={"trustworthiness": 100 * float(trust)},
            chosen={"pooling": pooling},
            arrays={
                "points": torch.from_numpy(points_N2).float(),
                "labels": data.test.labels_N.cpu()[index_N],
                "index": index_N,
            },
            unit="trustworthiness (%)",
            better="neither",
        )
