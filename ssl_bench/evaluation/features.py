"""What an evaluation receives: an encoder that gives features, or a copy of itself to train."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ssl_bench.data import Split
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import Hardware
from ssl_bench.errors import UserError
from ssl_bench.models import backbones, encoders, vocabulary, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.text_encoder import ImageText
from ssl_bench.models.video import as_clips, as_frames
from ssl_bench.training.resume import EvalCheckpoint
from ssl_bench.transforms.augmentations import evaluation_view, normalize
from ssl_bench.utils import progress

_NUMBERS_AT_ONCE = 2**19
_FEWEST_IMAGES_AT_ONCE = 32
_PIXELS_AT_ONCE = 256


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, so that an evaluation that comes later starts at once.

    A file holds one split's features of every pooling, float32: 4 * N * D bytes each. It is used
    only if it was made from the very same things and its digest is right; anything else is as if
    it were not there.

    Attributes:
        folder: where the files are; made when there is something to keep.
        made_from: all that makes features but the split: weights, data, precision and so on.
        splits: the name of each split that is kept; others are not.
        may_write: whether to add to what is there.
    """

    folder: Path
    made_from: Mapping[str, Any]
    splits: Mapping[Split, str]
    may_write: bool = True

    def read(self, split: Split) -> dict[str, Tensor] | None:
        """Features by pooling, on the CPU; None where there are none that can be used."""
        if split not in self.splits:
            return None
        try:
            features, made_from = weights.read_sealed(self._path(split))
        except (OSError, ValueError, TypeError, LookupError, SafetensorError):
            return None
        return features if made_from == self._made_from(split) else None

    def write(self, split: Split, features: Mapping[str, Tensor]) -> bool:
        """Keep features; whether they are kept. Where they cannot be written, that is told."""
        if split not in self.splits or not self.may_write:
            return False
        try:
            self.folder.mkdir(exist_ok=True)
            weights.write(self._path(split), features, self._made_from(split))
        except (OSError, SafetensorError) as error:
            note = f"features are not kept in {str(self.folder)!r}: {error}"
            progress.console.print(note, soft_wrap=True)
            return False
        return True

    def _path(self, split: Split) -> Path:
        key = hashlib.sha256(self._made_from(split).encode()).hexdigest()[:16]
        return self.folder / f"{self.splits[split]}-{key}.safetensors"

    def _made_from(self, split: Split) -> str:
        return json.dumps({**self.made_from, "split": self.splits[split]}, sort_keys=True)


