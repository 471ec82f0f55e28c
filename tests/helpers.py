"""Small data, small settings and short trainings that tests share."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ssl_bench.api import registry
from ssl_bench.api.method import Method
from ssl_bench.api.registry import Plugin
from ssl_bench.api.step import Batch, Step
from ssl_bench.cli import flags
from ssl_bench.data import Dataset, Split, listing
from ssl_bench.data.masks import IGNORED
from ssl_bench.distributed.device import Hardware
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs.schema import Plan
from ssl_bench.training import pretrain, setup
from ssl_bench.training.captured import Made, Work
from ssl_bench.utils.rng import SampleRng

ROOT = Path(__file__).parents[1]
EXAMPLE_METHOD = Path(__file__).with_name("example_method.py")
CPU = Hardware(torch.device("cpu"), "fp32", "test")
SHAPE = {"depth": 2, "embed_dim": 32, "num_heads": 2}
METHODS = list(registry.discover("method").values())
EVALS = list(registry.discover("eval").values())
EPOCHS, BATCH = 2, 24
_SHORT = {
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "draws": 2,
    "images": 9,
    "shares": (0.1, 0.5),
    "steps": 10,
    "pred_hidden_dim": 8,
    "queue_size": 4 * BATCH,
    "directions": 16,
    "prototypes": 64,
    "head_hidden_dim": 32,
    "codebook_size": 32,
    "text_depth": 2,
    "text_width": 32,
    "text_heads": 2,
    "fusion_depth": 1,
    "rerank": 4,
    "resamples": 20,
}


def held_out(key: bytes) -> bool:
    """Whether the image with this key is of the test fifth, if its class can spare it."""
    return listing.rank(key) < 2**64 // 5


def make_images(count: int, classes: int, size: int, channels: int, seed: int) -> Split:
    """Noise on top of one pattern for each class: easy to learn."""
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).integers(0, 256, (classes, channels, size, size))
    labels = np.arange(count) % classes
    noise = generator.normal(0, 40, (count, channels, size, size))
    images = (0.5 * patterns[labels] + 64 + noise).clip(0, 255).astype(np.uint8)
    captions = tuple(captions_of(label) for label in labels.tolist())
    return Split(torch.from_numpy(images), torch.from_numpy(labels), captions=captions)


def captions_of(label: int) -> tuple[str, ...]:
    """Two texts of an image of that class."""
    word = ("one", "two", "three", "four", "five")[label % 5]
    return f"an image of class {word}", f"Class {word}: easy to learn!"


def with_text(plugin: Plugin, spec: EncoderSpec, config: Any = None) -> EncoderSpec:
    """The spec with a text encoder for the captions of `make_images`, if the method reads any.

    Args:
        config: the method's; None for `small`.
    """
    texts = [captions_of(label) for label in range(5)]
    return setup.with_text(spec, plugin.load_class(), config or small(plugin), texts)


def as_clips(data: Dataset, frames: int = 4) -> Dataset:
    """The same images moving to the right, a pixel a frame."""

    def moving(split: Split) -> Split:
        shifted = [split.images_NCHW.roll(frame, dims=-1) for frame in range(frames)]
        return dataclasses.replace(split, images_NCHW=torch.cat(shifted, dim=1), frames=frames)

    return dataclasses.replace(data, train=moving(data.train), test=moving(data.test))


def fitting(plugin: Plugin, spec: EncoderSpec, data: Dataset) -> tuple[EncoderSpec, Dataset]:
    """The spec and the data, of clips where the method learns from nothing else."""
    columns = plugin.declared.columns
    if "clip" not in columns or "image" in columns:
        return spec, data
    return dataclasses.replace(spec, frames=4), as_clips(data)


def with_masks(split: Split) -> Split:
    """The same images; left of the middle is class 0, right of it their own, the top is ignored."""
    images_NCHW = split.images_NCHW
    masks_NSS = torch.zeros(len(split), *images_NCHW.shape[2:], dtype=torch.uint8)
    masks_NSS[:, :, masks_NSS.shape[2] // 2 :] = 1 + split.labels_N[:, None, None]
    masks_NSS[:, 0] = IGNORED
    return dataclasses.replace(split, masks_NSS=masks_NSS)


def noise_image(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """An RGB image of random pixels."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (width, height, 3), dtype=np.uint8))


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """The content of an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def write_images(folder: Path) -> Path:
    """The tiny data's like as an ImageFolder of PNG files."""
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, content in _image_files().items():
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def _image_files() -> dict[str, bytes]:
    """PNG files by their names."""
    files = {}
    for part, count, seed in (("train", 48, 1), ("test", 12, 2)):
        split = make_images(count, 2, 16, 3, seed)
        for index, (image, label) in enumerate(
            zip(split.images_NCHW.permute(0, 2, 3, 1).numpy(), split.labels_N.tolist(), strict=True)
        ):
            files[f"{part}/{'ab'[label]}/{index}.png"] = encoded(Image.fromarray(image))
    return files


