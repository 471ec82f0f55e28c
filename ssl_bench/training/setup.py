"""A method that is ready to be trained: built, fed, compiled, wrapped for several ranks."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from ssl_bench.api.method import DataInfo, Method
from ssl_bench.api.optimizers import OptimizerSpec
from ssl_bench.api.step import Batch, Step
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed import collectives, strategy
from ssl_bench.distributed.device import Hardware
from ssl_bench.distributed.strategy import Replica
from ssl_bench.models import backbones, encoders, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import schema
from ssl_bench.training import flops, gradients
from ssl_bench.transforms.augmentations import evaluation_view, normalize
from ssl_bench.transforms.loader import views
from ssl_bench.utils import rng
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
    transforms = method.transforms()
    with closing(views(train, tuple(transforms.values()), steps)) as found:
        for step_rng, unnormalized in found:
            normalized = (normalize(view, spec.mean, spec.std, True) for view in unnormalized)
            named = dict(zip(transforms, normalized, strict=True))
            has_labels = "label" in method.columns
            labels_B = train.labels_N[step_rng.samples_B] if has_labels else None
            yield Batch(named, step_rng, labels_B)


@dataclass(frozen=True)
class Trainer:
    """A method that is ready to be trained, in parts of ``images_at_once`` where it can be."""

    method: Method
    hardware: Hardware
    seed: int
    images_at_once: int | None
    replica: Replica | None
    optimizer: OptimizerSpec

    def take(self, step: Step, batch: Batch) -> tuple[Mapping[str, Tensor], float]:
        """Take a step: the losses of `gradients.backward`, and the learning rate."""
        learning_rate = self.optimizer.prepare(step)
        rank = collectives.rank()  # each has dropout of its own
        torch.manual_seed(rng.key(self.seed, "dropout", step.number, *([rank] if rank else [])))
        how = self.hardware, self.images_at_once, self.replica
        losses = gradients.backward(self.method, batch, step, *how)
        self.method.before_optimizer_step(step)
        self.optimizer.update()
        self.method.after_optimizer_step(step)
        return losses, learning_rate


def prepare(
    method: Method, hardware: Hardware, spec: EncoderSpec, seed: int, images_at_once: int | None
) -> Trainer:
    """Compile a method, wrap it for several ranks, which may replace parameters; its optimiser."""
    if hardware.compiled:
        compile_blocks(method)
    replica: Replica | None = None
    if collectives.world_size() > 1:
        replica = strategy.wrap(method, flops.terms_of_step(method, spec))
    return Trainer(method, hardware, seed, images_at_once, replica, method.optimizer())


def compile_blocks(method: Method) -> None:
    """Compile each transformer block: blocks that are alike share their code.

    A block of which only some tokens are wanted (`encoders.block_at`) is not called, and so runs
    as it is.
    """
    torch.compiler.reset()  # what other trainings of this process compiled
    for module in method.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)


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
    batch = Batch(
        dict.fromkeys(method.transforms(), view_BCHW), SampleRng(seed, 0, index_B, "pictures/")
    )
    # What was compiled for the device of the training need not compile on the CPU.
    with torch.compiler.set_stance("force_eager"):
        return method.cpu().eval().pictures(batch)
