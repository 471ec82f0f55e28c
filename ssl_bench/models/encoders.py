"""Running encoders: patches, positions, tokens and pooled features.

`represent`, `pool` and `width` take every image model of timm, `encode_masked` a Swin Transformer
and a BEiT too; what else works on tokens needs a plain Vision Transformer. Shapes: B batch,
C channels, H height, W width, L patches, K kept patches, P pixels in a patch (patch_size *
patch_size * C), T tokens (prefix tokens and patches), D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, PatchEmbed
from timm.layers.attention import Attention
from timm.layers.format import Format
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_bench.errors import UserError, require
from ssl_bench.models.video import TubeletEmbed, sinusoids

_AT_ONCE = "images_at_once"
_Dropout = nn.modules.dropout._DropoutNd
_VIT = "vit_tiny_patch16_224 would work"


def is_vit(encoder: nn.Module) -> bool:
    """Whether it is a plain Vision Transformer: a grid of patches, prefix tokens and blocks."""
    return (
        isinstance(encoder, VisionTransformer)
        and type(encoder.patch_embed) in (PatchEmbed, TubeletEmbed)
        and not hasattr(encoder, "dist_token")
    )


def why_no_vit(encoder: nn.Module, what: str = "it") -> str | None:
    """Why an encoder cannot be used where ``what`` needs a plain Vision Transformer, or None."""
    if is_vit(encoder):
        return None
    return f"{what} needs a plain Vision Transformer, not a {type(encoder).__name__}; {_VIT}"


def require_vit(encoder: nn.Module, what: str) -> VisionTransformer:
    """The encoder, or `UserError` if it is not the plain Vision Transformer that ``what`` needs."""
    reason = why_no_vit(encoder, what)
    if reason is not None:
        raise UserError(reason)
    return encoder


def require_plain_blocks(encoder: nn.Module, what: str) -> VisionTransformer:
    """The encoder, or `UserError` if it is no plain Vision Transformer of timm's plain blocks."""
    vit = require_vit(encoder, what)
    other = next((block for block in vit.blocks if type(block) is not Block), None)
    if other is not None:
        raise UserError(f"{what} needs timm's plain blocks, not a {type(other).__name__}; {_VIT}")
    return vit


def is_video(encoder: Any) -> bool:
    """Whether it takes clips, see `video`."""
    return type(getattr(encoder, "patch_embed", None)) is TubeletEmbed


def is_swin(encoder: nn.Module) -> bool:
    """Whether it is a Swin Transformer, of either version: windows of patches, merged by stages."""
    return isinstance(encoder, SwinTransformer | SwinTransformerV2)


def is_beit(encoder: nn.Module) -> bool:
    """Whether it is BEiT's Vision Transformer: layer scales, and relative positions as a bias."""
    return isinstance(encoder, Beit)


def allow_other_sizes(encoder: Any) -> None:
    """Let an encoder also take images of other sizes, for which a ViT interpolates positions."""
    if not isinstance(encoder, VisionTransformer) or is_video(encoder):
        return
    encoder.dynamic_img_size = True
    patches = encoder.patch_embed
    patches.strict_img_size, patches.flatten, patches.output_fmt = False, False, Format.NHWC


def local_size(encoder: Any, image_size: int) -> int:
    """The size of small crops, in pixels: 96 of 224, or the next larger one that patches divide.

    Only a Vision Transformer takes images of any such size; other backbones get the image's.
    """
    if not is_vit(encoder):
        return image_size
    patch_size = encoder.patch_embed.patch_size[0]
    return min(image_size, math.ceil(image_size * 96 / 224 / patch_size) * patch_size)


def initialise_linear(root: nn.Module) -> None:
    """Give every linear layer Xavier-uniform weights and zero biases, as in MAE."""
    for module in root.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fix_positions(encoder: VisionTransformer, first: Literal["column", "row"] = "column") -> None:
    """Set absolute position embeddings, if the encoder has any, to the fixed sin-cos table.

    That of an encoder of clips knows a token's place in the row of all tokens alone.
    """
    if encoder.pos_embed is None:
        return
    if is_video(encoder):
        table_TD = sinusoids(encoder.pos_embed.shape[1], encoder.embed_dim)
        encoder.pos_embed.data.copy_(table_TD[None])
        encoder.pos_embed.requires_grad_(False)
        return
    prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    rows, columns = encoder.patch_embed.grid_size
    table_TD = sincos_2d(encoder.embed_dim, rows, columns, prefix, first)
    encoder.pos_embed.data.copy_(table_TD[None])
    encoder.pos_embed.requires_grad_(False)


