"""A method that is ready to be trained: built, fed, compiled, wrapped for several ranks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor

from ssl_bench.api.method import DataInfo, Method
from ssl_bench.api.optimizers import OptimizerSpec
from ssl_bench.api.step import Batch, Step
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed import collectives, strategy
from ssl_bench.distributed.device import Hardware
from ssl_bench.distributed.strategy import Replica
from ssl_bench.models import backbones, encoders, text_encoder, vocabulary, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.vocabulary import Tokens
from ssl_bench.runs import schema
from ssl_bench.training import flops, gradients
from ssl_bench.training.captured import CapturedStep, Losses, Record, Stored
from ssl_bench.transforms import loader
from ssl_bench.transforms.augmentations import evaluation_view, normalize
from ssl_bench.utils import progress, rng
from ssl_bench.utils.rng import SampleRng


def build_method(
    method_class: type[Method], config: Any, spec: EncoderSpec, classes: int, seed: int
) -> Method:
    """The method around a fresh encoder, a function of its arguments alone."""
    backbone = backbones.build(spec, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "method"))
        method = method_class(config, backbone, DataInfo.of(spec, classes))
    if method.trains and any(t.size != spec.image_size for t in method.transforms().values()):
        for module in method.modules():
            encoders.allow_other_sizes(module)
    return method


def with_text(
    spec: EncoderSpec, kind: type[Method], config: Any, captions: Iterable[Iterable[str]]
) -> EncoderSpec:
    """The spec with the text encoder of a method that reads captions; it is all that is encoded
    where the method reads no images. Unchanged for other methods.

    Args:
        captions: of the training split, from which the vocabulary is learned.
    """
    if "caption" not in kind.columns:
        return spec
    texts = list(chain.from_iterable(captions))
    if "image" in kind.columns:
        width = encoders.width(backbones.empty(spec))
        return replace(spec, text=vocabulary.spec_of(config, texts, width))
    own = vocabulary.spec_of(config, texts)
    return replace(spec, backbone=text_encoder.BERT, patch_size=None, architecture={}, text=own)


def make_batch(
    method: Method, train: Split, spec: EncoderSpec, seed: int, step: int, index_B: Tensor
) -> Batch:
    """Augmented, normalised views of the images at those indices, where the split's labels are."""
    [batch] = batches(method, train, spec, [SampleRng(seed, step, index_B.cpu())])
    return batch


def batches(
    method: Method, train: Split, spec: EncoderSpec, steps: Iterable[SampleRng]
) -> Generator[Batch]:
    """`make_batch` for the samples of each step; threads prepare the next ones meanwhile.

    Close it where it is not iterated to its end. Steps have one row per sample, on the CPU.
    """
    recipes, texts = tuple(method.transforms().values()), texts_of(method, train)
    with closing(loader.stored(train, recipes, steps)) as found:
        for draws, pixels in found:
            yield as_batch(method, train, spec, texts, draws, pixels)


def texts_of(method: Method, train: Split) -> Tokens | None:
    """The captions that a method reads, as tokens where the labels are; None if it reads none."""
    if not method.data.text or "caption" not in method.columns:
        return None
    how = train.captions, train.documents, method.data.text, train.labels_N.device
    return vocabulary.tokens_of(*how)


def as_batch(
    method: Method,
    train: Split,
    spec: EncoderSpec,
    texts: Tokens | None,
    draws: SampleRng,
    pixels: Sequence[Tensor],
) -> Batch:
    """A batch of the draws, `texts_of` and what is stored of its images (see `loader.stored`)."""
    transforms = method.transforms()
    views = loader.finished(train, tuple(transforms.values()), draws, pixels)
    normalized = (normalize(view, spec.mean, spec.std, in_place=True) for view in views)
    labels_B = train.labels_N[draws.samples_B] if "label" in method.columns else None
    captions_BL = is_next_B = None
    if texts and (own := method.data.text):
        if own.next_sentence:
            captions_BL, is_next_B = texts.draw_pairs(draws, own)
        else:
            captions_BL = texts.draw(draws)
    named = dict(zip(transforms, normalized, strict=True))
    return Batch(named, draws, labels_B, captions_BL=captions_BL, is_next_B=is_next_B)


