"""The modules of a Core ML export by package, and the types at their borders. Data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from samx.formats.coreml.contract import INTEGER, MASK_DECODER, PROMPT_ENCODER, Border
from samx.formats.coreml.package import DECODER
from samx.models.fixed.apple import AppleMaskDecoder, ApplePromptEncoder
from samx.models.fixed.decoder import NeuralEngineDecoder
from samx.models.reference import ReferenceDecoder
from samx.models.spec import TensorSpec

FLOAT32_INPUTS = ("point_coords", "point_labels", "points")  # a float16 pixel beyond 1024 is a whole one
MODULES: Mapping[str, Callable[[ReferenceDecoder], nn.Module]] = {
    DECODER: NeuralEngineDecoder,
    PROMPT_ENCODER: ApplePromptEncoder,
    MASK_DECODER: AppleMaskDecoder,
}


def in_half(border: Border) -> Border:
    """Give everything float16 that is not a coordinate, a label or an integer."""
    return replace(border, inputs=tuple(map(_half, border.inputs)), outputs=tuple(map(_half, border.outputs)))


def _half(tensor: TensorSpec) -> TensorSpec:
    keeps = tensor.name in FLOAT32_INPUTS or tensor.dtype == INTEGER
    return tensor if keeps else replace(tensor, dtype="float16")