def sincos_2d(
    width: int,
    rows: int,
    columns: int,
    prefix_tokens: int = 0,
    first: Literal["column", "row"] = "column",
) -> Tensor:
    """Fixed position embeddings: float32 ``(prefix_tokens + rows * columns, width)``.

    One half of the width encodes the column, the other the row; each half is all sines followed
    by all cosines of position / 10000^(k / (width / 4)). Prefix tokens get zeros.

    Args:
        first: what the first half encodes: the column in MAE (``util/pos_embed.py``,
            facebookresearch/mae ``efb2a80``), the row in MoCo v3 (``vits.py``).

    Raises:
        UserError: the width is not a multiple of 4.
    """
    require(width % 4 == 0, f"sin-cos position embeddings need a width divisible by 4, not {width}")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = []
    for position in (column, row) if first == "column" else (row, column):
        angles = position.reshape(-1, 1) * frequencies
        halves += [angles.sin(), angles.cos()]
    return F.pad(torch.cat(halves, dim=1).float(), (0, 0, prefix_tokens, 0))


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, channel fastest: ``(B, L, patch_size * patch_size * C)``."""
    batch, channels, height, width = images_BCHW.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images_BCHW.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches_BLP: Tensor, patch_size: int, columns: int) -> Tensor:
    """The inverse of `patchify`: ``(B, C, H, W)``."""
    batch, count, pixels = patches_BLP.shape
    rows, channels = count // columns, pixels // patch_size**2
    grid = patches_BLP.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(
        batch, channels, rows * patch_size, columns * patch_size
    )


def take(tokens_BLD: Tensor, index_BK: Tensor) -> Tensor:
    """Select tokens by each image's indices: ``(B, K, D)``. Tokens ``(1, L, D)`` are shared."""
    tokens_BLD = tokens_BLD.expand(len(index_BK), -1, -1)
    return tokens_BLD.gather(1, index_BK[..., None].expand(-1, -1, tokens_BLD.shape[-1]))


def encode_visible(encoder: VisionTransformer, patches_BLP: Tensor, keep_BK: Tensor) -> Tensor:
    """Encode only the kept patches: ``(B, prefix + K, D)`` after the final norm.

    They are selected before they are embedded, so nothing is computed for masked patches.
    """
    embed = encoder.patch_embed
    weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    tokens = embed.norm(F.linear(take(patches_BLP, keep_BK), weight, embed.proj.bias))
    prefix = [token for token in (encoder.cls_token, encoder.reg_token) if token is not None]
    prefix_BTD = [token.expand(len(tokens), -1, -1) for token in prefix]
    if encoder.pos_embed is not None:
        positions = encoder.pos_embed
        embedded = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
        tokens = tokens + take(positions[:, embedded:], keep_BK)
        if embedded:
            prefix_BTD = [torch.cat(prefix_BTD, dim=1) + positions[:, :embedded]]
    tokens = encoder.norm_pre(encoder.pos_drop(torch.cat([*prefix_BTD, tokens], dim=1)))
    return encoder.norm(encoder.blocks(tokens))


def encode_tokens(
    encoder: VisionTransformer,
    images_BCHW: Tensor,
    hidden_BRC: Tensor | None = None,
    mask_token: Tensor | None = None,
) -> Tensor:
    """Prefix tokens and patches after the final norm, some patches hidden: ``(B, T, D)``.

    `keep_at_once` limits the memory for activations.

    Args:
        hidden_BRC: as of `encode_masked`; None hides nothing.
        mask_token: what stands for what is hidden.
    """
    embedded = _embedded(encoder, images_BCHW, hidden_BRC, mask_token)

    def encode(embedded: Tensor) -> Tensor:
        return encoder.norm(encoder.blocks(encoder.norm_pre(encoder._pos_embed(embedded))))

    return in_parts(encode, embedded, getattr(encoder, _AT_ONCE, None))


def feed_forward_outputs(encoder: VisionTransformer, images_BCHW: Tensor) -> list[Tensor]:
    """What the feed-forward layer of each plain block adds to the tokens: ``(B, T, D)`` each.

    No block is called, which ``encoder.blocks.used_in_parts`` has to say (`strategy.shard`).
    """
    tokens_BTD = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(images_BCHW)))
    added = []
    for block in encoder.blocks:
        attended = block.attn(block.norm1(tokens_BTD))
        tokens_BTD = tokens_BTD + block.drop_path1(block.ls1(attended))
        added.append(block.ls2(block.mlp(block.norm2(tokens_BTD))))
        tokens_BTD = tokens_BTD + block.drop_path2(added[-1])
    return added