def small(plugin: Plugin) -> Any:
    """A method's quick recipe, an evaluation's own defaults, made short."""
    cls = plugin.load().Config
    names = {field.name for field in dataclasses.fields(cls)}
    recipe = plugin.presets().get("quick", {}) if plugin.kind == "method" else {}
    values = {k: v for k, v in recipe.items() if k in names}
    values |= {k: v for k, v in _SHORT.items() if k in names}
    return cls(**values)


def small_mae(spec: EncoderSpec, **changes: Any) -> Any:
    """MAE with a small decoder; changes are of its ``Config``."""
    mae = registry.find("method", "mae")
    small = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_heads": 4}
    return setup.build_method(mae.load_class(), mae.config(**(small | changes)), spec, 3, seed=0)


def random_images(spec: EncoderSpec, count: int = 3) -> Tensor:
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def random_batch(count: int, size: int, step: int = 0) -> Batch:
    """Colour images of normal noise, as a method of one view gets them."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(count, 3, size, size, generator=generator)
    return Batch({"image": images}, SampleRng(0, step, torch.arange(count)))


def batch_of(method: Method, views: Sequence[Tensor], step: int = 0) -> Batch:
    """These views as the method's own, in the order in which it names them."""
    named = dict(zip(method.transforms(), views, strict=True))
    return Batch(named, SampleRng(0, step, torch.arange(len(views[0]))))


def waves(count: int, width: int, shift: float) -> Tensor:
    """Numbers that everyone can make, which official codes' losses were computed of."""
    row, column = torch.meshgrid(torch.arange(count), torch.arange(width), indexing="ij")
    return torch.sin(0.7 * (row + 1.0).double() * (column + 2) + shift).requires_grad_()


FIRST_STEP = Step(0, 1, 1, 24)


def step_at(number: int) -> Step:
    """That of a training of 1,000 steps."""
    return Step(number, 1000, 100, 24)


def step_to(fraction: float) -> Step:
    """The step that ends where this fraction of the training is done."""
    return Step(round(fraction * 1000) - 1, 1000, 1, 24)


def build(plugin: Plugin, spec: EncoderSpec, seed: int = 0) -> Method:
    return setup.build_method(plugin.load_class(), small(plugin), with_text(plugin, spec), 3, seed)


def plan(
    plugin: Plugin, spec: EncoderSpec, data: Dataset, seed: int = 0, config: Any = None
) -> Plan:
    return Plan(
        plugin.name,
        plugin.version,
        config or small(plugin),
        data.name,
        data.fingerprint,
        with_text(plugin, spec, config),
        EPOCHS,
        BATCH,
        seed,
        "fp32",
    )


def train(plugin: Plugin, spec: EncoderSpec, data: Dataset, folder: Path, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    method = build(plugin, spec, seed)
    pretrain.pretrain(method, data, plan(plugin, spec, data, seed), folder, CPU)
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "encoder.safetensors").read_bytes() + (
        folder / "method.safetensors"
    ).read_bytes()


def stored(*args: object) -> dict[str, Any]:
    """The config of ``ssl-bench run`` with these arguments, as a sweep or a run folder holds it."""
    return flags.parse_run([str(each) for each in args]).to_json()


def named(plugin: Plugin) -> str:
    return plugin.name


def difference_of_moves(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> float:
    """How far two trainings of one start ended apart, as a share of the way to the expected end."""

    def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
        return sum((one[k].double() - other[k]).square().sum().item() for k in start) ** 0.5

    return distance(found, expected) / distance(expected, start)


@dataclasses.dataclass
class Recorder:
    """Does the recorded work again, into the memory of the recording, as a CUDA graph does."""

    recordings: int = 0

    def __call__(self, work: Work) -> tuple[Made, Callable[[], None]]:
        self.recordings += 1
        made = work()

        def replay() -> None:
            for place, value in zip(_tensors(made), _tensors(work()), strict=True):
                place.data.copy_(value.data)

        return made, replay


def _tensors(made: Made) -> list[Tensor]:
    left = tree_leaves(dict(made.attributes))  # tensors may be in containers
    left = [value for value in left if isinstance(value, Tensor)]
    return [*made.losses.values(), *(gradient for _, gradient in made.gradients), *left]
