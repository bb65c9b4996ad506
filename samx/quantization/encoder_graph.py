"""An image encoder's graph in INT8: its products with constant weights in groups, and the ranges that pictures give."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from samx.errors import InputError
from samx.exporters.onnx import save
from samx.quantization.groups import PRODUCTS, Product
from samx.quantization.onnx_qdq import Limits, integer_products, open_session, sign

PREFIX = "encoder."  # of an encoder's constants in the graph of PictureGraph
CONVOLUTION = "Conv"
WHOLE = ("attn", "mlp")  # modules whose products belong together
MATRIX = 2  # axes
FILE = "encoder.onnx"


def encoder_products(model: onnx.ModelProto) -> list[Product]:
    """Find an encoder's products with constant weights, in the order of the computation.

    The exporter makes up names for transposed weights: a product belongs to the first named constant behind it.
    """
    constants = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    behind: dict[str, str] = {}  # the first named constant behind each tensor
    found = []
    for node in reversed(model.graph.node):
        own = [name for name in node.input if name in constants and name.startswith(PREFIX)]
        path = own[0] if own else next((behind[name] for name in node.output if name in behind), "")
        behind.update(dict.fromkeys(node.input, path))
        weight = node.input[1] if len(node.input) > 1 else ""
        shape = constants.get(weight, ())
        # ONNX Runtime multiplies by no stack of matrices in integers: tables of relative positions stay as they are.
        if (node.op_type == CONVOLUTION and shape) or (node.op_type in PRODUCTS and len(shape) == MATRIX):
            axis = _channel_axis(node, shape)
            found.append(Product(node.name, node.op_type, group_of(path), weight, 1, axis, shape, node.input[0]))
    return found[::-1]


def group_of(path: str) -> str:
    """Name the group of a constant: its module, or the attention or the two layers that the module is part of."""
    parts = path.removeprefix(PREFIX).split(".")[:-1]
    ends = [i + 1 for i, part in enumerate(parts) if part in WHOLE]
    return ".".join(parts[: ends[0]] if ends else parts) or "other"


def _channel_axis(node: onnx.NodeProto, shape: Sequence[int]) -> int:
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed or node.op_type == CONVOLUTION else len(shape) - 1


def picture_limits(path: Path, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> Limits:
    """Run pictures; return the least and the largest value of what products take and convolutions give.

    They are found in the graph: what ViT-B's products take is a gibibyte.
    Raises: InputError where a value is not finite.
    """
    model = onnx.load(str(path))
    named = {node.name: node for node in model.graph.node}
    products = encoder_products(model)
    gives = [named[product.node].output[0] for product in products if product.op == CONVOLUTION]
    tensors = sorted({*(product.tensor for product in products), *gives})
    kinds = {"low": "ReduceMin", "high": "ReduceMax"}
    names = [f"{name}.{end}" for name in tensors for end in kinds]
    for name in tensors:
        model.graph.node.extend(
            helper.make_node(kind, [name], [f"{name}.{end}"], keepdims=0) for end, kind in kinds.items()
        )
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in names)
    with tempfile.TemporaryDirectory(prefix="samx-ranges-") as folder:
        save(model, Path(folder, FILE), "encoder")
        session = open_session(str(Path(folder, FILE)))
        found = np.array([session.run(names, dict(feed)) for feed in feeds], np.float32)
    if not np.isfinite(found).all():
        raise InputError("a picture makes the encoder not finite", found="no INT8", fix="Use --encoder-precision fp32.")
    lows, highs = found[:, ::2].min(axis=0), found[:, 1::2].max(axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(tensors, lows, highs, strict=True)}


def quantised_encoder(path: Path, groups: Collection[str], limits: Limits) -> onnx.ModelProto:
    """Read an encoder's graph and put the products of some groups in integers."""
    model, before = onnx.load(str(path)), onnx.load(str(path), load_external_data=False)
    chosen = [product for product in encoder_products(model) if product.group in groups]
    if chosen:
        _subtract_biases(model, {product.node for product in chosen})
        model = integer_products(model, chosen, limits, half=False, symmetric=False)
        sign(model, before)
    return model


def _subtract_biases(model: onnx.ModelProto, chosen: Collection[str]) -> None:
    """Subtract the negative of what is added to a product: ONNX Runtime makes a float Gemm of product and addition."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    products = {node.output[0] for node in model.graph.node if node.name in chosen and node.op_type == "MatMul"}
    for node in model.graph.node:
        bias = next((name for name in node.input if name in constants), None)
        if node.op_type == "Add" and bias is not None and products & set(node.input):
            negative = f"{bias}.negative"
            model.graph.initializer.append(numpy_helper.from_array(-numpy_helper.to_array(constants[bias]), negative))
            node.op_type, node.input[:] = "Sub", [next(name for name in node.input if name != bias), negative]
    used = {name for node in model.graph.node for name in node.input}
    kept = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