def encode_masked(
    encoder: Any, images_BCHW: Tensor, hidden_BRC: Tensor, mask_token: Tensor
) -> Tensor:
    """Encode images, some of whose patches are a mask token instead once they are embedded.

    Args:
        encoder: a plain Vision Transformer, BEiT's or a Swin Transformer.
        hidden_BRC: bool, by rows and columns of patches.
        mask_token: as wide as embedded patches.

    Returns:
        Features after the final norm, by rows and columns, without prefix tokens: ``(B, R, C, D)``.
    """
    if is_swin(encoder):
        tokens = _embedded(encoder, images_BCHW, hidden_BRC, mask_token)
        return encoder.norm(encoder.layers(tokens))
    if is_beit(encoder):
        tokens = _beit_blocks(encoder, _embedded(encoder, images_BCHW, hidden_BRC, mask_token))
    else:
        tokens = encode_tokens(encoder, images_BCHW, hidden_BRC, mask_token)
    return tokens[:, encoder.num_prefix_tokens :].unflatten(1, hidden_BRC.shape[1:])


def _embedded(
    encoder: Any, images_BCHW: Tensor, hidden_BRC: Tensor | None, mask_token: Tensor | None
) -> Tensor:
    tokens = encoder.patch_embed(images_BCHW)
    if hidden_BRC is None or mask_token is None:
        return tokens
    hidden = hidden_BRC.view(tokens.shape[:-1])
    return torch.where(hidden[..., None], mask_token.view(-1).to(tokens), tokens)


def _beit_blocks(encoder: Any, tokens_BLD: Tensor) -> Tensor:
    """A BEiT's class token and embedded patches, after the final norm: ``(B, 1 + L, D)``.

    The norm is the one that it has for tokens or, in its place, for their mean.
    """
    prefix = encoder.cls_token.to(tokens_BLD).expand(len(tokens_BLD), -1, -1)
    tokens = torch.cat([prefix, tokens_BLD], dim=1)
    if encoder.pos_embed is not None:
        tokens = tokens + encoder.pos_embed
    shared = encoder.rel_pos_bias() if encoder.rel_pos_bias is not None else None
    for block in encoder.blocks:
        tokens = block(tokens, shared_rel_pos_bias=shared)
    return encoder.fc_norm(encoder.norm(tokens))


def class_token(encoder: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """``forward_features(images)[:, 0]``, the class token ``(B, D)``, for less work.

    The last block computes nothing else. `keep_at_once` limits the memory for activations.
    """
    at_once = getattr(encoder, _AT_ONCE, None)
    return in_parts(partial(_class_token, encoder), images_BCHW, at_once)


def _class_token(encoder: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    tokens_BTD = encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(images_BCHW)))
    tokens_BTD = encoder.blocks[:-1](encoder.norm_pre(tokens_BTD))
    return encoder.norm(block_at(encoder.blocks[-1], tokens_BTD, slice(0, 1)))[:, 0]


def pool(encoder: nn.Module, features: Any) -> dict[str, Tensor]:
    """Pool the output of ``forward_features`` to one vector per image, ``(B, D)``, by pooling.

    ``avg`` is the mean of the patch tokens, normed if the backbone's norm comes after the mean; for
    features of another kind it is timm's own pooling. ``cls`` is the class token, if there is one.
    """
    model: Any = encoder
    prefix = getattr(model, "num_prefix_tokens", 1)
    has_class_token = getattr(model, "cls_token", None) is not None
    # A few models return only the class token, or tokens of several sizes.
    has_patches = has_class_token and isinstance(features, Tensor) and features.shape[1] > prefix
    if not (has_patches or is_vit(model)):
        return {"avg": model.forward_head(features, pre_logits=True).float()}
    tokens_BTD = features.float()
    fc_norm = getattr(model, "fc_norm", None) or nn.Identity()
    pooled = {"avg": fc_norm(tokens_BTD[:, prefix:].mean(dim=1)).float()}
    return {**pooled, "cls": tokens_BTD[:, 0]} if has_class_token else pooled


def feature_map(encoder: nn.Module, features: Any) -> Tensor:
    """The output of ``forward_features`` by rows and columns: float32 ``(B, R, C, D)``.

    Patch tokens, of a Vision Transformer or alike, in a clip their mean over time; of others, such
    as Swin Transformers and convolutional networks, what they compute last.

    Raises:
        UserError: the encoder keeps no rows and columns.
    """
    model: Any = encoder
    if isinstance(features, Tensor) and features.dim() == 4:
        is_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return (features if is_last else features.permute(0, 2, 3, 1)).float()
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    prefix = getattr(model, "num_prefix_tokens", 0)
    if isinstance(features, Tensor) and features.dim() == 3 and grid:
        patches_BLD = features[:, prefix:]
        if patches_BLD.shape[1] == math.prod(grid):
            return patches_BLD.unflatten(1, grid).float()
        if is_video(model):
            return patches_BLD.unflatten(1, (-1, *grid)).float().mean(dim=1)
    raise UserError(f"a {type(encoder).__name__} gives no features by rows and columns; {_VIT}")


