"""The reference decoder's arithmetic, rearranged so that training needs about half of it.

The results are those of `ReferenceDecoder.all_masks`. Two things make it quicker: in the first layer the image
side is computed once an image and not once a prompt, and projections of the many image tokens are replaced by
projections of the few tokens that meet them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.reference import Attention, LayerNorm2d, ReferenceDecoder, TwoWayAttentionBlock

Features = tuple[Tensor, ...]


def decode_many(
    decoder: ReferenceDecoder, features: Features, coords: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decode n prompts on each of B images, ordered by image.

    Shapes: features (B, ...), (B*n, P, 2), (B*n, P), (B*n, 1, 4G, 4G) or None -> as ReferenceDecoder.all_masks.
    """
    prompts, head = decoder.prompt_encoder, decoder.mask_decoder
    n = len(coords)
    sparse = prompts.points(coords, labels)
    tokens = torch.cat([head.learned_tokens().expand(n, -1, -1), sparse], dim=1)
    pe = prompts.pe_layer.grid(decoder.spec.grid).flatten(0, 1)  # (GG, C)
    image = _cells(features[0], mask, decoder)
    tokens, image = _transform(decoder, tokens, image, pe)
    first = int(decoder.spec.object_score)
    mask_tokens = tokens[:, first + 1 : first + 1 + decoder.spec.mask_tokens]
    weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(head.output_hypernetworks_mlps)], 1)
    masks = _paint(decoder, image, weights, features[1:])
    score = head.pred_obj_score_head(tokens[:, 0]) if first else None
    return masks, head.iou_prediction_head(tokens[:, first]), score


def _cells(embedding: Tensor, mask: Tensor | None, decoder: ReferenceDecoder) -> Tensor:
    """Add the dense prompt: one row of cells an image, or one a prompt where masks are given.

    Shapes: -> (B|N, GG, C).
    """
    prompts = decoder.prompt_encoder
    if mask is None:
        return embedding.flatten(2).transpose(1, 2) + prompts.no_mask_embed.weight
    dense = prompts.mask_downscaling(mask)
    cells: Tensor = (_spread(embedding, len(mask)) + dense).flatten(2).transpose(1, 2)
    return cells


