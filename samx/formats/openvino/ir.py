"""OpenVINO IR: a graph in XML, its constants beside it. Made from ONNX, the same for the same graph byte by byte."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from samx.errors import InputError
from samx.extras import require
from samx.formats.onnx import own_metadata
from samx.formats.openvino.rewrite import PERIODIC, rewrite

GRAPH_SUFFIX, WEIGHTS_SUFFIX, WEIGHTS_ROLE = ".xml", ".bin", "_weights"
STATE_PREFIX = "image_"  # of what an image graph gives and a prompt graph takes
METADATA_PLACE = "framework"  # where OpenVINO puts what an ONNX file says about itself
PRECISE = "precise"
NUMBERED = re.compile(r"[A-Z]\w*_\d+")


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
    """Read an ONNX file. Not through openvino.convert_model, which reports over the network that it was used."""
    ov = _openvino()
    graph = ov.Core().read_model(model, b"")
    graph.set_friendly_name("samx")
    rewrite(graph)
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
    try:
        files = Ir(path.read_bytes(), weights.read_bytes())
    except OSError as cause:
        raise InputError(
            f"'{path}' lacks its weights", found=cause.strerror, expected=weights.name, fix="Keep the two together."
        ) from cause
    graph = read(files)
    return {
        "kind": "openvino",
        "inputs": [port.get_any_name() for port in graph.inputs],
        "outputs": [port.get_any_name() for port in graph.outputs],
        "samx": metadata(graph),
    }


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
