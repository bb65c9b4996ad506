"""Compact graphs: weights make the constants again as a graph is loaded, and a click runs as before."""

from __future__ import annotations

import importlib.util
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exports import export_job, job_for
from onnx import numpy_helper
from onnx.utils import Extractor
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint

from samx.benchmarks.contenders.meta import export_meta
from samx.errors import UsageError
from samx.exporters import onnx as exporter
from samx.formats.onnx import FORBIDDEN
from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.spec import DecoderSpec, sam1_spec

SPEC = sam1_spec(image_size=512)  # a smaller grid; the weights are as large as any decoder's
SPECS = {False: replace(SPEC, mask_input=True, masks="all"), True: SPEC}  # whole: what Meta's does; split: a page's
CLOSE = 1e-5  # float32, relative to the largest output
ROUNDED = 4e-6  # of a constant's largest value
KEYS = "mask_decoder.transformer.final_attn_token_to_image.k_proj.weight"
UNFOLDED = {"CastLike"}  # ONNX Runtime leaves it, warns, and computes what follows in every run
LARGE = 64 * 1024  # bytes
LEVELS = ort.GraphOptimizationLevel
Folder = Mapping[str, onnx.ModelProto]


def checkpoint(spec: DecoderSpec) -> LoadedDecoder:
    """Return a toy whose weights are of few bits: what is made of them compresses worse than they do."""
    loaded = toy_checkpoint(spec)
    return replace(loaded, weights={name: w.bfloat16().to(w.dtype) for name, w in loaded.weights.items()})


@pytest.fixture(scope="module", params=[True, False], ids=["split", "whole"])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Folder, Folder]:
    """Export a toy as it is, and compact; return graphs by file."""
    spec, folder = SPECS[request.param], tmp_path_factory.mktemp("graphs")
    job = job_for("onnx", checkpoint(spec), spec, split=request.param, compact=True)
    made = exporter.decoder(job).graphs
    files = exporter.write_onnx(made, folder, simplify=True).files
    plain = {file: onnx.load(str(folder / file)) for file in files}
    exporter.make_compact(files, made, job, folder)
    return request.param, plain, {file: onnx.load(str(folder / file)) for file in files}


def run(
    model: onnx.ModelProto, feed: dict[str, np.ndarray], level: Any = LEVELS.ORT_ENABLE_ALL
) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def made(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return what a graph makes of its weights alone."""
    part = Extractor(onnx.shape_inference.infer_shapes(model)).extract_model([], list(names))
    return run(part, {}, LEVELS.ORT_DISABLE_ALL) if part.graph.node else {}


def error(spec: DecoderSpec, models: Folder, labels: list[int]) -> float:
    """Give the largest difference to the reference, relative to the largest value, over all outputs."""
    tensors = {**image_tensors(spec), **prompt_tensors(spec, 2, labels)}
    known = dict(arrays(tensors))
    for model in models.values():
        known |= run(model, {value.name: known[value.name] for value in model.graph.input})
    expected = arrays(build_reference(replace(checkpoint(spec), spec=spec))(**tensors))
    return max(float(np.abs(known[name] - want).max() / np.abs(want).max()) for name, want in expected.items())


@pytest.mark.parametrize("labels", [[1, -1], [2, 3]], ids=["point", "box"])
def test_a_compact_export_computes_the_reference(graphs: tuple[bool, Folder, Folder], labels: list[int]) -> None:
    split, _, compact = graphs
    assert error(SPECS[split], compact, labels) < CLOSE


def test_constants_are_made_again_to_the_last_roundings(graphs: tuple[bool, Folder, Folder]) -> None:
    _, plain, compact = graphs
    for file, model in plain.items():
        gone = {n: v for n, v in constants(model).items() if n not in constants(compact[file]) and v.nbytes >= LARGE}
        found = {n: value for m in compact.values() for n, value in made(m, _own(m, gone)).items()}
        assert gone.keys() == found.keys()
        for name, want in gone.items():
            np.testing.assert_allclose(found[name], want, rtol=0, atol=ROUNDED * np.abs(want).max(), err_msg=name)


def _own(model: onnx.ModelProto, names: Iterable[str]) -> set[str]:
    """Choose what a graph makes itself."""
    handed = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Identity" and node.input[0].startswith("image_made_")
    }
    return {name for node in model.graph.node for name in node.output} & set(names) - handed


def test_another_weight_makes_other_masks(graphs: tuple[bool, Folder, Folder]) -> None:
    split, _, compact = graphs
    changed = {file: _changed(model, f"made.reference.{KEYS}") for file, model in compact.items()}
    assert error(SPECS[split], changed, [1, -1]) > CLOSE


def _changed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    return other


def test_a_loaded_graph_has_the_operators_that_it_had(graphs: tuple[bool, Folder, Folder], tmp_path: Path) -> None:
    _, plain, compact = graphs
    last = list(compact.values())[-1]
    assert _kept(last, tmp_path, LEVELS.ORT_DISABLE_ALL)["Sin"] == 2  # image tokens, points
    for file, model in plain.items():
        assert _kept(compact[file], tmp_path) == _kept(model, tmp_path)


def _kept(model: onnx.ModelProto, folder: Path, level: Any = LEVELS.ORT_ENABLE_ALL) -> Counter[str]:
    """Count the operators that ONNX Runtime keeps of a graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.optimized_model_filepath = level, str(folder / "loaded.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_nothing_is_in_a_graph_that_none_may_have(graphs: tuple[bool, Folder, Folder]) -> None:
    for model in graphs[2].values():
        assert not {node.op_type for node in model.graph.node} & (FORBIDDEN | UNFOLDED)
        assert not model.functions
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_no_weight_is_written_twice(graphs: tuple[bool, Folder, Folder]) -> None:
    for model in graphs[2].values():
        large = [np.sort(value, axis=None).tobytes() for value in constants(model).values() if value.nbytes >= LARGE]
        assert len(set(large)) == len(large)


@pytest.mark.skipif(importlib.util.find_spec("segment_anything") is None, reason="segment-anything is not installed")
def test_the_download_is_no_larger_than_metas(graphs: tuple[bool, Folder, Folder], tmp_path: Path) -> None:
    split, plain, compact = graphs
    theirs = onnx.load(str(export_meta(checkpoint(SPECS[split]), tmp_path)[0]))
    assert _compressed([*compact.values()]) <= _compressed([theirs]) < _compressed([*plain.values()])


def _compressed(models: Iterable[onnx.ModelProto]) -> int:
    return sum(len(zlib.compress(model.SerializeToString())) for model in models)


def test_the_option_writes_such_files(tmp_path: Path) -> None:
    spec = sam1_spec(image_size=128)
    job = job_for("onnx", toy_checkpoint(spec), spec, compact=True, simplify=False)
    (file,) = export_job(job, tmp_path).files
    assert f"made.reference.{KEYS}" in constants(onnx.load(str(tmp_path / file)))


def test_other_precisions_are_refused() -> None:
    spec = replace(sam1_spec(image_size=128))
    job = job_for("onnx", toy_checkpoint(spec), spec, "fp16", compact=True)
    with pytest.raises(UsageError, match="a compact export is in single precision"):
        job.options.check("fp16", spec)
