"""An image encoder as a Core ML package: levels in, the decoder's image inputs out, in fixed shapes.

Core ML has no arrays of bytes: levels come as float32, or as an image of Core ML's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from samx.errors import UsageError
from samx.exporters.base import HALF
from samx.exporters.coreml.convert import PURPOSE, convert, write_single
from samx.formats.coreml.contract import Signature
from samx.formats.coreml.package import ENCODER
from samx.formats.coreml.program import open_coremltools
from samx.models.graph import Graph

LAYERS = frozenset({"conv", "linear", "matmul", "avg_pool"})  # the first of them ends what is done to pixels
STATISTICS = frozenset({"add", "sub", "mul", "square", "reduce_mean", "rsqrt"})  # of a norm that is written out


class ChannelsFirst(nn.Module):
    """Take a picture as Core ML hands an image over. Shapes: (B, 3, S, S), as the graph otherwise."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.encode = graph

    def forward(self, picture: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures."""
        encoded: tuple[Tensor, ...] = self.encode(picture.permute(0, 2, 3, 1), *others)
        return encoded


def write_encoder_package(graph: Graph, directory: Path, *, ios: int, precision: str, image: bool) -> Path:
    """Write the package of an image encoder into a directory; return its path.

    image: take the picture as an image of Core ML's, one a call.
    Raises: as check_pictures().
    """
    check_pictures(graph, image, precision)
    signature, module, images = encoder_signature(graph, precision), graph.module, {}
    if image:
        ct, (picture, *others) = open_coremltools(PURPOSE), signature.inputs
        shape = tuple(picture.shape[i] for i in (0, 3, 1, 2))
        signature = replace(signature, inputs=(replace(picture, shape=shape), *others))
        module = ChannelsFirst(module)
        images = {picture.name: ct.ImageType(picture.name, shape=shape, color_layout=ct.colorlayout.RGB)}
    chosen = half_but_norms() if precision in HALF else None
    path = directory / ENCODER
    write_single(lambda: convert(module, signature, {}, ios, precision=chosen, images=images), path, {})
    return path


def check_pictures(graph: Graph, image: bool, precision: str) -> None:
    """Refuse pictures that no package takes, and an image where its 8 bits cost more than the precision may.

    Rounding the levels of a family that resizes numbers moves its features by 0.03 % to 0.35 % (the demo model's, on
    the gate's pictures): far more than float32 may differ by, and within what float16 may, where the gate decides.

    Raises: UsageError.
    """
    count = graph.inputs[0].shape[0]
    if not isinstance(count, int):
        fix = "Name one number, such as --pictures 2."
        raise UsageError("a Core ML package has fixed shapes", found="a range of pictures", expected="one", fix=fix)
    if image and count != 1:
        found, fix = f"--pictures {count} --image-input", "Leave one of the two out."
        raise UsageError("an image input takes one picture", found=found, fix=fix)
    if image and precision not in HALF and graph.inputs[0].dtype != "uint8":
        raise UsageError(
            "an image input rounds levels to 8 bits, and this family's are not rounded",
            found=f"an encoder in {precision}", expected="one in fp16, which the gate then judges",
            fix="Or leave --image-input out.",
        )  # fmt: skip


def encoder_signature(graph: Graph, precision: str) -> Signature:
    """Return a package's tensors: levels as float32, features as the decoder's package takes them."""
    inputs = tuple(replace(one, dtype="float32") if one.name == "picture" else one for one in graph.inputs)
    signature = Signature(ENCODER, inputs, graph.outputs)
    return replace(signature, outputs=signature.in_half().outputs) if precision in HALF else signature


def half_but_norms() -> Any:
    """Return the precision that is float16 but for what is done to pixels, and the statistics of written-out norms."""
    transform = open_coremltools(PURPOSE).transform
    return transform.FP16ComputePrecision(op_selector=lambda op: not (_in_norm(op) or _before_layers(op)))


def _in_norm(op: Any) -> bool:
    """Tell whether an operation's result goes into a deviation and nowhere far on the way: squares overflow float16."""
    if op.op_type not in STATISTICS:
        return False
    return op.op_type == "rsqrt" or any(_in_norm(child) for output in op.outputs for child in output.child_ops)


def _before_layers(op: Any) -> bool:
    """Tell whether an operation changes pixels, or constants: levels are exact, their normalisation is to stay so."""
    if op.op_type in LAYERS:
        return False
    given = (var for value in op.inputs.values() for var in (value if isinstance(value, (list, tuple)) else [value]))
    return all(var is None or var.op is None or _before_layers(var.op) for var in given)
