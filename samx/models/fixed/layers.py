"""What the decoder is made of, on (N, C, 1, S) tensors: layers, norms, attention, prompts and upscaling.

A 2x2 transposed convolution with stride 2 is a 1x1 convolution with four times the channels. Its sub-pixels go on the
third axis, so that norm, GELU and the next convolution see them as positions, and lie beside each other until the last
step moves finished mask pixels; a skip feature arrives there by undoing the shuffle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.fast.prompts import NEVER
from samx.models.fast.upscale import TAPS
from samx.models.fast.upscale import HqMask as FastHqMask
from samx.models.high_quality import HighQualityMaskDecoder
from samx.models.reference import MLP, POINT_LABELS, Activation, Attention, LayerNorm2d, MaskDecoder, PromptEncoder
from samx.models.spec import LABELS, PADDED_POINT

SUBPIXELS = 4  # of one 2x2 growth; the order is row first


def pointwise(layer: nn.Linear, scale: float = 1.0) -> nn.Conv2d:
    """Copy a linear layer as a 1x1 convolution, scaled. Shapes of its forward: (N, in, 1, S) -> (N, out, 1, S)."""
    conv = nn.Conv2d(layer.in_features, layer.out_features, 1, dtype=layer.weight.dtype)
    conv.weight.data = layer.weight.detach().unsqueeze(-1).unsqueeze(-1) * scale
    assert conv.bias is not None
    conv.bias.data = layer.bias.detach() * scale
    return conv


@torch.library.custom_op("samx::channel_norm", mutates_args=())
def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise over channels: to PyTorch several operations, to Core ML one (see exporters/coreml/convert.py).

    In float16 each of the several would round. Shapes: (N, C, H, S), (C,) x 2 -> (N, C, H, S).
    """
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1).contiguous()


@normalised.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


class ChannelNorm(nn.Module):
    """Normalise over channels."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C, H, S) -> (N, C, H, S)."""
        return normalised(x, self.weight, self.bias, self.eps)


