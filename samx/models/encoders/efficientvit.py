"""EfficientViT-SAM's image encoders L0, L1, L2, XL0 and XL1.

L0 to L2 take pictures of half the size of the frame that prompts live in. Attention is linear: the products of keys and
values are summed over the picture before queries see them.
Source: EfficientViT's names, shapes, order of operations and constants.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.encoders.base import Architecture, Encoder, LayerNorm2d, Weights, count_of, loaded_strictly, refused
from samx.models.encoders.convolutions import Bicubic, OpList, Weigher, check_depths, check_shapes, without_batch_norms
from samx.models.spec import DecoderSpec

TITLE = "EfficientViT-SAM"
NORM_EPS = 1e-6
# Upstream adds it to the divisor, which is 0 where no channel of a query is positive; ONNX Runtime drops additions as
# small as this, and gave NaN.
LEAST_TOTAL = 1e-15
# Operations of each stage, and of the neck's middle: L0, L1, L2, XL0, XL1.
DEPTHS = (
    (2, 2, 2, 5, 5, 4),
    (2, 2, 2, 7, 7, 8),
    (2, 3, 3, 9, 9, 12),
    (1, 2, 2, 3, 4, 4, 6),
    (2, 3, 3, 5, 7, 7, 12),
)
JOINED = 3  # stages that the neck joins, the last ones
# Convolutions of a block in turn. The one that has the stride is the first that sees neighbours.
BLOCKS = (("conv1", "conv2"), ("spatial_conv", "point_conv"), ("inverted_conv", "depth_conv", "point_conv"))
STRIDED = ("conv1", "spatial_conv", "depth_conv")


class ConvLayer(nn.Module):
    """A convolution, under the name that its weights have; where it acts, GELU after it."""

    def __init__(self, of: Weigher, name: str, stride: int = 1, *, acts: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.conv, self.acts = of.conv(f"{name}.conv", stride, bias=bias), acts

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return F.gelu(self.conv(x), approximate="tanh") if self.acts else self.conv(x)


class Convolutions(nn.Sequential):
    """Convolutions in turn, with GELU between them. Shapes: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, of: Weigher, name: str, stride: int = 1) -> None:
        super().__init__()
        kinds = [parts for parts in BLOCKS if f"{name}.{parts[0]}.conv.weight" in of.weights]
        if len(kinds) != 1:
            raise refused(TITLE, "lacks weights", f"no block of a known kind under {name}", f"the weights of {TITLE}")
        for part in kinds[0]:
            acts = part != kinds[0][-1]
            self.add_module(part, ConvLayer(of, f"{name}.{part}", stride if part in STRIDED else 1, acts=acts))


