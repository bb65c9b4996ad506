"""What an OpenVINO graph must be: the ONNX graph that it comes from, seen from outside."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from samx.extras import require
from samx.formats.openvino.ir import metadata, state

if TYPE_CHECKING:
    import onnx

DYNAMIC = -1
FLOAT32, BFLOAT16 = "f32", "bf16"
# Loops and shapes that hang on values: none is in the ONNX graph, and a conversion must not bring any in.
FORBIDDEN = frozenset({"If", "Loop", "TensorIterator", "NonZero", "Interpolate"})
Port = tuple[str, tuple[int, ...], str]  # name, shape, element type


def broken_rules(graph: Any, model: bytes, role: str, *, half_state: bool) -> list[str]:
    """List every rule that a graph breaks, in words; empty when it is in order.

    `half_state`: what an image graph gives and a prompt graph takes is in bfloat16.
    """
    source = require("onnx", "export", "the OpenVINO export").load_from_string(model).graph
    half = {port.get_any_name() for port in state(graph, role)} if half_state else set()
    return [
        *_ports("inputs", graph.inputs, source.input, half),
        *_ports("outputs", graph.outputs, source.output, half),
        *_operations(graph),
        *_metadata(graph, role),
    ]


def _ports(
    side: str, ports: Sequence[Any], expected: Sequence[onnx.ValueInfoProto], half: Collection[str]
) -> Iterator[str]:
    found, wanted = [_port(port) for port in ports], [_source_port(value, half) for value in expected]
    if found != wanted:
        yield f"{side} are {found}, not {wanted}"


def _port(port: Any) -> Port:
    shape = tuple(dim.get_length() if dim.is_static else DYNAMIC for dim in port.get_partial_shape())
    return port.get_any_name(), shape, port.get_element_type().to_string()


def _source_port(value: onnx.ValueInfoProto, half: Collection[str]) -> Port:
    shape = tuple(DYNAMIC if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return value.name, shape, BFLOAT16 if value.name in half else FLOAT32


def _operations(graph: Any) -> Iterator[str]:
    for kind in sorted({operation.get_type_name() for operation in graph.get_ops()} & FORBIDDEN):
        yield f"operation {kind}"


def _metadata(graph: Any, role: str) -> Iterator[str]:
    found = metadata(graph).get("role")
    if found != role:
        yield f"its metadata gives it the role {found!r}, not {role!r}"
