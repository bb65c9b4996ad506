"""OpenVINO IR: a graph in XML, its constants beside it. Made from ONNX, the same for the same graph byte by byte.

Also what such a graph must be (the ONNX graph that it comes from, seen from outside), and what the CPU plugin makes of
it: which operations it runs, and in which arithmetic.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from samx.errors import InputError, UnavailableError
from samx.extras import require
from samx.files import GRAPH_CAP_BYTES, read_file
from samx.formats.onnx import ELEMENT_TYPES, own_metadata
from samx.formats.openvino_rewrite import PERIODIC, rewrite, rewrite_encoder

if TYPE_CHECKING:
    import onnx


PLUGIN = "CPU"
BFLOAT16 = "bf16"
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Subgraph")  # the last: what the plugin fused, products too
STORAGE = ("Const", "Input", "Output")  # take no time of their own
# What is not in integers is computed in; fp16 is what the files store. Left alone, the plugin takes bfloat16 wherever
# the processor has it.
ARITHMETIC: Mapping[str, str] = {"fp32": "f32", "fp16": "f32", "int8": "f32", "bf16": BFLOAT16}
GRAPH_SUFFIX, WEIGHTS_SUFFIX, WEIGHTS_ROLE = ".xml", ".bin", "_weights"
STATE_PREFIX = "image_"  # of what an image graph gives and a prompt graph takes
METADATA_PLACE = "framework"  # where OpenVINO puts what an ONNX file says about itself
PRECISE = "precise"
NUMBERED = re.compile(r"[A-Z]\w*_\d+")
DYNAMIC = -1
FLOAT32 = "f32"
TYPES = {ELEMENT_TYPES["uint8"]: "u8", ELEMENT_TYPES["int32"]: "i32"}  # of an ONNX file's inputs that are not float32
# Loops and shapes that hang on values: none is in the ONNX graph, and a conversion must not bring any in.
FORBIDDEN = frozenset({"If", "Loop", "TensorIterator", "NonZero", "Interpolate"})


def operations(compiled: Any) -> Iterator[tuple[str, str]]:
    """Give kind and arithmetic of every operation that runs.

    The arithmetic stands behind the name of the kernel; what is called the run-time precision is that of the weights.
    """
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = operation.get_rt_info()
        kind = str(facts["layerType"].value)
        if kind not in STORAGE:
            yield kind, str(facts["primitiveType"].value).rpartition("_")[2].lower()


def devices_of(models: Sequence[Any]) -> dict[str, int]:
    """Count the operations on each device."""
    counts: Counter[str] = Counter()
    for compiled in models:
        (device,) = compiled.get_property("EXECUTION_DEVICES")
        counts[str(device).lower()] += sum(1 for _ in operations(compiled))
    return dict(counts)


def products(models: Sequence[Any]) -> dict[str, int]:
    """Count the products in each arithmetic."""
    found = Counter(arithmetic for compiled in models for kind, arithmetic in operations(compiled) if kind in PRODUCTS)
    return dict(sorted(found.items()))


def check_processor(core: Any, precision: str) -> None:
    """Refuse bfloat16 where the processor lacks it: the plugin would compute in float32, and say nothing.

    Raises: UnavailableError.
    """
    capabilities = core.get_property(PLUGIN, "OPTIMIZATION_CAPABILITIES")
    if ARITHMETIC[precision] == BFLOAT16 and BFLOAT16.upper() not in capabilities:
        raise UnavailableError(
            "this processor does not compute in bfloat16", found=", ".join(capabilities),
            expected="AVX-512 BF16 or AMX", fix="Use another precision, or such a processor.",
        )  # fmt: skip


def check_products(found: Mapping[str, int], precision: str) -> None:
    """Refuse a graph that was compiled to another arithmetic than was asked for.

    Raises: UnavailableError.
    """
    arithmetic = ARITHMETIC[precision]
    halves = {BFLOAT16, "f16"} & set(found)
    if halves - {arithmetic} or (arithmetic == BFLOAT16 and arithmetic not in found):
        raise UnavailableError(
            "OpenVINO computes in another arithmetic here",
            found=", ".join(f"{count} products in {name}" for name, count in found.items()), expected=arithmetic,
            fix="Please report this, with the output of 'samx doctor'.",
        )  # fmt: skip


@dataclass(frozen=True)
class Ir:
    """The two files of a graph."""

    graph: bytes
    weights: bytes

    def files(self, role: str) -> dict[str, tuple[bytes, str]]:
        """Return each file's content and role, by name."""
        return {
            f"{role}{GRAPH_SUFFIX}": (self.graph, role),
            f"{role}{WEIGHTS_SUFFIX}": (self.weights, role + WEIGHTS_ROLE),
        }


def from_directory(directory: Path, role: str) -> Ir:
    """Take the files of a graph from where they were written."""
    return Ir(*((directory / f"{role}{suffix}").read_bytes() for suffix in (GRAPH_SUFFIX, WEIGHTS_SUFFIX)))


def read(ir: Ir) -> Any:
    """Read a graph from bytes.

    Raises: InputError when it is none.
    """
    ov = _openvino()
    try:
        return ov.Core().read_model(ir.graph, ir.weights)
    except (RuntimeError, ValueError, TypeError) as cause:
        raise InputError("this is no OpenVINO IR", found=_first_line(cause), fix="Export it again.") from cause


def convert(model: bytes) -> Any:
    """Read a decoder's ONNX file."""
    graph = _from_onnx(model, b"")
    rewrite(graph)
    return graph


def convert_encoder(path: Path) -> Any:
    """Read an image encoder's ONNX file, which may have its weights beside it."""
    graph = _from_onnx(str(path))
    rewrite_encoder(graph)
    return graph


