"""Write a contract's graph: nodes before and after the unchanged nodes of an exported decoder.

Letters in the shape comments: N prompts, P points, M masks a prompt, S mask pixels per side, H x W picture pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from samx.contracts.table import BOUNDS, CLIENT_FOLDER, CLIENT_ROLE, Contract, Port
from samx.extras import require
from samx.formats.onnx import ELEMENT_TYPES
from samx.models.spec import LABELS, DecoderSpec

if TYPE_CHECKING:
    import onnx

Value = Union[str, NDArray[Any]]  # a tensor of the graph, or a constant
Tensors = dict[str, str]  # the name of each tensor, by what it holds
INNER = "samx/"  # in front of every name of the decoder's own: no program's tensor is called so
CONTRACT_KEY = "samx.contract"  # in the file's metadata
FLOAT, UINT8, INT64 = (ELEMENT_TYPES[name] for name in ("float32", "uint8", "int64"))
BOX_LABELS = np.array([[LABELS["box_top_left"], LABELS["box_bottom_right"]]], np.float32)
# Meta's graph of one mask: token 0 where there are three tokens and more, the best of the others below that.
FEW_TOKENS, SURE = np.float32(2.5), np.float32(1000)
WHITE = np.float32(255)


def write_client(decoder: Path, contract: Contract, spec: DecoderSpec, directory: Path) -> dict[str, str]:
    """Write a contract's graph of an exported decoder into an artifact's directory; return the file with its role."""
    onnx = require("onnx", "export", "writing a contract's graph")
    name = f"{CLIENT_FOLDER}/{contract.file}"
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(adapted(onnx.load(str(decoder)), contract, spec).SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    return {name: CLIENT_ROLE}


def adapted(decoder: onnx.ModelProto, contract: Contract, spec: DecoderSpec) -> onnx.ModelProto:
    """Return a contract's graph around a decoder's; `spec` is the decoder's own."""
    onnx = require("onnx", "export", "writing a contract's graph")
    inner, given = onnx.compose.add_prefix(decoder, INNER), {port.holds: port.name for port in contract.inputs}
    before, after = Nodes("before"), Nodes("after")
    images = {tensor.name: given[tensor.name] for tensor in spec.image_inputs}
    for name, value in {**images, **_prompts(before, contract, given)}.items():
        before.rename(value, INNER + name)
    found = _results(after, contract, spec, given)
    for port in contract.outputs:
        after.rename(found[port.holds], port.name)
    graph = onnx.helper.make_graph(
        [*before.nodes, *inner.graph.node, *after.nodes], contract.name,
        [declared(port, contract, spec) for port in contract.inputs],
        [declared(port, contract, spec) for port in contract.outputs],
        [*before.constants, *inner.graph.initializer, *after.constants],
    )  # fmt: skip
    return as_model(graph, decoder, contract)


