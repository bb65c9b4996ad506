"""SAM's image encoder: a plain transformer, most of whose blocks attend within windows.

Every size is in a weight's shape. MedSAM, SAM-Med2D and other fine-tunes have the same names.
Source: Meta's segment_anything (ImageEncoderViT); SAM-Med2D's adapters and how it resizes positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samx.models.encoders.attention import QUERIES, Attention, attended, cut, fold_attention, uncut
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
from samx.models.fast.upscale import gelu
from samx.models.spec import DecoderSpec

TITLE = "SAM's ViT"
EPS = 1e-6
ADAPTER = "blocks.{}.Adapter.channel.0.weight"


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of an encoder, read off its weights."""

    grid: int  # tokens a side
    patch_px: int
    width: int
    head_width: int
    mlp_width: int
    out_width: int
    sides: tuple[int, ...]  # of each block: how far its relative positions reach
    adapters: tuple[int, ...]  # of each block: width of the hidden layer, 0 where it has none

    @classmethod
    def of(cls, weights: Weights) -> Sizes:
        """Read them.

        Raises: CheckpointError where one is in no shape.
        """
        width, _, patch_px, _ = shape_of(weights, "patch_embed.proj.weight", 4, TITLE)
        grid = shape_of(weights, "pos_embed", 4, TITLE)[1]
        depth = count_of(weights, "blocks")
        tables = [shape_of(weights, f"blocks.{i}.attn.rel_pos_h", 2, TITLE) for i in range(depth)]
        adapters = [ADAPTER.format(i) for i in range(depth)]
        if not tables or width % tables[0][1]:
            raise refused(TITLE, "has a width that heads do not divide", width, "a multiple of a head's width")
        return cls(
            grid, patch_px, width, tables[0][1], shape_of(weights, "blocks.0.mlp.lin1.weight", 2, TITLE)[0],
            shape_of(weights, "neck.0.weight", 4, TITLE)[0], tuple((length + 1) // 2 for length, _ in tables),
            tuple(shape_of(weights, name, 2, TITLE)[0] if name in weights else 0 for name in adapters),
        )  # fmt: skip


class RelativeAttention(Attention):
    """Attend within windows, or everywhere, with a learned term for the distance down and the distance across."""

    down: Tensor  # of a query's row and a key's. Shape: (side, channels, side)
    across: Tensor

    def __init__(self, sizes: Sizes, side: int) -> None:
        super().__init__(sizes.width, sizes.width, sizes.width // sizes.head_width)
        self.side, self.is_global = side, side == sizes.grid
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, sizes.head_width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, sizes.head_width))

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the scale and the biases, and lay the terms out by query and key."""
        super().fold()
        places = torch.arange(self.side)
        distances = places[:, None] - places[None, :] + self.side - 1
        for name, table in (("down", self.rel_pos_h), ("across", self.rel_pos_w)):
            terms = (table / self.scale)[distances].transpose(1, 2).contiguous()  # query, channel, key
            self.register_buffer(name, terms, persistent=False)
        del self.rel_pos_h, self.rel_pos_w

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens. Shapes: (B, S, S, C) -> the same."""
        projected = (project(tokens) for project in (self.q, self.k, self.v))
        q, k, v = (self.split(each if self.is_global else cut(each, self.side)) for each in projected)
        queries = max(1, QUERIES // self.side) * self.side  # whole rows
        mixed = self.joined(attended(q, k, v, queries, self.moved), self.side)
        return self.proj(mixed if self.is_global else uncut(mixed, tokens.shape[1]))

    def moved(self, scores: Tensor, q: Tensor, start: int) -> Tensor:
        """Add the terms to the scores of some rows of queries."""
        side, first = self.side, start // self.side
        rows = q.reshape(-1, q.shape[2] // side, side, q.shape[3])
        down = rows @ self.down[first : first + rows.shape[1]]
        across = (rows.transpose(1, 2) @ self.across).transpose(1, 2)
        placed = scores.reshape(-1, rows.shape[1], side, side, side)
        return (placed + down[..., :, None] + across[..., None, :]).reshape(scores.shape)


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Change each token by itself."""
        return self.lin2(gelu(self.lin1(tokens)))


class Adapter(nn.Module):
    """SAM-Med2D's: channels weighed by their mean, then a convolution to half the size and back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)  # with PyTorch's own epsilon, unlike the block's
        layers = nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid()
        self.channel = nn.Sequential(*layers)
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False), nn.ReLU(),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added to tokens. Shapes: (B, S, S, C) -> the same."""
        weighed = self.channel(tokens.mean((1, 2), keepdim=True)) * tokens
        return self.norm(tokens + self.spatial(weighed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Block(nn.Module):
    """Attention, then two layers for each token; an adapter beside them in some models."""

    def __init__(self, sizes: Sizes, side: int, adapter: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width, EPS), nn.LayerNorm(sizes.width, EPS)
        self.attn = RelativeAttention(sizes, side)
        self.mlp = Mlp(sizes.width, sizes.mlp_width)
        self.Adapter = Adapter(sizes.width, adapter) if adapter else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Change tokens. Shapes: (B, S, S, C) -> the same."""
        tokens = tokens + self.attn(self.norm1(tokens))
        normed = self.norm2(tokens)
        changed = tokens + self.mlp(normed)
        return changed if self.Adapter is None else changed + self.Adapter(normed)


class Patches(nn.Module):
    """One token for each patch of pixels."""

    def __init__(self, patch_px: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, stride=patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        """Make tokens. Shapes: (B, 3, px, px) -> (B, S, S, C)."""
        return self.proj(pixels).permute(0, 2, 3, 1)


class VitEncoder(Encoder):
    """SAM's image encoder; with `interm`, it also returns the tokens after the first block that attends everywhere."""

    def __init__(self, sizes: Sizes, interm: bool = False) -> None:
        super().__init__()
        if interm and sizes.grid not in sizes.sides:
            raise refused(TITLE, "has no block that attends everywhere", sizes.sides, f"a block of side {sizes.grid}")
        self.interm_after = sizes.sides.index(sizes.grid) if interm else None
        self.picture_px = sizes.grid * sizes.patch_px
        self.patch_embed = Patches(sizes.patch_px, sizes.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.grid, sizes.grid, sizes.width))
        blocks = zip(sizes.sides, sizes.adapters, strict=True)
        self.blocks = nn.ModuleList(Block(sizes, side, adapter) for side, adapter in blocks)
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.width, sizes.out_width, 1, bias=False), LayerNorm2d(sizes.out_width, EPS),
            nn.Conv2d(sizes.out_width, sizes.out_width, 3, padding=1, bias=False), LayerNorm2d(sizes.out_width, EPS),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: (B, 3, px, px) -> (B, 256, S, S) [, (B, S, S, C)]."""
        tokens, interm = self.patch_embed(pixels) + self.pos_embed, []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i == self.interm_after:
                interm.append(tokens)
        return (self.neck(tokens.permute(0, 3, 1, 2)), *interm)


def resampled(weights: Weights, grid: int) -> Weights:
    """Resize what is learned for each position to another grid; windows stay as they are."""
    sizes = Sizes.of(weights)
    positions = weights["pos_embed"].permute(0, 3, 1, 2)
    changed = {"pos_embed": _linear(positions, (grid, grid)).permute(0, 2, 3, 1)}
    for i, side in enumerate(sizes.sides):
        if side == sizes.grid:
            for name in (f"blocks.{i}.attn.rel_pos_h", f"blocks.{i}.attn.rel_pos_w"):
                changed[name] = _linear(weights[name].T[None], (2 * grid - 1,))[0].T
    return {**weights, **changed}


def _linear(values: Tensor, size: tuple[int, ...]) -> Tensor:
    return nn.functional.interpolate(values, size, mode="linear" if len(size) == 1 else "bilinear", align_corners=False)


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build SAM's image encoder for the frame of a decoder.

    Raises: CheckpointError for weights that are none of it.
    """
    released = Sizes.of(weights)
    if spec.grid != released.grid:
        weights = resampled(weights, spec.grid)
    encoder = VitEncoder(Sizes.of(weights), interm=spec.interm_width > 0)
    loaded_strictly(encoder, weights, TITLE)
    fold_attention(encoder)
    if spec.grid != released.grid:
        trained_px = released.grid * released.patch_px
        encoder.notes = (
            f"The image encoder was trained at {trained_px} px; its positions were resampled for {spec.image_size} px, "
            "which is an approximation, as nothing was trained at that size.",
        )
    return encoder


def configuration(weights: Weights) -> dict[str, Any]:
    """Return what a configuration says of the encoder, where no shape says it."""
    sizes = Sizes.of(weights)
    return {
        "hidden_act": "gelu", "layer_norm_eps": EPS, "num_attention_heads": sizes.width // sizes.head_width,
        "qkv_bias": True, "use_abs_pos": True, "use_rel_pos": True,
    }  # fmt: skip


ENCODER = Architecture(
    name="vit",
    title=TITLE,
    marks=(r"^blocks\.\d+\.attn\.(?:qkv|rel_pos_h)\b|^patch_embed\.proj\.weight$", r"^(?:blocks|neck)\."),
    build=build,
    renames=(
        (r"^layers\.(\d+)\.(?=layer_norm|attn\.|mlp\.lin)", r"blocks.\1."),
        (r"^(blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^neck\.conv1\.", "neck.0."),
        (r"^neck\.layer_norm1\.", "neck.1."),
        (r"^neck\.conv2\.", "neck.2."),
        (r"^neck\.layer_norm2\.", "neck.3."),
    ),
    configuration=configuration,
    size_step=1,
)
