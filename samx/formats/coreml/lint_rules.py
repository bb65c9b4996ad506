"""The known rules of the Neural Engine, as far as anybody has published them: a table that the lint walks through.

A rule looks at steps: a MIL function as plain data, one step an operation, with its shapes, types and small constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.formats.coreml.program import operations
from samx.formats.coreml.tensors import UNKNOWN, UNRANKED, TensorType, tensor_type

PARAMETER_ELEMENTS = 64  # a constant of at most so many says how an operation works: axes, flags, offsets
LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Step:
    """Describe an operation that computes something."""

    name: str
    operator: str
    inputs: Mapping[str, tuple[TensorType, ...]]
    outputs: tuple[TensorType, ...]
    parameters: Mapping[str, NDArray[Any]]  # the small constants among its inputs

    @property
    def fed(self) -> tuple[TensorType, ...]:
        """The inputs that are computed."""
        return tuple(tensor for group in self.inputs.values() for tensor in group if not tensor.constant)

    @property
    def constants(self) -> tuple[TensorType, ...]:
        """The inputs that are stored."""
        return tuple(tensor for group in self.inputs.values() for tensor in group if tensor.constant)

    @property
    def flowing(self) -> tuple[TensorType, ...]:
        """Everything that goes in or comes out, constants apart."""
        return (*self.fed, *self.outputs)

    def first(self, name: str) -> TensorType | None:
        """Return the first tensor of an input."""
        group = self.inputs.get(name, ())
        return group[0] if group else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a parameter as integers; none where it is computed or left out."""
        return tuple(int(number) for number in self.parameters.get(name, np.empty(0)).reshape(-1))


def steps_of(function: Any) -> list[Step]:
    """List what a MIL function computes, in its order; constants and the unpacking of weights are no steps."""
    return [
        _step(op) for op in operations(function) if op.op_type != "const" and not op.op_type.startswith("constexpr_")
    ]


def tensors_of(function: Any) -> list[TensorType]:
    """List every value of a MIL function: inputs, constants and what is computed."""
    variables = [*function.inputs.values(), *(out for op in operations(function) for out in op.outputs)]
    return [_tensor(variable) for variable in variables]


def multiply_adds(step: Step) -> int:
    """Count the multiply-adds of a convolution or product from its shapes; 0 for all else, and where none is fixed."""
    out, weight = step.outputs[0].elements, step.first("weight")
    if not all(tensor.fixed for group in step.inputs.values() for tensor in group):
        return 0
    if step.operator == "conv" and weight is not None:
        return out * prod(weight.sizes[1:])
    if step.operator == "conv_transpose" and weight is not None:
        (x,) = step.inputs["x"]
        return x.elements * prod(weight.sizes[1:])
    if step.operator == "linear" and weight is not None:
        return out * prod(weight.sizes[-1:])
    if step.operator == "matmul":
        return out * _contracted(step)
    return _einsum_multiply_adds(step) if step.operator == "einsum" else 0


def _contracted(step: Step) -> int:
    (x,) = step.inputs["x"]
    transposed = bool(step.parameters.get("transpose_x", np.False_))
    return x.sizes[-2:][0] if transposed else x.sizes[-1]


def _einsum_multiply_adds(step: Step) -> int:
    equation = str(step.parameters["equation"].reshape(-1)[0])
    labels = [letter for term in equation.split("->")[0].split(",") for letter in term.strip()]
    sizes = [size for tensor in step.inputs["values"] for size in tensor.sizes]
    return prod(dict(zip(labels, sizes, strict=False)).values())


def _step(operation: Any) -> Step:
    groups = {name: _group(value) for name, value in operation.inputs.items() if value is not None}
    inputs = {name: tuple(map(_tensor, group)) for name, group in groups.items()}
    parameters = {name: np.asarray(group[0].val) for name, group in groups.items() if _is_parameter(group)}
    return Step(operation.name, operation.op_type, inputs, tuple(map(_tensor, operation.outputs)), parameters)


