"""Backbones: any image model of timm, checked, built and resized."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache, partial
from itertools import islice
from math import isfinite
from typing import Any

import timm
import torch
from timm.layers import DropPath, weight_init
from torch import Tensor, nn

from ssl_bench.config.presets import BACKBONES
from ssl_bench.distributed import collectives
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.models import encoders, text_encoder
from ssl_bench.models.video import TUBELET, TubeletEmbed
from ssl_bench.models.vocabulary import TextSpec
from ssl_bench.utils import rng

_MOST_PATCHES = 2**16
_WELL_KNOWN = (
    *("convnext_tiny", "regnety_032", "beit_base_patch16_224", "deit_small_patch16_224"),
    *("swin_tiny_patch4_window7_224", "resnet50", "vit_small_patch16_224"),
)
_COMMON_SIZES = (32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
_ARCHITECTURE = {
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values"),
    *("pre_norm", "reg_tokens", "class_token", "no_embed_class", "global_pool", "fc_norm"),
    *("depths", "window_size"),
    *("act_layer", "norm_layer", "final_norm", "proj_bias", "pool_include_prefix", "pos_embed"),
}


class Backbone(nn.Module):
    """The part of a timm image model's interface that is used here; for type checkers only."""

    num_features: int
    forward_features: Callable[[Tensor], Any]
    forward_head: Callable[..., Tensor]
    group_matcher: Callable[..., Any]

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of the model's own class."""
        return super().__getattr__(name)


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build an encoder again with ``timm.create_model``.

    Attributes:
        backbone: a name of `BACKBONES` or any image model of timm; `text_encoder.BERT` for
            an encoder of captions, which ``text`` describes.
        image_size: height = width in pixels.
        patch_size: height = width of a patch; None for the backbone's default, or if it has none.
        channels: 1 or 3.
        mean, std: per channel, of pixels in [0, 1]; images are normalised with them.
        architecture: arguments of ``timm.create_model`` that differ from the backbone's own.
        norm_eps: epsilon of the layer norms.
        frames: of the clips it takes, see `video`; 1 for images.
        text: what is pre-trained with captions: the encoder itself, or what belongs to an image
            encoder; None without.
    """

    backbone: str
    image_size: int
    patch_size: int | None
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: Mapping[str, Any] = field(default_factory=dict)
    norm_eps: float = 1e-6
    frames: int = 1
    text: TextSpec | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> EncoderSpec:
        """Restore a spec from its ``asdict`` as JSON; unknown entries are ignored.

        Raises:
            UserError: no encoder has such values, or it would have an absurd number of patches.
            KeyError, TypeError: an entry is missing or has the wrong type.
        """
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        own = known.get("text")
        known["text"] = TextSpec.of(own) if own else None
        spec = cls(**known | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        require(spec.text is not None or not spec.is_text, "an encoder of captions lacks its text")
        surplus = sorted(set(spec.architecture) - _ARCHITECTURE)
        require(not surplus, f"an encoder's architecture has no {', '.join(surplus)}")
        sizes = (spec.image_size, 16 if spec.patch_size is None else spec.patch_size, spec.channels)
        require(
            type(spec.frames) is int and (spec.frames == 1 or spec.frames > 0 == spec.frames % 2),
            f"no encoder has clips of {spec.frames!r:.20} frames",
        )
        require(
            all(type(size) is int and size > 0 for size in sizes)
            and (sizes[0] // sizes[1]) ** 2 * spec.frames <= _MOST_PATCHES,
            f"no encoder has images of {sizes[0]!r:.20} pixels in {sizes[2]!r:.20} channels and "
            f"patches of {sizes[1]!r:.20}",
        )
        numbers = (*spec.mean, *spec.std, spec.norm_eps)
        require(
            len(spec.mean) == len(spec.std) == spec.channels
            and all(type(number) in (int, float) and isfinite(number) for number in numbers)
            and min(*spec.std, spec.norm_eps) > 0,
            f"no encoder takes {spec.channels} channels of mean {spec.mean!r:.60} and deviation "
            f"{spec.std!r:.60}, and adds {spec.norm_eps!r:.20} in its norms",
        )
        return spec

    def to_json(self) -> dict[str, Any]:
        """What `of` takes, which of an encoder of images says nothing of frames and text."""
        found = asdict(self)
        has = {"frames": self.frames > 1, "text": self.text is not None}
        return {name: value for name, value in found.items() if has.get(name, True)}

    @property
    def is_text(self) -> bool:
        """Whether the encoder reads captions instead of images."""
        return self.backbone == text_encoder.BERT

    @property
    def is_vit(self) -> bool:
        """Whether the backbone is a plain Vision Transformer, see `encoders.is_vit`."""
        return timm_name(self.backbone) in vit_names()

    @property
    def patches(self) -> int:
        """Patches in an image, tubelets in a clip, or tokens in a text.

        For other backbones those of a ViT/16, as a measure of size.
        """
        if self.is_text and self.text:
            return self.text.max_tokens
        size = self.patch_size if self.is_vit and self.patch_size else 16
        pairs = max(1, self.frames // TUBELET)
        return max(1, self.image_size // size) ** 2 * pairs

    @property
    def input_channels(self) -> int:
        """Channels of what it takes: those of all frames."""
        return self.frames * self.channels

    def timm_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``timm.create_model``, the model's name included."""
        if self.is_text:
            return {}
        own = BACKBONES.get(self.backbone, {"model_name": self.backbone})
        sizes = {"img_size": self.image_size, "patch_size": self.patch_size}
        if not self.is_vit:
            taken = _sizes_taken(timm_name(self.backbone))
            sizes = {name: size for name, size in sizes.items() if name in taken}
        sizes = {name: size for name, size in sizes.items() if size is not None}
        if self.frames > 1:
            own = {**own, "class_token": False, "global_pool": "avg", "fc_norm": False}
        rest = {"in_chans": self.input_channels, "num_classes": 0}
        return {**own, **self.architecture, **sizes, **rest}

    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are preprocessed, as entries of timm's ``pretrained_cfg``.

        A larger image is resized and cropped as in `augmentations.evaluation_view`.
        """
        return {
            "input_size": (self.channels, self.image_size, self.image_size),
            "mean": tuple(self.mean),
            "std": tuple(self.std),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
        }


def timm_name(backbone: str) -> str:
    """timm's name of the architecture, without the tag of the pre-trained weights."""
    return BACKBONES.get(backbone, {"model_name": backbone})["model_name"].partition(".")[0]