def as_model(graph: onnx.GraphProto, inner: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Put a contract's graph into a model like the one that it is written around."""
    helper, model = require("onnx", "export", "writing a contract's graph").helper, type(inner)()
    opset, version = inner.opset_import, inner.ir_version
    model.CopyFrom(helper.make_model(graph, producer_name="samx", opset_imports=opset, ir_version=version))
    model.metadata_props.extend(inner.metadata_props)
    model.metadata_props.add(key=CONTRACT_KEY, value=json.dumps(contract.name))
    return model


class Nodes:
    """Collect nodes, and the constants that they read."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix, self._onnx = prefix, require("onnx", "export", "writing a contract's graph")

    def add(self, operator: str, *inputs: Value, **attributes: Any) -> str:
        """Add a node, and return its output's name."""
        return self._append(operator, inputs, f"{self._prefix}/{operator}_{len(self.nodes)}", attributes)

    def rename(self, value: Value, name: str) -> None:
        """Call a tensor by another name."""
        self._append("Identity", (value,), name, {})

    def filled(self, shape: str, value: float) -> str:
        """Return a tensor of one value, of a shape that is a tensor."""
        of = self._onnx.numpy_helper.from_array(np.array([value], np.float32))
        return self.add("ConstantOfShape", shape, value=of)

    def size(self, value: str, axis: int, end: int | None = None) -> str:
        """Return sizes of a tensor. Shapes: -> (end - axis), int64."""
        return self.add("Shape", value, start=axis, end=axis + 1 if end is None else end)

    def _append(self, operator: str, inputs: tuple[Value, ...], output: str, attributes: Mapping[str, Any]) -> str:
        names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        self.nodes.append(self._onnx.helper.make_node(operator, names, [output], **attributes))
        return output

    def _constant(self, value: NDArray[Any]) -> str:
        name = f"{self._prefix}/constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name


def _prompts(nodes: Nodes, contract: Contract, given: Tensors) -> Tensors:
    """Make the decoder's prompts of what a program sends."""
    coords, labels = given["point_coords"], nodes.add("Cast", given["point_labels"], to=FLOAT)
    if contract.objects:
        coords, labels = (nodes.add("Squeeze", value, integers(0)) for value in (coords, labels))
    if "boxes" in given:
        coords, labels = _with_boxes(nodes, coords, labels, given["boxes"])
    prompts = nodes.size(coords, 0)
    if contract.padding != "program":
        missing: Value = integers(1)
        if contract.padding == "graph_without_box":
            missing = nodes.add("Sub", integers(1), nodes.add("Cast", _has_box(nodes, labels), to=INT64))
        zeros = nodes.filled(nodes.add("Concat", prompts, missing, integers(2), axis=0), 0)
        padding = nodes.filled(nodes.add("Concat", prompts, missing, axis=0), LABELS["padding"])
        coords, labels = (nodes.add("Concat", *pair, axis=1) for pair in ((coords, zeros), (labels, padding)))
    found = {"point_coords": coords, "point_labels": labels}
    if "mask_input" not in given:
        return found
    flags = nodes.add("Greater", nodes.add("Reshape", given["has_mask_input"], integers(-1)), np.float32(0))
    shape = nodes.add("Concat", prompts, integers(1, 1, 1), axis=0)
    return {
        **found,
        "mask_input": nodes.add("Expand", given["mask_input"], shape),
        "has_mask_input": nodes.add("Expand", nodes.add("Cast", flags, to=FLOAT), prompts),
    }


def _with_boxes(nodes: Nodes, coords: str, labels: str, boxes: str) -> tuple[str, str]:
    """Put box corners behind the points; there may be no box, or no point.

    Shapes: (N or 1, P, 2), (N or 1, P), (1, N or 0, 4) -> (N, P + 2 or P, 2), the same without 2.
    """
    corners = nodes.add("Reshape", nodes.add("Squeeze", boxes, integers(0)), integers(0, 2, 2))
    given = nodes.size(corners, 0)
    some = nodes.add("Min", given, integers(1))  # 1, or 0 where there is no box
    prompts = nodes.add("Max", nodes.size(coords, 0), given)
    none = nodes.add("Mul", prompts, nodes.add("Sub", integers(1), some))
    tokens = nodes.add("Mul", some, integers(2))
    shape = nodes.add("Concat", nodes.add("Add", given, none), tokens, integers(2), axis=0)
    corners = nodes.add("Reshape", corners, shape, allowzero=1)
    codes = nodes.add("Slice", BOX_LABELS, integers(0), tokens, integers(1))
    one = nodes.add("Concat", prompts, integers(1), axis=0)
    two = nodes.add("Concat", prompts, integers(1, 1), axis=0)
    pairs = ((coords, corners, two), (labels, codes, one))
    first, second = (
        nodes.add("Concat", *(nodes.add("Expand", value, to) for value in values), axis=1) for *values, to in pairs
    )
    return first, second


def _has_box(nodes: Nodes, labels: str) -> str:
    """Tell whether a corner of a box is among the points. Shapes: (N, P) -> (1), bool."""
    largest = nodes.add("Reshape", nodes.add("ReduceMax", labels, keepdims=0), integers(1))
    return nodes.add("Greater", largest, np.float32(LABELS["foreground"]))


def _results(nodes: Nodes, contract: Contract, spec: DecoderSpec, given: Tensors) -> Tensors:
    """Make what a program reads of the decoder's outputs."""
    found = {tensor.name: INNER + tensor.name for tensor in spec.outputs}
    if contract.picks:
        found |= _picked(nodes, found)
    masks, limit = found["low_res_masks"], np.float32(spec.rules.mask_limit)
    if contract.clamps:
        found["low_res_masks"] = nodes.add("Clip", masks, -limit, limit)
    if contract.resizing is not None:
        found["picture_masks"] = _at_picture_size(nodes, contract, spec, masks, given["picture_size"])
    if contract.has("picture_crop"):
        found |= _cut_out(nodes, found["picture_masks"])
    if not contract.objects:
        return found
    return {holds: nodes.add("Unsqueeze", value, integers(0)) for holds, value in found.items()}


def _picked(nodes: Nodes, found: Tensors) -> Tensors:
    """Choose one of all masks as Meta's graph does. Shapes: (N, M, S, S), (N, M) -> (N, 1, S, S), (N, 1)."""
    masks, iou = found["low_res_masks"], found["iou_predictions"]
    tokens = nodes.add("Cast", nodes.size(INNER + "point_coords", 1), to=FLOAT)
    first = np.array([[1, 0, 0, 0]], np.float32) * SURE
    reward = nodes.add("Mul", nodes.add("Sub", tokens, FEW_TOKENS), first)
    best = nodes.add("ArgMax", nodes.add("Add", iou, reward), axis=1, keepdims=1)
    return {
        "low_res_masks": nodes.add("Unsqueeze", nodes.add("GatherND", masks, best, batch_dims=1), integers(1)),
        "iou_predictions": nodes.add("GatherElements", iou, best, axis=1),
    }


def _at_picture_size(nodes: Nodes, contract: Contract, spec: DecoderSpec, masks: str, size: str) -> str:
    """Resize logits to the picture. Shapes: (N, M, S, S), (2) -> (N, M, H, W)."""
    picture = nodes.add("Cast", size, to=INT64)
    if contract.resizing == "through_frame":
        sides, frame = nodes.add("Cast", size, to=FLOAT), np.array([spec.image_size], np.float32)
        scale = nodes.add("Div", frame, nodes.add("ReduceMax", sides, keepdims=1))
        valid = nodes.add("Floor", nodes.add("Add", nodes.add("Mul", scale, sides), np.float32(0.5)))
        framed = _resized(nodes, masks, integers(spec.image_size, spec.image_size))
        end = nodes.add("Cast", valid, to=INT64)
        masks = nodes.add("Slice", framed, integers(0, 0), end, integers(2, 3))
    return _resized(nodes, masks, picture)


def _resized(nodes: Nodes, masks: str, size: Value) -> str:
    sizes = nodes.add("Concat", nodes.size(masks, 0, 2), size, axis=0)
    return nodes.add("Resize", masks, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")


def _cut_out(nodes: Nodes, masks: str) -> Tensors:
    """Cut a mask out of its picture; one without a pixel is the whole picture. Shapes: (1, 1, H, W) -> (1, 1, h, w)."""
    inside = nodes.add("Cast", nodes.add("Greater", masks, np.float32(0)), to=FLOAT)
    found = {}
    for axis, (first, last) in ((3, (BOUNDS[0], BOUNDS[2])), (2, (BOUNDS[1], BOUNDS[3]))):
        line = nodes.add("ReduceMax", inside, integers(*{0, 1, 2, 3} - {axis}), keepdims=0)
        found[first] = nodes.add("ArgMax", line, axis=0, keepdims=1)
        found[last] = nodes.add("ArgMax", line, axis=0, keepdims=1, select_last_index=1)
    left, top, right, bottom = (found[side] for side in BOUNDS)
    start, last = (nodes.add("Concat", *pair, axis=0) for pair in ((top, left), (bottom, right)))
    levels, end = nodes.add("Mul", inside, WHITE), nodes.add("Add", last, integers(1))
    cut = nodes.add("Slice", levels, start, end, integers(2, 3))
    return {**found, "picture_crop": nodes.add("Cast", cut, to=UINT8)}


def declared(port: Port, contract: Contract, spec: DecoderSpec) -> onnx.ValueInfoProto:
    """Return an input or output as the file declares it."""
    onnx = require("onnx", "export", "writing a contract's graph")
    sizes: dict[int | str, int] = {
        "size": spec.mask_size,
        "grid": spec.grid,
        "channels": spec.width,
        "count": 1 if contract.picks else spec.masks_out,
    }
    own = {tensor.name: tensor.shape for tensor in spec.image_inputs}
    axes = own[port.holds] if port.axes is None else [sizes.get(axis, axis) for axis in port.axes]
    return onnx.helper.make_tensor_value_info(port.name, ELEMENT_TYPES[port.dtype], axes)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)
