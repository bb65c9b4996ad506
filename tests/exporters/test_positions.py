"""Tables of positions: taken out of graphs where positions explain them, made as a graph is loaded, and never else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exports import export_job, job_for
from onnx import numpy_helper
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint, toy_decoder

from samx.errors import UsageError
from samx.exporters import positions
from samx.models.spec import sam1_spec

GRID, CHANNELS, COLUMNS = 16, 24, 40
TOKENS = GRID * GRID
MATRIX = np.random.default_rng(0).normal(size=(2, CHANNELS // 2)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(CHANNELS, COLUMNS)).astype(np.float32)
ENCODING = positions.encode(MATRIX, GRID)
MAPPED = (ENCODING.astype(np.float64) @ WEIGHTS + 0.5).astype(np.float32)  # (L, m)
CLOSE = 1e-5  # float32, relative to the largest output


@pytest.fixture(autouse=True)
def _small_tables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "LEAST_BYTES", 1024)


def model_with(**tables: np.ndarray) -> onnx.ModelProto:
    """Return a graph that adds each table to an input, of its shape."""
    make = onnx.helper
    names = list(tables)
    graph = make.make_graph(
        [make.make_node("Add", [f"in_{name}", name], [f"out_{name}"]) for name in names], "tables",
        [make.make_tensor_value_info(f"in_{name}", 1, tables[name].shape) for name in names],
        [make.make_tensor_value_info(f"out_{name}", 1, tables[name].shape) for name in names],
        [numpy_helper.from_array(tables[name], name) for name in names],
    )  # fmt: skip
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def test_tables_of_any_layout_are_made_anew_from_what_explains_them() -> None:
    tables = {
        "itself": ENCODING[None, None], "last": np.ascontiguousarray(MAPPED.T).reshape(1, 8, 5, TOKENS),
        "rows": MAPPED[None],
    }  # fmt: skip
    model = model_with(**tables)
    size = len(model.SerializeToString())
    assert sorted(positions.without_tables(model, MATRIX, GRID)) == sorted(tables)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < size / 4
    found = run(model, {f"in_{name}": np.zeros_like(table) for name, table in tables.items()})
    for name, table in tables.items():
        np.testing.assert_allclose(found[f"out_{name}"], table, rtol=0, atol=4e-6 * np.abs(table).max())


def test_what_positions_do_not_explain_stays() -> None:
    off = MAPPED.copy()
    off[TOKENS // 2, 3] += 1e-3 * np.abs(off).max()
    other = np.random.default_rng(2).normal(size=(TOKENS, COLUMNS)).astype(np.float32)
    model = model_with(off=off, other=other, mapped=MAPPED)
    assert positions.without_tables(model, MATRIX, GRID) == ["mapped"]
    assert {"off", "other"} < {tensor.name for tensor in model.graph.initializer}


def test_as_few_tokens_as_channels_explain_nothing() -> None:
    few = positions.encode(MATRIX, 4)  # 16 tokens, 24 channels: every table would be a map of them
    table = np.random.default_rng(3).normal(size=(16, COLUMNS)).astype(np.float32)
    assert positions.explained(table, few, np.linalg.pinv(np.c_[few, np.ones(16)])) is None


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Export a toy in two graphs, of a frame that has more image tokens than channels: as it is, and compact."""
    spec, made = sam1_spec(image_size=512), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "LEAST_BYTES", 128 * 1024)
        for compact in (False, True):
            made[compact] = tmp_path_factory.mktemp("graphs")
            export_job(job_for("onnx", toy_checkpoint(spec), spec, split=True, compact=compact), made[compact])
    return made


def test_a_compact_export_is_smaller_and_computes_the_reference(graphs: dict[bool, Path]) -> None:
    size = {compact: sum(file.stat().st_size for file in folder.iterdir()) for compact, folder in graphs.items()}
    tables = 5 * 128 * 32 * 32 * 4  # bytes: three in the prompt graph, two in the image graph
    weights = 5 * 128 * 257 * 4
    assert size[False] - size[True] == pytest.approx(tables - weights, rel=0.05)
    spec = sam1_spec(image_size=512)
    reference = toy_decoder(spec)
    for labels in ([1, -1], [2, 3]):
        tensors = {**image_tensors(spec), **prompt_tensors(spec, 2, labels)}
        known = dict(arrays(tensors))
        for file in ("image.onnx", "prompt.onnx"):
            model = onnx.load(str(graphs[True] / file))
            known |= run(model, {value.name: known[value.name] for value in model.graph.input})
        for name, expected in arrays(reference(**tensors)).items():
            assert np.abs(known[name] - expected).max() <= CLOSE * np.abs(expected).max()


def test_tables_are_made_once_as_a_graph_is_loaded(graphs: dict[bool, Path], tmp_path: Path) -> None:
    def kept(level: ort.GraphOptimizationLevel) -> set[str]:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        ort.InferenceSession(str(graphs[True] / "image.onnx"), options, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}

    assert "Sin" in kept(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert not {"Sin", "Cos"} & kept(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def test_other_precisions_are_refused() -> None:
    spec = replace(sam1_spec(image_size=128))
    job = job_for("onnx", toy_checkpoint(spec), spec, "fp16", compact=True)
    with pytest.raises(UsageError, match="tables of positions are not taken out"):
        job.options.check("fp16", spec)
