"""Small decoders, exported once for all tests of INT8, and prompts for them."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint

from samx.exporters.onnx import ATTENTION_OPSET, write_onnx
from samx.models.fast.graphs import Needs, fast_graphs
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.quantization.groups import QUANTISABLE, weights_of

SPECS = {"sam1": sam1_spec(image_size=128), "sam2": sam2_spec(image_size=128, object_pointer=True)}
USUAL_POINTS = {
    "absorbed": ShapeRange(1, 8, 8),
    "direct": ShapeRange(1, 16, 16),
}  # what makes the exporter choose the form


def toy_graphs(
    family: str, form: str, opset: int = 18, precision: str = "fp32", split: bool = False
) -> dict[str, bytes]:
    """Export a toy decoder in a form, once; gives its files by name."""
    return _exported(family, form, opset, precision, split)


@cache  # of all arguments by place: one that is left out would make another entry
def _exported(family: str, form: str, opset: int, precision: str, split: bool) -> dict[str, bytes]:
    spec = SPECS[family]
    points, prompts = USUAL_POINTS[form], ShapeRange(1, 1, 64)
    needs = Needs(
        points, prompts, split, low_rank=False, fused=opset >= ATTENTION_OPSET,
        keep_fp32=() if precision == "fp16" else None,
    )  # fmt: skip
    graphs = fast_graphs(toy_checkpoint(replace(spec, masks="multimask")), spec, needs)
    assert graphs.facts["form"] == form
    with tempfile.TemporaryDirectory() as folder:
        exported = write_onnx(graphs.graphs, Path(folder), opset=opset, simplify=True)
        return {name: (Path(folder) / name).read_bytes() for name in exported.files}


def feeds(spec: DecoderSpec, count: int = 3) -> list[Feed]:
    """Draw feeds of one prompt each."""
    labels = [[1, -1], [2, 3, -1], [1, 0, -1]]
    return [
        arrays({**image_tensors(spec, seed=i), **prompt_tensors(spec, 1, labels[i % 3], seed=i)}) for i in range(count)
    ]


def run(model: bytes, feed: Feed) -> dict[str, NDArray[Any]]:
    """Run a graph as any client could."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def agreement(model: bytes, other: bytes, feed: Feed) -> float:
    """Give the mean IoU of two graphs' masks."""
    a, b = (run(graph, feed)["low_res_masks"] > 0 for graph in (model, other))
    return float(np.mean((a & b).sum((-1, -2)) / np.maximum((a | b).sum((-1, -2)), 1)))


def constants(model: bytes) -> dict[str, onnx.TensorProto]:
    """Give a graph's constants by name."""
    return {found.name: found for found in onnx.load_from_string(model).graph.initializer}


def groups_of(model: onnx.ModelProto) -> dict[str, int]:
    """Count the weights of each group that a graph has, in the order of GROUPS, without those left alone."""
    counts: Counter[str] = Counter()
    for product in weights_of(model, QUANTISABLE):
        counts[product.group] += prod(product.shape)
    return {group: counts[group] for group in QUANTISABLE if group in counts}
