"""A small image encoder with an encoder's real parts, as a graph that takes bytes, and ways to build it wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.session import Feed, FloatArray, Outputs
from samx.models.spec import PIXELS, DecoderSpec

WIDTH, HEADS, STRIDES = 32, 2, (4, 2, 2)
EPS = 1e-6
PIXEL_GAIN = 2.5  # of each convolution: the features hang on the pixels more than on their places


class ToyEncoder(nn.Module):
    """Convolve, attend with a bias by distance, normalise: what a Vision Transformer does, in one layer."""

    def __init__(
        self, spec: DecoderSpec, eps: float = EPS, no_mem_embed: bool = True, gain: float = 1.0,
        interm_of_block: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        torch.manual_seed(5)
        self.gain, self.interm_of_block = gain, interm_of_block
        self.spec, self.eps, self.has_no_mem_embed = spec, eps, no_mem_embed
        widths = (3, WIDTH // 4, WIDTH // 2, WIDTH)
        patches = [nn.Conv2d(a, b, s, s) for a, b, s in zip(widths[:-1], widths[1:], STRIDES, strict=True)]
        for patch in patches:
            patch.weight.data.mul_(PIXEL_GAIN)
        self.patches = nn.ModuleList(patches)
        self.position = nn.Parameter(torch.randn(1, WIDTH, spec.grid, spec.grid) * 0.1)
        self.bias = nn.Parameter(torch.randn(HEADS, 2 * spec.grid - 1, 2 * spec.grid - 1))
        self.norm_1 = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.norm_2 = nn.Parameter(torch.rand(spec.width) + 0.5)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.neck = nn.Conv2d(WIDTH, spec.width, 1)
        self.fine = nn.Conv2d(WIDTH // 4, 32, 1)
        self.coarse = nn.Conv2d(WIDTH // 2, 64, 1)
        self.no_mem_embed = nn.Parameter(torch.randn(1, spec.width, 1, 1) * 0.1)
        self.eval().requires_grad_(False)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Normalise over channels, which come last, as one operation does it."""
        return F.layer_norm(x.float(), weight.shape, weight.float(), None, self.eps).to(x.dtype)

    def table(self) -> Tensor:
        """Return the attention's bias for each pair of places. Shapes: -> (heads, G*G, G*G)."""
        place = torch.arange(self.spec.grid)
        apart = place[:, None] - place[None] + self.spec.grid - 1
        rows = apart[:, None, :, None].expand(-1, self.spec.grid, -1, self.spec.grid)
        columns = apart[None, :, None, :].expand(self.spec.grid, -1, self.spec.grid, -1)
        return self.bias[:, rows, columns].reshape(HEADS, self.spec.grid**2, -1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode. Shapes: (B, 3, S, S) -> spec.image_inputs, B of each."""
        levels = [pixels]
        for patch in self.patches:
            levels.append(F.gelu(patch(levels[-1])))
        x = ((levels[-1] + self.position) * 0.1).flatten(2).mT  # small, so that the epsilon matters
        blocks = [x]
        normed = self.norm(x, self.norm_1)
        q, k, v = self.qkv(normed).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / k.shape[-1] ** 0.5 + self.table()).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        neck = self.neck(x.mT.unflatten(-1, (self.spec.grid, -1))) * self.gain
        embedding = self.norm(neck.permute(0, 2, 3, 1), self.norm_2).permute(0, 3, 1, 2)
        if self.spec.interm_width:
            blocks.append(x)
            return embedding, blocks[self.interm_of_block].unflatten(1, (self.spec.grid, -1))
        if not self.spec.high_res_features:
            return (embedding,)
        embedding = embedding + self.no_mem_embed if self.has_no_mem_embed else embedding
        return embedding, self.fine(levels[1]), self.coarse(levels[2])


def reference(encoder: ToyEncoder) -> Callable[[FloatArray], Feed]:
    """Return the reference encoder of pixels."""

    def encode(pixels: FloatArray) -> Feed:
        with torch.inference_mode():
            return named(encoder.spec, encoder(torch.from_numpy(pixels)))

    return encode


def named(spec: DecoderSpec, outputs: tuple[Tensor, ...]) -> Outputs:
    names = [tensor.name for tensor in spec.image_inputs]
    return {name: np.ascontiguousarray(value.float().numpy()) for name, value in zip(names, outputs, strict=True)}


def scaled(picture: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Normalise as a graph does: multiply, add, zeros beyond. Shapes: (B, 3, S, S), (B, 1, S, S) -> (B, 3, S, S)."""
    if kind == "minmax":
        least = (picture + 255 * (1 - mask)).amin((1, 2, 3), keepdim=True)
        return (picture - least) / ((picture * mask).amax((1, 2, 3), keepdim=True) - least) * mask
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in PIXELS[kind])
    return (picture * (1 / (255 * std)) - mean / std) * mask


def black_first(picture: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Normalise the black padding too."""
    return scaled(picture, torch.ones_like(mask), kind)


def std_first(picture: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Divide the mean alone."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in PIXELS[kind])
    return (picture / 255 - mean / std) * mask


@dataclass
class ToyGraph:
    """Take bytes, as an exported encoder does; computes in float64, so that an honest one rounds in another way."""

    encoder: ToyEncoder
    pixels: Callable[[Tensor, Tensor, str], Tensor] = scaled
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        self.encoder = self.encoder.to(self.dtype)

    def __call__(self, feed: Any) -> Outputs:
        spec = self.encoder.spec
        picture: NDArray[np.uint8] = feed["picture"]
        mask = np.ones((len(picture), 1, *picture.shape[1:3]), np.float32)
        for row, (height, width) in enumerate(feed.get("valid", ())):
            mask[row, :, height:] = mask[row, ..., width:] = 0
        values = torch.from_numpy(picture.transpose(0, 3, 1, 2).astype(np.float32))
        pixels = self.pixels(values, torch.from_numpy(mask), spec.pixels or "unit")
        with torch.inference_mode():
            return named(spec, self.encoder(pixels.to(self.dtype)))
