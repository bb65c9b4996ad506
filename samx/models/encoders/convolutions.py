"""What the convolutional encoders share: batch norms folded away, layers sized by their weights, bicubic resizing.

Every one of them is trained with batch norms. They are folded into the convolutions before the module is built, so that
a checkpoint whose publisher has done so already is taken as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samx.models.encoders.base import Weights, refused, shape_of

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


class Weigher:
    """Build layers of the sizes that their weights have; nothing is loaded yet."""

    def __init__(self, weights: Weights, title: str) -> None:
        self.weights, self.title = weights, title

    def shape(self, name: str, rank: int = 4) -> tuple[int, ...]:
        """Return a weight's shape. Raises: CheckpointError where there is none of that rank."""
        return shape_of(self.weights, name, rank, self.title)

    def conv(self, name: str, stride: int = 1, groups: int | None = None) -> nn.Conv2d:
        """Return a convolution that keeps the size, but for its stride; depthwise where kernels are of one channel."""
        width, depth, height, _ = self.shape(f"{name}.weight")
        groups = (width if depth == 1 else 1) if groups is None else groups
        has_bias = f"{name}.bias" in self.weights
        return nn.Conv2d(depth * groups, width, height, stride, height // 2, groups=groups, bias=has_bias)


class OpList(nn.Module):
    """Apply operations in turn, under the name that EfficientViT's and EdgeSAM's weights have."""

    def __init__(self, *operations: nn.Module) -> None:
        super().__init__()
        self.op_list = nn.Sequential(*operations)

    def forward(self, x: Tensor) -> Tensor:
        """Apply them."""
        return self.op_list(x)


class Bicubic(nn.Module):
    """Resize squares bicubically, as two products: not every target has the operation. Shapes: (B, C, h, h)."""

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        columns = torch.eye(old, dtype=torch.float64).reshape(1, old, old, 1)
        resized = nn.functional.interpolate(columns, (new, 1), mode="bicubic", align_corners=False)
        self.register_buffer("factors", resized.reshape(old, new).float(), persistent=False)
        self.factors: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Resize. Shapes: (B, C, old, old) -> (B, C, new, new)."""
        return self.factors.T @ (x @ self.factors)


def without_batch_norms(
    weights: Weights, title: str, *, conv: str = "c", norm: str = "bn", folded: str = "", eps: float = 1e-5
) -> dict[str, Tensor]:
    """Fold every batch norm into the convolution before it; the three are named within a layer.

    Raises: CheckpointError where a norm is not whole, or not its convolution's.
    """
    rest = dict(weights)
    mean = f".{norm}.{BATCH_NORM[2]}"
    for layer in [name.removesuffix(mean) for name in weights if name.endswith(mean)]:
        if f"{layer}.{conv}.weight" in rest:
            weight = rest.pop(f"{layer}.{conv}.weight")
            scale, shift = scale_and_shift(rest, f"{layer}.{norm}", len(weight), eps, title)
            whole = f"{layer}.{folded}" if folded else layer
            rest[f"{whole}.weight"], rest[f"{whole}.bias"] = scaled(weight, scale), shift.float()
    return rest


def scale_and_shift(
    weights: dict[str, Tensor], norm: str, channels: int, eps: float, title: str
) -> tuple[Tensor, Tensor]:
    """Take a batch norm out of weights, and return it as factors and summands, in float64.

    Raises: CheckpointError where it is not whole, or of other channels.
    """
    for part in BATCH_NORM:
        if shape_of(weights, f"{norm}.{part}", 1, title) != (channels,):
            found = f"{norm}.{part} {tuple(weights[f'{norm}.{part}'].shape)}"
            raise refused(title, "has weights of the wrong shape", found, f"{channels} channels")
    gain, bias, mean, variance = (weights.pop(f"{norm}.{part}").double() for part in BATCH_NORM)
    scale = gain / (variance + eps).sqrt()
    return scale, bias - mean * scale


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply each output channel of a convolution by its factor, rounding once."""
    return (weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))).float()
