"""Image tokens to mask logits, channels last.

A 2x2 transposed convolution with stride 2 is a matrix per cell (256 -> 4 x 64, then 64 -> 4 x 32), split here into one
product per sub-row: columns come out side by side, as rows of whole pixels. Normalisation, GELU and the mask product
work on the last axis; only finished rows of the mask planes are interleaved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.decoders.reference import LayerNorm2d, MaskDecoder


def rowwise(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Write a 2x2 stride-2 transposed convolution as two matrices, one per sub-row.

    Shapes: -> (dy = 2, in, dx * out), (dx * out).
    """
    weight = conv.weight.detach().permute(2, 0, 3, 1).flatten(2)  # (dy, in, dx, out) -> (2, in, 2*out)
    assert conv.bias is not None
    return weight.contiguous(), conv.bias.detach().repeat(2)


def to_rows(features: Tensor, levels: int) -> Tensor:
    """Order pixels as the upscaling produces them: sub-rows outermost, then rows of whole pixels, channels last.

    Shapes: (1, c, H, W) -> (1, 2, ..., 2, H * W / 2**levels, c) with one axis of 2 per level.
    """
    rows = features.shape[2] >> levels
    x = features.permute(0, 2, 3, 1).unflatten(1, (rows, *[2] * levels))  # (1, gy, dy1, ..., W, c)
    subrows = range(2, 2 + levels)
    return x.permute(0, *subrows, 1, 2 + levels, 3 + levels).flatten(1 + levels, 2 + levels)


def gelu(x: Tensor) -> Tensor:
    """Apply exact GELU, written in the order of operations that ONNX Runtime fuses at any opset."""
    return 0.5 * (x * (1 + torch.erf(x / math.sqrt(2))))


class MaskHead(nn.Module):
    """Turn image tokens and mask weights into logits."""

    grow1_weight: Tensor
    grow1_bias: Tensor
    grow2_weight: Tensor
    grow2_bias: Tensor

    def __init__(self, source: MaskDecoder) -> None:
        super().__init__()
        grow1, norm, _, grow2, _ = source.output_upscaling
        assert isinstance(grow1, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(grow2, nn.ConvTranspose2d)
        self.grid = source.spec.grid
        for name, conv in (("grow1", grow1), ("grow2", grow2)):
            weight, bias = rowwise(conv)
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_bias", bias)
        self.norm = norm

    def upscale(self, image: Tensor, skips: tuple[Tensor, Tensor] | None) -> Tensor:
        """Shapes: (N, 1, L, C) [, (1, 2, 2, 16*L/4, C/8), (1, 2, 4*L/2, C/4)] -> (N, dy1, dy2, 4*L, C/8)."""
        x = image @ self.grow1_weight + self.grow1_bias  # (N, dy1, L, dx1 * C/4)
        x = x.unflatten(3, (2, -1)).flatten(2, 3)  # (N, dy1, 2*L, C/4)
        if skips is not None:
            x = x + skips[1]
        x = gelu(F.layer_norm(x, self.norm.weight.shape, self.norm.weight, self.norm.bias, self.norm.eps))
        x = x.unsqueeze(2) @ self.grow2_weight + self.grow2_bias  # (N, dy1, dy2, 2*L, dx2 * C/8)
        if skips is None:
            return gelu(x).unflatten(4, (2, -1)).flatten(3, 4)
        return gelu(x.unflatten(4, (2, -1)).flatten(3, 4) + skips[0])

    def pixels(self, planes: Tensor) -> Tensor:
        """Interleave the sub-rows. Shapes: (N, dy1, dy2, M, 4*L) -> (N, M, 4G, 4G)."""
        x = planes.unflatten(4, (self.grid, -1))  # (N, dy1, dy2, M, G, 4G)
        return x.permute(0, 3, 4, 1, 2, 5).flatten(2, 4)

    def forward(self, image: Tensor, weights: Tensor, skips: tuple[Tensor, Tensor] | None) -> Tensor:
        """Shapes: (N, 1, L, C), (N, M, C/8) -> (N, M, 4G, 4G)."""
        upscaled = self.upscale(image, skips)
        return self.pixels(weights.unsqueeze(1).unsqueeze(1) @ upscaled.transpose(-1, -2))


class HyperNetworks(nn.Module):
    """Run several tokens' three-layer MLPs as one batched product per layer."""

    def __init__(self, source: MaskDecoder, tokens: range) -> None:
        super().__init__()
        mlps = [source.output_hypernetworks_mlps[i] for i in tokens]
        for layer in range(3):
            weights = [m.layers[layer].weight.detach().t() for m in mlps]  # type: ignore[union-attr,index]
            biases = [m.layers[layer].bias.detach() for m in mlps]  # type: ignore[union-attr,index]
            self.register_buffer(f"weight{layer}", torch.stack(weights).contiguous())  # (M, in, out)
            self.register_buffer(f"bias{layer}", torch.stack(biases).unsqueeze(1).contiguous())  # (M, 1, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (N, M, C) -> (N, M, C/8)."""
        x = tokens.transpose(0, 1)  # (M, N, C)
        for layer in range(3):
            x = x @ self.get_buffer(f"weight{layer}") + self.get_buffer(f"bias{layer}")
            x = F.relu(x) if layer < 2 else x
        return x.transpose(0, 1)