@dataclass(frozen=True)
class Trainer:
    """A method that is ready to be trained, in parts of ``images_at_once`` where it can be."""

    method: Method
    hardware: Hardware
    spec: EncoderSpec
    train: Split
    seed: int
    images_at_once: int | None
    replica: Replica | None
    optimizer: OptimizerSpec
    captured: CapturedStep | None

    def batches(self, steps: Iterable[SampleRng]) -> Generator[Batch | Stored]:
        """What `take` takes for the samples of each step; to be used as `setup.batches` is."""
        if not self.captured:
            return batches(self.method, self.train, self.spec, steps)
        return loader.stored(self.train, tuple(self.method.transforms().values()), steps)

    def take(self, step: Step, batch: Batch | Stored) -> tuple[Mapping[str, Tensor], float]:
        """Take a step: the losses of `gradients.backward`, and the learning rate."""
        learning_rate = self.optimizer.prepare(step)
        if self.captured and not isinstance(batch, Batch):
            self.captured.prepare(step, batch)
        rank = collectives.rank()  # each has dropout of its own
        torch.manual_seed(rng.key(self.seed, "dropout", step.number, *([rank] if rank else [])))
        if isinstance(batch, Batch):
            how = self.hardware, self.images_at_once, self.replica
            losses = gradients.backward(self.method, batch, step, *how)
        else:
            assert self.captured
            losses = self.captured.take(step, batch)
        self.method.before_optimizer_step(step)
        self.optimizer.update()
        self.method.after_optimizer_step(step)
        return losses, learning_rate


def prepare(
    method: Method,
    hardware: Hardware,
    spec: EncoderSpec,
    train: Split,
    seed: int,
    images_at_once: int | None,
) -> Trainer:
    """Compile a method, wrap it for several ranks, which may replace parameters; its optimiser."""
    if hardware.compiled:
        compile_blocks(method)
    replica: Replica | None = None
    if collectives.world_size() > 1:
        replica = strategy.wrap(method, flops.terms_of_step(method, spec))
    captured = None
    if hardware.records_steps:
        captured = capture(method, hardware, spec, train, images_at_once)
    how = spec, train, seed, images_at_once, replica
    return Trainer(method, hardware, *how, method.optimizer(), captured)


def capture(
    method: Method,
    hardware: Hardware,
    spec: EncoderSpec,
    train: Split,
    images_at_once: int | None = None,
    tell: Callable[[str], None] = progress.console.print,
    record: Record | None = None,
) -> CapturedStep:
    """The steps of `Trainer.take`, recorded; see `CapturedStep`."""
    texts = texts_of(method, train)

    def backward(stored: Stored, step: Step) -> Losses:
        batch = as_batch(method, train, spec, texts, *stored)
        return gradients.backward(method, batch, step, hardware, images_at_once)

    return CapturedStep(method, backward, tell, record)


def compile_blocks(model: torch.nn.Module) -> None:
    """Compile each transformer block: blocks that are alike share their code.

    A block of which only some tokens are wanted (`encoders.block_at`) is not called, and so runs
    as it is.

    Stochastic depth stays as it is: each rate would be another compilation, of which torch keeps
    eight.

    Inductor would choose among its kernels by timing them: not the same ones each time, which sum
    in other orders.
    """
    import torch._inductor  # which takes a second

    options = {"deterministic": True} if "deterministic" in torch._inductor.list_options() else {}
    torch.compiler.reset()  # what other trainings of this process compiled
    gc.collect()  # with their weights, which compiled code refers to in cycles
    for module in model.modules():
        if isinstance(module, DropPath):
            module.forward = torch.compiler.disable(module.forward)
        if isinstance(module, Block):
            module.compile(dynamic=False, options=options)


def restore(method: Method, folder: Path) -> None:
    """Load a finished run's weights into the method."""
    own = weights.read(folder / schema.METHOD_WEIGHTS)
    encoder = weights.read(folder / schema.ENCODER_WEIGHTS)
    method.load_state_dict(own | {f"encoder.{name}": value for name, value in encoder.items()})


@torch.no_grad()
def pictures(
    method: Method, data: Dataset, spec: EncoderSpec, seed: int, count: int
) -> Mapping[str, Tensor]:
    """The method's pictures of the first test images of as many classes as there are, or of all."""
    if type(method).pictures is Method.pictures:
        return {}
    labels_N = data.test.labels_N
    firsts = list(range(len(labels_N)))
    if not data.unlabelled:
        firsts = [int((labels_N == label).nonzero()[0]) for label in labels_N.unique()]
    index_B = torch.tensor(firsts[:count])
    view_BCHW = normalize(
        evaluation_view(data.test.images(index_B), spec.image_size), spec.mean, spec.std
    )
    captions_BL = None
    if method.data.text:
        texts = data.test.first_captions
        captions_BL = vocabulary.tokenize(
            [texts[index] for index in index_B.tolist()], method.data.text
        )
    batch = Batch(
        dict.fromkeys(method.transforms(), view_BCHW),
        SampleRng(seed, 0, index_B, "pictures/"),
        captions_BL=captions_BL,
    )
    # What was compiled for the device of the training need not compile on the CPU.
    with torch.compiler.set_stance("force_eager"):
        return method.cpu().eval().pictures(batch)