class LinearAttention(nn.Module):
    """Attend to tokens and to their neighbourhoods, over the whole picture."""

    keep_fp32 = True  # sums over all tokens that no softmax bounds

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.qkv, self.proj = ConvLayer(of, f"{name}.qkv", bias=False), ConvLayer(of, f"{name}.proj")
        width, self.head_width, _, _ = of.shape(f"{name}.aggreg.0.1.weight")
        self.heads = 2 * width // (3 * self.head_width)
        neighbours = of.conv(f"{name}.aggreg.0.0", bias=False)
        channels = of.conv(f"{name}.aggreg.0.1", groups=width // self.head_width, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(neighbours, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        height, width = x.shape[-2:]
        qkv = self.qkv(x)
        qkv = torch.cat((qkv, self.aggreg[0](qkv)), 1).reshape(-1, self.heads, 3 * self.head_width, height * width)
        q, k, v = qkv.chunk(3, dim=2)
        q, k = q.relu(), k.relu()
        mixed = (v @ k.transpose(-1, -2)) @ q
        total = k.sum(-1)[:, :, None] @ q  # what the weights of a query come to
        mixed = mixed / total.clamp(min=LEAST_TOTAL)
        return self.proj(mixed.reshape(-1, self.heads * self.head_width, height, width))


class Residual(nn.Module):
    """Compute, and add what came in where there is a way around."""

    def __init__(self, main: nn.Module, *, adds: bool = True) -> None:
        super().__init__()
        self.main, self.adds = main, adds

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> as the main way has it."""
        return x + self.main(x) if self.adds else self.main(x)


class AttentionBlock(nn.Module):
    """Attend, then mix neighbours."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(of, f"{name}.context_module.main"))
        self.local_module = Residual(Convolutions(of, f"{name}.local_module.main"))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        return self.local_module(self.context_module(x))


class Backbone(nn.Module):
    """Stages, each of half the size of what it is given."""

    def __init__(self, stages: Iterable[OpList]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return every stage's output. Shapes: (B, 3, S, S) -> (B, C, S / 2, S / 2), (B, C', S / 4, S / 4), ..."""
        levels = []
        for one in self.stages:
            x = one(x)
            levels.append(x)
        return levels


class Neck(nn.Module):
    """Add the last stages' outputs, brought to one width and size, and compute the embedding."""

    def __init__(self, of: Weigher, grid: int, depth: int) -> None:
        super().__init__()
        self.input_ops = nn.ModuleList(joined(of, f"neck.input_ops.{i}", grid, JOINED - 1 - i) for i in range(JOINED))
        self.middle = stage(of, "neck.middle", depth)
        self.output_ops = nn.ModuleList([OpList(ConvLayer(of, "neck.output_ops.0.op_list.0"))])

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Shapes: (B, C, h, h), the finest first -> (B, 256, grid, grid)."""
        deep, middle, fine = (op(x) for op, x in zip(self.input_ops, reversed(levels), strict=True))
        return self.output_ops[0](self.middle(deep + middle + fine))


class EfficientViT(Encoder):
    """The encoder, as its weights have it."""

    def __init__(self, of: Weigher, spec: DecoderSpec, depths: tuple[int, ...]) -> None:
        super().__init__()
        *stages, middle = depths
        self.picture_px = spec.grid * 2 ** (
            len(stages) - JOINED + 1
        )  # the finest of what is joined has the grid's size
        self.backbone = Backbone(stage(of, f"backbone.stages.{i}", depth, i) for i, depth in enumerate(stages))
        self.neck = Neck(of, spec.grid, middle)
        self.norm = LayerNorm2d(of.shape("norm.weight", 1)[0], NORM_EPS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: (B, 3, S, S) -> (B, 256, S / 8, S / 8) for five stages, S / 16 for six."""
        return (self.norm(self.neck(self.backbone(pixels)[-JOINED:])),)


def stage(of: Weigher, name: str, depth: int, number: int | None = None) -> OpList:
    """Return a stage of the backbone, which halves the size, or the neck's middle, which has no number and keeps it."""
    return OpList(*(operation(of, f"{name}.op_list.{i}", number, is_first=i == 0) for i in range(depth)))


def operation(of: Weigher, name: str, number: int | None, *, is_first: bool) -> nn.Module:
    """Return one operation of a stage."""
    if f"{name}.context_module.main.qkv.conv.weight" in of.weights:
        return AttentionBlock(of, name)
    halves = is_first and number is not None
    if halves and number == 0:
        return ConvLayer(of, name, stride=2, acts=True)
    return Residual(Convolutions(of, f"{name}.main", 2 if halves else 1), adds=not halves)


def joined(of: Weigher, name: str, grid: int, halvings: int) -> OpList:
    """Return what brings a stage's output to the embedding's width and size."""
    resize = Bicubic(grid // 2**halvings, grid) if halvings else nn.Identity()
    return OpList(ConvLayer(of, f"{name}.op_list.0"), resize)


def build(weights: Weights, spec: DecoderSpec) -> Encoder:
    """Build the encoder.

    Raises: CheckpointError for another number of blocks, and where weights are missing, left over or of other shapes.
    """
    stages = (f"backbone.stages.{i}" for i in range(count_of(weights, "backbone.stages")))
    depths = tuple(count_of(weights, f"{name}.op_list") for name in (*stages, "neck.middle"))
    check_depths(depths, DEPTHS, TITLE)
    weights = without_batch_norms(weights, TITLE, conv="conv", norm="norm", folded="conv", eps=NORM_EPS)
    encoder = EfficientViT(Weigher(weights, TITLE), spec, depths)
    loaded_strictly(encoder, weights, TITLE)
    check_shapes(encoder, spec, TITLE)
    return encoder


ENCODER = Architecture(
    name="efficientvit",
    title=TITLE,
    marks=(r"^backbone\.stages\.0\.op_list\.", r"^neck\.input_ops\.0\."),
    build=build,
    unused=(r"\.num_batches_tracked$",),
    size_step=64,
)
