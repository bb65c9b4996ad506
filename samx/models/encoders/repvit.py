"""RepViT, the image encoder of EdgeSAM and RepViT-SAM, and the trunk of EdgeTAM's.

A block mixes neighbours with a depthwise kernel, which is trained as three branches, and channels with two products.
The branches are folded into one kernel; publishers do the same for deployment, and their files are taken too.
Source: RepViT's and EdgeSAM's names, shapes, order of operations and constants.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.encoders.base import Architecture, Encoder, Weights, count_of, loaded_strictly, shape_of
from samx.models.encoders.convolutions import (
    Bicubic,
    Gelu,
    OpList,
    Weigher,
    check_depths,
    check_shapes,
    fold_batch_norm,
    taken,
    without_batch_norms,
)
from samx.models.spec import DecoderSpec

TITLE = "RepViT"
# Blocks of each stage, the one that halves the size being the first of its stage: M1, M2, M3; RepViT-SAM's M2.3.
DEPTHS = ((3, 4, 16, 3), (3, 4, 14, 3), (5, 6, 20, 3), (7, 8, 36, 3))
NORM_EPS = 1e-5
UNUSED = (r"\.num_batches_tracked$",)
BRANCHES = (("conv", 3), ("conv1", 1))  # with the side of their kernels
BRANCH = re.compile(r"\.token_mixer(?:\.0)?\.conv1\.weight$")


class SqueezeExcite(nn.Module):
    """Weigh channels by what the whole picture has in them."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = of.conv(f"{name}.fc1"), of.conv(f"{name}.fc2")

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class Residual(nn.Module):
    """Add what is computed."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        return x + self.m(x)


class Block(nn.Module):
    """Mix neighbours, then channels."""

    def __init__(self, of: Weigher, name: str, stride: int) -> None:
        super().__init__()
        token, channel = f"{name}.token_mixer", f"{name}.channel_mixer.m"
        weighs, widens = (f"{token}.{part}.weight" in of.weights for part in ("1.fc1", "2"))
        self.token_mixer = nn.Sequential(
            of.conv(f"{token}.0", stride),
            SqueezeExcite(of, f"{token}.1") if weighs else nn.Identity(),
            of.conv(f"{token}.2") if widens else nn.Identity(),
        )
        mixer = nn.Sequential(of.conv(f"{channel}.0"), Gelu(), of.conv(f"{channel}.2"))
        self.channel_mixer = Residual(mixer)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return self.channel_mixer(self.token_mixer(x))


def stage_starts(weights: Weights) -> list[int]:
    """Return where stages start among the features; all but the first start with a block that goes on to a new width.

    Raises: CheckpointError for another number of blocks.
    """
    count = count_of(weights, "features")
    starts = [1, *(i for i in range(1, count) if f"features.{i}.token_mixer.2.weight" in weights)]
    depths = tuple(end - start for start, end in zip(starts, (*starts[1:], count), strict=True))
    check_depths(depths, DEPTHS, TITLE)
    return starts


def fused(weights: Weights, title: str) -> dict[str, Tensor]:
    """Fold batch norms into convolutions, and branches into one kernel.

    Raises: CheckpointError where parts are missing or of other shapes.
    """
    rest = without_batch_norms(weights, title)
    for name in [name.removesuffix(".conv1.weight") for name in rest if BRANCH.search(name)]:
        _fuse_branches(rest, name, title)
    return rest


def _fuse_branches(weights: dict[str, Tensor], name: str, title: str) -> None:
    """Add a kernel, a factor for each channel and the input itself; where a batch norm follows, fold that in too."""
    width = shape_of(weights, f"{name}.conv.weight", 4, title)[0]
    kernel, factor = (taken(weights, f"{name}.{part}.weight", (width, 1, side, side), title) for part, side in BRANCHES)
    bias, summand = (taken(weights, f"{name}.{part}.bias", (width,), title) for part, _ in BRANCHES)
    weights[f"{name}.weight"] = (kernel + F.pad(factor + 1, (1, 1, 1, 1))).float()
    weights[f"{name}.bias"] = (bias + summand).float()
    if f"{name}.bn.running_mean" in weights:
        fold_batch_norm(weights, name, f"{name}.bn", name, NORM_EPS, title)


class RepViT(Encoder):
    """The encoder, as its weights have it: EdgeSAM's joins its last two stages, others' last stage keeps the size."""

    def __init__(self, of: Weigher, spec: DecoderSpec, starts: list[int]) -> None:
        super().__init__()
        self.picture_px = spec.image_size
        self.joins = "fuse_stage2.weight" in of.weights
        strides = dict.fromkeys(starts[1:], 2) | ({} if self.joins else {starts[-1]: 1})
        stem = nn.Sequential(of.conv("features.0.0", 2), Gelu(), of.conv("features.0.2", 2))
        blocks = (Block(of, f"features.{i}", strides.get(i, 1)) for i in range(1, count_of(of.weights, "features")))
        self.features = nn.ModuleList((stem, *blocks))
        self.last_stage = starts[-1]
        if self.joins:
            self.fuse_stage2 = of.conv("fuse_stage2", bias=False)
            halved = of.conv("fuse_stage3.op_list.0", bias=False)
            self.fuse_stage3 = OpList(halved, Bicubic(spec.grid // 2, spec.grid))
        self.neck = of.neck("neck")

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: (B, 3, S, S) -> (B, 256, S / 16, S / 16)."""
        x = middle = pixels
        for number, feature in enumerate(self.features):
            middle = x if number == self.last_stage else middle
            x = feature(x)
        return (self.neck(self.fuse_stage2(middle) + self.fuse_stage3(x) if self.joins else x),)


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build the encoder.

    Raises: CheckpointError for another number of blocks, and where weights are missing, left over or of other shapes.
    """
    weights = fused(weights, TITLE)
    encoder = RepViT(Weigher(weights, TITLE), spec, stage_starts(weights))
    loaded_strictly(encoder, weights, TITLE)
    check_shapes(encoder, spec, TITLE)
    return encoder


ENCODER = Architecture(
    name="repvit",
    title=TITLE,
    marks=(r"^features\.0\.0\.", r"^features\.1\.token_mixer\."),
    build=build,
    unused=UNUSED,
    size_step=32,
)