def _group(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_parameter(group: tuple[Any, ...]) -> bool:
    value = group[0].val if len(group) == 1 else None
    return value is not None and np.size(value) <= PARAMETER_ELEMENTS


def _tensor(variable: Any) -> TensorType:
    constant = bool(variable.is_descendant_of_const)
    return replace(tensor_type(variable), constant=constant, finite=not constant or _finite(variable.val))


def _finite(value: Any) -> bool:
    numbers = np.asarray(value)
    if numbers.dtype.kind != "f":
        return True
    return bool(np.all(np.abs(numbers) <= LARGEST_FLOAT16))  # NaN is not below anything


FALLS_OFF, SLOW, WATCH = "falls off", "slow", "watch"
SEVERITIES = (FALLS_OFF, SLOW, WATCH)  # the gravest first

LARGE = 65_536  # elements; what is smaller costs little however it lies
MAX_SIZE = 16_384
MAX_ARGMAX = 2_048
ROW_BYTES = 64  # the last axis is padded to a multiple of this
WORKING_SET_BYTES = 2 * 1024 * 1024

APPLE = "Apple, 'Deploying Transformers on the Apple Neural Engine' (2022)"
APPLE_RULES = "Apple, Core AI model-authoring rules for the Neural Engine (2026)"
APPLE_FORUM = "Apple engineer, developer.apple.com/forums/thread/724930"
TYPED = "coremltools guide, 'Typed Execution'"
MAINTAINER = "coremltools maintainers, github.com/apple/coremltools/issues/1780"
QUANTISED = "coremltools guide, 'Quantization: Performance'"
REPORTED = "reported: Bryngelson, 'Apple Neural Engine: Architecture, Programming, and Performance' (2026)"
REPORTED_GATHER = "reported: github.com/apple/coremltools/issues/1103 and github.com/hollance/neural-engine"

WIDE = frozenset({"fp32", "fp64"})
KNOWN_TYPES = WIDE | {"bool", "fp16", "int8", "uint8", "int16", "uint16"}
RECURRENT = frozenset({"gru", "lstm", "rnn"})
BYTES = frozenset({"quantize"})
NO_PATH = frozenset({
    "acos", "acosh", "asin", "asinh", "atanh", "band_part", "cond", "cosh", "cumsum", "list_gather", "list_length",
    "list_read", "list_scatter", "list_write", "logical_and", "logical_or", "logical_xor", "make_list", "mod",
    "non_zero", "one_hot", "random_bernoulli", "random_categorical", "random_normal", "reduce_prod",
    "reverse_sequence", "scatter", "scatter_along_axis", "scatter_nd", "shape", "sinh", "sliding_windows", "tan",
    "while_loop",
})  # fmt: skip
NEWER_CHIPS: Mapping[str, str] = {
    **dict.fromkeys(("sin", "cos", "random_uniform", "reduce_argmin"), "A15 and M3"),
    **dict.fromkeys(("topk", "argsort", "affine", "resample", "crop_resize"), "A14 and M2"),
    **dict.fromkeys(("resize", "resize_bilinear", "upsample_bilinear", "upsample_nearest_neighbor"), "A14 and M2"),
}
GATHERS = frozenset({"gather", "gather_along_axis", "gather_nd"})
MOVERS = frozenset({"reshape", "transpose", *GATHERS})
ELEMENTWISE = frozenset({"add", "sub", "mul", "real_div", "maximum", "minimum", "pow", "select"})


Hit = tuple[str, int]  # what of an operation a rule is about, and the bytes that are moved, padded or streamed
Check = Callable[[Step], Hit | None]


@dataclass(frozen=True)
class Rule:
    """Describe one rule: what it looks for, why that matters, and who says so."""

    name: str
    severity: str
    why: str
    source: str
    check: Check


def _any(matches: Callable[[TensorType], bool]) -> Check:
    """Look at every tensor that flows in or out."""

    def check(step: Step) -> Hit | None:
        found = next((tensor for tensor in step.flowing if matches(tensor)), None)
        return None if found is None else (f"{found.size_words} {found.dtype}", found.bytes)

    return check


def _operator(names: frozenset[str]) -> Check:
    return lambda step: (step.outputs[0].size_words, 0) if step.operator in names else None


def _float32(step: Step) -> Hit | None:
    wide = [tensor for tensor in step.flowing if tensor.dtype in WIDE]
    return (f"{wide[0].size_words} {wide[0].dtype}", wide[0].bytes) if wide and step.operator != "cast" else None


def _border(step: Step) -> Hit | None:
    (x, *_), out = step.inputs.get("x", (step.outputs[0],)), step.outputs[0]
    crosses = step.operator == "cast" and {x.dtype, out.dtype} == {"fp16", "fp32"}
    return (f"{out.size_words} {x.dtype} to {out.dtype}", out.bytes) if crosses else None


def _computed_gather(step: Step) -> Hit | None:
    indices = step.first("indices")
    computed = step.operator in GATHERS and indices is not None and not indices.constant
    return (step.outputs[0].size_words, 0) if computed else None


def _stored_gather(step: Step) -> Hit | None:
    return (step.outputs[0].size_words, 0) if step.operator in GATHERS and _computed_gather(step) is None else None


def _high_rank_product(step: Step) -> Hit | None:
    high = next((t for t in step.flowing if t.rank > 4), None)
    return (high.size_words, 0) if high is not None and step.operator in ("matmul", "linear") else None


def _computed_kernel(step: Step) -> Hit | None:
    weight, batch = step.first("weight"), step.outputs[0].sizes[:1]
    computed = step.operator == "conv" and weight is not None and not weight.constant and batch != (1,)
    return (step.outputs[0].size_words, 0) if computed else None


def _long_argmax(step: Step) -> Hit | None:
    x, axes = step.first("x"), step.numbers("axis")
    if x is None or not x.fixed or not step.operator.startswith("reduce_arg"):
        return None
    lengths = [x.sizes[axis] for axis in axes] or [x.elements]
    return (f"axis of {max(lengths)}", 0) if max(lengths) > MAX_ARGMAX else None


def _narrow(step: Step) -> Hit | None:
    """Compare with what lies in memory once every row is padded."""
    padded = [(tensor, _padded_bytes(tensor)) for tensor in step.outputs if tensor.elements and tensor.sizes]
    found = [(t, total) for t, total in padded if total >= 2 * t.bytes and total > LARGE * t.item_bytes]
    if not found:
        return None
    tensor, total = found[0]
    return (f"{tensor.size_words} takes {total / tensor.bytes:.0f} times its size", total - tensor.bytes)


def _padded_bytes(tensor: TensorType) -> int:
    row = int(tensor.sizes[-1] * tensor.item_bytes)
    return tensor.elements // tensor.sizes[-1] * -(-row // ROW_BYTES) * ROW_BYTES


def _moved(step: Step) -> Hit | None:
    out, x = step.outputs[0], step.first("x")
    kept = step.operator == "reshape" and x is not None and x.sizes[-1:] == out.sizes[-1:]
    large = step.operator in MOVERS and out.elements > LARGE
    return (f"to {out.size_words}{', rows kept' if kept else ''}", out.bytes) if large else None


def _linear(step: Step) -> Hit | None:
    factors = [step.first(name) for name in ("x", "y")]
    stored = step.operator == "matmul" and any(factor is not None and factor.constant for factor in factors)
    return (step.outputs[0].size_words, 0) if stored or step.operator == "linear" else None


def _expanded(step: Step) -> Hit | None:
    out, largest = step.outputs[0], max((tensor.elements for tensor in (*step.fed, *step.constants)), default=0)
    grows = step.operator == "tile" or (step.operator in ELEMENTWISE and largest * 2 <= out.elements)
    return (f"to {out.size_words}", out.bytes) if grows and out.elements > LARGE else None


def _spatial_softmax(step: Step) -> Hit | None:
    out, axes = step.outputs[0], step.numbers("axis") or (-1,)
    rank = out.rank
    spatial = step.operator == "softmax" and any(axis % max(rank, 1) >= rank - 2 for axis in axes)
    return (f"{out.size_words} over axis {axes[0]}", out.bytes) if spatial and out.elements > LARGE else None


def _streamed(step: Step) -> Hit | None:
    largest = max(step.flowing, key=lambda tensor: tensor.bytes)
    return (largest.size_words, largest.bytes) if largest.bytes > WORKING_SET_BYTES else None


def _newer(step: Step) -> Hit | None:
    since = NEWER_CHIPS.get(step.operator)
    return None if since is None else (f"{step.outputs[0].size_words}, since {since}", 0)


def _infinite(step: Step) -> Hit | None:
    found = next((tensor for tensor in step.constants if not tensor.finite), None)
    return None if found is None else (f"constant {found.name}", 0)


def _offset_slice(step: Step) -> Hit | None:
    begin = step.numbers("begin") if step.operator in ("slice_by_index", "slice_by_size") else ()
    return (f"{step.outputs[0].size_words} from {begin[-1]}", 0) if begin and begin[-1] != 0 else None


_unfixed = _any(lambda tensor: UNKNOWN in tensor.shape)
_oversized = _any(lambda tensor: max(tensor.sizes, default=0) > MAX_SIZE)
_other_type = _any(lambda tensor: tensor.dtype not in KNOWN_TYPES)

RULES: tuple[Rule, ...] = (
    Rule("dynamic shape", FALLS_OFF, "runs there for its default size at most", APPLE_FORUM, _unfixed),
    Rule("unknown rank", FALLS_OFF, "shapes must be static", APPLE_RULES, _any(lambda t: t.shape == UNRANKED)),
    Rule("rank above 5", FALLS_OFF, "is rejected", APPLE_RULES, _any(lambda t: t.rank > 5)),
    Rule("size above 16384", FALLS_OFF, "no axis may be longer before A16 and M4", REPORTED, _oversized),
    Rule("float32", FALLS_OFF, "runs on the CPU or the GPU", TYPED, _float32),
    Rule("other type", FALLS_OFF, "the engine takes float16, int8 and int16", APPLE_RULES, _other_type),
    Rule("no such operation", FALLS_OFF, "the engine has no path for it", REPORTED, _operator(NO_PATH)),
    Rule("recurrent cell", FALLS_OFF, "is not supported on the engine", MAINTAINER, _operator(RECURRENT)),
    Rule("gather by computed indices", FALLS_OFF, "runs on the CPU", REPORTED_GATHER, _computed_gather),
    Rule("product of rank 5", FALLS_OFF, "matmul and linear take rank 4", REPORTED, _high_rank_product),
    Rule("computed kernel in a batch", FALLS_OFF, "does not compile for the engine", REPORTED, _computed_kernel),
    Rule("long argmax", FALLS_OFF, "the axis may have 2048 entries", REPORTED, _long_argmax),
    Rule("rank above 4", SLOW, "the engine works on 4 axes, channels second", APPLE, _any(lambda t: t.rank > 4)),
    Rule("narrow last axis", SLOW, "each row is padded to 64 bytes", APPLE, _narrow),
    Rule("large tensor moved", SLOW, "reshapes and transposes are copies", APPLE, _moved),
    Rule("linear layer", SLOW, "a 1x1 convolution is faster", APPLE, _linear),
    Rule("large tensor repeated", SLOW, "writes the same numbers many times", REPORTED, _expanded),
    Rule("softmax over a row", SLOW, "splits better over channels", APPLE_RULES, _spatial_softmax),
    Rule("larger than 2 MiB", SLOW, "streams from memory instead of staying on chip", REPORTED, _streamed),
    Rule("border of float32", WATCH, "values change type, and perhaps device", TYPED, _border),
    Rule("truth values", WATCH, "run there between comparison and select", REPORTED, _any(lambda t: t.dtype == "bool")),
    Rule("8-bit activations", WATCH, "fast from A17 Pro and M4 on; slower on CPU and GPU", QUANTISED, _operator(BYTES)),
    Rule("newer chips only", WATCH, "older chips run it elsewhere", REPORTED, _newer),
    Rule("gather", WATCH, "runs there in few forms before A14 and M2", REPORTED, _stored_gather),
    Rule("infinite constant", WATCH, "the engine's softmax mishandles infinities", APPLE_RULES, _infinite),
    Rule("slice inside a row", WATCH, "clips values above 4094 on A13, A14, M1 and M2", REPORTED, _offset_slice),
)
