"""What a Vision Transformer for clips has of its own: tubelets and positions.

A clip is an image whose channels are those of its frames, one frame after the other. A tubelet is
a patch of two frames that follow each other (Tong et al., *VideoMAE*, arXiv:2203.12602, section
3.2, after Arnab et al., *ViViT*, arXiv:2103.15691): the pair's own patch with twice the channels.
So everything about patches holds of a clip's pairs, and its tokens are those of the first pair row
by row, then those of the second. Its blocks are an image encoder's: each token attends to all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

TUBELET = 2
"""Frames of a tubelet."""
_OF_IMAGES = ("cls_token", "reg_token", "pos_embed")


class TubeletEmbed(PatchEmbed):
    """Embeds each tubelet of a clip by a linear layer: ``(B, frames * C, H, W)`` to ``(B, T, D)``.

    The weights are those of a patch embedding of the pairs' ``2 * C`` channels.

    Attributes:
        grid_size: rows and columns of the tubelets of a pair of frames.
        num_patches: tubelets of a clip.
    """

    def __init__(self, frames: int, in_chans: int, **options: Any) -> None:
        self.pairs = frames // TUBELET
        super().__init__(in_chans=in_chans // self.pairs, **options)
        self.num_patches *= self.pairs

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of all pairs, the first pair's first."""
        tokens = super().forward(as_frames(x, self.pairs))
        return tokens.unflatten(0, (-1, self.pairs)).flatten(1, 2)


def as_frames(clips_BCHW: Tensor, frames: int) -> Tensor:
    """Each clip's frames, or pairs of them, as images: ``(B * frames, C, H, W)``."""
    return clips_BCHW.unflatten(1, (frames, -1)).flatten(0, 1)


def as_clips(frames_NCHW: Tensor, frames: int) -> Tensor:
    """The inverse of `as_frames`: ``(B, frames * C, H, W)``."""
    return frames_NCHW.unflatten(0, (-1, frames)).flatten(1, 2)


def sinusoids(count: int, width: int) -> Tensor:
    """Fixed positions in a row of tokens: float32 ``(count, width)``.

    Sines in even columns and cosines in odd ones, of ``position / 10000^(2 * (column // 2) /
    width)`` (Vaswani et al., arXiv:1706.03762, section 3.5), as VideoMAE has them.
    """
    column_D = torch.arange(width)
    frequency_D = 10000.0 ** -(2 * (column_D // 2).double() / width)
    angle_TD = torch.arange(count, dtype=torch.float64)[:, None] * frequency_D
    return torch.where(column_D % 2 == 0, angle_TD.sin(), angle_TD.cos()).float()


def inflate(state: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """An image encoder's weights as those to start an encoder of clips from.

    Each frame of a tubelet gets the patch embedding divided by their number, so that a clip that
    stands still is embedded as its image is (Carreira and Zisserman, *Quo Vadis*, arXiv:1705.07750,
    section 2.4). Positions are the clips', and prefix tokens go.
    """
    own = {name: t for name, t in state.items() if name not in _OF_IMAGES}
    own["pos_embed"] = encoder.state_dict()["pos_embed"]
    embedding = own["patch_embed.proj.weight"]
    own["patch_embed.proj.weight"] = embedding.repeat(1, TUBELET, 1, 1) / TUBELET
    return own


def strips(clips_BCHW: Tensor, frames: int) -> Tensor:
    """Each clip's frames side by side: ``(B, C, H, frames * W)``."""
    return clips_BCHW.unflatten(1, (frames, -1)).movedim(1, -2).flatten(-2)
