"""Figures of images and texts: what is retrieved for captions, and where words look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ssl_bench.analysis.report.captions import measured
from ssl_bench.analysis.report.drawing import Drawing, missing, or_missing
from ssl_bench.analysis.report.source import Source, representatives, slug
from ssl_bench.evaluation.texts import as_texts
from ssl_bench.experiment import figures

_METHODS = 6


@or_missing(missing("Retrieved images", "retrieval"))
def retrieved(source: Source) -> Iterator[Drawing]:
    """The best images of a few captions, by each method."""
    for title, row, arrays in _stored(source, figures.RETRIEVED):
        queries, is_right = as_texts(arrays["queries"]), arrays["is_right"]
        yield Drawing(
            f"retrieved-{slug(row['method'])}-{slug(title)}",
            "Images and captions",
            f"Images that {row['method']} retrieves: {title}",
            f"{measured(source, pd.DataFrame([row]))} The best images of {len(queries)} captions, "
            "the best one first; green frames are around those that the caption is of.",
            f"Rows of {is_right.shape[1]} images, each row for a caption.",
            pd.DataFrame(
                [
                    (row["run"], query, rank + 1, bool(right))
                    for query, own in zip(queries, is_right, strict=True)
                    for rank, right in enumerate(own)
                ],
                columns=["run", "caption", "rank", "is_right"],
            ),
            figures.retrieved(arrays),
            is_picture=True,
        )


@or_missing(missing("Where words look", "masked-words"))
def words(source: Source) -> Iterator[Drawing]:
    """The attention of each word of a few captions over their images, by each method."""
    for title, row, arrays in _stored(source, figures.WORDS):
        named = [as_texts(each) for each in arrays["words"]]
        yield Drawing(
            f"words-{slug(row['method'])}-{slug(title)}",
            "Images and captions",
            f"Where words look, by {row['method']}: {title}",
            f"{measured(source, pd.DataFrame([row]))} How far each word of {len(named)} captions "
            "attends to each patch in the last layer that does, the mean over its heads. Each map "
            "is scaled to its own range: bright is high. Long captions are cut.",
            f"Rows of an image and a map for each word of its caption, for {len(named)} images.",
            pd.DataFrame(
                [
                    (row["run"], image, word, y, x, value)
                    for image, (own, maps) in enumerate(
                        zip(named, arrays["word_maps"], strict=True)
                    )
                    for word, heat in zip(own, maps, strict=True)
                    if word
                    for (y, x), value in np.ndenumerate(heat)
                ],
                columns=["run", "image", "word", "row", "column", "attention"],
            ),
            figures.words(arrays),
            is_picture=True,
        )


def _stored(
    source: Source, kind: figures.Kind
) -> Iterator[tuple[str, pd.Series, Mapping[str, Any]]]:
    """For each evaluation one run of each of a few methods, and its arrays."""
    for title, scores in source.evaluations(source.with_arrays(kind.shapes)):
        for _, of_method in list(representatives(scores).groupby("method", sort=True))[:_METHODS]:
            row = of_method.sort_values("seed").iloc[0]
            arrays = source.arrays(row["folder"], [*kind.shapes])
            if arrays and kind.fits(arrays):
                yield title, row, arrays
            elif arrays:
                source.problem(f"{row['folder']!r}: its {kind.what} cannot be drawn")
