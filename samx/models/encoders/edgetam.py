"""EdgeTAM's image encoder: a RepViT-M1 trunk under timm's names, and SAM 2's feature pyramid.

Source: EdgeTAM's, timm's and Hugging Face's names, shapes, order of operations and constants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.encoders.base import Architecture, Encoder, Weights, count_of, loaded_strictly
from samx.models.encoders.convolutions import Weigher, check_depths, check_shapes
from samx.models.encoders.repvit import UNUSED, SqueezeExcite, fused
from samx.models.fast.upscale import gelu
from samx.models.spec import HIGH_RES_CHANNELS, DecoderSpec

TITLE = "EdgeTAM"
DEPTHS = ((2, 2, 14, 2),)  # blocks of each stage, those of its beginning not counted
STAGES = 4
BODY = "trunk.body"


class Mlp(nn.Module):
    """Mix channels, add."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = of.conv(f"{name}.conv1"), of.conv(f"{name}.conv2")

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        return x + self.conv2(gelu(self.conv1(x)))


class Block(nn.Module):
    """Mix neighbours, then channels."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.token_mixer, self.channel_mixer = of.conv(f"{name}.token_mixer"), Mlp(of, f"{name}.channel_mixer")
        self.se = SqueezeExcite(of, f"{name}.se") if f"{name}.se.fc1.weight" in of.weights else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        return self.channel_mixer(self.se(self.token_mixer(x)))


class Downsample(nn.Module):
    """Go over to the next stage's width, and half the size."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.pre_block, self.ffn = Block(of, f"{name}.pre_block"), Mlp(of, f"{name}.ffn")
        self.spatial_downsample = of.conv(f"{name}.spatial_downsample", stride=2)
        self.channel_downsample = of.conv(f"{name}.channel_downsample")

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C', H / 2, W / 2)."""
        return self.ffn(self.channel_downsample(self.spatial_downsample(self.pre_block(x))))


class Stage(nn.Module):
    """Blocks of one width."""

    def __init__(self, of: Weigher, name: str, depth: int, *, is_first: bool) -> None:
        super().__init__()
        self.downsample = nn.Identity() if is_first else Downsample(of, f"{name}.downsample")
        self.blocks = nn.Sequential(*(Block(of, f"{name}.blocks.{i}") for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C', H', W')."""
        return self.blocks(self.downsample(x))


class Stem(nn.Module):
    """Take a quarter of the size."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = of.conv(f"{name}.conv1", stride=2), of.conv(f"{name}.conv2", stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, 3, S, S) -> (B, C, S / 4, S / 4)."""
        return self.conv2(gelu(self.conv1(x)))


class Body(nn.Module):
    """The stem and four stages, under timm's names."""

    def __init__(self, of: Weigher, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = Stem(of, f"{BODY}.stem")
        for i, depth in enumerate(depths):
            self.add_module(f"stages_{i}", Stage(of, f"{BODY}.stages_{i}", depth, is_first=i == 0))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return every stage's output. Shapes: (B, 3, S, S) -> (B, C, S / 4, S / 4), (B, C', S / 8, S / 8), ..."""
        stem, *stages = self.children()
        x, levels = stem(x), []
        for stage in stages:
            x = stage(x)
            levels.append(x)
        return levels


class Trunk(nn.Module):
    """The trunk, under the name that it has."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body


class Lateral(nn.Module):
    """The convolution between a stage and the pyramid, under the name that it has."""

    def __init__(self, of: Weigher, name: str, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(of.shape(f"{name}.conv.weight")[1], width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C', H, W)."""
        return self.conv(x)


class Neck(nn.Module):
    """The pyramid; nothing reaches its two finer levels from above."""

    def __init__(self, of: Weigher, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Lateral(of, f"neck.convs.{i}", width) for i in range(STAGES))

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (B, C, h, h), the finest first -> (B, 256, S / 16, S / 16) and the two finer ones, finest first."""
        above, tokens, coarse, fine = (conv(x) for conv, x in zip(self.convs, reversed(levels), strict=True))
        return tokens + F.interpolate(above, scale_factor=2.0, mode="nearest"), fine, coarse


class EdgeTAM(Encoder):
    """The encoder, as its weights have it, with what SAM 2 does to its features before they are decoded."""

    def __init__(self, of: Weigher, spec: DecoderSpec, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.picture_px = spec.image_size
        self.trunk, self.neck = Trunk(Body(of, depths)), Neck(of, spec.width)
        self.conv_s0, self.conv_s1 = (nn.Conv2d(spec.width, channels, 1) for channels in HIGH_RES_CHANNELS)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, spec.width))

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply convolutions that follow each other, and add what is always added to a bias."""
        _, tokens, coarse, fine = (lateral for lateral in self.neck.convs if isinstance(lateral, Lateral))
        fine.conv, coarse.conv = composed(fine.conv, self.conv_s0), composed(coarse.conv, self.conv_s1)
        bias_of(tokens.conv).add_(self.no_mem_embed.flatten())
        del self.conv_s0, self.conv_s1, self.no_mem_embed

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures, after fold().

        Shapes: (B, 3, S, S) -> (B, 256, S / 16, S / 16), (B, 32, S / 4, S / 4), (B, 64, S / 8, S / 8).
        """
        return self.neck(self.trunk.body(pixels))


def composed(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """Return one convolution for two of 1 x 1 pixel that follow each other."""
    both = nn.Conv2d(first.in_channels, second.out_channels, 1).requires_grad_(False)
    factors = second.weight[:, :, 0, 0].double()
    both.weight.copy_((factors @ first.weight[:, :, 0, 0].double())[:, :, None, None])
    bias_of(both).copy_(factors @ bias_of(first).double() + bias_of(second))
    return both


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return the bias of a convolution that has one."""
    assert conv.bias is not None
    return conv.bias


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build the encoder.

    Raises: CheckpointError for another number of blocks, and where weights are missing, left over or of other shapes.
    """
    depths = tuple(count_of(weights, f"{BODY}.stages_{i}.blocks") for i in range(STAGES))
    check_depths(depths, DEPTHS, TITLE)
    weights = fused(weights, TITLE)
    encoder = EdgeTAM(Weigher(weights, TITLE), spec, depths)
    loaded_strictly(encoder, weights, TITLE)
    encoder.fold()
    check_shapes(encoder, spec, TITLE)
    return encoder


ENCODER = Architecture(
    name="edgetam",
    title=TITLE,
    marks=(r"(?:^|\.)stages_0\.blocks\.0\.token_mixer\.",),
    build=build,
    renames=(
        (r"^backbone\.timm_model\.", f"{BODY}."),
        (r"^neck\.convs\.(\d+)\.(weight|bias)$", r"neck.convs.\1.conv.\2"),
    ),
    unused=UNUSED,
    size_step=32,
)
