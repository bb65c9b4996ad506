"""Image tokens to mask logits, channels last.

A 2x2 transposed convolution with stride 2 is a matrix per image token (256 -> 4 x 64, then 64 -> 4 x 32), split here
into one product per sub-row: columns come out side by side, as rows of whole pixels. Each of the four sub-rows of an
image token goes its own way to the mask product, in matrices small enough for a cache; only finished mask rows are
interleaved.

Without a scale: a layer norm divides by what all channels have in common, so a factor s per pixel need not be
multiplied in, but for the epsilon that is added to the variance. In place of x = s * y take y, centred, and two
channels +a and -a with a^2 = epsilon * C / 2 / s^2. The mean stays zero, and the variance over C + 2 channels is

    C / (C + 2) * (variance(y) + epsilon / s^2)

which, its root taken out of y, is the same as if s had been there and epsilon been added. What is left of the two
channels behind the norm is a constant: the next layer's bias is a weight on it. Each time a pass over the largest
tensors is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.high_quality import HighQualityMaskDecoder
from samx.models.reference import MLP, LayerNorm2d, MaskDecoder
from samx.models.spec import DecoderSpec

SUBROWS = (0, 1)
EXTRA = 2  # channels in place of a scale
AFTER_NORM = (1.0, 0.0)  # what the two channels are behind the norm
# The high-resolution features of an image, by sub-row of the second upscaling and of the first.
FINE, COARSE = (tuple(f"image_skips_{level}_{i}" for i in range(n)) for level, n in ((0, 4), (1, 2)))
HQ_FEATURES = "image_hq_features"  # of an image, what its HQ-SAM pixels have beside a prompt's
TAPS = 9  # of a 3x3 convolution
# Returns one sub-row of the first upscaling. Shapes: -> (N, 2*L, C/4).
Grow = Callable[[int], Tensor]


def to_planes(features: Tensor, levels: int) -> list[Tensor]:
    """Order pixels as the upscaling produces them: a tensor a sub-row, of rows of whole pixels, channels last.

    In two steps, a matrix turned, then rows picked: where all axes move at once, ONNX Runtime moves single numbers.
    Shapes: (1, c, H, W) -> 2**levels x (1, H * W / 2**levels, c).
    """
    _, channels, height, width = features.shape
    pixels = features.flatten(2).transpose(1, 2)  # (1, H * W, c)
    rows = pixels.reshape(1, height >> levels, 2**levels, width * channels)
    return [rows[:, :, i].reshape(1, -1, channels) for i in range(2**levels)]


def gelu(x: Tensor) -> Tensor:
    """Apply exact GELU; in an exported graph in the order of operations that ONNX Runtime fuses at any opset."""
    if torch.compiler.is_exporting():
        return 0.5 * (x * (1 + torch.erf(x / math.sqrt(2))))
    return F.gelu(x)  # one pass over the largest tensor where the other is five


class GrowRows(nn.Module):
    """Apply a 2x2 stride-2 transposed convolution as two matrices, one per sub-row.

    The bias is left to the caller, or added in the same product, which ONNX names Gemm.
    """

    bias: Tensor

    def __init__(self, conv: nn.ConvTranspose2d, biased: bool) -> None:
        super().__init__()
        assert conv.bias is not None
        self.biased = biased
        self.channels = conv.out_channels
        for dy in SUBROWS:
            weight = conv.weight.detach()[:, :, dy].transpose(1, 2).flatten(1)  # (in, out, dx) -> (in, dx * out)
            self.register_buffer(f"weight{dy}", weight.contiguous())
        self.register_buffer("bias", conv.bias.detach().repeat(2))  # (dx * out)

    def append_bias(self, appended: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Move the bias into the matrices. Shapes: appended (in, dx * out), (dx * out,) -> (in', dx * out)."""
        for dy in SUBROWS:
            self.register_buffer(f"weight{dy}", appended(self.get_buffer(f"weight{dy}"), self.bias))

    def forward(self, image_tokens: Tensor, dy: int) -> Tensor:
        """Shapes: (K, in) -> (K, dx * out)."""
        weight = self.get_buffer(f"weight{dy}")
        return torch.addmm(self.bias, image_tokens, weight) if self.biased else image_tokens @ weight


class MaskProduct(nn.Module):
    """Weigh the upscaled channels. Shapes: weights (N, M, c), pixels (N, K, c) -> (N, M, K)."""

    def forward(self, weights: Tensor, pixels: Tensor) -> Tensor:
        return weights @ pixels.transpose(1, 2)


def scale_free(spec: DecoderSpec) -> bool:
    """Tell whether a factor per pixel may be left to the norm: nothing is added before it, and it is a pixel's own."""
    return not (spec.high_res_features or spec.rules.map_norm)


def over_channels(norm: LayerNorm2d) -> nn.LayerNorm:
    """Return the norm of pixels whose channels come last, with the same weights."""
    last = nn.LayerNorm(norm.weight.shape, norm.eps)
    last.weight, last.bias = norm.weight, norm.bias
    return last


