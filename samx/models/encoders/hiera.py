"""SAM 2's image encoder: Hiera, whose maps shrink from stage to stage, and the lateral layers after it.

Heads, windows and the blocks that attend everywhere are in no weight's shape; a table of the released sizes has them.
Source: Meta's sam2 (Hiera, MultiScaleBlock, FpnNeck, SAM2Base, SAM2ImagePredictor and its configurations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from samx.models.encoders.attention import Attention, attended, cut, fold_attention, layer, uncut
from samx.models.encoders.base import Architecture, Encoder, Weights, count_of, loaded_strictly, refused, shape_of
from samx.models.fast.upscale import gelu
from samx.models.spec import DecoderSpec

TITLE = "SAM 2's Hiera"
EPS = 1e-6
STAGES, MLP_RATIO = 4, 4
SIZE_STEP_PX = 32  # 4 px a token of the first stage, and half as many tokens a side from stage to stage


@dataclass(frozen=True)
class Layout:
    """Hold what no shape says."""

    heads: int  # of the first stage; they double from stage to stage, as the width does
    windows: tuple[int, ...]  # tokens a side, a stage
    everywhere: tuple[int, ...]  # numbers of the blocks that attend everywhere


# (width, blocks a stage) of the released sizes: T, S, B+, L.
LAYOUTS: Mapping[tuple[int, tuple[int, ...]], Layout] = {
    (96, (1, 2, 7, 2)): Layout(1, (8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): Layout(1, (8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): Layout(2, (8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): Layout(2, (8, 4, 16, 8), (23, 33, 43)),
}


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of an encoder."""

    width: int  # of the first stage
    blocks: tuple[int, ...]  # a stage
    layout: Layout
    positions: int  # a side, of the coarse ones
    out_width: int

    @classmethod
    def of(cls, weights: Weights) -> Sizes:
        """Read them off weights.

        Raises: CheckpointError where they are none of a released encoder.
        """
        width = shape_of(weights, "trunk.patch_embed.proj.weight", 4, TITLE)[0]
        depth = count_of(weights, "trunk.blocks")
        # The first block of a stage widens its tokens, with a layer of its own.
        starts = [0, *(i for i in range(depth) if f"trunk.blocks.{i}.proj.weight" in weights), depth]
        blocks = tuple(after - before for before, after in pairwise(starts))
        layout = LAYOUTS.get((width, blocks))
        if layout is None:
            known = " or ".join(f"{width} wide, {list(blocks)}" for width, blocks in LAYOUTS)
            raise refused(TITLE, "has sizes that none has", f"{width} wide, {list(blocks)} blocks a stage", known)
        positions = shape_of(weights, "trunk.pos_embed", 4, TITLE)[2]
        return cls(width, blocks, layout, positions, shape_of(weights, "neck.convs.0.conv.weight", 4, TITLE)[0])


