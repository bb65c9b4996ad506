"""EdgeTAM's image encoder: a RepViT-M1 trunk under timm's names, and SAM 2's feature pyramid.

Source: EdgeTAM's, timm's and Hugging Face's names, shapes, order of operations and constants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.encoders.base import Architecture, Encoder, Weights, count_of, loaded_strictly, refused
from samx.models.encoders.convolutions import Weigher
from samx.models.encoders.repvit import UNUSED, SqueezeExcite, fused
from samx.models.spec import DecoderSpec

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
        return x + self.conv2(F.gelu(self.conv1(x)))


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
        return self.conv2(F.gelu(self.conv1(x)))


class EdgeTAM(Encoder):
    """The encoder, as its weights have it."""

    def __init__(self, of: Weigher, spec: DecoderSpec, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.picture_px = spec.image_size
        stages = [Stage(of, f"{BODY}.stages_{i}", depth, is_first=i == 0) for i, depth in enumerate(depths)]
        named = {f"stages_{i}": stage for i, stage in enumerate(stages)}
        self.trunk = nn.ModuleDict({"body": nn.ModuleDict({"stem": Stem(of, f"{BODY}.stem"), **named})})
        laterals = [nn.ModuleDict({"conv": of.conv(f"neck.convs.{i}.conv")}) for i in range(STAGES)]
        self.neck = nn.ModuleDict({"convs": nn.ModuleList(laterals)})
        self.conv_s0, self.conv_s1 = of.conv("conv_s0"), of.conv("conv_s1")
        self.no_mem_embed = nn.Parameter(torch.zeros(of.shape("no_mem_embed", 3)))

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply convolutions that follow each other, and add what is always added to a bias."""
        fine, coarse, tokens, _ = self.laterals()
        self.neck["convs"][3]["conv"], self.conv_s0 = composed(fine, self.conv_s0), nn.Identity()
        self.neck["convs"][2]["conv"], self.conv_s1 = composed(coarse, self.conv_s1), nn.Identity()
        tokens.bias.add_(self.no_mem_embed.flatten())
        self.no_mem_embed.zero_()

    def laterals(self) -> list[nn.Conv2d]:
        """Return the pyramid's convolutions, the finest first."""
        return [lateral["conv"] for lateral in reversed(self.neck["convs"])]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures; nothing reaches the two finer levels from above. fold() has been called.

        Shapes: (B, 3, S, S) -> (B, 256, S / 16, S / 16), (B, 32, S / 4, S / 4), (B, 64, S / 8, S / 8).
        """
        body = self.trunk["body"]
        levels, x = [], body["stem"](pixels)
        for i in range(STAGES):
            x = body[f"stages_{i}"](x)
            levels.append(x)
        fine, coarse, tokens, above = (lateral(x) for lateral, x in zip(self.laterals(), levels, strict=True))
        return tokens + F.interpolate(above, scale_factor=2.0, mode="nearest"), fine, coarse


def composed(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """Return one convolution for two of 1 x 1 pixel that follow each other."""
    weight, bias = (parameter.double() for parameter in (second.weight[:, :, 0, 0], first.bias))
    both = nn.Conv2d(first.in_channels, second.out_channels, 1)
    both.weight.copy_((weight @ first.weight[:, :, 0, 0].double())[:, :, None, None])
    both.bias.copy_(weight @ bias + second.bias)
    return both.requires_grad_(False)


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build the encoder.

    Raises: CheckpointError for another number of blocks, and where weights are missing, left over or of other shapes.
    """
    depths = tuple(count_of(weights, f"{BODY}.stages_{i}.blocks") for i in range(STAGES))
    if depths not in DEPTHS:
        raise refused(TITLE, "has another number of blocks", depths, " or ".join(map(str, DEPTHS)))
    weights = fused(weights, TITLE)
    encoder = EdgeTAM(Weigher(weights, TITLE), spec, depths)
    loaded_strictly(encoder, weights, TITLE)
    encoder.fold()
    return encoder


ENCODER = Architecture(
    name="edgetam",
    title=TITLE,
    marks=(r"(?:^|\.)stages_0\.blocks\.0\.token_mixer\.",),
    build=build,
    renames=(
        (r"^backbone\.timm_model\.", f"{BODY}."),
        (r"^neck\.convs\.(\d+)\.(weight|bias)$", r"neck.convs.\1.conv.\2"),
        (r"^no_memory_embedding$", "no_mem_embed"),
    ),
    unused=UNUSED,
    size_step=32,
)
