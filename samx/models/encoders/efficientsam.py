"""EfficientSAM's image encoder: a plain transformer of pictures, all of whose blocks attend everywhere.

Its positions are those of its pretraining at 224 px, a class token's first: they are resized to the frame's grid.
Source: EfficientSAM: ImageEncoderViT, build_efficient_sam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samx.models.encoders.attention import Attention, attended, fold_attention
from samx.models.encoders.base import (
    Architecture,
    Encoder,
    LayerNorm2d,
    Weights,
    count_of,
    loaded_strictly,
    refused,
    shape_of,
)
from samx.models.encoders.vit import Mlp, Patches
from samx.models.spec import DecoderSpec

TITLE = "EfficientSAM's ViT"
EPS = 1e-6
HEADS = {192: 3, 384: 6}  # of each released width: no shape tells


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of an encoder, read off its weights."""

    side: int  # of the positions that are there
    patch_px: int
    width: int
    mlp_width: int
    out_width: int
    depth: int

    @classmethod
    def of(cls, weights: Weights) -> Sizes:
        """Read them.

        Raises: CheckpointError where one is in no shape, and for a width whose heads are not known.
        """
        width, _, patch_px, _ = shape_of(weights, "patch_embed.proj.weight", 4, TITLE)
        positions = shape_of(weights, "pos_embed", 3, TITLE)[1] - 1
        side = math.isqrt(max(positions, 0))
        if width not in HEADS:
            raise refused(TITLE, "has a width whose heads are not known", width, " or ".join(map(str, HEADS)))
        if not positions or side * side != positions:
            raise refused(TITLE, "has positions of no square", f"{positions} and a class token's", "197, as released")
        return cls(
            side, patch_px, width, shape_of(weights, "blocks.0.mlp.lin1.weight", 2, TITLE)[0],
            shape_of(weights, "neck.0.weight", 4, TITLE)[0], count_of(weights, "blocks"),
        )  # fmt: skip


class PlainAttention(Attention):
    """Attend everywhere."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens. Shapes: (B, S, S, C) -> the same."""
        q, k, v = (self.split(project(tokens)) for project in (self.q, self.k, self.v))
        return self.proj(self.joined(attended(q, k, v), tokens.shape[1]))


class Block(nn.Module):
    """Attention, then two layers for each token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width, EPS), nn.LayerNorm(sizes.width, EPS)
        self.attn = PlainAttention(sizes.width, sizes.width, HEADS[sizes.width])
        self.mlp = Mlp(sizes.width, sizes.mlp_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Change tokens. Shapes: (B, S, S, C) -> the same."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PlainVitEncoder(Encoder):
    """EfficientSAM's image encoder; `place_positions` fits its positions to a grid, once they are loaded."""

    def __init__(self, sizes: Sizes, picture_px: int) -> None:
        super().__init__()
        self.picture_px = picture_px
        self.patch_embed = Patches(sizes.patch_px, sizes.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.side**2 + 1, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.width, sizes.out_width, 1, bias=False), LayerNorm2d(sizes.out_width, EPS),
            nn.Conv2d(sizes.out_width, sizes.out_width, 3, padding=1, bias=False), LayerNorm2d(sizes.out_width, EPS),
        )  # fmt: skip

    @torch.no_grad()
    def place_positions(self, grid: int) -> None:
        """Drop the class token's position, and resize the others. Shapes: (1, 1 + S * S, C) -> (1, G, G, C)."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        positions = self.pos_embed[:, 1:].unflatten(1, (side, side))
        if side != grid:
            planes = positions.permute(0, 3, 1, 2)
            planes = nn.functional.interpolate(planes, (grid, grid), mode="bicubic", align_corners=False)
            positions = planes.permute(0, 2, 3, 1)
        self.pos_embed = nn.Parameter(positions.contiguous(), requires_grad=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: (B, 3, px, px) -> (B, 256, S, S)."""
        tokens = self.patch_embed(pixels) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return (self.neck(tokens.permute(0, 3, 1, 2)),)


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build EfficientSAM's image encoder for the frame of a decoder.

    Raises: CheckpointError for weights that are none of it.
    """
    sizes = Sizes.of(weights)
    if sizes.patch_px != spec.patch_px:
        raise refused(TITLE, "has patches of another size", f"{sizes.patch_px} px", f"{spec.patch_px} px")
    encoder = PlainVitEncoder(sizes, spec.image_size)
    loaded_strictly(encoder, weights, TITLE)
    encoder.place_positions(spec.grid)
    fold_attention(encoder)
    return encoder


ENCODER = Architecture(
    name="efficientsam",
    title=TITLE,
    marks=(r"^blocks\.\d+\.attn\.qkv\.", r"^patch_embed\.proj\.", r"^blocks\.\d+\.mlp\.lin1\."),
    build=build,
    renames=((r"^(blocks\.\d+\.mlp)\.fc([12])\.", r"\1.lin\2."),),
    size_step=16,
)
