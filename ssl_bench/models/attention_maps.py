"""What happens inside a Vision Transformer: tokens after each block, and who attends to whom.

Shapes: B batch, T tokens (prefix tokens and patches), H heads, Q queries, L patches, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_bench.errors import UserError
from ssl_bench.models import encoders


def tokens_by_block(encoder: VisionTransformer, images_BCHW: Tensor) -> Iterator[Tensor]:
    """The tokens that enter the first block, then those that leave each one: ``(B, T, D)`` each.

    The steps of timm's ``forward_features``, but for the final norm.
    """
    tokens_BTD = encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(images_BCHW)))
    tokens_BTD = encoder.norm_pre(tokens_BTD)
    yield tokens_BTD
    for block in encoder.blocks:
        tokens_BTD = block(tokens_BTD)
        yield tokens_BTD


def attention_by_block(encoder: VisionTransformer, images_BCHW: Tensor) -> Iterator[Tensor]:
    """The attention weights of each block in turn: float32 ``(B, H, T, T)``, as `attention` has.

    Raises:
        UserError: they cannot be read, see `why_unreadable`.
    """
    reason = why_unreadable(encoder)
    if reason:
        raise UserError(reason)
    inputs: list[Tensor] = []
    tokens = tokens_by_block(encoder, images_BCHW)
    next(tokens)
    for block in encoder.blocks:
        hook = block.attn.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            next(tokens)
        finally:
            hook.remove()
        yield attention(block.attn, inputs.pop())


def why_unreadable(encoder: VisionTransformer) -> str | None:
    """Which block has another attention than timm's plain one; None where none has."""
    reason = encoders.why_no_vit(encoder)
    if reason is not None:
        return reason
    for block in encoder.blocks:
        kind = type(getattr(block, "attn", None))
        if kind is not Attention:
            return (
                f"attention weights can be read of timm's Attention, not of the {kind.__name__} in "
                f"this encoder's {type(block).__name__}; vit_tiny_patch16_224 would work"
            )
    return None


def attention(module: Any, tokens_BTD: Tensor) -> Tensor:
    """The weights by which each token (row) takes the others' values (column), without dropout.

    Args:
        module: timm's ``Attention``, with or without norms of its queries and keys.
        tokens_BTD: what the module is given.

    Returns:
        float32 ``(B, H, T, T)``; each row sums to 1.
    """
    batch, count, _ = tokens_BTD.shape
    heads = (3, module.num_heads, module.head_dim)
    query, key, _ = module.qkv(tokens_BTD).view(batch, count, *heads).permute(2, 0, 3, 1, 4)
    query, key = module.q_norm(query), module.k_norm(key)
    return (query * module.scale @ key.transpose(-2, -1)).float().softmax(dim=-1)


def rollout(weights: Iterable[Tensor]) -> Tensor:
    """How much of each input token (column) is in each output token (row), through all blocks.

    Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, arXiv:2005.00928, section 3:
    the product over blocks of the mean of half the heads' mean attention and half the identity,
    which stands for the residual connection.

    Args:
        weights: of each block from the first on, ``(B, H, T, T)`` each.

    Returns:
        ``(B, T, T)``; each row sums to 1.
    """
    flow: Tensor | None = None
    for weights_BHTT in weights:
        mean_BTT = weights_BHTT.mean(dim=1)
        own_TT = torch.eye(mean_BTT.shape[-1], dtype=mean_BTT.dtype, device=mean_BTT.device)
        mixed_BTT = (mean_BTT + own_TT) / 2
        flow = mixed_BTT if flow is None else mixed_BTT @ flow
    assert flow is not None, "an encoder has a block"
    return flow


def over_patches(weights_BTT: Tensor, encoder: VisionTransformer) -> Tensor:
    """What goes to the patches from the class token, or from each patch where there is none.

    Args:
        weights_BTT: ``(..., T, T)``.

    Returns:
        ``(..., Q, L)``, Q being 1 or L; a row sums to 1 less what goes to prefix tokens.
    """
    prefix = encoder.num_prefix_tokens
    queries = slice(0, 1) if encoder.cls_token is not None else slice(prefix, None)
    return weights_BTT[..., queries, prefix:]


def entropy(weights_BHQL: Tensor) -> Tensor:
    """Entropy of each row over the L patches, scaled to sum to 1, as a share of the largest.

    Returns:
        ``(B, H, Q)`` in [0, 1]: 1 where all patches are attended to alike, 0 where one is alone.
    """
    count = weights_BHQL.shape[-1]
    if count == 1:
        return torch.zeros_like(weights_BHQL[..., 0])
    share_BHQL = weights_BHQL / weights_BHQL.sum(dim=-1, keepdim=True)
    return torch.special.entr(share_BHQL).sum(dim=-1) / torch.tensor(float(count)).log()


def distance(weights_BHLL: Tensor, rows: int, columns: int) -> Tensor:
    """Mean distance from a patch to what it attends to among the patches, in patches.

    Dosovitskiy et al., *An Image is Worth 16x16 Words*, arXiv:2010.11929, figure 7 and appendix
    D.7; each row is scaled to sum to 1 first, so that what goes to prefix tokens does not count.

    Args:
        weights_BHLL: from patches to patches, which lie row by row.

    Returns:
        ``(B, H)``, the mean over all patches that attend.
    """
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places_L2 = torch.stack(grid, dim=-1).flatten(0, 1).to(weights_BHLL)
    apart_LL = (places_L2[:, None] - places_L2).norm(dim=-1)
    share_BHLL = weights_BHLL / weights_BHLL.sum(dim=-1, keepdim=True)
    return (share_BHLL * apart_LL).sum(dim=-1).mean(dim=-1)
