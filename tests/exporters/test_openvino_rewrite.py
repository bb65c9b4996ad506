"""The graph that OpenVINO gets: the same function, in operations that it neither rounds nor repeats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openvino_toys import SPECS, exported, onnx_files
from toys import toy_decoder

from samx.extras import require
from samx.formats import openvino as ir
from samx.models.session import FloatArray

pytestmark = pytest.mark.long

ROLE = {"whole": "decoder", "split": "prompt", "sam2": "prompt"}
COORDS = np.array([[[0, 0], [127.75, 0.25], [63.3, 101.1]]], np.float32)


@pytest.fixture(params=SPECS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name a toy."""
    found: str = request.param
    return found


def unchanged(kind: str) -> Any:
    """Read a toy's graph as ONNX has it."""
    return require("openvino", "openvino", "tests").Core().read_model(onnx_files(kind)[1][f"{ROLE[kind]}.onnx"], b"")


def rewritten(kind: str) -> Any:
    return ir.convert(onnx_files(kind)[1][f"{ROLE[kind]}.onnx"])


def constants(graph: Any, kind: str) -> Iterator[tuple[Any, Any]]:
    """Give operations of a kind whose last factor is a constant, with it."""
    for operation in graph.get_ops():
        if operation.get_type_name() == kind and operation.input_values()[-1].get_node().get_type_name() == "Constant":
            yield operation, operation.input_values()[-1].get_node()


def sines(graph: Any) -> FloatArray:
    """Compute what a graph makes of coordinates, up to the sine. Shapes: -> (1, P, C/2)."""
    library = require("openvino", "openvino", "tests")
    sine = next(operation for operation in graph.get_ops() if operation.get_type_name() == "Sin")
    coords = next(port.get_node() for port in graph.inputs if port.get_any_name() == "point_coords")
    part = library.Model([sine.output(0)], [coords], "sines")
    found: FloatArray = library.compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(COORDS)[0]
    return found


def test_angles_are_those_of_the_decoder(kind: str) -> None:
    spec = SPECS[kind]
    matrix = (
        toy_decoder(spec).prompt_encoder.pe_layer.get_buffer("positional_encoding_gaussian_matrix").double().numpy()
    )
    angles = 2 * np.pi * ((2 * ((COORDS.astype(np.float64) + 0.5) / spec.image_size) - 1) @ matrix)
    for graph in (unchanged(kind), rewritten(kind)):
        np.testing.assert_allclose(sines(graph), np.sin(angles), rtol=0, atol=2e-5)


def test_angles_hang_on_nothing_that_the_plugin_folds(kind: str) -> None:
    def kinds(graph: Any) -> set[str]:
        names = ir.angles(graph)
        return {operation.get_type_name() for operation in graph.get_ops() if operation.get_friendly_name() in names}

    assert kinds(rewritten(kind)) == {"Constant", "Gather", "Multiply", "Add", "Sin", "Cos"}
    assert kinds(unchanged(kind)) > {"Divide", "Slice"}


def test_constants_are_packed_once(kind: str) -> None:
    def broken(graph: Any) -> list[str]:
        return [
            product.get_friendly_name()
            for product, weight in constants(graph, "MatMul")
            if product.get_attributes()["transpose_b"]
            or (len(product.input_value(0).get_partial_shape()) == 4 and weight.data.ndim > 2)
        ]

    assert broken(unchanged(kind)) != []
    assert broken(rewritten(kind)) == []


def test_half_weights_leave_coordinates_their_digits(kind: str, tmp_path: Path) -> None:
    exported(kind, tmp_path, "fp16")
    graph = ir.read(ir.from_directory(tmp_path, ROLE[kind]))
    names = ir.angles(graph)
    kept = [op for op in graph.get_ops() if op.get_type_name() == "Constant" and op.get_friendly_name() in names]
    floats = {op.get_element_type().to_string() for op in kept} - {"i64"}
    assert floats == {"f32"}
    np.testing.assert_allclose(sines(graph), sines(unchanged(kind)), rtol=0, atol=2e-5)
