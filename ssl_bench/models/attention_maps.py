"""Inside a Vision Transformer: the tokens after each block, and the attention between them.

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
    """The tokens before the first block, then those after each block: ``(B, T, D)`` each.

    This is timm's ``forward_features`` without the final norm.
    """
    tokens_BTD = encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(images_BCHW)))
    tokens_BTD = encoder.norm_pre(tokens_BTD)
    yield tokens_BTD
    for block in encoder.blocks:
        tokens_BTD = block(tokens_BTD)
        yield tokens_BTD


def attention_by_block(encoder: VisionTransformer, images_BCHW: Tensor) -> Iterator[Tensor]:
    """The weights of `attention` by block, float32 ``(B, H, T, T)``, unless `why_unreadable`."""
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
    """Why attention weights cannot be read, or None: all blocks need timm's plain attention."""
    reason = encoders.why_no_vit(encoder)
    if reason is not None:
        return reason
    if encoders.is_video(encoder):
        return "attention maps are of images, and this encoder takes clips; --frames 1 would work"
    for block in encoder.blocks:
        kind = type(getattr(block, "attn", None))
        if kind is not Attention:
            return (
                f"attention weights can be read of timm's Attention, not of the {kind.__name__} in "
                f"this encoder's {type(block).__name__}; vit_tiny_patch16_224 would work"
            )
    return None


def attention(module: Any, tokens_BTD: Tensor) -> Tensor:
    """Attention weights from each token (row) to the others (column), without dropout.

    Those of timm's ``Attention`` on its input: float32 ``(B, H, T, T)``; each row sums to 1.
    """
    batch, count, _ = tokens_BTD.shape
    heads = (3, module.num_heads, module.head_dim)
    query, key, _ = module.qkv(tokens_BTD).view(batch, count, *heads).permute(2, 0, 3, 1, 4)
    query, key = module.q_norm(query), module.k_norm(key)
    return (query * module.scale @ key.transpose(-2, -1)).float().softmax(dim=-1)


def rollout(weights: Iterable[Tensor]) -> Tensor:
    """Attention rollout: how much of each input token (column) is in each output token (row).

    Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, arXiv:2005.00928, section 3:
    the product over blocks of half the heads' mean attention and half the identity, which stands
    for the residual connection.

    From the ``(B, H, T, T)`` of each block to ``(B, T, T)``; each row sums to 1.
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
    """Attention to the patches from the class token, or from each patch if there is none.

    Of ``(..., T, T)`` it is ``(..., Q, L)`` with Q = 1 or L; rows sum to 1 minus the attention to
    prefix tokens.
    """
    prefix = encoder.num_prefix_tokens
    queries = slice(0, 1) if encoder.cls_token is not None else slice(prefix, None)
    return weights_BTT[..., queries, prefix:]


def entropy(weights_BHQL: Tensor) -> Tensor:
    """Entropy of each row, normalised to sum to 1 over the patches, as a fraction of the maximum.

    ``(B, H, Q)`` in [0, 1]: 1 for equal attention to all patches, 0 for attention to one only.
    """
    count = weights_BHQL.shape[-1]
    if count == 1:
        return torch.zeros_like(weights_BHQL[..., 0])
    share_BHQL = weights_BHQL / weights_BHQL.sum(dim=-1, keepdim=True)
    return torch.special.entr(share_BHQL).sum(dim=-1) / torch.tensor(float(count)).log()


def distance(weights_BHLL: Tensor, rows: int, columns: int) -> Tensor:
    """Mean attention distance between patches, in patches: ``(B, H)``.

    Dosovitskiy et al., *An Image is Worth 16x16 Words*, arXiv:2010.11929, figure 7 and appendix
    D.7. Rows are first normalised to sum to 1, so attention to prefix tokens does not count.
    """
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places_L2 = torch.stack(grid, dim=-1).flatten(0, 1).to(weights_BHLL)
    apart_LL = (places_L2[:, None] - places_L2).norm(dim=-1)
    share_BHLL = weights_BHLL / weights_BHLL.sum(dim=-1, keepdim=True)
    return (share_BHLL * apart_LL).sum(dim=-1).mean(dim=-1)
