"""Image tokens to mask logits: sub-pixels lie beside each other until the last step moves finished mask pixels.

A 2x2 transposed convolution with stride 2 is a 1x1 convolution with four times the channels. Its sub-pixels go on the
third axis, so that norm, GELU and the next convolution see them as positions; a skip feature arrives there by undoing
the shuffle.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.fixed.layers import ChannelNorm, PointwiseMLP, pointwise_mlp
from samx.models.reference import MLP, LayerNorm2d, MaskDecoder

SUBPIXELS = 4  # of one 2x2 growth; the order is row first


def grow(source: nn.ConvTranspose2d) -> nn.Conv2d:
    """Copy a 2x2 stride-2 transposed convolution as 1x1: output channels are (channel, sub-pixel)."""
    assert source.bias is not None
    conv = nn.Conv2d(source.in_channels, SUBPIXELS * source.out_channels, 1, dtype=source.weight.dtype)
    by_subpixel = source.weight.detach().flatten(2)  # (in, out, sub)
    conv.weight.data = by_subpixel.permute(1, 2, 0).flatten(0, 1).unsqueeze(-1).unsqueeze(-1).contiguous()
    assert conv.bias is not None
    conv.bias.data = source.bias.detach().repeat_interleave(SUBPIXELS)
    return conv


class MaskPlanes(nn.Module):
    """Grow the image tokens twice and weigh the channels into masks."""

    def __init__(self, source: MaskDecoder) -> None:
        super().__init__()
        first, norm, _, second, _ = source.output_upscaling
        assert isinstance(norm, LayerNorm2d)
        self.grid = source.spec.grid
        self.first, self.second = grow(cast(nn.ConvTranspose2d, first)), grow(cast(nn.ConvTranspose2d, second))
        self.norm = ChannelNorm(norm.weight, norm.bias, norm.eps)

    def pixels(self, image_tokens: Tensor, skips: tuple[Tensor, Tensor] | None) -> Tensor:
        """Shapes: (N, C, 1, L) [, (1, C/8, 4G, 4G), (1, C/4, 2G, 2G)] -> (N, C/8, 16, L), last sub-pixel outermost."""
        n, length = image_tokens.shape[0], image_tokens.shape[-1]
        x = self.first(image_tokens).reshape(n, -1, SUBPIXELS, length)  # (N, C/4, 4, L)
        if skips is not None:
            x = x + F.pixel_unshuffle(skips[1], 2).reshape(1, -1, SUBPIXELS, length)
        x = self.second(F.gelu(self.norm(x))).reshape(n, -1, SUBPIXELS * SUBPIXELS, length)  # (N, C/8, 16, L)
        if skips is not None:
            halved = F.pixel_unshuffle(skips[0], 2)  # (1, C/2, 2G, 2G)
            x = x + F.pixel_unshuffle(halved, 2).reshape(1, -1, SUBPIXELS * SUBPIXELS, length)
        return F.gelu(x)

    def forward(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """Weigh and shuffle. Shapes: (N, C/8, 16, L), (N, M, C/8) -> (N, M, 4G, 4G)."""
        rows = weights.unsqueeze(2).expand(-1, -1, SUBPIXELS * SUBPIXELS, -1)  # (N, M, 16, C/8)
        planes = torch.einsum("nchw,nwhu->nchu", rows, pixels)  # (N, M, 16, L)
        halves = F.pixel_shuffle(planes.reshape(planes.shape[0], -1, self.grid, self.grid), 2)  # (N, M*4, 2G, 2G)
        return F.pixel_shuffle(halves, 2)


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
