"""Zero-shot classification: the class whose name, put into a sentence, is nearest to the image.

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021,
arXiv:2103.00020, section 3.1.4: a class is the mean of its sentences' features, of length 1; the
cosine decides. No label is read but to count what is right, and nothing is chosen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.errors import require
from ssl_bench.evaluation.metrics import accuracy
from ssl_bench.models import text_encoder, vocabulary


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of zero-shot classification."""

    section: ClassVar[str] = "zero shot"

    templates: tuple[str, ...] = ("a {}", "a photo of a {}", "there is a {}")
    """Sentences, separated by commas, with {} for the name of a class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            require(
                template.count("{}") == 1,
                f"zero shot template {template!r} has not one {{}} for the name of a class; "
                "'a photo of a {}' would work",
            )
        require(bool(self.templates), "zero shot templates is empty; 'a photo of a {}' would work")


class ZeroShot(Evaluation):
    """Classes by their names alone."""

    version = 1
    columns = frozenset({"image", "label"})
    # As captions of the embedded scenes name what they are labelled by.
    presets = {"quick": {"templates": ("a large {}", "there is a large {}")}}

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether images and texts are compared, and classes have names."""
        if data.classes and all(re.fullmatch(r"\d+|n\d{8}", name) for name in data.classes):
            return f"the classes of {data.name} have numbers such as {data.classes[0]}, not names"
        return text_encoder.why_no_pair(encoder.pair)

    @torch.no_grad()
    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Classify the test images by the classes' names."""
        pair, device = encoder.pair, encoder.hardware.device
        by_template = []
        for template in self.config.templates:
            texts = [template.replace("{}", _readable(name)) for name in data.classes]
            ids_CL = vocabulary.tokenize(texts, pair.text.spec).to(device)
            with encoder.hardware.autocast():
                by_template.append(pair.embed_texts(pair.text(ids_CL)))
        class_CD = F.normalize(torch.stack(by_template).mean(dim=0), dim=1)
        image_ND = pair.embed_images(encoder.features(data.test)["cls"])
        predictions_N = (image_ND @ class_CD.T).argmax(dim=1).cpu()
        return Result(
            scores={"top1": accuracy(predictions_N, data.test.labels_N)},
            predictions_N=predictions_N,
        )


def _readable(name: str) -> str:
    """A class's name as words."""
    return name.replace("_", " ").lower()
