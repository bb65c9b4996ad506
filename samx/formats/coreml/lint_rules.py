"""The known rules of the Neural Engine, as far as anybody has published them: a table that the lint walks through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from samx.formats.coreml.lint_program import Step
from samx.formats.coreml.tensors import UNKNOWN, UNRANKED, TensorType

FALLS_OFF, SLOW, WATCH = "falls off", "slow", "watch"
SEVERITIES = (FALLS_OFF, SLOW, WATCH)  # the gravest first

LARGE = 65_536  # elements; what is smaller costs little however it lies
MAX_RANK, NATIVE_RANK = 5, 4
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
ENGINE_TYPES = frozenset({"fp16", "int8", "uint8", "int16", "uint16"})
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


def _other_type(tensor: TensorType) -> bool:
    return tensor.dtype not in ENGINE_TYPES | WIDE | {"bool"}


def _computed_gather(step: Step) -> Hit | None:
    indices = step.first("indices")
    computed = step.operator in GATHERS and indices is not None and not indices.constant
    return (step.outputs[0].size_words, 0) if computed else None


def _stored_gather(step: Step) -> Hit | None:
    return (step.outputs[0].size_words, 0) if step.operator in GATHERS and _computed_gather(step) is None else None


def _high_rank_product(step: Step) -> Hit | None:
    high = next((t for t in step.flowing if t.rank > NATIVE_RANK), None)
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


def _unfixed(tensor: TensorType) -> bool:
    return UNKNOWN in tensor.shape


def _unranked(tensor: TensorType) -> bool:
    return tensor.shape == UNRANKED


def _ranked_above(rank: int) -> Callable[[TensorType], bool]:
    return lambda tensor: tensor.rank > rank


def _oversized(tensor: TensorType) -> bool:
    return max(tensor.sizes, default=0) > MAX_SIZE


RULES: tuple[Rule, ...] = (
    Rule("dynamic shape", FALLS_OFF, "runs there for its default size at most", APPLE_FORUM, _any(_unfixed)),
    Rule("unknown rank", FALLS_OFF, "shapes must be static", APPLE_RULES, _any(_unranked)),
    Rule("rank above 5", FALLS_OFF, "is rejected", APPLE_RULES, _any(_ranked_above(MAX_RANK))),
    Rule("size above 16384", FALLS_OFF, "no axis may be longer before A16 and M4", REPORTED, _any(_oversized)),
    Rule("float32", FALLS_OFF, "runs on the CPU or the GPU", TYPED, _float32),
    Rule("other type", FALLS_OFF, "the engine takes float16, int8 and int16", APPLE_RULES, _any(_other_type)),
    Rule("no such operation", FALLS_OFF, "the engine has no path for it", REPORTED, _operator(NO_PATH)),
    Rule("recurrent cell", FALLS_OFF, "is not supported on the engine", MAINTAINER, _operator(RECURRENT)),
    Rule("gather by computed indices", FALLS_OFF, "runs on the CPU", REPORTED_GATHER, _computed_gather),
    Rule("product of rank 5", FALLS_OFF, "matmul and linear take rank 4", REPORTED, _high_rank_product),
    Rule("computed kernel in a batch", FALLS_OFF, "does not compile for the engine", REPORTED, _computed_kernel),
    Rule("long argmax", FALLS_OFF, "the axis may have 2048 entries", REPORTED, _long_argmax),
    Rule("rank above 4", SLOW, "the engine works on 4 axes, channels second", APPLE, _any(_ranked_above(NATIVE_RANK))),
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