class MapNorm(ChannelNorm):
    """Normalise over all channels and positions of a map together: GroupNorm of one group.

    Averaged over positions first, and then over the few averages, so that no sum leaves float16.
    """

    least: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__(weight, bias, eps)
        # A tensor, because a bare number would lift everything after it to float32.
        self.register_buffer("least", torch.full((1, 1, 1, 1), eps, dtype=weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C, H, S) -> (N, C, H, S)."""
        centred = x - _map_mean(x)
        scale = (_map_mean(centred * centred) + self.least).rsqrt()
        return centred * scale * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)


def _map_mean(x: Tensor) -> Tensor:
    return x.mean(3, keepdim=True).mean((1, 2), keepdim=True)


def channel_norm(norm: nn.LayerNorm) -> ChannelNorm:
    """Copy a layer norm over the last axis as one over channels."""
    return ChannelNorm(norm.weight, norm.bias, norm.eps)


class PointwiseMLP(nn.Module):
    """Stack 1x1 convolutions with an activation between them."""

    def __init__(self, layers: Sequence[nn.Linear], activation: Activation = F.relu, sigmoid: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(pointwise, layers))
        self.activation, self.sigmoid = activation, sigmoid

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, in, 1, S) -> (N, out, 1, S)."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        x = self.layers[-1](x)
        return x.sigmoid() if self.sigmoid else x


def pointwise_mlp(source: MLP | nn.Linear) -> PointwiseMLP:
    """Copy a reference MLP, or a single layer."""
    if isinstance(source, nn.Linear):
        return PointwiseMLP([source])
    return PointwiseMLP(cast(Sequence[nn.Linear], list(source.layers)), source.activation, source.sigmoid)


class HeadedAttention(nn.Module):
    """Project to heads and back; the subclasses say which side the softmax runs over."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.heads = source.heads
        self.query = pointwise(source.q_proj, 1 / math.sqrt(source.q_proj.out_features // source.heads))
        self.key, self.value = pointwise(source.k_proj), pointwise(source.v_proj)
        self.out = pointwise(source.out_proj)

    def split(self, x: Tensor) -> Tensor:
        """Shapes: (N, h*d, 1, S) -> (N, h, d, S)."""
        return x.reshape(x.shape[0], self.heads, -1, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """Shapes: (N, h, d, S) -> (N, C, 1, S)."""
        return self.out(x.reshape(x.shape[0], -1, 1, x.shape[-1]))


class FromTokens(HeadedAttention):
    """Let tokens attend to tokens or to image tokens."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, empty: Tensor | None = None) -> Tensor:
        """Shapes: (N, C, 1, T), (N, C, 1, S) x 2 [, (N, 1, 1, S) for the scores] -> (N, C, 1, T)."""
        q, k, v = self.split(self.query(queries)), self.split(self.key(keys)), self.split(self.value(values))
        scores = q.transpose(-1, -2) @ k  # (N, h, T, S)
        weights = (scores if empty is None else scores + empty).softmax(-1)
        return self.join(v @ weights.transpose(-1, -2))


class FromImage(HeadedAttention):
    """Let image tokens attend to tokens; the image tokens stay on the last axis all along."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, empty: Tensor) -> Tensor:
        """Shapes: (N, C, 1, L), (N, C, 1, T) x 2, (N, 1, T, 1) for the scores -> (N, C, 1, L)."""
        q, k, v = self.split(self.query(queries)), self.split(self.key(keys)), self.split(self.value(values))
        scores = k.transpose(-1, -2) @ q  # (N, h, T, L)
        return self.join(v @ (scores + empty).softmax(2))


class PointPosition(nn.Module):
    """Encode pixel coordinates. Float16 holds no pixel beyond 2048 and magnifies their phase, so this stays float32."""

    matrix: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.image_size, self.offset = source.image_size, source.offset
        matrix = source.pe_layer.get_buffer("positional_encoding_gaussian_matrix")
        self.register_buffer("matrix", matrix.detach().t().unsqueeze(-1).unsqueeze(-1).clone())  # (C/2, 2, 1, 1)

    def forward(self, coords: Tensor) -> Tensor:
        """Shapes: (N, P, 2) px -> (N, C, 1, P)."""
        unit = 2 * ((coords.transpose(1, 2).unsqueeze(2) + self.offset) / self.image_size) - 1  # (N, 2, 1, P)
        angles = 2 * math.pi * F.conv2d(unit, self.matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class PointTokens(nn.Module):
    """Embed points and box corners by comparing labels with a table."""

    table: Tensor
    codes: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.position = PointPosition(source)
        rows = torch.cat([source.padding_token(), *source.point_weights()]).detach()
        codes = [LABELS["padding"], *(LABELS[name] for name in POINT_LABELS)]
        self.register_buffer("table", rows.t().unsqueeze(-1).unsqueeze(-1).clone())  # (C, 5, 1, 1)
        self.register_buffer("codes", torch.tensor(codes).reshape(1, -1, 1, 1).to(rows))

    def forward(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Shapes: (N, P, 2) px, (N, P) -> (N, C, 1, P). Padded points are zero."""
        labels = labels.unsqueeze(1).unsqueeze(1)  # (N, 1, 1, P)
        chosen = (labels == self.codes.to(labels.dtype)).to(self.table.dtype)  # (N, 5, 1, P)
        is_point = (labels >= LABELS["background"]).to(self.table.dtype)
        position = self.position(coords).to(self.table.dtype)
        return position * is_point + F.conv2d(chosen, self.table)


def empty_points(labels: Tensor) -> Tensor:
    """Return what keeps padded points out of attention, added to scores. Shapes: (N, P) -> (N, 1, 1, P)."""
    return (labels == PADDED_POINT).to(labels.dtype).unsqueeze(1).unsqueeze(1) * NEVER


class MaskTerm(nn.Module):
    """Embed a previous mask, or its absence, prompt by prompt."""

    absent: Tensor

    def __init__(self, source: PromptEncoder) -> None:
        super().__init__()
        self.downscaling = nn.Sequential(*(_channels_first(layer) for layer in source.mask_downscaling))
        self.register_buffer("absent", source.no_mask().detach().reshape(1, -1, 1, 1).clone())

    def forward(self, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Shapes: (N, 1, 4G, 4G), (N,) -> (N, C, 1, L)."""
        present = self.downscaling(mask)  # (N, C, G, G)
        present = present.reshape(*present.shape[:2], 1, -1)
        used = (has_mask > 0).to(present.dtype).reshape(-1, 1, 1, 1)
        unused = (has_mask <= 0).to(present.dtype).reshape(-1, 1, 1, 1)
        return present * used + self.absent * unused


def _channels_first(layer: nn.Module) -> nn.Module:
    return ChannelNorm(layer.weight, layer.bias, layer.eps) if isinstance(layer, LayerNorm2d) else layer


def grow(source: nn.ConvTranspose2d) -> nn.Conv2d:
    """Copy a 2x2 stride-2 transposed convolution as 1x1: output channels are (channel, sub-pixel)."""
    assert source.bias is not None
    conv = nn.Conv2d(source.in_channels, SUBPIXELS * source.out_channels, 1, dtype=source.weight.dtype)
    by_subpixel = source.weight.detach().flatten(2)  # (in, out, sub)
    conv.weight.data = by_subpixel.permute(1, 2, 0).flatten(0, 1).unsqueeze(-1).unsqueeze(-1).contiguous()
    assert conv.bias is not None
    conv.bias.data = source.bias.detach().repeat_interleave(SUBPIXELS)
    return conv


class GrownTwice(nn.Module):
    """Grow image tokens twice, with a norm and GELU between."""

    def __init__(self, layers: Iterable[nn.Module], grid: int) -> None:
        super().__init__()
        first, norm, _, second, *_ = layers
        assert isinstance(norm, LayerNorm2d | nn.GroupNorm)
        self.grid = grid
        self.first, self.second = grow(cast(nn.ConvTranspose2d, first)), grow(cast(nn.ConvTranspose2d, second))
        kind = MapNorm if isinstance(norm, nn.GroupNorm) else ChannelNorm
        self.norm = kind(norm.weight, norm.bias, norm.eps)

    def forward(self, image_tokens: Tensor, skips: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Shapes: (N, C, 1, L) [, (1, C/8, 4G, 4G), (1, C/4, 2G, 2G)] -> (N, C/8, 16, L), last sub-pixel outermost."""
        n, length = image_tokens.shape[0], image_tokens.shape[-1]
        x = self.first(image_tokens).reshape(n, -1, SUBPIXELS, length)  # (N, C/4, 4, L)
        if skips is not None:
            x = x + F.pixel_unshuffle(skips[1], 2).reshape(1, -1, SUBPIXELS, length)
        x = self.second(F.gelu(self.norm(x))).reshape(n, -1, SUBPIXELS * SUBPIXELS, length)  # (N, C/8, 16, L)
        if skips is not None:
            halved = F.pixel_unshuffle(skips[0], 2)  # (1, C/2, 2G, 2G)
            x = x + F.pixel_unshuffle(halved, 2).reshape(1, -1, SUBPIXELS * SUBPIXELS, length)
        return x


def weighed(weights: Tensor, pixels: Tensor) -> Tensor:
    """Weigh channels. Shapes: (N, M, c), (N, c, H, S) -> (N, M, H, S)."""
    rows = weights.unsqueeze(2).expand(-1, -1, pixels.shape[2], -1)  # (N, M, H, c)
    return torch.einsum("nchw,nwhu->nchu", rows, pixels)


def shuffled(planes: Tensor, grid: int) -> Tensor:
    """Move sub-pixels to their places. Shapes: (N, M, 16, L) -> (N, M, 4G, 4G)."""
    halves = F.pixel_shuffle(planes.reshape(planes.shape[0], -1, grid, grid), 2)  # (N, M*4, 2G, 2G)
    return F.pixel_shuffle(halves, 2)


class MaskPlanes(GrownTwice):
    """Grow the image tokens twice and weigh the channels into masks."""

    def __init__(self, source: MaskDecoder) -> None:
        super().__init__(source.output_upscaling, source.spec.grid)

    def pixels(self, image_tokens: Tensor, skips: tuple[Tensor, Tensor] | None) -> Tensor:
        """Shapes: as GrownTwice has them."""
        return F.gelu(super().forward(image_tokens, skips))

    def masks(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """Weigh and shuffle. Shapes: (N, C/8, 16, L), (N, M, C/8) -> (N, M, 4G, 4G)."""
        return shuffled(weighed(weights, pixels), self.grid)


class HqFeatures(nn.Module):
    """Grow both levels of an image's features for HQ-SAM."""

    def __init__(self, source: HighQualityMaskDecoder) -> None:
        super().__init__()
        grid = source.spec.grid
        self.embedding, self.interm = (
            GrownTwice(layers, grid) for layers in (source.embedding_encoder, source.compress_vit_feat)
        )

    def forward(self, image: Tensor, interm: Tensor) -> Tensor:
        """Shapes: (1, C, 1, L), (1, G, G, C') -> (1, C/8, 16, L)."""
        interm = interm.permute(0, 3, 1, 2)
        grown: Tensor = self.embedding(image) + self.interm(interm.reshape(1, interm.shape[1], 1, -1))
        return grown


class HqMask(nn.Module):
    """Compute HQ-SAM's mask as the fast form does (fast/upscale.py): a kernel of nine taps for each prompt."""

    taps: Tensor
    bias: Tensor
    places: Tensor

    def __init__(self, source: HighQualityMaskDecoder) -> None:
        super().__init__()
        fast = FastHqMask(source)
        self.grid, self.first, self.mlp = fast.grid, fast.first, pointwise_mlp(fast.mlp)
        self.norm = channel_norm(fast.norm)
        self.register_buffer("taps", fast.taps.t().unsqueeze(-1).unsqueeze(-1).contiguous())  # (9*C/4, C/8, 1, 1)
        self.register_buffer("bias", fast.bias.reshape(1, -1, 1, 1).clone())  # (1, C/8, 1, 1)
        self.register_buffer("places", fast.places)

    def forward(self, token: Tensor, pixels: Tensor, features: Tensor | None) -> Tensor:
        """Shapes: (N, C, 1, 1), (N, C/8, 16, L) [, (1, C/8, 16, L)] -> (N, 1, 4G, 4G)."""
        n, length = pixels.shape[0], pixels.shape[-1]
        refined = F.gelu(self.norm(self.first(shuffled(pixels, self.grid))))  # (N, C/4, 4G, 4G)
        weights = self.mlp(token)  # (N, C/8, 1, 1)
        planes = weighed(F.conv2d(weights, self.taps).reshape(n, TAPS, -1), refined)  # (N, 9, 4G, 4G)
        mask = F.conv2d(planes, self.places, padding=1)
        if features is None:
            return mask + (weights * self.bias).sum(1, keepdim=True)
        constant = (features + self.bias).expand(n, -1, SUBPIXELS * SUBPIXELS, length)
        return mask + shuffled(weighed(weights.reshape(n, 1, -1), constant), self.grid)


class MaskWeights(nn.Module):
    """Run the mask tokens' MLPs."""

    def __init__(self, source: MaskDecoder, tokens: range) -> None:
        super().__init__()
        mlps = [pointwise_mlp(cast(MLP, source.output_hypernetworks_mlps[i])) for i in tokens]
        self.mlps: list[PointwiseMLP] = nn.ModuleList(mlps)  # type: ignore[assignment]

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (N, C, 1, M) -> (N, M, C/8)."""
        rows = [mlp(tokens[..., i : i + 1]) for i, mlp in enumerate(self.mlps)]  # M x (N, C/8, 1, 1)
        return torch.cat([row.reshape(row.shape[0], 1, -1) for row in rows], dim=1)
