"""INT8 in a MIL function: which convolutions belong together, 8-bit weights, and inputs that go through 8 bits.

All products with constant weights of a fixed-shape decoder are convolutions. Weights keep the paths of their modules,
as the converter writes them. The groups have the names that they have in other exports (samx/quantization/groups.py).
A convolution between `dequantize` and an 8-bit weight is what Core ML may compute in integers. Its result stays
float16: what follows is no convolution, but norms, additions and attention.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from samx.errors import SamxError
from samx.exporters.coreml.convert import SMALLEST, add_chosen
from samx.extras import silent
from samx.formats.coreml.lint_rules import multiply_adds, steps_of
from samx.formats.coreml.program import LIBRARY, open_coremltools, program_of
from samx.quantization.search import Plan, Ranges, check_groups

PURPOSE = "INT8 for Core ML"
WEIGHTS = "linear8"  # of samx/exporters/coreml/convert.py: symmetric, a scale for each output
MOST = 127  # of a signed byte; -128 is left out, so that the range is symmetric
DTYPE = "int8"
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
LEFT_ALONE: Mapping[str, str] = {
    "point encoding": r"points_table", "mask prompts": r"dense_downscaling_\d",
    "object pointer": r"decoder_object_pointer_proj_layers_\d",
}  # fmt: skip
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
    check_groups(excluded, groups)
    return Plan.of((group for group in groups if group not in excluded), INTEGER)


def _is_half(var: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(var.dtype == types.fp16)


def rewrite(functions: Mapping[str, Any], there: Sequence[Convolution], plan: Plan, ranges: Ranges) -> None:
    """Quantise MIL functions, in place, as a plan says."""
    integer = {conv.weight for conv in there if conv.group in plan.integer}
    stored = {conv.weight for conv in there if conv.group in plan.stored}
    for function in functions.values():
        _quantise_inputs(function, {weight: ranges[weight] for weight in integer})
    _shrink_weights(functions, sorted(integer | stored))


def scale_of(largest: float) -> np.float16:
    """Return the smallest float16 scale with which 8 bits reach that magnitude."""
    exact = max(largest / MOST, float(np.finfo(np.float16).tiny))
    nearest = np.float16(exact)
    return nearest if float(nearest) >= exact else np.nextafter(nearest, np.float16(np.inf))


def arithmetic(function: Any) -> dict[str, int]:
    """Count a function's convolutions, and those with an 8-bit input and an 8-bit weight."""
    counts = {step.name: multiply_adds(step) for step in steps_of(function)}
    every = [op for op in function.operations if op.op_type == CONVOLUTION]
    integer = [op.name for op in every if _is_from(op.x, "dequantize") and _is_from(op.weight, "constexpr_")]
    return {
        "convolutions": len(every),
        "integer_convolutions": len(integer),
        "multiply_adds": sum(counts.values()),
        "constant_weight_multiply_adds": sum(counts[op.name] for op in every),
        "integer_multiply_adds": sum(counts[name] for name in integer),
    }


def _is_from(var: Any, kind: str) -> bool:
    return var.op is not None and str(var.op.op_type).startswith(kind)


def _quantise_inputs(function: Any, ranges: Ranges) -> None:
    """Put one pair of quantize and dequantize before all chosen convolutions that read the same tensor."""
    from coremltools.converters.mil.mil import Builder

    readers: dict[Any, list[Any]] = {}
    for op in half_convolutions(function):
        if op.weight.name in ranges:
            readers.setdefault(op.x, []).append(op)
    with function:
        for var, ops in readers.items():
            scale = scale_of(max(ranges[op.weight.name] for op in ops))
            place = {"scale": scale, "before_op": ops[0]}
            steps = Builder.quantize(input=var, output_dtype=DTYPE, name=f"{var.name}_{DTYPE}", **place)
            back = Builder.dequantize(input=steps, name=f"{var.name}_from_{DTYPE}", **place)
            for op in ops:
                op.set_inputs(x=back)


def _shrink_weights(functions: Mapping[str, Any], weights: Sequence[str]) -> None:
    """Let coremltools' own pass keep these weights in 8 bits."""
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    pipeline = open_coremltools(PURPOSE).PassPipeline.EMPTY
    add_chosen(pipeline, WEIGHTS, weights)
    with silent(LIBRARY):
        PassPipelineManager.apply_pipeline(program_of(functions, PURPOSE), pipeline)
