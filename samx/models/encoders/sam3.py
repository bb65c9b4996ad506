"""SAM 3's image encoder: a plain transformer with rotary positions, and a pyramid made of its last map alone.

SAM 3.1's has the same layers. The rotary positions are computed as upstream does, as cosines and sines; a file that
holds them as complex numbers is not asked. Heads, windows and the blocks that attend everywhere are in no weight's
shape; a table of the released sizes has them.
Source: Meta's sam3 (vitdet, Sam3DualViTDetNeck, model_builder, SAM3InteractiveImagePredictor); transformers' Sam3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from samx.models.encoders.attention import Attention, attended, cut, fold_attention, layer, uncut
from samx.models.encoders.base import Architecture, Encoder, Weights, count_of, loaded_strictly, refused, shape_of
from samx.models.fast.upscale import gelu
from samx.models.spec import HIGH_RES_CHANNELS, DecoderSpec

TITLE = "SAM 3's ViT"
META_EPS, HUGGING_FACE_EPS = 1e-5, 1e-6  # they differ, and neither is in a weight
THETA = 10000.0  # of the rotary positions
SEPARATE = re.compile(r"^(.*)\.([qkv])_proj\.(weight|bias)$")  # Hugging Face's projections, which Meta has in one


@dataclass(frozen=True)
class Layout:
    """Hold what no shape says."""

    heads: int
    window: int  # tokens a side; rotary positions are those of one window, stretched over the whole map
    everywhere: tuple[int, ...]  # numbers of the blocks that attend everywhere


# (width, blocks) of the released size.
LAYOUTS: Mapping[tuple[int, int], Layout] = {(1024, 32): Layout(16, 24, (7, 15, 23, 31))}


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of an encoder."""

    patch_px: int
    width: int
    depth: int
    mlp_width: int
    positions: int  # a side, which are repeated over the map
    out_width: int
    layout: Layout

    @classmethod
    def of(cls, weights: Weights) -> Sizes:
        """Read them off weights.

        Raises: CheckpointError where they are none of a released encoder.
        """
        width, _, patch_px, _ = shape_of(weights, "trunk.patch_embed.proj.weight", 4, TITLE)
        depth = count_of(weights, "trunk.blocks")
        layout = LAYOUTS.get((width, depth))
        if layout is None:
            known = " or ".join(f"{width} wide, {depth} blocks" for width, depth in LAYOUTS)
            raise refused(TITLE, "has sizes that none has", f"{width} wide, {depth} blocks", known)
        positions = shape_of(weights, "trunk.pos_embed", 3, TITLE)[1]
        mlp_width = shape_of(weights, "trunk.blocks.0.mlp.fc1.weight", 2, TITLE)[0]
        out_width = shape_of(weights, "convs.2.conv_1x1.weight", 4, TITLE)[0]
        return cls(patch_px, width, depth, mlp_width, isqrt(positions), out_width, layout)


