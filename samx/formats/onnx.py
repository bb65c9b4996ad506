"""What an exported graph must not contain (the causes of build failures and silent mistakes), and says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.artifacts.strict_json import parse
from samx.errors import InputError
from samx.extras import require
from samx.files import GRAPH_CAP_BYTES, read_file
from samx.models.spec import TensorSpec

if TYPE_CHECKING:
    import onnx

METADATA_PREFIX = "samx."
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "float16": 10}  # the numbers of TensorProto
# Operators that break builders or hide a traced decision. Tile and ScatterND come from repeat_interleave and index
# assignment, NonZero and Where-on-shapes from boolean indexing.
FORBIDDEN = frozenset({
    "Resize", "Upsample", "If", "Loop", "Scan", "OneHot", "Tile", "NonZero", "ScatterND", "ScatterElements",
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Dropout", "GridSample",
})  # fmt: skip
MOST_DIGITS = 18  # of a place in a file


def broken_rules(
    model: onnx.ModelProto, opset: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
    allows: frozenset[str] = frozenset(),
) -> list[str]:  # fmt: skip
    """List every rule that a graph breaks, in words; empty when it is in order. It may have the allowed operators."""
    return [
        *_opset(model, opset),
        *_operators(model, allows),
        *_border("input", model.graph.input, inputs),
        *_outputs(model, outputs),
    ]


def _opset(model: onnx.ModelProto, opset: int) -> Iterator[str]:
    imports = {entry.domain: entry.version for entry in model.opset_import}
    if imports != {"": opset}:
        yield f"opset imports are {imports}, not plain opset {opset}"
    if model.functions:
        yield f"{len(model.functions)} local functions"


def _operators(model: onnx.ModelProto, allows: frozenset[str]) -> Iterator[str]:
    for name in sorted({node.op_type for node in model.graph.node} & FORBIDDEN - allows):
        yield f"operator {name}"


def _border(side: str, values: Sequence[onnx.ValueInfoProto], specs: Sequence[TensorSpec]) -> Iterator[str]:
    """Compare names, types and every axis: a dynamic axis that became a number was baked in by tracing."""
    if [value.name for value in values] != [spec.name for spec in specs]:
        yield f"{side}s are {[value.name for value in values]}"
        return
    for value, spec in zip(values, specs, strict=True):
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        if tensor.elem_type != ELEMENT_TYPES[spec.dtype]:
            yield f"{side} {spec.name} is not {spec.dtype}"
        if shape != spec.shape:
            yield f"{side} {spec.name} has shape {shape}, not {spec.shape}"


def _outputs(model: onnx.ModelProto, specs: Sequence[TensorSpec]) -> Iterator[str]:
    found = [value.name for value in model.graph.output]
    if found != [spec.name for spec in specs]:
        yield f"outputs are {found}"
        return
    for value, spec in zip(model.graph.output, specs, strict=True):
        if value.type.tensor_type.elem_type != ELEMENT_TYPES[spec.dtype]:
            yield f"output {spec.name} is not {spec.dtype}"


def read(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises: MissingExtraError; InputError when it is none, or lacks weights that it keeps in other files.
    """
    library = require("onnx", "export", "looking into an ONNX file")
    load: Callable[[bytes], onnx.ModelProto] = library.load_model_from_string
    data = read_file(path, GRAPH_CAP_BYTES, f"'{path}'")
    try:
        model = load(data)
    except Exception as cause:  # protobuf's errors share no base class with onnx's
        raise InputError(f"'{path}' is no ONNX file", found=cause, fix="Export it again.") from cause
    if not model.graph.output:  # protobuf reads an empty file, too, and some that are none
        found = f"no graph in its {len(data)} bytes"
        raise InputError(f"'{path}' is no ONNX file", found=found, fix="Copy or export it again.")
    _check_weights(path, model)
    return model


def _check_weights(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a file whose weights lie in others that are not beside it, or end too early."""
    for tensor in model.graph.initializer:
        kept = {entry.key: entry.value for entry in tensor.external_data}
        if "location" not in kept:
            continue
        beside, places = path.parent / kept["location"], [kept.get(key, "0") for key in ("offset", "length")]
        if not all(place.isdecimal() and len(place) <= MOST_DIGITS for place in places):
            what, found = f"'{path}' says nothing of where its weights lie", " and ".join(map(repr, places))
            raise InputError(what, found=found, expected="numbers of bytes", fix="Export it again.")
        needed = sum(map(int, places))
        size = beside.stat().st_size if beside.is_file() else 0
        if size < max(needed, 1):
            found = f"{size} bytes" if beside.is_file() else "no such file"
            what, expected = f"'{path}' lacks its weights", f"'{beside}' with {needed or 'its'} bytes"
            raise InputError(what, found=found, expected=expected, fix="Keep the files together.")


def described(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what an ONNX file says about itself, the metadata of its export with it."""
    return {
        "kind": "onnx",
        "opset": {_text(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_text(value.name) for value in model.graph.input],
        "outputs": [_text(value.name) for value in model.graph.output],
        "samx": own_metadata({_text(entry.key): _text(entry.value) for entry in model.metadata_props}),
    }


def _text(value: str | bytes) -> str:
    """Return a string of a file; protobuf hands over bytes where they are no UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def own_metadata(entries: Mapping[str, str]) -> dict[str, Any]:
    """Return what samx wrote into a graph's metadata."""
    found = {key: value for key, value in entries.items() if key.startswith(METADATA_PREFIX)}
    return {
        key.removeprefix(METADATA_PREFIX): parse(value.encode(), f"metadata '{key}'") for key, value in found.items()
    }
