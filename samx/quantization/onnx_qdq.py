"""INT8 in ONNX: integer products between Q and DQ, and weights that are kept in 8 bits for float products.

Integer products are written by onnxruntime.quantization: symmetric, weights with a scale for each output. Their
outputs stay float: quantising those too costs accuracy and, in ONNX Runtime, time. TensorRT wants both factors signed,
with zero points 0. ONNX Runtime's fast kernels on x86 want the activation unsigned: the same integers with 128 added.
It makes that change itself only where a single product reads a tensor, and here two usually do.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from samx.errors import InputError
from samx.extras import require
from samx.quantization.calibration import magnitude
from samx.quantization.groups import LEFT_ALONE, Product, products, weights_of
from samx.quantization.search import Ranges

MOST = 127  # of a signed byte; -128 is left out, so that the range is symmetric
HALF_OPSET, HALF_IR_VERSION = 19, 9  # the first opset in which scales may be float16
# What is counted of a session's own graph.
OPERATORS: Mapping[str, tuple[str, ...]] = {
    "integer": (
        "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
        "QLinearConv", "ConvInteger",
    ),
    "floating": ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "Attention"),
    "conversions": ("QuantizeLinear", "DequantizeLinear"),
}  # fmt: skip
TABLE_BYTES = 2**16  # constants from here on that no product multiplies are kept in float16

Limits = Mapping[str, tuple[float, float]]  # least and largest values, by the name of the tensor
# What stands in a constant's place: its name, smaller constants, and nodes that compute it from them.
Kept = tuple[str, Sequence[onnx.TensorProto], Sequence[onnx.NodeProto]]


def quantise_with(
    model: bytes, groups: Collection[str], ranges: Ranges, half: bool, stored: Collection[str] = ()
) -> bytes:
    """Multiply the products of `groups` in integers, and keep the weights of `stored` in 8 bits.

    `half` is for float16 graphs that TensorRT takes: signed activations, float16 scales, float biases, a later opset
    where needed. The others are for ONNX Runtime: unsigned activations, int32 biases, without which its integer Gemm is
    not used, and large constants of no product in float16.
    """
    graph = _later_opset(onnx.load_from_string(model)) if half else onnx.load_from_string(model)
    before = onnx.ModelProto()
    before.CopyFrom(graph)
    chosen = [product for product in products(graph) if product.group in groups]
    weights = [product for product in weights_of(graph, stored) if product.group not in groups]
    tables = [] if half else _tables(graph)
    limits = {product.tensor: (-ranges[product.tensor], ranges[product.tensor]) for product in chosen}
    graph = integer_products(graph, chosen, limits, half) if chosen else graph
    kept = [_stored(graph, product, half) for product in weights]
    _replace(graph, [*kept, *(_halved(graph, name) for name in tables)])
    sign(graph, before)
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString()


def sign(graph: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Undo what the quantiser writes about itself."""
    graph.ir_version, graph.producer_name = before.ir_version, before.producer_name
    graph.producer_version = before.producer_version
    del graph.metadata_props[:]
    graph.metadata_props.extend(before.metadata_props)