@cache
def vit_names() -> frozenset[str]:
    """The plain Vision Transformers of timm."""
    vits = timm.list_models(module="vision_transformer")
    deits = timm.list_models(module="deit", exclude_filters="*distilled*")
    return frozenset([*vits, *deits])


@cache
def _sizes_taken(model: str) -> frozenset[str]:
    """Which of ``img_size`` and ``patch_size`` a timm model accepts."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return _sizes_of(type(timm.create_model(model)))


def _sizes_of(kind: type[Any]) -> frozenset[str]:
    classes: tuple[Any, ...] = kind.__mro__[:-1]
    taken = [inspect.signature(each.__init__).parameters for each in classes]
    return frozenset({"img_size", "patch_size"}.intersection(set[str]().union(*taken)))


def unknown_backbone(name: str) -> UserError:
    """The error for an unknown backbone; suggests the nearest name, if there is one."""
    names = sorted([*BACKBONES, *timm.list_models()])
    # Of several that begin like this one, the best known, or else the first.
    beginnings = {each[: len(name)]: each for each in (*reversed(names), *_WELL_KNOWN)}
    near = get_close_matches(name.lower(), beginnings, n=1, cutoff=0.6)
    hint = (
        f"{', '.join(BACKBONES)} and every image model of timm are known, such as "
        "vit_tiny_patch16_224 (see `ssl-bench list backbones`)"
    )
    if near:
        hint = f"did you mean {beginnings[near[0]]!r}?"
    return UserError(f"unknown backbone {name!r}; {hint}")


def default_patch_size(backbone: str, image_size: int) -> int:
    """The patch size in the backbone's name, or one that suits the images.

    The name's, such as 16 of ``vit_tiny_patch16_224``, if it divides the images into four by four
    patches or more; else the divisor of the image size nearest to a quarter of it, but at most to
    the name's or 16, and within a factor of two.

    Raises:
        UserError: there is no such divisor.
    """
    found = re.search(r"_patch(\d+)", backbone)
    usual = int(found[1]) if found else 16
    if found and image_size % usual == 0 and image_size >= 4 * usual:
        return usual
    best = _suitable_patch_size(image_size, usual)
    if best is None:
        sizes = range(max(1, image_size // 2), 2 * image_size + 8)
        fits = [size for size in sizes if size % 4 == 0 and _suitable_patch_size(size, usual)]
        near = sorted(sorted(fits, key=lambda size: abs(size - image_size))[:2])
        raise UserError(
            f"--image-size {image_size} has no divisor that would do as a patch size; --image-size "
            f"{' or '.join(map(str, near))} would work, or a --patch-size that divides it"
        )
    return best


def _suitable_patch_size(image_size: int, usual: int) -> int | None:
    wanted = min(image_size / 4, usual)
    sides = range(2, int(min(2 * wanted, image_size / 2)) + 1)
    fits = [side for side in sides if image_size % side == 0 and side >= wanted / 2]
    return min(fits, key=lambda side: abs(side - wanted), default=None)


def check(spec: EncoderSpec) -> None:
    """Raise `UserError` if the backbone does not exist or the sizes do not fit it."""
    if not timm.is_model(timm_name(spec.backbone)):
        raise unknown_backbone(spec.backbone)
    size, patch_size = spec.image_size, spec.patch_size
    # The positions alone may take more memory than there is, which the system ends without a word.
    largest = int(_MOST_PATCHES**0.5) * (patch_size if patch_size and spec.is_vit else 16)
    require(
        size <= largest,
        f"--image-size {size} makes {spec.patches:,} patches; --image-size {largest} or less would "
        f"work, which makes {_MOST_PATCHES:,} at most",
    )
    require(
        spec.frames == 1 or spec.frames % TUBELET == 0,
        f"clips of {spec.frames} frames cannot be divided into pairs; --frames "
        f"{spec.frames - 1} or {spec.frames + 1} would work",
    )
    require(
        spec.frames == 1 or spec.is_vit,
        f"clips need a plain Vision Transformer, not {spec.backbone!r}; vit_tiny_patch16_224 would "
        "work, or --frames 1",
    )
    if not spec.is_vit:
        require(
            patch_size is None or "patch_size" in _sizes_taken(timm_name(spec.backbone)),
            f"--patch-size {patch_size}: backbone {spec.backbone!r} is not made of patches of a "
            "size to choose; leave --patch-size out",
        )
        given = (spec.backbone, size, patch_size, spec.channels)
        problem = _problem(*given)
        if "meta" in problem:  # some models cannot run on the meta device
            problem = _problem(*given, "cpu")
        if problem:
            raise UserError(_with_sizes_that_work(spec, problem))
    elif patch_size is not None and size % patch_size:
        sides = sorted(range(2, size), key=lambda each: abs(each - patch_size))
        near = sorted([each for each in sides if size % each == 0][:3])
        below = size // patch_size * patch_size
        sizes = " or ".join(str(each) for each in (below, below + patch_size) if each)
        others = f" or --patch-size {', '.join(map(str, near))}" if near else ""
        raise UserError(
            f"--image-size {size} is not divisible by patch size {patch_size}; "
            f"--image-size {sizes}{others} would work"
        )


@cache
def _problem(
    backbone: str, image_size: int, patch_size: int | None, channels: int, device: str = "meta"
) -> str:
    """Try the backbone on such images: the error in one line, or "" if it works."""
    spec = EncoderSpec(backbone, image_size, patch_size, channels, (), ())
    try:
        with torch.device(device), torch.no_grad(), torch.random.fork_rng(devices=[]):
            encoder = timm.create_model(**spec.timm_arguments()).eval()
            images = torch.zeros(2, channels, image_size, image_size)
            encoders.pool(encoder, encoder.forward_features(images))
    except Exception as error:  # timm's models may raise anything
        return first_line(error)
    return ""


def _with_sizes_that_work(spec: EncoderSpec, problem: str) -> str:
    """The message for sizes that do not fit a backbone, with the nearest ones that do."""

    def works(image_size: int, patch_size: int | None) -> bool:
        return not _problem(spec.backbone, image_size, patch_size, spec.channels)

    nearest = sorted(_COMMON_SIZES, key=lambda size: abs(size - spec.image_size))
    sizes = sorted(islice((size for size in nearest if works(size, spec.patch_size)), 3))
    smaller = (4, 2, 1) if "patch_size" in _sizes_taken(timm_name(spec.backbone)) else ()
    patches = islice((size for size in smaller if works(spec.image_size, size)), 1)
    hints = [f"--image-size {', '.join(map(str, sizes))}"] if sizes else []
    hints += [f"--patch-size {size}" for size in patches]
    would = f"; {' or '.join(hints)} would work" if hints else ""
    return _does_not_fit(spec, problem) + would


def _does_not_fit(spec: EncoderSpec, problem: str) -> str:
    patches = f" and {spec.patch_size} px patches" if spec.patch_size else ""
    return (
        f"--backbone {spec.backbone!r} cannot be built with {spec.image_size} px images in "
        f"{spec.channels} channels{patches}: {problem}"
    )


def build(spec: EncoderSpec, seed: int, **overrides: Any) -> Any:
    """Build and initialise a `Backbone`; its weights depend only on the spec and the seed.

    All methods start from the same weights, and may initialise some of them again. A plain Vision
    Transformer gets Xavier-uniform linear layers and patch embedding, zero biases, a class token
    from N(0, 0.02), and fixed sin-cos position embeddings if it has absolute ones (MAE, appendix
    A.1; ``models_mae.py``, facebookresearch/mae ``efb2a80``), which of clips are VideoMAE's, see
    `video.sinusoids`. Other backbones keep timm's initialisation.

    Args:
        overrides: further arguments of ``timm.create_model``, e.g. ``drop_path_rate``.

    Raises:
        UserError: the backbone does not exist, or the image or patch size does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "encoder"))
        encoder = _create(spec, overrides)
        if encoders.is_vit(encoder):
            encoders.initialise_linear(encoder)
            projection = encoder.patch_embed.proj
            nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
            if encoder.cls_token is not None:
                nn.init.normal_(encoder.cls_token, std=0.02)
            encoders.fix_positions(encoder)
    return encoder