class RotaryAttention(Attention):
    """Attend within windows, or everywhere, with queries and keys turned by their places."""

    cosine: Tensor  # Shape: (side * side, C / heads / 2)
    sine: Tensor
    k_bias: Tensor

    def __init__(self, sizes: Sizes, side: int, is_global: bool) -> None:
        super().__init__(sizes.width, sizes.width, sizes.layout.heads)
        self.side, self.is_global, self.span = side, is_global, sizes.layout.window

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the scale and v's bias, and order channels so that the halves of a head turn, and not its pairs.

        A turned bias of k is another for each key: it stays.
        """
        k_bias = self.qkv.bias.chunk(3)[1]
        super().fold()
        width = self.proj.in_features
        order = torch.arange(width).reshape(self.heads, -1, 2).transpose(1, 2).flatten()
        self.q, self.k = layer(self.q.weight[order], self.q.bias[order]), layer(self.k.weight[order])
        self.register_buffer("k_bias", k_bias[order].clone(), persistent=False)
        for name, turned in zip(("cosine", "sine"), rotations(width // self.heads, self.side, self.span), strict=True):
            self.register_buffer(name, turned, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens. Shapes: (B, S, S, C) -> the same."""
        q, k, v = (each if self.is_global else cut(each, self.side) for each in self.projected(tokens))
        mixed = attended(self.turned(self.split(q)), self.turned(self.split(k + self.k_bias)), self.split(v))
        joined = self.joined(mixed, self.side)
        return self.proj(joined if self.is_global else uncut(joined, tokens.shape[1]))

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys without their bias, and values. Shapes: (B, S, S, C) -> the same, thrice."""
        return self.q(tokens), self.k(tokens), self.v(tokens)

    def turned(self, heads: Tensor) -> Tensor:
        """Turn each pair of channels by its place. Shapes: (N, heads, L, C / heads) -> the same."""
        a, b = heads.chunk(2, dim=-1)
        return torch.cat([a * self.cosine - b * self.sine, b * self.cosine + a * self.sine], dim=-1)


def rotations(width: int, side: int, span: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of a square map: the first half of the channels turns by x, the other by y.

    Shapes: -> (side * side, width / 2), twice.
    """
    frequencies = 1 / THETA ** (torch.arange(0, width, 4)[: width // 4].float() / width)
    places = torch.arange(side * side, dtype=torch.float32)
    x, y = (places % side) * (span / side), (places // side) * (span / side)
    angles = torch.cat([torch.outer(x, frequencies), torch.outer(y, frequencies)], dim=-1)
    return angles.cos(), angles.sin()


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Change each token by itself."""
        return self.fc2(gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Attention, then two layers for each token."""

    def __init__(self, sizes: Sizes, number: int, grid: int, eps: float) -> None:
        super().__init__()
        is_global = number in sizes.layout.everywhere
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width, eps), nn.LayerNorm(sizes.width, eps)
        self.attn = RotaryAttention(sizes, grid if is_global else sizes.layout.window, is_global)
        self.mlp = Mlp(sizes.width, sizes.mlp_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Change tokens. Shapes: (B, S, S, C) -> the same."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Trunk(nn.Module):
    """The transformer."""

    def __init__(self, sizes: Sizes, grid: int, eps: float) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, sizes.width, sizes.patch_px, stride=sizes.patch_px, bias=False)}
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.positions**2, sizes.width))
        self.ln_pre = nn.LayerNorm(sizes.width, eps)
        self.blocks = nn.ModuleList(Block(sizes, i, grid, eps) for i in range(sizes.depth))

    @torch.no_grad()
    def fold(self) -> None:
        """Repeat the positions over the map; once, after loading."""
        side = isqrt(self.pos_embed.shape[1])
        times = -(-self.grid // side)
        tiled = self.pos_embed.reshape(1, side, side, -1).repeat(1, times, times, 1)
        self.pos_embed = nn.Parameter(tiled[:, : self.grid, : self.grid].contiguous(), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pictures. Shapes: (B, 3, px, px) -> (B, S, S, C)."""
        tokens = self.ln_pre(self.patch_embed["proj"](pixels).permute(0, 2, 3, 1) + self.pos_embed)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def levels(width: int, out_width: int) -> nn.ModuleList:
    """Return the layers of the pyramid: maps of 4, 2 and 1 times the size, finest first."""
    grow, narrow = nn.ConvTranspose2d, nn.Conv2d
    before: list[dict[str, nn.Module]] = [
        {
            "dconv_2x2_0": grow(width, width // 2, 2, stride=2),
            "dconv_2x2_1": grow(width // 2, width // 4, 2, stride=2),
        },
        {"dconv_2x2": grow(width, width // 2, 2, stride=2)},
        {},
    ]
    after = [
        {"conv_1x1": narrow(wide, out_width, 1), "conv_3x3": narrow(out_width, out_width, 3, padding=1)}
        for wide in (width // 4, width // 2, width)
    ]
    return nn.ModuleList(nn.ModuleDict({**one, **two}) for one, two in zip(before, after, strict=True))


@torch.no_grad()
def grower(grow: nn.Module, then: nn.Module | None = None) -> nn.Linear:
    """Return a transposed convolution of 2 x 2 as one product, which does what a convolution of single pixels after it
    does too; a place's outputs are ordered by row, then column.
    """
    assert isinstance(grow, nn.ConvTranspose2d)
    assert grow.bias is not None
    weight, bias = grow.weight.double(), grow.bias.double()  # (in, out, 2, 2)
    if then is not None:
        assert isinstance(then, nn.Conv2d)
        assert then.bias is not None
        outer = then.weight.flatten(1).double()
        weight, bias = torch.einsum("po,iohw->iphw", outer, weight), outer @ bias + then.bias
    return layer(weight.permute(2, 3, 1, 0).flatten(0, 2).float(), bias.repeat(4).float())


def grown(tokens: Tensor, by: nn.Module) -> Tensor:
    """Enlarge a map. Shapes: (B, H, W, C) -> (B, 2 H, 2 W, D)."""
    height, width, products = tokens.shape[1], tokens.shape[2], by(tokens)
    rows: Tensor = products.reshape(-1, width, 2, products.shape[-1] // 2).transpose(1, 2)
    return rows.reshape(-1, 2 * height, 2 * width, products.shape[-1] // 4)


class Sam3Encoder(Encoder):
    """SAM 3's image encoder, with what its predictor does to the features."""

    def __init__(self, sizes: Sizes, spec: DecoderSpec, eps: float) -> None:
        super().__init__()
        self.picture_px = spec.image_size
        self.trunk = Trunk(sizes, spec.grid, eps)
        self.convs = levels(sizes.width, sizes.out_width)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, sizes.out_width))
        self.conv_s0, self.conv_s1 = (nn.Conv2d(sizes.out_width, channels, 1) for channels in HIGH_RES_CHANNELS)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold positions, biases and layers into each other; once, after loading."""
        self.trunk.fold()
        fold_attention(self)
        fine, coarse, top = (dict(level.named_children()) for level in self.convs)
        self.grow = nn.ModuleList(
            [
                grower(fine["dconv_2x2_0"]),
                grower(fine["dconv_2x2_1"], fine["conv_1x1"]),
                grower(coarse["dconv_2x2"], coarse["conv_1x1"]),
            ]
        )
        self.narrow, self.last = top["conv_1x1"], nn.ModuleList(level["conv_3x3"] for level in (fine, coarse, top))
        top["conv_3x3"].get_parameter("bias").add_(self.no_mem_embed.flatten())
        del self.no_mem_embed, self.convs

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: (B, 3, px, px) -> (B, 256, S, S), and of 4 S and 2 S a side."""
        tokens = self.trunk(pixels)
        first, second, only = self.grow
        finer = grown(gelu(grown(tokens, first)), second).permute(0, 3, 1, 2)
        coarser = grown(tokens, only).permute(0, 3, 1, 2)
        fine, coarse, top = self.last
        embedding = top(self.narrow(tokens.permute(0, 3, 1, 2)))
        return embedding, self.conv_s0(fine(finer)), self.conv_s1(coarse(coarser))