def _spread(per_image: Tensor, prompts: int) -> Tensor:
    return per_image.repeat_interleave(prompts // len(per_image), dim=0)


def _transform(decoder: ReferenceDecoder, tokens: Tensor, image: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
    """Run the two-way transformer. Shapes: (N, T, C), (B|N, GG, C), (GG, C) -> (N, T, C), (N, GG, C)."""
    transformer = decoder.mask_decoder.transformer
    token_pe = tokens
    for index, layer in enumerate(transformer.layers):
        assert isinstance(layer, TwoWayAttentionBlock)
        if index == 0:
            tokens = layer.norm1(layer.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + token_pe
            tokens = layer.norm1(tokens + layer.self_attn(q, q, tokens))
        placed = image + pe
        read = _tokens_read if len(image) == len(tokens) else _tokens_read_shared
        tokens = layer.norm2(tokens + read(layer.cross_attn_token_to_image, tokens + token_pe, placed, image))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        told = _cells_read(layer.cross_attn_image_to_token, placed, tokens + token_pe, tokens)
        image = layer.norm4(_spread(image, len(tokens)) + told)
    attended = _tokens_read(transformer.final_attn_token_to_image, tokens + token_pe, image + pe, image)
    return transformer.norm_final_attn(tokens + attended), image


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (N, h, T, d)
    return split


def _tokens_read_shared(attention: Attention, query: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Let all prompts of an image read its one set of keys and values.

    Shapes: (N, T, C), (B, GG, C) x 2 -> (N, T, C).
    """
    n, tokens, width = query.shape
    gathered = query.reshape(len(image), -1, width)
    return attention(gathered, placed, image).reshape(n, tokens, width)


def _tokens_read(attention: Attention, query: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Read cells with projected-back queries; the key's bias is constant under the softmax and drops out.

    Shapes: (N, T, C), (N, GG, C), (N, GG, C) -> (N, T, C).
    """
    heads, width = attention.heads, query.shape[-1]
    q = _heads(attention.q_proj(query), heads)  # (N, h, T, d)
    key = attention.k_proj.weight.unflatten(0, (heads, -1))  # (h, d, C)
    back = (q @ key) / math.sqrt(q.shape[-1])  # (N, h, T, C)
    weights = (back.flatten(1, 2) @ placed.transpose(1, 2)).softmax(-1)  # (N, hT, GG)
    seen = (weights @ image).unflatten(1, (heads, -1))  # (N, h, T, C)
    value = attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # (h, C, d)
    mixed = (seen @ value).transpose(1, 2).flatten(2) + attention.v_proj.bias
    assert width == attention.out_proj.out_features
    return attention.out_proj(mixed)


def _cells_read(attention: Attention, placed: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
    """Let cells read the tokens. Shapes: (B|N, GG, C), (N, T, C) x 2 -> (N, GG, C)."""
    heads, n = attention.heads, len(keys)
    k = _heads(attention.k_proj(keys), heads)  # (N, h, T, d)
    query = attention.q_proj.weight.unflatten(0, (heads, -1))  # (h, d, C)
    forth = (k @ query).flatten(1, 2) / math.sqrt(k.shape[-1])  # (N, hT, C)
    bias = (k @ attention.q_proj.bias.unflatten(0, (heads, -1))[:, :, None]) / math.sqrt(k.shape[-1])  # (N, h, T, 1)
    per_image = n // len(placed)
    grouped = forth.reshape(len(placed), per_image * forth.shape[1], -1)
    scores = placed @ grouped.transpose(1, 2)  # (B, GG, n hT)
    scores = scores.unflatten(2, (per_image, -1)).transpose(1, 2).flatten(0, 1)  # (N, GG, hT)
    weights = (scores + bias.flatten(1)[:, None]).unflatten(2, (heads, -1)).softmax(-1).flatten(2)
    out = attention.out_proj.weight.T.unflatten(0, (heads, -1))  # (h, d, C)
    values = (_heads(attention.v_proj(tokens), heads) @ out).flatten(1, 2)  # (N, hT, C)
    told: Tensor = weights @ values + attention.out_proj.bias
    return told


def _paint(decoder: ReferenceDecoder, image: Tensor, weights: Tensor, high_res: Features) -> Tensor:
    """Grow the cells to 4 x 4 pixels and weigh their channels up, cell by cell, pixels last put in order.

    Shapes: (N, GG, C), (N, 4, C/8), (B, ...) -> (N, 4, 4G, 4G).
    """
    grow1, norm, act1, grow2, act2 = decoder.mask_decoder.output_upscaling
    n, grid = len(image), decoder.spec.grid
    x = _grow(grow1, image)  # (N, GG, 4, C/4)
    if high_res:
        x = x + _spread(_by_cell(high_res[1], grid, 1), n)
    x = _grow(grow2, act1(_normed(norm, x)))
    if high_res:
        x = x + _spread(_by_cell(high_res[0], grid, 2), n)
    planes = act2(x).flatten(1, 3) @ weights.transpose(1, 2)  # (N, GG * 16, 4)
    ordered = planes.reshape(n, grid, grid, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    out: Tensor = ordered.reshape(n, -1, 4 * grid, 4 * grid)
    return out


def _grow(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2 x 2 transposed convolution to every pixel by itself. Shapes: (..., A) -> (..., 4, B)."""
    assert isinstance(conv, nn.ConvTranspose2d)
    assert conv.bias is not None
    matrix = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 B, A): row, column, channel
    grown: Tensor = (x @ matrix.T).unflatten(-1, (4, -1)) + conv.bias
    return grown


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply the channel norm where the channels come last. Shapes: (..., C) -> (..., C)."""
    assert isinstance(norm, LayerNorm2d)
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _by_cell(feature: Tensor, grid: int, doublings: int) -> Tensor:
    """Order a feature map as the growing cells are. Shapes: (B, C, H, W) -> (B, GG, 4[, 4], C)."""
    batch, channels = feature.shape[:2]
    if doublings == 1:
        split = feature.reshape(batch, channels, grid, 2, grid, 2)
        return split.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, 4, channels)
    split = feature.reshape(batch, channels, grid, 2, 2, grid, 2, 2)
    return split.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(batch, -1, 4, 4, channels)