def empty(spec: EncoderSpec, **overrides: Any) -> Any:
    """A `Backbone` to load weights into, on the meta device if possible. Raises as `build` does."""
    with torch.device("meta"):
        encoder = _create(spec, overrides)
    if dict(encoder.named_buffers()).keys() <= encoder.state_dict().keys():
        return encoder
    with torch.random.fork_rng(devices=[]):  # some of its buffers are not saved with the weights
        return _create(spec, overrides)


@contextmanager
def _nothing_drawn_on_meta() -> Iterator[None]:
    """Have timm draw no truncated normal numbers for tensors that hold none, its slowest part."""
    real = weight_init._trunc_normal_

    def draw(tensor: Tensor, *arguments: Any) -> Tensor:
        return tensor if tensor.is_meta else real(tensor, *arguments)

    weight_init._trunc_normal_ = draw
    try:
        yield
    finally:
        weight_init._trunc_normal_ = real


def _create(spec: EncoderSpec, overrides: Mapping[str, Any]) -> Any:
    """timm's model; batch norms are over all ranks, dropout and drop path off unless asked for.

    Of a spec of captions, a `text_encoder.TextEncoder`.
    """
    if spec.is_text:
        assert spec.text
        return text_encoder.TextEncoder(spec.text)
    check(spec)
    asked = {name: value for name, value in overrides.items() if value or name != "drop_path_rate"}
    if spec.frames > 1:
        asked["embed_layer"] = partial(TubeletEmbed, spec.frames)
    try:
        with _nothing_drawn_on_meta():
            encoder = timm.create_model(**{**spec.timm_arguments(), **asked})
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(_does_not_fit(spec, first_line(e))) from e
    collectives.synchronise(encoder)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm) and spec.norm_eps != EncoderSpec.norm_eps:
            module.eps = spec.norm_eps
        elif isinstance(module, DropPath) and "drop_path_rate" not in asked:
            module.drop_prob = 0.0
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return encoder