def _from_onnx(*source: Any) -> Any:
    """Read an ONNX file, not through openvino.convert_model, which reports over the network that it was used."""
    graph = _openvino().Core().read_model(*source)
    graph.set_friendly_name("samx")
    return graph


def write(graph: Any, *, half: bool) -> Ir:
    """Return the files of a graph; with `half`, its weights in float16, which are made float32 again on loading."""
    ov = _openvino()
    _name(graph)
    with tempfile.TemporaryDirectory(prefix="samx-openvino-") as folder:
        paths = [Path(folder, f"graph{suffix}") for suffix in (GRAPH_SUFFIX, WEIGHTS_SUFFIX)]
        ov.save_model(graph, str(paths[0]), compress_to_fp16=half)
        return Ir(*(path.read_bytes() for path in paths))


def keep_in_bfloat16(graph: Any, role: str) -> Any:
    """Let an image graph give, and a prompt graph take, what is kept between prompts in bfloat16."""
    half = _openvino().Type.bf16
    preprocess = _openvino(".preprocess").PrePostProcessor(graph)
    border = preprocess.output if role == "image" else preprocess.input
    for port in state(graph, role):
        border(port.get_any_name()).tensor().set_element_type(half)
    return preprocess.build()


def angles(graph: Any) -> set[str]:
    """Name what sine and cosine hang on, constants too: a coordinate has more digits than half precision."""
    waiting = [operation for operation in graph.get_ops() if operation.get_type_name() in PERIODIC]
    found: set[str] = set()
    while waiting:
        operation = waiting.pop()
        if operation.get_friendly_name() not in found and operation.get_type_name() != "Parameter":
            found.add(operation.get_friendly_name())
            waiting += [value.get_node() for value in operation.input_values()]
    return found


def keep_in_float32(ir: Ir, names: Collection[str]) -> Ir:
    """Exempt operations and constants from half precision. OpenVINO has a word for it in XML only."""
    root = ElementTree.fromstring(ir.graph)
    layers = [layer for layer in root.iter("layer") if layer.get("name") in names]
    for layer in layers:
        facts = layer.find("rt_info")
        if facts is None:
            facts = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, facts)
        ElementTree.SubElement(facts, "attribute", name=PRECISE, version="0")
    return Ir(ElementTree.tostring(root, "utf-8", xml_declaration=True), ir.weights)


def state(graph: Any, role: str) -> list[Any]:
    """Find the ports of what is kept between prompts."""
    ports = {"image": graph.outputs, "prompt": graph.inputs}.get(role, [])
    return [port for port in ports if port.get_any_name().startswith(STATE_PREFIX)]


def metadata(graph: Any) -> dict[str, Any]:
    """Return what samx wrote into the ONNX file that a graph comes from."""
    return own_metadata(graph.get_rt_info([METADATA_PLACE]).value) if graph.has_rt_info([METADATA_PLACE]) else {}


def describe(path: Path) -> dict[str, Any]:
    """Return what a graph on disk says about itself, the metadata of its export with it.

    Raises: MissingExtraError; InputError when it is none or lacks its weights.
    """
    weights = path.with_suffix(WEIGHTS_SUFFIX)
    if not weights.is_file():
        raise InputError(f"'{path}' lacks its weights", expected=weights.name, fix="Keep the two together.")
    graph = read(Ir(*(read_file(file, GRAPH_CAP_BYTES, f"'{file}'") for file in (path, weights))))
    try:
        names = [[port.get_any_name() for port in ports] for ports in (graph.inputs, graph.outputs)]
        return {"kind": "openvino", "inputs": names[0], "outputs": names[1], "samx": metadata(graph)}
    except (RuntimeError, ValueError) as cause:  # a port without a name, or one that is no text
        raise InputError(f"'{path}' is no decoder's graph", found=_first_line(cause), fix="Export it again.") from cause


def _openvino(part: str = "") -> ModuleType:
    return require(f"openvino{part}", "openvino", "OpenVINO files")


def _name(graph: Any) -> None:
    """Give operations that ONNX has no name for their place as a number, where OpenVINO counts on through a process."""
    for place, operation in enumerate(graph.get_ordered_ops()):
        if NUMBERED.fullmatch(operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{place}")


def _first_line(cause: Exception) -> str:
    """Cut off where in its own sources the library found the mistake."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


Port = tuple[str, tuple[int, ...], str]  # name, shape, element type


def broken_rules(
    graph: Any, model: bytes, role: str, *, half_state: bool = False, allows: frozenset[str] = frozenset()
) -> list[str]:
    """List every rule that a graph breaks, in words; empty when it is in order. It may have the allowed operations.

    `half_state`: what an image graph gives and a prompt graph takes is in bfloat16.
    """
    source = require("onnx", "export", "the OpenVINO export").load_from_string(model).graph
    half = {port.get_any_name() for port in state(graph, role)} if half_state else set()
    return [
        *_ports("inputs", graph.inputs, source.input, half),
        *_ports("outputs", graph.outputs, source.output, half),
        *_operations(graph, allows),
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
    return value.name, shape, BFLOAT16 if value.name in half else TYPES.get(value.type.tensor_type.elem_type, FLOAT32)


def _operations(graph: Any, allows: frozenset[str]) -> Iterator[str]:
    for kind in sorted({operation.get_type_name() for operation in graph.get_ops()} & FORBIDDEN - allows):
        yield f"operation {kind}"


def _metadata(graph: Any, role: str) -> Iterator[str]:
    found = metadata(graph).get("role")
    if found != role:
        yield f"its metadata gives it the role {found!r}, not {role!r}"
