"""Cross-attentions between a few tokens and 4096 image tokens, in three exact forms.

Letters in the shape comments: N prompts, T tokens, L = G*G image tokens, C = 256 channels, h heads of width d.

- cached: the image side was projected once per image (layer 0 without a mask prompt).
- absorbed: the projections move to the token side, 4096 x C x 8T products; cheaper while 8T < 128.
- direct: the image side is projected for every prompt, as the reference does; cheaper for many points.

An `offset` (1, C) belongs to every image token and is left out of the image tensors: layer 0's "no mask" embedding. It
reaches queries, values and the updated image through biases.

Image tensors carry an extra axis of 1, (N, 1, L, C): ONNX Runtime fuses additions with layer norms on 3-D tensors into
a kernel that is several times slower at this size.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.reference import Attention


class Linear(nn.Module):
    """Apply a linear layer as the (in, out) matrix that MatMul takes."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.t().contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def linear(layer: nn.Linear, scale: float = 1.0, offset: Tensor | None = None) -> Linear:
    """Copy a linear layer, scaled; it takes its input without the offset (1, C) that belongs to it."""
    return Linear(layer.weight.detach() * scale, biased(layer, offset) * scale)


def biased(layer: nn.Linear, offset: Tensor | None) -> Tensor:
    """Return a layer's bias, with what it makes of an offset. Shapes: (1, C) -> (m,)."""
    bias = layer.bias.detach()
    return bias if offset is None else bias + layer.weight.detach() @ offset[0]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Separate heads. Shapes: (N, T, h*d) -> (N, h, T, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Join heads again. Shapes: (N, h, T, d) -> (N, T, h*d)."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, fused: bool, bias: Tensor | None = None) -> Tensor:
    """Mix values by softmax(q k^T + bias), scale already in q.

    Fused, the exporter writes ONNX's Attention (opset 23 and later); else plain products.
    Shapes: (N, h, Tq, d), (N, h, Tk, d) x 2 [, bias broadcast to (N, h, Tq, Tk)] -> (N, h, Tq, d).
    """
    if fused:
        # ONNX Runtime's Attention wants a row of the bias for every query.
        bias = None if bias is None else bias.expand(-1, -1, q.shape[2], -1)
        return F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)
    scores = q @ k.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def query_scale(source: Attention) -> float:
    """Return 1/sqrt(d), folded into the smaller side of the product."""
    return 1 / math.sqrt(source.q_proj.out_features // source.heads)


def per_head_rows(weight: Tensor, heads: int) -> Tensor:
    """View a projection's weight by head. Shapes: (h*d, C) -> (h, d, C)."""
    return weight.detach().unflatten(0, (heads, -1)).contiguous()


class SelfAttention(nn.Module):
    """Attend among the tokens."""

    def __init__(self, source: Attention, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = source.heads, fused
        self.query = linear(source.q_proj, query_scale(source))
        self.key = linear(source.k_proj)
        self.value = linear(source.v_proj)
        self.out = linear(source.out_proj)

    def forward(self, positioned: Tensor, tokens: Tensor, empty: Tensor | None) -> Tensor:
        """Shapes: (N, T, C) with the positional term, (N, T, C) without [, (N, T) for the scores] -> (N, T, C)."""
        q = split_heads(self.query(positioned), self.heads)
        k = split_heads(self.key(positioned), self.heads)
        v = split_heads(self.value(tokens), self.heads)
        bias = None if empty is None else empty.unsqueeze(1).unsqueeze(1)
        return self.out(join_heads(attend(q, k, v, self.fused, bias)))


class ImageProjection(nn.Module):
    """Project an image embedding as it comes, channels first: heads separate without moving anything."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, offset: Tensor, heads: int) -> None:
        """Take the layer and what is added to the image beforehand. Shapes: (h*d, C), (h*d), offset (L or 1, C)."""
        super().__init__()
        self.heads = heads
        self.register_buffer("weight", weight.contiguous())  # (h*d, C)
        self.register_buffer("bias", weight @ offset.t() + bias.unsqueeze(1))  # (h*d, L or 1)

    def forward(self, image: Tensor) -> Tensor:
        """Shapes: (1, C, L) -> (1, h, d, L)."""
        return (self.weight @ image + self.bias).unflatten(1, (self.heads, -1))


def projection(layer: nn.Linear, offset: Tensor, heads: int) -> ImageProjection:
    """Copy a linear layer as a projection of image + offset."""
    return ImageProjection(layer.weight.detach().clone(), layer.bias.detach(), offset, heads)


class CachedTokenToImage(nn.Module):
    """Attend to image keys and values that all prompts share."""

    def __init__(self, source: Attention, key_offset: Tensor, value_offset: Tensor) -> None:
        """Take the layer, and what is added to the image tokens before keys and values. Shapes: (L or 1, C) x 2."""
        super().__init__()
        self.heads = source.heads
        self.query = linear(source.q_proj, query_scale(source))
        self.keys = projection(source.k_proj, key_offset, self.heads)
        self.values = projection(source.v_proj, value_offset, self.heads)
        self.out = linear(source.out_proj)

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Shapes: (N, T, C), (1, h, d, L) x 2 -> (N, T, C). All prompts' tokens form one long query."""
        n = tokens.shape[0]
        q = split_heads(self.query(tokens).flatten(0, 1).unsqueeze(0), self.heads)  # (1, h, N*T, d)
        mixed = (q @ keys).softmax(-1) @ values.transpose(-1, -2)
        return self.out(join_heads(mixed).squeeze(0).unflatten(0, (n, -1)))


class AbsorbedTokenToImage(nn.Module):
    """Attend to unprojected image tokens: keys and values are projected on the token side.

    Always plain products: to ONNX's Attention this is a single head, which ONNX Runtime gives to a single thread.
    """

    key: Tensor
    value: Tensor

    def __init__(self, source: Attention, offset: Tensor | None = None) -> None:
        super().__init__()
        self.heads = source.heads
        self.query = linear(source.q_proj, query_scale(source))
        self.register_buffer("key", per_head_rows(source.k_proj.weight, self.heads))  # (h, d, C)
        value = per_head_rows(source.v_proj.weight, self.heads).transpose(-1, -2)
        self.register_buffer("value", value.contiguous())  # (h, C, d)
        # The rows of the attention sum to one, so the value bias passes through to the output.
        weight, bias = source.out_proj.weight.detach(), source.out_proj.bias.detach()
        self.out = Linear(weight, bias + weight @ biased(source.v_proj, offset))

    def forward(self, tokens: Tensor, image: Tensor, positioned: Tensor) -> Tensor:
        """Shapes: (N, T, C), (N, 1, L, C), (N, 1, L, C) with the positional term -> (N, T, C)."""
        q = split_heads(self.query(tokens), self.heads) @ self.key  # (N, h, T, C)
        mixed = attend(q.flatten(1, 2).unsqueeze(1), positioned, image, fused=False)  # (N, 1, h*T, C)
        by_head = mixed.squeeze(1).unflatten(1, (self.heads, -1)) @ self.value  # (N, h, T, d)
        return self.out(join_heads(by_head))


class LastTokenToImage(AbsorbedTokenToImage):
    """Attend to image tokens; the positional part of the scores, which nothing else needs, comes from a table."""

    positions: Tensor

    def __init__(self, source: Attention, position: Tensor) -> None:
        """Take the layer and the positions. Shapes: position (L, C)."""
        super().__init__(source)
        table = (source.k_proj.weight.detach() @ position.t()).unflatten(0, (self.heads, -1))
        self.register_buffer("positions", table.contiguous())  # (h, d, L)

    def forward(self, tokens: Tensor, image: Tensor, positioned: Tensor | None = None) -> Tensor:
        """Shapes: (N, T, C), (N, 1, L, C) -> (N, T, C)."""
        q = split_heads(self.query(tokens), self.heads)
        scores = (q @ self.key).flatten(1, 2) @ image.squeeze(1).transpose(1, 2)  # (N, h*T, L)
        weights = (scores + (q @ self.positions).flatten(1, 2)).softmax(-1)
        by_head = (weights @ image.squeeze(1)).unflatten(1, (self.heads, -1)) @ self.value  # (N, h, T, d)
        return self.out(join_heads(by_head))


class DirectTokenToImage(nn.Module):
    """Attend to image tokens projected for this prompt."""

    def __init__(self, source: Attention, fused: bool, offset: Tensor | None = None) -> None:
        super().__init__()
        self.heads, self.fused = source.heads, fused
        self.query = linear(source.q_proj, query_scale(source))
        # A constant on every image token drops out of the softmax.
        self.key = Linear(source.k_proj.weight.detach(), None)
        self.value = linear(source.v_proj, offset=offset)
        self.out = linear(source.out_proj)

    def forward(self, tokens: Tensor, image: Tensor, positioned: Tensor) -> Tensor:
        """Shapes: (N, T, C), (N, 1, L, C), (N, 1, L, C) with the positional term -> (N, T, C)."""
        q = split_heads(self.query(tokens), self.heads)
        k = split_heads(self.key(positioned).squeeze(1), self.heads)
        v = split_heads(self.value(image).squeeze(1), self.heads)
        return self.out(join_heads(attend(q, k, v, self.fused)))


class TokenSide(nn.Module):
    """Prepare the tokens as keys and values of the image's queries."""

    out: Tensor
    out_bias: Tensor

    def __init__(self, source: Attention, offset: Tensor | None = None) -> None:
        super().__init__()
        self.heads = source.heads
        self.key = linear(source.k_proj, query_scale(source))
        self.value = linear(source.v_proj)
        # The output projection, by head; each head's attention rows sum to one, so each carries 1/h of the bias.
        by_head = source.out_proj.weight.detach().t().unflatten(0, (self.heads, -1))
        self.register_buffer("out", by_head.contiguous())  # (h, d, C)
        bias = source.out_proj.bias.detach()
        self.register_buffer("out_bias", (bias if offset is None else bias + offset[0]) / self.heads)

    def keys(self, positioned: Tensor) -> Tensor:
        """Shapes: (N, T, C) with the positional term -> (N, h, T, d)."""
        return split_heads(self.key(positioned), self.heads)

    def mix(self, scores: Tensor, tokens: Tensor, empty: Tensor | None) -> Tensor:
        """Mix values that were projected all the way to the image's channels.

        Shapes: scores (N, h, T, L), (N, T, C) [, (N, T)] -> update (N, 1, L, C).
        """
        values = split_heads(self.value(tokens), self.heads) @ self.out + self.out_bias  # (N, h, T, C)
        weights = softmax_over_tokens(scores, empty).flatten(1, 2)  # (N, h*T, L)
        return (weights.transpose(1, 2) @ values.flatten(1, 2)).unsqueeze(1)


def softmax_over_tokens(scores: Tensor, empty: Tensor | None = None) -> Tensor:
    """Normalise over the few tokens, image tokens innermost. Shapes: (N, h, T, L) [, (N, T) to add] -> the same.

    Written out: softmax kernels want the axis last, where rows of 7 cost four times as much (ONNX Runtime, CPU).
    """
    scores = scores if empty is None else scores + empty.unsqueeze(1).unsqueeze(-1)
    grown = (scores - scores.amax(2, keepdim=True)).exp()
    return grown / grown.sum(2, keepdim=True)


class CachedImageToToken(nn.Module):
    """Let image queries that all prompts share attend to the tokens."""

    def __init__(self, source: Attention, offset: Tensor) -> None:
        super().__init__()
        self.queries = projection(source.q_proj, offset, source.heads)
        self.tokens = TokenSide(source, offset)

    def forward(self, queries: Tensor, positioned_tokens: Tensor, tokens: Tensor, empty: Tensor | None) -> Tensor:
        """Shapes: (1, h, d, L), (N, T, C) x 2 [, (N, T)] -> update (N, 1, L, C)."""
        return self.tokens.mix(self.tokens.keys(positioned_tokens) @ queries, tokens, empty)


class AbsorbedImageToToken(nn.Module):
    """Let unprojected image tokens attend to the tokens: the query projection moves to the token side."""

    query: Tensor
    query_bias: Tensor

    def __init__(self, source: Attention, offset: Tensor | None = None) -> None:
        super().__init__()
        self.tokens = TokenSide(source, offset)
        self.register_buffer("query", per_head_rows(source.q_proj.weight, source.heads))  # (h, d, C)
        bias = biased(source.q_proj, offset).unflatten(0, (source.heads, -1, 1))
        self.register_buffer("query_bias", bias.contiguous())  # (h, d, 1)

    def forward(self, positioned: Tensor, positioned_tokens: Tensor, tokens: Tensor, empty: Tensor | None) -> Tensor:
        """Shapes: (N, 1, L, C) with the positional term, (N, T, C) x 2 [, (N, T)] -> update (N, 1, L, C)."""
        keys = self.tokens.keys(positioned_tokens)  # (N, h, T, d)
        absorbed = (keys @ self.query).flatten(1, 2).unsqueeze(1)  # (N, 1, h*T, C)
        scores = (absorbed @ positioned.transpose(-1, -2)).squeeze(1).unflatten(1, (self.tokens.heads, -1))
        return self.tokens.mix(scores + keys @ self.query_bias, tokens, empty)


class DirectImageToToken(nn.Module):
    """Let image tokens projected for this prompt attend to the tokens."""

    def __init__(self, source: Attention, offset: Tensor | None = None) -> None:
        super().__init__()
        self.heads = source.heads
        self.query = linear(source.q_proj, query_scale(source), offset)
        self.key = linear(source.k_proj)
        self.value = linear(source.v_proj)
        bias = source.out_proj.bias.detach()
        self.out = Linear(source.out_proj.weight.detach(), bias if offset is None else bias + offset[0])

    def forward(self, positioned: Tensor, positioned_tokens: Tensor, tokens: Tensor, empty: Tensor | None) -> Tensor:
        """Shapes: (N, 1, L, C) with the positional term, (N, T, C) x 2 [, (N, T)] -> update (N, 1, L, C)."""
        q = split_heads(self.query(positioned).squeeze(1), self.heads)  # (N, h, L, d)
        k = split_heads(self.key(positioned_tokens), self.heads)  # (N, h, T, d)
        v = split_heads(self.value(tokens), self.heads)
        weights = softmax_over_tokens(k @ q.transpose(-1, -2), empty)  # (N, h, T, L)
        return self.out(join_heads(weights.transpose(-1, -2) @ v).unsqueeze(1))
