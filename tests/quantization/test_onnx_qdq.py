"""INT8 graphs: integer products where they were asked for, nothing else touched, in ONNX Runtime and TensorRT."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from int8_toys import SPECS, agreement, constants, feeds, groups_of, run, toy_graphs
from onnx import TensorProto, numpy_helper
from saturation import saturates

from samx.errors import InputError
from samx.exporters.tensorrt.build import build_engine
from samx.formats.tensorrt.plan import BuildPlan
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.quantization.groups import INTEGER, STORED, products
from samx.quantization.onnx_qdq import collect_ranges, integer_work, quantise_with

pytestmark = pytest.mark.long

UPSCALING = ("upscaling 1", "upscaling 2")
FILE = "decoder.onnx"


def quantise(
    model: bytes, groups: Collection[str], samples: Iterable[Feed], half: bool, stored: Collection[str] = ()
) -> bytes:
    """Quantise a graph with ranges from these feeds."""
    ranges, _ = collect_ranges(model, samples)
    return quantise_with(model, groups, ranges, half, stored)


def everything(model: bytes) -> tuple[list[str], list[str]]:
    there = groups_of(onnx.load_from_string(model))
    return [group for group in INTEGER if group in there], [group for group in STORED if group in there]


@pytest.mark.parametrize(("family", "form"), [("sam1", "absorbed"), ("sam2", "direct")])
def test_onnx_runtime_computes_the_chosen_products_in_integers(family: str, form: str) -> None:
    model, samples = toy_graphs(family, form)[FILE], feeds(SPECS[family])
    groups, stored = everything(model)
    quantised = quantise(model, groups, samples, False, stored)
    chosen = [p for p in products(onnx.load_from_string(model)) if p.group in INTEGER]
    work, before = integer_work(quantised), integer_work(model)
    assert sum(work["integer"].values()) == len(chosen)
    assert sum(work["floating"].values()) == sum(before["floating"].values()) - len(chosen)
    assert not before["integer"]
    assert set(work["conversions"]) == {"QuantizeLinear"}  # stored weights are multiplied out on loading
    assert agreement(model, quantised, samples[0]) > (0.88 if saturates() else 0.9)  # random weights: ragged masks
    assert len(quantised) < 0.35 * len(model)


def test_nothing_else_is_touched() -> None:
    model = toy_graphs("sam1", "absorbed")[FILE]
    before, after = (
        onnx.load_from_string(data) for data in (model, quantise(model, UPSCALING, feeds(SPECS["sam1"]), False))
    )
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    assert (after.opset_import, after.ir_version) == (before.opset_import, before.ir_version)
    assert (after.producer_name, after.metadata_props) == (before.producer_name, before.metadata_props)
    chosen = {product.node for product in products(before) if product.group in UPSCALING}
    kept = {node.name: node.SerializeToString() for node in after.graph.node}
    others = [node for node in before.graph.node if node.name not in chosen]
    assert all(kept[node.name] == node.SerializeToString() for node in others)
    added = Counter(node.op_type for node in after.graph.node) - Counter(node.op_type for node in before.graph.node)
    assert set(added) <= {"QuantizeLinear", "DequantizeLinear", "Cast"}


def test_a_graph_for_tensorrt_is_symmetric_signed_and_half() -> None:
    model = toy_graphs("sam1", "absorbed", precision="fp16")[FILE]
    groups, stored = everything(model)
    quantised = quantise(model, groups, feeds(SPECS["sam1"]), True, stored)
    graph, found = onnx.load_from_string(quantised).graph, constants(quantised)
    quantisers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {found[node.input[1]].data_type for node in quantisers} == {TensorProto.FLOAT16}
    zeros = [numpy_helper.to_array(found[node.input[2]]) for node in quantisers if len(node.input) > 2]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros)
    assert onnx.load_from_string(quantised).opset_import[0].version == 19


@pytest.mark.parametrize(("family", "form"), [("sam1", "absorbed"), ("sam2", "direct")])
def test_tensorrt_rtx_builds_the_half_graph(family: str, form: str) -> None:
    model = toy_graphs(family, form, precision="fp16")[FILE]
    groups, stored = everything(model)
    quantised = quantise(model, groups, feeds(SPECS[family]), True, stored)
    sha256 = hashlib.sha256(quantised).hexdigest()
    plan = BuildPlan.of("trt-rtx", SPECS[family], FILE, sha256, ShapeRange(1, 2, 4), ShapeRange(1, 2, 16))
    opened = plan.library.start()
    engine, *_ = build_engine(quantised, plan, opened)
    assert {severity for severity, _ in opened.messages} == {"INFO"}
    assert len(engine) > 1000


def test_a_half_graph_computes_the_masks() -> None:
    model, samples = toy_graphs("sam1", "absorbed", precision="fp16")[FILE], feeds(SPECS["sam1"])
    assert agreement(model, quantise(model, UPSCALING, samples, True, ["token MLP"]), samples[1]) > 0.9


def test_weights_have_a_scale_for_each_output() -> None:
    model = toy_graphs("sam1", "absorbed")[FILE]
    quantised = constants(quantise(model, ["upscaling 1"], feeds(SPECS["sam1"]), False, ["mask weights", "IoU head"]))
    assert list(quantised["decoder.transformer.grow.weight0_scale"].dims) == [128]
    assert list(quantised["decoder.hypernetworks.weight2.scale"].dims) == [3, 1, 32]
    assert list(quantised["decoder.iou_head.layers.2.weight.scale"].dims) == [4, 1]
    assert quantised["decoder.hypernetworks.weight2.int8"].data_type == TensorProto.INT8


def test_ranges_are_those_of_all_samples_and_not_of_the_last() -> None:
    model, (first, *others) = toy_graphs("sam1", "absorbed")[FILE], feeds(SPECS["sam1"])
    loud: Feed = {**first, "image_embeddings": 3 * first["image_embeddings"]}
    forwards, backwards = collect_ranges(model, [loud, *others]), collect_ranges(model, [*others, loud])
    assert forwards == backwards
    assert any(forwards[0][name] > largest for name, largest in collect_ranges(model, others)[0].items())


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to calibrate INT8 with"):
        quantise(toy_graphs("sam1", "absorbed")[FILE], UPSCALING, [], False)


def test_a_sample_that_is_not_finite_is_refused() -> None:
    sample = feeds(SPECS["sam1"])[0]
    broken = sample["image_embeddings"].copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        quantise(toy_graphs("sam1", "absorbed")[FILE], UPSCALING, [{**sample, "image_embeddings": broken}], False)


def test_a_split_graph_quantises_its_image_projections() -> None:
    files = toy_graphs("sam2", "absorbed", split=True)
    spec = replace(SPECS["sam2"])
    samples = [{t.name: feed[t.name] for t in spec.image_inputs} for feed in feeds(spec)]
    quantised = quantise(files["image.onnx"], ["image projections, layer 0"], samples, False)
    expected, found = run(files["image.onnx"], samples[0]), run(quantised, samples[0])
    for name in ("image_keys", "image_values", "image_queries"):
        error = np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
        assert 0 < error < 0.05