def represent(encoder: nn.Module, images_BCHW: Tensor) -> Tensor:
    """One vector per image, ``(B, width)``: the class token, or else pooled features.

    `keep_at_once` limits the memory for activations.
    """
    model: Any = encoder
    if is_vit(model) and model.cls_token is not None:
        return class_token(model, images_BCHW)

    def encode(images_BCHW: Tensor) -> Tensor:
        features = model.forward_features(images_BCHW)
        if is_vit(model):
            return model.fc_norm(features[:, model.num_prefix_tokens :].mean(dim=1))
        pooled = pool(model, features)
        return pooled.get("cls", pooled["avg"])

    return in_parts(encode, images_BCHW, getattr(model, _AT_ONCE, None))


def represent_views(encoder: nn.Module, views: Iterable[Tensor]) -> Tensor:
    """`represent` of each of several views of the same images: ``(V, B, width)``.

    Neighbours of the same size go through the encoder together.
    """
    views = list(views)
    groups = [torch.cat(list(group)) for _, group in groupby(views, key=lambda view: view.shape)]
    rows = torch.cat([represent(encoder, images_BCHW) for images_BCHW in groups])
    return rows.unflatten(0, (len(views), -1))


def drop_paths(encoder: Any, rate: float) -> None:
    """Give a Vision Transformer's or a BEiT's blocks stochastic depth, from 0 to the rate."""
    blocks = list(encoder.blocks) if is_vit(encoder) or is_beit(encoder) else []
    for index, block in enumerate(blocks):
        share = rate * index / max(1, len(blocks) - 1)
        block.drop_path1 = DropPath(share) if share else nn.Identity()
        block.drop_path2 = DropPath(share) if share else nn.Identity()


def drops(root: nn.Module) -> bool:
    """Whether a module in training mode drops anything by chance: numbers, or whole branches."""
    return any(
        module.training and (module.p if isinstance(module, _Dropout) else module.drop_prob) > 0
        for module in root.modules()
        if isinstance(module, DropPath | _Dropout)
    )


def width(encoder: nn.Module) -> int:
    """The length of the vectors that `represent` returns."""
    model: Any = encoder
    if getattr(model, "cls_token", None) is not None:
        return model.num_features
    return getattr(model, "head_hidden_size", None) or model.num_features


def keep_at_once(root: nn.Module, images: int | None) -> None:
    """Have every encoder inside a module keep activations of at most that many images at a time.

    None means all. `class_token`, `encode_tokens` and `represent` obey it.
    """
    for module in root.modules():
        if hasattr(module, "forward_features"):
            setattr(module, _AT_ONCE, images)


def in_parts(
    encode: Callable[[Tensor], Tensor], images_BCHW: Tensor, images_at_once: int | None
) -> Tensor:
    """``encode(images)`` with the activations of at most that many images in memory; None: all.

    The backward pass computes them again, which costs one more forward pass.

    Args:
        encode: maps images to rows ``(B, ...)``, each image independently of the others.
    """
    if images_at_once is None or images_at_once >= len(images_BCHW):
        return encode(images_BCHW)
    parts = images_BCHW.split(images_at_once)
    if not torch.is_grad_enabled():
        return torch.cat([encode(part_BCHW) for part_BCHW in parts])
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])


def block_at(
    block: Any, tokens_BTD: Tensor, wanted: slice, attended: Tensor | None = None
) -> Tensor:
    """``block(tokens)[:, wanted]``, with queries for the wanted tokens only.

    A block that is not timm's plain one computes all of its output.

    Args:
        attended: which tokens are attended to, for timm's blocks: bool ``(B, 1, 1, T)``.
    """
    attention: Any = getattr(block, "attn", None)
    gate = getattr(attention, "gate", None)
    if type(block) is not Block or type(attention) is not Attention or gate is not None:
        masked = {} if attended is None else {"attn_mask": attended}
        return block(tokens_BTD, **masked)[:, wanted]
    batch, count, _ = tokens_BTD.shape
    heads = (3, attention.num_heads, attention.head_dim)
    qkv = attention.qkv(block.norm1(tokens_BTD)).view(batch, count, *heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q[:, :, wanted]), attention.k_norm(k)
    dropout = attention.attn_drop.p if attention.training else 0.0
    if attention.fused_attn:
        attended = F.scaled_dot_product_attention(q, k, v, attended, dropout)
    else:
        weights = q * attention.scale @ k.transpose(-2, -1)
        if attended is not None:
            weights = weights.masked_fill(~attended, -torch.inf)
        weights = weights.softmax(dim=-1)
        attended = attention.attn_drop(weights) @ v
    attended = attention.norm(attended.transpose(1, 2).flatten(2))
    attended = attention.proj_drop(attention.proj(attended))
    tokens = tokens_BTD[:, wanted] + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