def integer_products(
    model: onnx.ModelProto, chosen: Sequence[Product], limits: Limits, half: bool, symmetric: bool = True
) -> onnx.ModelProto:
    """Put Q and DQ round the products' factors, and behind convolutions, which give integers."""
    library = require("onnxruntime.quantization", "onnxruntime", "INT8")
    types = library.QuantType
    quantizer = library.QDQQuantizer(
        model, True, False, types.QInt8, types.QInt8 if half else types.QUInt8, _limits(limits, half),
        [product.node for product in chosen], [], sorted({product.op for product in chosen}),
        _options(chosen, half, symmetric),
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    return result


def _options(chosen: Sequence[Product], half: bool, symmetric: bool) -> dict[str, Any]:
    return {
        "ActivationSymmetric": symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": not half,  # TensorRT takes float biases only
        "DedicatedQDQPair": half,
        "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        "TensorQuantOverrides": {product.weight: [{"axis": product.channel_axis}] for product in chosen},
    }


def _limits(limits: Limits, half: bool) -> Any:
    library = require("onnxruntime.quantization.calibrate", "onnxruntime", "INT8")
    dtype = np.float16 if half else np.float32
    found = {
        name: library.TensorData(lowest=np.array(low, dtype), highest=np.array(high, dtype))
        for name, (low, high) in limits.items()
    }
    return library.TensorsData(library.CalibrationMethod.MinMax, found)


def _stored(model: onnx.ModelProto, product: Product, half: bool) -> Kept:
    """Keep a weight in 8 bits.

    ONNX Runtime multiplies Cast and Mul out once, on loading; a DequantizeLinear it repeats in every call. TensorRT
    takes 8-bit constants before a DequantizeLinear only.
    """
    name, weight = product.weight, _constant(model, product.weight)
    scale = _scales(weight, product, stacked=not half)
    integers = np.clip(np.rint(weight.astype(np.float32) / scale), -MOST, MOST).astype(np.int8)
    kept, scales, cast = f"{name}.int8", f"{name}.scale", f"{name}.cast"
    values = scale.ravel() if half else scale
    constants = numpy_helper.from_array(integers, kept), numpy_helper.from_array(values.astype(weight.dtype), scales)
    if half:
        axis = product.channel_axis
        return name, constants, [helper.make_node("DequantizeLinear", [kept, scales], [name], cast, axis=axis)]
    nodes = (
        helper.make_node("Cast", [kept], [cast], cast, to=helper.np_dtype_to_tensor_dtype(weight.dtype)),
        helper.make_node("Mul", [cast, scales], [name], f"{name}.scaled"),
    )
    return name, constants, nodes


def _halved(model: onnx.ModelProto, name: str) -> Kept:
    """Keep a float32 constant in float16."""
    kept = f"{name}.float16"
    node = helper.make_node("Cast", [kept], [name], f"{kept}.cast", to=TensorProto.FLOAT)
    return name, [numpy_helper.from_array(_constant(model, name).astype(np.float16), kept)], [node]


def _replace(model: onnx.ModelProto, kept: Sequence[Kept]) -> None:
    """Put the nodes first, as constants are used anywhere."""
    replaced = {name for name, _, _ in kept}
    constants = [found for found in model.graph.initializer if found.name not in replaced]
    nodes = [*chain.from_iterable(added for _, _, added in kept), *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*constants, *chain.from_iterable(added for _, added, _ in kept)])
    model.graph.node.extend(nodes)


def _constant(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(found for found in model.graph.initializer if found.name == name))


def _scales(weight: NDArray[Any], product: Product, stacked: bool) -> NDArray[np.float32]:
    """Return a scale for each output, as the weight's type holds it; with `stacked`, one for each matrix of a stack."""
    matrix = {weight.ndim - 2, weight.ndim - 1} if stacked else set(range(weight.ndim))
    largest = np.abs(weight.astype(np.float32)).max(axis=tuple(matrix - {product.channel_axis}), keepdims=True)
    scale = np.maximum(largest / MOST, np.finfo(weight.dtype).tiny)
    rounded: NDArray[np.float32] = scale.astype(weight.dtype).astype(np.float32)
    return rounded


def _tables(model: onnx.ModelProto) -> list[str]:
    """Find large constants of no product: positions, which lie between -1 and 1, and what they make of weights."""
    weights = {product.weight for product in products(model)}
    return [
        found.name
        for found in model.graph.initializer
        if found.data_type == TensorProto.FLOAT and len(found.raw_data) >= TABLE_BYTES and found.name not in weights
    ]


def _later_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert before quantising: the converter takes scales to be float32."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= HALF_OPSET:
        return model
    converter = require("onnx.version_converter", "export", "INT8")
    converted: onnx.ModelProto = converter.convert_version(model, HALF_OPSET)
    converted.ir_version = max(model.ir_version, HALF_IR_VERSION)
    return converted


def collect_ranges(model: bytes, calibration: Iterable[Mapping[str, NDArray[Any]]]) -> tuple[Ranges, Ranges]:
    """Run every sample; return the largest magnitude of each product's other factor, and its mean number of values.

    Not a percentile: it gains 0.001 of mean IoU on the demo model, and cuts off what a user's image may reach.
    Raises: InputError where nothing calibrates, or a value is not finite.
    """
    names = sorted({p.tensor for p in products(onnx.load_from_string(model)) if p.group not in LEFT_ALONE})
    graph = onnx.load_from_string(model)
    there = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    session = open_session(graph.SerializeToString())
    largest, elements, samples = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), 0
    for feed in calibration:
        samples += 1
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            largest[name] = max(largest[name], magnitude(value, name))
            elements[name] += value.size
    if not samples:
        raise InputError("nothing to calibrate INT8 with", found="0 samples", expected="at least 1")
    return largest, {name: count / samples for name, count in elements.items()}


def integer_work(model: bytes) -> dict[str, dict[str, int]]:
    """Open a graph as users' sessions do, and count what ONNX Runtime made of it, by arithmetic and operator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(model, optimized_model_filepath=str(path))
        counts = Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    return {kind: {name: counts[name] for name in names if name in counts} for kind, names in OPERATORS.items()}


def open_session(model: bytes | str, **settings: str) -> Any:
    ort = require("onnxruntime", "onnxruntime", "INT8")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for name, value in settings.items():
        setattr(options, name, value)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