def resize(encoder: Backbone, image_size: int | tuple[int, int]) -> None:
    """Change the image size (height first) that an encoder takes; its patch size stays.

    Position embeddings of patches are interpolated over the grid (Dosovitskiy et al., *An Image is
    Worth 16x16 Words*, arXiv:2010.11929, section 3.2), bicubically and with antialiasing, as in
    timm's ``resample_abs_pos_embed``. The official code of MAE, DeiT and DINO does not antialias,
    which hurts coarser grids: the class token of a 224-pixel MAE differs from theirs by 0.2 % at
    384 pixels and by 6 % at 32. Backbones without position embeddings need no change.

    Raises:
        UserError: the size is not a multiple of the patch size, or cannot be changed.
    """
    if not encoders.is_vit(encoder):
        require(
            "img_size" not in _sizes_of(type(encoder)),
            f"a {type(encoder).__name__} takes images of the size it was made for alone, not of "
            f"{image_size}; without --image-size it would work",
        )
        return
    require(
        type(encoder.patch_embed) is not TubeletEmbed,
        f"an encoder of clips takes frames of the size it was made for alone, not of {image_size}; "
        "without --image-size it would work",
    )
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    patch_size = encoder.patch_embed.patch_size[0]
    for side in (height, width):
        require(
            side > 0 and side % patch_size == 0,
            f"--image-size {side} is not a multiple of the {patch_size} px patches; "
            f"{max(1, round(side / patch_size)) * patch_size} would work",
        )
    encoder.set_input_size(img_size=(height, width))
