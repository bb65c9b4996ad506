"""INT8 in a MIL function: 8-bit weights, and inputs of convolutions that go through 8 bits.

A convolution between `dequantize` and an 8-bit weight is what Core ML may compute in integers. Its result stays
float16: what follows is no convolution, but norms, additions and attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samx.exporters.coreml.convert import add_chosen
from samx.extras import silent
from samx.formats.coreml.lint_rules import multiply_adds, steps_of
from samx.formats.coreml.program import LIBRARY, open_coremltools, program_of
from samx.quantization.coreml_groups import CONVOLUTION, Convolution, half_convolutions
from samx.quantization.search import Plan

PURPOSE = "INT8 for Core ML"
WEIGHTS = "linear8"  # of samx/exporters/coreml/convert.py: symmetric, a scale for each output
MOST = 127  # of a signed byte; -128 is left out, so that the range is symmetric
DTYPE = "int8"
Ranges = Mapping[str, float]  # largest magnitude of what a convolution takes, by its weight's name


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