def as_metas(weights: Weights) -> Weights:
    """Join Hugging Face's projections, and drop Meta's position of a token that is never there.

    Raises: CheckpointError where one of three projections is not there.
    """
    joined = {name: tensor for name, tensor in weights.items() if not SEPARATE.search(name)}
    for stem, leaf in {(match[1], match[3]) for name in weights if (match := SEPARATE.search(name))}:
        names = [f"{stem}.{part}_proj.{leaf}" for part in "qkv"]
        if len({shape_of(weights, name, 1 + (leaf == "weight"), TITLE) for name in names}) > 1:
            raise refused(TITLE, "has weights of the wrong shape", names[0], "one shape of q, k and v")
        joined[f"{stem}.qkv.{leaf}"] = torch.cat([weights[name] for name in names])
    positions = joined.get("trunk.pos_embed")
    if positions is not None and positions.ndim == 3 and isqrt(positions.shape[1]) ** 2 + 1 == positions.shape[1]:
        joined["trunk.pos_embed"] = positions[:, 1:]
    return joined


def is_hugging_faces(weights: Weights) -> bool:
    """Tell whether projections lie apart."""
    return any(SEPARATE.search(name) for name in weights)


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build SAM 3's image encoder for the frame of a decoder, as upstream does when it is built with that size.

    Raises: CheckpointError for weights that are none of it.
    """
    metas = as_metas(weights)
    sizes, eps = Sizes.of(metas), HUGGING_FACE_EPS if is_hugging_faces(weights) else META_EPS
    encoder = Sam3Encoder(sizes, spec, eps)
    loaded_strictly(encoder, metas, TITLE)
    encoder.fold()
    return encoder


def configuration(weights: Weights) -> dict[str, Any]:
    """Return what a configuration says of the encoder, where no shape says it."""
    sizes = Sizes.of(as_metas(weights))
    trunk = {
        "hidden_act": "gelu", "layer_norm_eps": HUGGING_FACE_EPS, "num_attention_heads": sizes.layout.heads,
        "window_size": sizes.layout.window, "global_attn_indexes": list(sizes.layout.everywhere),
        "layer_scale_init_value": None, "rope_parameters.rope_theta": THETA, "rope_parameters.rope_type": "axial",
    }  # fmt: skip
    return {f"backbone_config.{name}": value for name, value in trunk.items()}


ENCODER = Architecture(
    name="sam3",
    title=TITLE,
    marks=(r"^trunk\.(?:ln_pre\.|blocks\.\d+\.attn\.[qkv])", r"^convs\.0\."),
    build=build,
    renames=(
        (r"^trunk\.embeddings\.patch_embeddings\.projection\.", "trunk.patch_embed.proj."),
        (r"^trunk\.embeddings\.position_embeddings$", "trunk.pos_embed"),
        (r"^trunk\.layer_norm\.", "trunk.ln_pre."),
        (r"^trunk\.layers\.(\d+)\.", r"trunk.blocks.\1."),
        (r"^(trunk\.blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
        (r"^(trunk\.blocks\.\d+)\.attention\.o_proj\.", r"\1.attn.proj."),
        (r"^(trunk\.blocks\.\d+)\.attention\.", r"\1.attn."),
        (r"^convs\.0\.scale_layers\.0\.", "convs.0.dconv_2x2_0."),
        (r"^convs\.0\.scale_layers\.2\.", "convs.0.dconv_2x2_1."),
        (r"^convs\.1\.scale_layers\.0\.", "convs.1.dconv_2x2."),
        (r"^(convs\.\d)\.proj1\.", r"\1.conv_1x1."),
        (r"^(convs\.\d)\.proj2\.", r"\1.conv_3x3."),
    ),
    unused=(
        r"\.freqs_cis$",
        r"^convs\.3\.",
        r"^position_encoding\.",
    ),  # a map of half the size, which goes to no decoder
    configuration=configuration,
    size_step=14,
)
