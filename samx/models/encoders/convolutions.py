"""What the convolutional encoders share: batch norms folded away, layers sized by their weights, bicubic resizing.

Every one of them is trained with batch norms. They are folded into the convolutions before the module is built, so that
a checkpoint whose publisher has done so already is taken as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samx.models.encoders.base import Encoder, LayerNorm2d, Weights, refused, shape_of
from samx.models.fast.upscale import gelu
from samx.models.spec import DecoderSpec

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


class Gelu(nn.Module):
    """GELU as a layer, in the order of operations that ONNX Runtime fuses."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return gelu(x)


class Weigher:
    """Build layers of the sizes that their weights have; nothing is loaded yet."""

    def __init__(self, weights: Weights, title: str) -> None:
        self.weights, self.title = weights, title

    def shape(self, name: str, rank: int = 4) -> tuple[int, ...]:
        """Return a weight's shape. Raises: CheckpointError where there is none of that rank."""
        return shape_of(self.weights, name, rank, self.title)

    def conv(self, name: str, stride: int = 1, *, groups: int | None = None, bias: bool = True) -> nn.Conv2d:
        """Return a convolution that keeps the size, but for its stride; depthwise where kernels are of one channel.

        Raises: CheckpointError where its channels are no whole number a group.
        """
        width, depth, height, _ = self.shape(f"{name}.weight")
        groups = (width if depth == 1 else 1) if groups is None else groups
        if width % groups:
            raise refused(self.title, "has weights of the wrong shape", f"{name} {width}", f"a multiple of {groups}")
        return nn.Conv2d(depth * groups, width, height, stride, height // 2, groups=groups, bias=bias)

    def neck(self, name: str) -> nn.Sequential:
        """Return the convolutions and norms that SAM's encoders end with."""
        first, second = (self.conv(f"{name}.{i}", bias=False) for i in (0, 2))
        return nn.Sequential(first, LayerNorm2d(first.out_channels), second, LayerNorm2d(second.out_channels))


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


def check_depths(found: tuple[int, ...], known: tuple[tuple[int, ...], ...], title: str) -> None:
    """Refuse numbers of blocks that no released encoder has: where the last are missing, no name tells.

    Raises: CheckpointError.
    """
    if found not in known:
        raise refused(title, "has another number of blocks", found, " or ".join(map(str, known)))


def check_shapes(encoder: Encoder, spec: DecoderSpec, title: str) -> None:
    """Compute the shapes of an encoder's outputs, and nothing else.

    Raises: CheckpointError where weights do not fit each other, or give other image inputs than the decoder takes.
    """
    pixels = torch.empty(1, 3, encoder.picture_px, encoder.picture_px, device="meta")
    state = {name: tensor.to("meta") for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers())}
    try:
        found = [tuple(x.shape) for x in torch.func.functional_call(encoder, state, (pixels,))]
    except RuntimeError as error:
        raise refused(title, "has weights that do not fit each other", error, f"the weights of {title}") from None
    expected = [tensor.shape for tensor in spec.image_inputs]
    if found != expected:
        raise refused(title, "computes image inputs of other shapes", found, str(expected))


def taken(weights: dict[str, Tensor], name: str, shape: tuple[int, ...], title: str) -> Tensor:
    """Take a weight out, in float64.

    Raises: CheckpointError where it is not there, or of another shape.
    """
    found = shape_of(weights, name, len(shape), title)
    if found != shape:
        raise refused(title, "has weights of the wrong shape", f"{name} {found}", str(shape))
    return weights.pop(name).double()


def without_batch_norms(
    weights: Weights, title: str, *, conv: str = "c", norm: str = "bn", folded: str = "", eps: float = 1e-5
) -> dict[str, Tensor]:
    """Fold every batch norm into the convolution before it; the three are named within a layer.

    Raises: CheckpointError where a norm is not whole, or not its convolution's.
    """
    rest, mean = dict(weights), f".{norm}.running_mean"
    for layer in [name.removesuffix(mean) for name in weights if name.endswith(mean)]:
        if f"{layer}.{conv}.weight" in rest:
            fold_batch_norm(rest, f"{layer}.{conv}", f"{layer}.{norm}", f"{layer}.{folded}".rstrip("."), eps, title)
    return rest


def fold_batch_norm(weights: dict[str, Tensor], conv: str, norm: str, folded: str, eps: float, title: str) -> None:
    """Put one convolution, under a name of its own, in the place of a convolution and the batch norm after it.

    Raises: CheckpointError where one is not whole, or of other channels than the other.
    """
    weight = weights.pop(f"{conv}.weight").double()
    channels = weight.shape[:1]
    bias = taken(weights, f"{conv}.bias", channels, title) if f"{conv}.bias" in weights else 0.0
    gain, summand, mean, variance = (taken(weights, f"{norm}.{part}", channels, title) for part in BATCH_NORM)
    scale = gain / (variance + eps).sqrt()
    weights[f"{folded}.weight"] = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).float()
    weights[f"{folded}.bias"] = ((bias - mean) * scale + summand).float()