def pooled(tokens: Tensor) -> Tensor:
    """Return the largest of each 2 x 2 tokens, by channel. Shapes: (B, S, S, C) -> (B, S / 2, S / 2, C)."""
    side, width = tokens.shape[2:]
    for tail in (side * width, width):  # rows, then columns
        pairs = tokens.reshape(-1, 2, tail)
        tokens = torch.maximum(pairs[:, 0], pairs[:, 1])
    return tokens.reshape(-1, side // 2, side // 2, width)


class PooledAttention(Attention):
    """Attend within windows, or everywhere (window 0); at the start of a stage with pooled queries."""

    def __init__(self, width_in: int, width: int, heads: int, window: int) -> None:
        super().__init__(width_in, width, heads)
        self.window, self.pools = window, width_in != width

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens. Shapes: (B, S, S, C) -> the same, or (B, S / 2, S / 2, 2 C)."""
        side, window = tokens.shape[1], self.window
        q, k, v = self.q(tokens), self.k(tokens), self.v(tokens)
        k, v = (self.split(cut(each, window) if window else each) for each in (k, v))
        if self.pools:
            q, side, window = pooled(q), side // 2, window // 2
        q = self.split(cut(q, window) if window else q)
        mixed = self.joined(attended(q, k, v), window or side)
        return self.proj(uncut(mixed, side) if window else mixed)


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Change each token by itself."""
        first, second = self.layers
        return second(gelu(first(tokens)))


class Block(nn.Module):
    """Attention, then two layers for each token."""

    def __init__(self, width_in: int, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width_in, EPS), nn.LayerNorm(width, EPS)
        self.attn = PooledAttention(width_in, width, heads, window)
        self.mlp = Mlp(width)
        self.proj = nn.Linear(width_in, width) if width_in != width else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Change tokens. Shapes: (B, S, S, C) -> the same, or (B, S / 2, S / 2, 2 C)."""
        normed = self.norm1(tokens)
        shortcut = tokens if self.proj is None else pooled(self.proj(normed))
        tokens = shortcut + self.attn(normed)
        return tokens + self.mlp(self.norm2(tokens))


class Trunk(nn.Module):
    """Hiera: one map of tokens from each stage."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        layout, width = sizes.layout, sizes.width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 7, stride=4, padding=3)})
        self.pos_embed = nn.Parameter(torch.zeros(1, width, sizes.positions, sizes.positions))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, layout.windows[0], layout.windows[0]))
        stages = [stage for stage, count in enumerate(sizes.blocks) for _ in range(count)]
        self.ends = [i for i, stage in enumerate(stages) if stages[i + 1 : i + 2] != [stage]]
        self.blocks = nn.ModuleList()
        for i, (before, stage) in enumerate(zip([0, *stages], stages, strict=False)):
            window = 0 if i in layout.everywhere else layout.windows[before]  # a stage's first block has the old one
            self.blocks.append(Block(width << before, width << stage, layout.heads << stage, window))

    @torch.no_grad()
    def fold(self, picture_px: int) -> None:
        """Resize positions for a size of pictures."""
        side = picture_px // 4
        coarse = nn.functional.interpolate(self.pos_embed, (side, side), mode="bicubic")
        repeats = side // self.pos_embed_window.shape[2]
        positions = coarse + self.pos_embed_window.tile(1, 1, repeats, repeats)
        self.register_buffer("positions", positions.permute(0, 2, 3, 1).contiguous(), persistent=False)
        del self.pos_embed, self.pos_embed_window

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps, finest first. Shapes: (B, 3, px, px) -> (B, S, S, C) each."""
        tokens = self.patch_embed["proj"](pixels).permute(0, 2, 3, 1) + self.positions
        maps = []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i in self.ends:
                maps.append(tokens)
        return maps


class Neck(nn.Module):
    """Hold the lateral layers, coarsest map first."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        stages = reversed(range(STAGES))
        self.convs = nn.ModuleList(nn.ModuleDict({"conv": nn.Conv2d(width << stage, out_width, 1)}) for stage in stages)

    def levels(self) -> list[nn.Conv2d]:
        """List the layers."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]


def composed(first: nn.Conv2d, then: nn.Conv2d | None = None) -> nn.Linear:
    """Join convolutions of one pixel into a layer for tokens."""
    weight, bias = first.weight.flatten(1), first.bias
    assert bias is not None
    if then is not None:
        assert then.bias is not None
        outer = then.weight.flatten(1)
        weight, bias = outer @ weight, outer @ bias + then.bias
    return layer(weight, bias.clone())


class HieraEncoder(Encoder):
    """SAM 2's image encoder, with what its predictor does to the features."""

    def __init__(self, sizes: Sizes, spec: DecoderSpec) -> None:
        super().__init__()
        self.picture_px = spec.image_size
        self.trunk, self.neck = Trunk(sizes), Neck(sizes.width, sizes.out_width)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, sizes.out_width))
        fine, finer = (sizes.out_width // 4, sizes.out_width // 8)
        self.has_features = spec.high_res_features
        if self.has_features:
            self.conv_s0, self.conv_s1 = nn.Conv2d(sizes.out_width, finer, 1), nn.Conv2d(sizes.out_width, fine, 1)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold positions, biases and layers into each other; once, after loading."""
        self.trunk.fold(self.picture_px)
        fold_attention(self)
        top, middle, *skips = self.neck.levels()
        self.top, self.middle = composed(top), composed(middle)
        self.middle.bias.add_(self.top.bias + self.no_mem_embed.flatten())  # a constant stays one under enlargement
        self.top.bias.zero_()
        afters = [self.conv_s1, self.conv_s0] if self.has_features else []
        self.skips = nn.ModuleList(composed(skip, after) for skip, after in zip(skips, afters, strict=False))
        for name in ("neck", "no_mem_embed", *(("conv_s0", "conv_s1") if afters else ())):
            delattr(self, name)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: (B, 3, px, px) -> (B, 256, px / 16, px / 16), and of px / 4 and px / 8 a side."""
        *fine, middle, top = self.trunk(pixels)
        enlarged = nn.functional.interpolate(self.top(top).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
        embedding = self.middle(middle).permute(0, 3, 1, 2) + enlarged
        skips = zip(self.skips, reversed(fine), strict=False)
        return embedding, *reversed([skip(tokens).permute(0, 3, 1, 2) for skip, tokens in skips])


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build SAM 2's image encoder for the frame of a decoder, as upstream does when it is built with that size.

    Raises: CheckpointError for weights that are none of it, and for a frame that its stages do not divide.
    """
    if spec.image_size % SIZE_STEP_PX:
        expected = f"a multiple of {SIZE_STEP_PX} px"
        raise refused(TITLE, "cannot be built for this image size", f"{spec.image_size} px", expected)
    encoder = HieraEncoder(Sizes.of(weights), spec)
    loaded_strictly(encoder, weights, TITLE)
    encoder.fold()
    return encoder


def configuration(weights: Weights) -> dict[str, Any]:
    """Return what a configuration says of the encoder, where no shape says it."""
    layout = Sizes.of(weights).layout
    neck = {"fpn_kernel_size": 1, "fpn_stride": 1, "fpn_padding": 0, "fpn_top_down_levels": [2, 3]}
    trunk = {
        "patch_kernel_size": 7, "patch_stride": 4, "patch_padding": 3, "query_stride": 2, "num_query_pool_stages": 3,
        "num_attention_heads_per_stage": [layout.heads << stage for stage in range(STAGES)],
        "window_size_per_stage": list(layout.windows), "global_attention_blocks": list(layout.everywhere),
    }  # fmt: skip
    rest = {"hidden_act": "gelu", "layer_norm_eps": EPS}
    return {**neck, **rest, **{f"backbone_config.{name}": value for name, value in {**trunk, **rest}.items()}}


ENCODER = Architecture(
    name="hiera",
    title=TITLE,
    marks=(r"^trunk\.(?:pos_embed_window$|blocks\.\d+\.(?:proj|mlp\.layers)\.)",),
    build=build,
    renames=(
        (r"^backbone\.", "trunk."),
        (r"^(trunk\.patch_embed)\.projection\.", r"\1.proj."),
        (r"^(trunk\.blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
        (r"^(trunk\.blocks\.\d+\.mlp)\.proj_in\.", r"\1.layers.0."),
        (r"^(trunk\.blocks\.\d+\.mlp)\.proj_out\.", r"\1.layers.1."),
        (r"^neck\.convs\.(\d)\.(weight|bias)$", r"neck.convs.\1.conv.\2"),
    ),
    configuration=configuration,
    size_step=SIZE_STEP_PX,
)