class Encoder:
    """A pre-trained encoder under evaluation.

    Attributes:
        spec: image size, channels and normalisation it was trained with.
        hardware: where evaluations compute.
        seed: of its pre-training; an evaluation's own draws use it too.
        checkpoint: where the evaluation under way keeps the states of its trainings, if anywhere.
        pair: the `ImageText` that was pre-trained with it, or None.
        text: the `TextEncoder` in that, or the encoder itself if it reads captions, or None.
    """

    checkpoint: EvalCheckpoint | None = None

    def __init__(
        self,
        module: nn.Module,
        spec: EncoderSpec,
        hardware: Hardware,
        seed: int,
        cache: FeatureCache | None = None,
        pair: ImageText | None = None,
    ) -> None:
        self._module: Any = module.to(hardware.device).eval().requires_grad_(False)
        self._features: dict[Split, Mapping[str, Tensor]] = {}
        self._cache = cache
        self.spec, self.hardware, self.seed = spec, hardware, seed
        self.pair: Any = None
        self.text: Any = self._module if spec.is_text else None
        if pair is not None:
            self.pair = pair.to(hardware.device).eval().requires_grad_(False)
            self.text = self.pair.text

    def features(self, split: Split) -> Mapping[str, Tensor]:
        """Frozen features of all images by pooling: float32 ``(N, D)`` each, extracted once.

        Those of the first caption of each, where the encoder reads captions.

        They stay in memory only where they are not on disk.

        Raises:
            UserError: one of them is no finite number.
        """
        if _everywhere(split in self._features):
            return self._features[split]
        found = self._cache.read(split) if self._cache else None
        if _everywhere(found is not None):
            assert found is not None
            _check_finite(found)
            return {name: each.to(self.hardware.device) for name, each in found.items()}
        features = self._extract(split)
        _check_finite(features)
        cache = self._cache
        if not (cache and collectives.on_rank_zero(lambda: cache.write(split, features))):
            self._features[split] = features
        return features

    def encode(self, images_BCHW: Tensor) -> Mapping[str, Tensor]:
        """Frozen features of a batch by pooling: float32 ``(B, D)`` each, on its device.

        Those of `encoders.pool`, after the final norm: ``avg`` and, with a class token, ``cls``.
        Images are normalised float32, on its device: a few at a time take the least memory.
        """
        parts = [self._encode(part) for part in images_BCHW.split(self._images_at_once)]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def patches(self, images_BCHW: Tensor) -> Tensor:
        """Frozen features of the patches of a batch: float32 ``(B, R, C, D)``, on its device.

        Those of `encoders.feature_map`, after the final norm; images are as for `encode`.
        """
        with self.hardware.autocast():
            return encoders.feature_map(self._module, self._module.forward_features(images_BCHW))

    @torch.no_grad()
    def tokens(self, images_BCHW: Tensor) -> Tensor:
        """Frozen tokens of a batch after the final norm: float32 ``(B, T, D)``, on its device."""
        with self.hardware.autocast():
            return self._module.forward_features(images_BCHW).float()

    @torch.no_grad()
    def _encode(self, images_BCHW: Tensor) -> Mapping[str, Tensor]:
        with self.hardware.autocast():
            return encoders.pool(self._module, self._module.forward_features(images_BCHW))

    @property
    def _images_at_once(self) -> int:
        """As many as leave the activations of a layer in a CPU's cache; a GPU wants more."""
        tokens = self.spec.patches + getattr(self._module, "num_prefix_tokens", 0)
        numbers = _NUMBERS_AT_ONCE * (1 if self.hardware.device.type == "cpu" else 64)
        return max(_FEWEST_IMAGES_AT_ONCE, numbers // (tokens * self._module.num_features))

    def _extract(self, split: Split) -> dict[str, Tensor]:
        """Features of all images; each rank makes those of its share of the chunks.

        How many images a matrix product is of may show in its rounding. So chunks are counted from
        the first image, whatever the number of ranks.
        """
        at_once = min(self._images_at_once, len(split))
        chunks = torch.arange(len(split)).split(at_once)
        own = collectives.shard_rows(torch.arange(len(chunks))).tolist()
        features: dict[str, Tensor] = {}
        with progress.bar("features", sum(len(chunks[number]) for number in own)) as bar:
            done = 0
            for place, part in enumerate(self._encoded(split, [chunks[n] for n in own])):
                for name, rows_BD in part.items():
                    if name not in features:
                        features[name] = rows_BD.new_zeros(len(own), at_once, rows_BD.shape[1])
                    features[name][place, : len(rows_BD)] = rows_BD
                done += len(chunks[own[place]])
                bar.update(done)
        return {
            name: collectives.gather_shards(each, len(chunks)).flatten(0, 1)[: len(split)]
            for name, each in features.items()
        }

    def _encoded(self, split: Split, indices: Iterable[Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """Features of a few images at a time; of their first captions for an encoder of these."""
        if not self.spec.is_text:
            for views in split.seen(indices):
                parts = [self._encode(prepare(v, self.spec, self.hardware)) for v in views]
                yield {name: torch.stack([p[name] for p in parts]).mean(0) for name in parts[0]}
            return
        assert self.text is not None
        ids_NL = vocabulary.tokenize(split.first_captions, self.text.spec)
        for index_B in indices:
            yield self._encode_text(ids_NL[index_B].to(self.hardware.device))

    @torch.no_grad()
    def _encode_text(self, ids_BL: Tensor) -> Mapping[str, Tensor]:
        with self.hardware.autocast():
            return self._module.pool(self._module(ids_BL), ids_BL)

    def trainable_copy(self, **overrides: Any) -> Any:
        """The encoder again, a `Backbone`, all of its parameters trainable.

        Overrides are arguments of ``timm.create_model`` that add no parameter.
        """
        module = backbones.build(self.spec, self.seed, **overrides)
        module.load_state_dict(self._module.state_dict())
        return module.to(self.hardware.device).requires_grad_(True)


class RawPixels:
    """The baseline without an encoder: the image's own pixels as its features."""

    checkpoint: EvalCheckpoint | None = None
    pair = text = None

    def __init__(self, spec: EncoderSpec, hardware: Hardware, seed: int) -> None:
        self.spec, self.hardware, self.seed = spec, hardware, seed

    def features(self, split: Split) -> Mapping[str, Tensor]:
        """``pixels``: values of the evaluation view, ``(N, C * H * W)``; many, cheap, not kept."""
        width = self.spec.input_channels * self.spec.image_size**2
        pixels_ND = torch.empty(len(split), width, device=self.hardware.device)
        done = 0
        for views in split.seen(torch.arange(len(split)).split(_PIXELS_AT_ONCE)):
            parts = [self.encode(prepare(v, self.spec, self.hardware))["pixels"] for v in views]
            pixels_ND[done : done + len(parts[0])] = torch.stack(parts).mean(0)
            done += len(parts[0])
        features = {"pixels": pixels_ND}
        _check_finite(features)
        return features

    def encode(self, images_BCHW: Tensor) -> Mapping[str, Tensor]:
        """``pixels``: a batch of normalised images, flat, float32 ``(B, C * H * W)``."""
        return {"pixels": images_BCHW.flatten(1)}

    def patches(self, images_BCHW: Tensor) -> Tensor:
        """The pixels of each patch, ``(B, R, C, patch_size * patch_size * C)``.

        For an encoder without patches, squares of at most 16 pixels a side.
        """
        size = images_BCHW.shape[-1]
        side = self.spec.patch_size if self.spec.is_vit else None
        side = side or max(each for each in range(1, 17) if size % each == 0)
        grid = size // side, size // side
        return encoders.patchify(images_BCHW, side).unflatten(1, grid)


def prepare(
    images_BCHW: Tensor,
    spec: EncoderSpec,
    hardware: Hardware,
    view: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Turn stored uint8 images into an encoder's input: a view, channels, normalised.

    ``view`` makes float32 images in [0, 1] of the encoder's size of them; by default the centre.
    """
    images_BCHW = images_BCHW.to(hardware.device)
    views = view(images_BCHW) if view else evaluation_view(images_BCHW, spec.image_size)
    return normalize(match_channels(views, spec.channels, spec.frames), spec.mean, spec.std)


def flip_of(spec: EncoderSpec) -> float:
    """The chance to mirror a training image; clips are not, as motions would turn round."""
    return 0.5 if spec.frames == 1 else 0.0


def share_of(split: Split, size: int) -> Iterator[Iterable[Tensor]]:
    """What is seen of this rank's `collectives.shard_rows` a split, ``size`` images at a time."""
    return split.seen(collectives.shard_rows(torch.arange(len(split))).split(size))


def _everywhere(fact: bool) -> bool:
    """Whether it holds on every rank."""
    return collectives.largest(not fact) == 0


def match_channels(images_BCHW: Tensor, channels: int, frames: int = 1) -> Tensor:
    """Grey images repeated to three channels, or colour ones reduced to luma (ITU-R 601-2).

    Where clips are wanted, each frame of a clip, and an image becomes a clip that stands still.
    """
    if images_BCHW.shape[1] == frames * channels:
        return images_BCHW
    if frames > 1:
        is_clip = images_BCHW.shape[1] % frames == 0
        frames_NCHW = as_frames(images_BCHW, frames) if is_clip else images_BCHW
        matched_NCHW = match_channels(frames_NCHW, channels)
        return as_clips(matched_NCHW, frames) if is_clip else matched_NCHW.repeat(1, frames, 1, 1)
    if channels == 3:
        return images_BCHW.expand(-1, 3, -1, -1)
    weights = images_BCHW.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images_BCHW * weights).sum(dim=1, keepdim=True)


def _check_finite(features: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless all features, ``(N, D)`` by pooling, are finite numbers."""
    for pooling, rows_ND in features.items():
        # Sums in float64 do not overflow, and take no memory.
        if math.isfinite(rows_ND.sum(dtype=torch.float64).item()):
            continue
        bad_K = (~rows_ND.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        raise UserError(
            f"features of {len(bad_K):,} of {len(rows_ND):,} images are not finite numbers "
            f"(pooling {pooling!r}, first image {bad_K[0]}): the encoder has diverged, or its "
            "numbers are too large for its precision; --precision fp32, or a smaller --base-lr in "
            "pre-training, may help"
        )
