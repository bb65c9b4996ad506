"""Which convolutions of a fixed-shape decoder belong together, and what INT8 may do with each.

All its products with constant weights are convolutions. Weights keep the paths of their modules, as the converter
writes them. The groups have the names that they have in other exports (samx/quantization/groups.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from samx.errors import SamxError, UsageError
from samx.exporters.coreml.convert import SMALLEST
from samx.formats.coreml.lint_rules import multiply_adds, steps_of
from samx.quantization.search import Plan

CONVOLUTION = "conv"
LAYER = r"decoder_transformer_layers_{}_"
IMAGE_SIDE = r"(token_to_image_(key|value)|image_to_token_(query|out))"

# Thousands of image tokens go through these; a few tokens go through the others.
INTEGER: Mapping[str, str] = {
    "image projections, layer 0": LAYER.format(0) + IMAGE_SIDE,
    "image projections, layer 1": LAYER.format(1) + IMAGE_SIDE,
    "image projections, final": r"decoder_transformer_final_attention_(key|value)",
    "upscaling 1": r"decoder_planes_first",
    "upscaling 2": r"decoder_planes_second",
}
STORED: Mapping[str, str] = {
    "self-attention": LAYER.format(r"\d") + r"self_attention_(query|key|value|out)",
    "token MLP": LAYER.format(r"\d") + r"mlp_layers_\d",
    "token projections": r"decoder_transformer_((layers_\d_token_to_image|final_attention)_(query|out)|"
    r"layers_\d_image_to_token_(key|value))",
    "mask weights": r"decoder_mask_weights_mlps_\d_layers_\d",
    "IoU head": r"decoder_iou_head_layers_\d",
    "object score": r"decoder_object_score_head_layers_\d",
}
# What a coordinate loses in the first, the whole mask loses; the second reads pixels and has hardly a weight.
LEFT_ALONE: Mapping[str, str] = {"point encoding": r"points_table", "mask prompts": r"dense_downscaling_\d"}
GROUPS: Mapping[str, str] = {**INTEGER, **STORED, **LEFT_ALONE}
QUANTISABLE: tuple[str, ...] = (*INTEGER, *STORED)


@dataclass(frozen=True)
class Convolution:
    """Describe a convolution whose weight may have 8 bits."""

    name: str  # of the operation
    group: str
    weight: str  # the constant's name; the same in all functions of a package
    shape: tuple[int, ...]  # of the weight
    multiply_adds: int

    @property
    def bytes_saved(self) -> int:
        """Count what 8 bits and a float16 scale for each output save of a float16 weight."""
        return prod(self.shape) - 2 * self.shape[0]


def convolutions(function: Any) -> list[Convolution]:
    """Find a MIL function's convolutions that INT8 may do something with, in the order of the computation.

    Raises: SamxError where a float16 weight belongs to no group or to several: the form is not known here.
    """
    counts = {step.name: multiply_adds(step) for step in steps_of(function) if step.operator == CONVOLUTION}
    found = []
    for op in half_convolutions(function):
        group = group_of(op.weight.name)
        if group in QUANTISABLE and prod(op.weight.shape) > SMALLEST:
            found.append(Convolution(op.name, group, op.weight.name, tuple(op.weight.shape), counts[op.name]))
    return found


def half_convolutions(function: Any) -> list[Any]:
    """Return the MIL operations that convolve float16 with a constant weight."""
    return [
        op for op in function.operations if op.op_type == CONVOLUTION and _is_half(op.x) and op.weight.val is not None
    ]


def group_of(weight: str) -> str:
    """Name the group of a weight.

    Raises: SamxError when there is none, or several.
    """
    path = re.sub(r"^[pb]_|_weight$", "", weight)
    groups = [group for group, pattern in GROUPS.items() if re.fullmatch(pattern, path)]
    if len(groups) != 1:
        raise SamxError(f"weight '{weight}' of a package belongs to no group or to several", found=groups,
                        fix="Please report this.")  # fmt: skip
    return groups[0]


def whole_plan(there: Sequence[Convolution], excluded: Collection[str]) -> Plan:
    """Name everything that may be quantised.

    Raises: UsageError for groups to exclude that there are not.
    """
    groups = [group for group in QUANTISABLE if any(conv.group == group for conv in there)]
    unknown = sorted(set(excluded).difference(groups))
    if unknown:
        raise UsageError("unknown group of products", found=", ".join(unknown), expected=" or ".join(groups))
    kept = [group for group in groups if group not in excluded]
    return Plan(
        tuple(group for group in kept if group in INTEGER), tuple(group for group in kept if group not in INTEGER)
    )


def _is_half(var: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(var.dtype == types.fp16)