class MapNorm(nn.Module):
    """Normalise over all channels and pixels of a map together, whose sub-rows lie apart: GroupNorm of one group.

    The statistics of so many numbers are taken in float32 at least.
    """

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = source.weight, source.bias, source.eps

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Shapes: k x (N, K, c) -> the same."""
        dtype = torch.promote_types(rows[0].dtype, torch.float32)
        wide = [part.to(dtype) for part in rows]
        mean = torch.stack([part.mean((1, 2)) for part in wide]).mean(0).unsqueeze(1).unsqueeze(2)  # (N, 1, 1)
        centred = [part - mean for part in wide]
        variance = torch.stack([(part * part).mean((1, 2)) for part in centred]).mean(0)
        scale = (variance + self.eps).rsqrt().unsqueeze(1).unsqueeze(2)
        return tuple((part * scale).to(rows[0].dtype) * self.weight + self.bias for part in centred)


class MaskHead(nn.Module):
    """Turn once-grown image tokens and mask weights into logits."""

    bias: Tensor

    def __init__(self, source: MaskDecoder, *, scale_free: bool = False) -> None:
        """Take the decoder; `scale_free` for pixels without their factor, with two channels more."""
        super().__init__()
        _, norm, _, grow, _ = source.output_upscaling
        assert isinstance(norm, LayerNorm2d | nn.GroupNorm)
        assert isinstance(grow, nn.ConvTranspose2d)
        self.grid, self.image_tokens = source.spec.grid, source.spec.grid**2
        self.norm: nn.LayerNorm | MapNorm = MapNorm(norm) if isinstance(norm, nn.GroupNorm) else over_channels(norm)
        # A skip brings the bias along, and so does a constant channel.
        biased = not (scale_free or source.spec.high_res_features)
        self.grow, self.product = GrowRows(grow, biased=biased), MaskProduct()
        self.register_buffer("bias", self.grow.bias[: self.grow.channels].clone())  # in the skips' type
        if scale_free and isinstance(self.norm, nn.LayerNorm):
            self.norm = widened_norm(self.norm)
            self.grow.append_bias(with_bias_row)

    def first_rows(self, grow: Grow, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Grow and normalise, each sub-row as soon as it can be. Shapes: -> 2 x (N * 2*L, C/4 [+ 2])."""
        skips = (state.get(name) for name in COARSE)
        grown = (grow(dy) if skip is None else grow(dy) + skip for dy, skip in zip(SUBROWS, skips, strict=True))
        normed = self.norm(*grown) if isinstance(self.norm, MapNorm) else map(self.norm, grown)
        return (gelu(rows).flatten(0, 1) for rows in normed)

    def second_rows(self, half: Tensor, dy: int, skip: Tensor | None) -> Tensor:
        """Grow again. Shapes: (N * 2*L, C/4 [+ 2]) [, (1, 4*L, C/8)] -> (N, 4*L, C/8)."""
        x = self.grow(half, dy).reshape(-1, 4 * self.image_tokens, self.grow.channels)
        return gelu(x if skip is None else x + skip)

    def skips(self, fine: Tensor, coarse: Tensor) -> dict[str, Tensor]:
        """Order the high-resolution features as they are added, and add the second bias to them once per image.

        Shapes: (1, C/8, 4G, 4G), (1, C/4, 2G, 2G) -> FINE (1, 4*L, C/8), COARSE (1, 2*L, C/4).
        """
        finest = [plane + self.bias for plane in to_planes(fine, levels=2)]
        return dict(zip((*FINE, *COARSE), [*finest, *to_planes(coarse, levels=1)], strict=True))

    def interleave(self, planes: Sequence[Tensor]) -> Tensor:
        """Interleave the sub-rows. Shapes: 4 x (N, M, 4*L), by dy1 then dy2 -> (N, M, 4G, 4G)."""
        rows = [plane.unflatten(2, (self.grid, -1)) for plane in planes]  # (N, M, G, 4G)
        return torch.stack(rows, dim=3).flatten(2, 3)

    def pixels(self, grow: Grow, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield the sub-rows, by dy1 then dy2. Shapes: the image's state, perhaps with skips() -> 4 x (N, 4*L, C/8)."""
        for dy1, half in enumerate(self.first_rows(grow, state)):
            for dy2 in SUBROWS:
                yield self.second_rows(half, dy2, state.get(FINE[2 * dy1 + dy2]))

    def forward(self, pixels: Iterable[Tensor], weights: Tensor) -> Tensor:
        """Weigh sub-rows, each as soon as it is there. Shapes: pixels(), (N, M, C/8) -> (N, M, 4G, 4G)."""
        return self.interleave([self.product(weights, rows) for rows in pixels])


class HqFeatures(nn.Module):
    """Do HQ-SAM's work on the image: grow both levels of its features, and add them."""

    def __init__(self, source: HighQualityMaskDecoder) -> None:
        super().__init__()
        self.embedding, self.interm = source.embedding_encoder, source.compress_vit_feat

    def forward(self, image: Tensor, interm: Tensor) -> Tensor:
        """Shapes: (1, C, G, G), (1, G, G, C') -> (1, C/8, 16*L)."""
        grown: Tensor = self.embedding(image) + self.interm(interm.permute(0, 3, 1, 2))
        return grown.flatten(2)


class HqMask(nn.Module):
    """Compute HQ-SAM's mask, the last 3x3 convolution and the mask product as one.

    Both are linear, so that the prompt's weights w make a kernel of one output channel out of the convolution's: its
    nine taps are products w @ W[tap] on the pixels, and a convolution of ones moves each tap's plane to its place.
    """

    taps: Tensor
    bias: Tensor
    places: Tensor

    def __init__(self, source: HighQualityMaskDecoder) -> None:
        super().__init__()
        first, norm, _, last = source.embedding_maskfeature
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        self.grid, self.mlp, self.first, self.product = source.spec.grid, source.hf_mlp, first, MaskProduct()
        self.norm = over_channels(norm)
        self.register_buffer("taps", last.weight.detach().permute(0, 2, 3, 1).flatten(1).contiguous())  # (C/8, 9*C/4)
        self.register_buffer("bias", last.bias.detach().unsqueeze(1).clone())  # (C/8, 1)
        self.register_buffer("places", torch.eye(TAPS).reshape(1, TAPS, 3, 3).to(last.weight))

    def forward(self, token: Tensor, pixels: tuple[Tensor, ...], features: Tensor | None) -> Tensor:
        """Shapes: (N, C), 4 x (N, 4*L, C/8) [, (1, C/8, 16*L)] -> (N, 1, 4G, 4G)."""
        size = 4 * self.grid
        rows = torch.stack([part.unflatten(1, (self.grid, -1)) for part in pixels], dim=2)  # (N, G, 4, 4G, C/8)
        refined = self.first(rows.flatten(1, 2).permute(0, 3, 1, 2))  # (N, C/4, 4G, 4G)
        refined = gelu(self.norm(refined.flatten(2).transpose(1, 2)))  # (N, 16*L, C/4)
        weights = self.mlp(token)  # (N, C/8)
        planes = self.product((weights @ self.taps).unflatten(1, (TAPS, -1)), refined)  # (N, 9, 16*L)
        mask = F.conv2d(planes.unflatten(2, (size, size)), self.places, padding=1)
        constant = weights @ (self.bias if features is None else features.squeeze(0) + self.bias)  # (N, 1 or 16*L)
        return mask + constant.unflatten(1, (1, -1, 1) if features is None else (1, size, size))


class HyperNetworks(nn.Module):
    """Run several tokens' three-layer MLPs as one batched product per layer."""

    def __init__(self, source: MaskDecoder, tokens: range) -> None:
        super().__init__()
        mlps = [source.output_hypernetworks_mlps[i] for i in tokens]
        self.activation = cast(MLP, mlps[0]).activation
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
            x = self.activation(x) if layer < 2 else x
        return x.transpose(0, 1)


def centred_outputs(weight: Tensor, channels: int) -> Tensor:
    """Centre a projection over the channels of each pixel, and append two that are zero.

    Shapes: (k * c, C) -> (k * (c + 2), C).
    """
    by_pixel = weight.unflatten(0, (-1, channels))
    return F.pad(by_pixel - by_pixel.mean(1, keepdim=True), (0, 0, 0, EXTRA)).flatten(0, 1)


def epsilon_bias(bias: Tensor, channels: int, eps: float) -> Tensor:
    """Centre a bias, and put the epsilon into its two more channels. Shapes: (k * c,) -> (k * (c + 2),)."""
    by_pixel = bias.unflatten(0, (-1, channels))
    root = math.sqrt(eps * channels / 2)
    extra = bias.new_tensor([root, -root]).expand(len(by_pixel), -1)
    return torch.cat([by_pixel - by_pixel.mean(1, keepdim=True), extra], dim=1).flatten()


def widened_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """Return the norm of channels and extra channels."""
    channels = norm.normalized_shape[0]
    weight, bias = norm.weight.detach(), norm.bias.detach()
    wide = nn.LayerNorm(channels + EXTRA, eps=0.0)
    wide.weight = nn.Parameter(F.pad(weight * math.sqrt(channels / (channels + EXTRA)), (0, EXTRA)))
    wide.bias = nn.Parameter(torch.cat([bias, bias.new_tensor(AFTER_NORM)]))
    return wide


def with_bias_row(weight: Tensor, bias: Tensor) -> Tensor:
    """Append a bias as weights on what GELU makes of the extra channels. Shapes: (c, m), (m,) -> (c + 2, m)."""
    one = F.gelu(bias.new_tensor(AFTER_NORM[0]))
    return torch.cat([weight, (bias / one).unsqueeze(0), torch.zeros_like(bias).unsqueeze(0)])
