"""The exported graphs: what they hold, and that they compute what the reference computes at sizes never traced."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from exports import export_job, job_for
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint, toy_decoder

from samx.errors import UsageError
from samx.exporters import onnx as exporter
from samx.exporters.base import ExportJob, export_decoder
from samx.exporters.onnx import OnnxOptions
from samx.formats.onnx import FORBIDDEN, broken_rules
from samx.models.fast.graphs import Needs, fast_graphs
from samx.models.graph import EXAMPLE_SIZES
from samx.models.session import Feed, Outputs
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, MaskChoice, sam1_spec, sam2_spec

CLOSE = 1e-5  # float32, relative to the largest output
SPECS = {"sam1": sam1_spec(image_size=128), "sam2": sam2_spec(image_size=128)}
# Chosen so that every pair of choices stands beside each other once: an export takes seconds.
VARIANTS = [
    ("sam1", OnnxOptions(opset=18), False),
    ("sam1", OnnxOptions(opset=23, split=True), True),
    ("sam2", OnnxOptions(opset=18), True),
    ("sam2", OnnxOptions(opset=18, split=True), False),
    ("sam2", OnnxOptions(opset=23), False),
]
IDS = [f"{f}-opset{o.opset}{'-split' if o.split else ''}{'-mask' if m else ''}" for f, o, m in VARIANTS]


Exports = Callable[[DecoderSpec, OnnxOptions], dict[str, onnx.ModelProto]]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Export a toy decoder and give its models by file name."""
    made: dict[tuple[DecoderSpec, OnnxOptions], dict[str, onnx.ModelProto]] = {}

    def make(spec: DecoderSpec, options: OnnxOptions) -> dict[str, onnx.ModelProto]:
        if (spec, options) not in made:
            folder: Path = tmp_path_factory.mktemp("export")
            checkpoint = toy_checkpoint(replace(spec, masks="multimask", mask_input=False))
            exported = export_decoder(exporter, ExportJob(checkpoint, spec, options), folder)
            made[spec, options] = {name: onnx.load(str(folder / name)) for name in exported.files}
        return made[spec, options]

    return make


def run(models: dict[str, onnx.ModelProto], feed: Feed) -> Outputs:
    """Run the graphs one after the other, as any client could: by name, in plain ONNX Runtime."""
    known = dict(feed)
    for model in models.values():
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        taken = {value.name: known[value.name] for value in session.get_inputs()}
        known |= dict(zip([o.name for o in session.get_outputs()], session.run(None, taken), strict=True))
    return known


@pytest.mark.parametrize(("family", "options", "mask_input"), VARIANTS, ids=IDS)
def test_graphs_compute_the_reference_at_any_size(
    exports: Exports, family: str, options: OnnxOptions, mask_input: bool
) -> None:
    spec = replace(SPECS[family], mask_input=mask_input)
    models = exports(spec, options)
    reference = toy_decoder(spec)
    for prompts, labels in [(1, []), (1, [1]), (1, [2, 3]), (2, [1, -1]), (5, [1, 0, 1, 0, -1]), (7, [2, 3, 1, -1])]:
        tensors = {**image_tensors(spec), **prompt_tensors(spec, prompts, labels)}
        outputs = run(models, arrays(tensors))
        for name, want in reference(**tensors).items():
            assert outputs[name].shape == want.shape
            np.testing.assert_allclose(outputs[name], want, rtol=0, atol=CLOSE * float(want.abs().max()))


SLOW_MASKS = [pytest.param(*key, marks=pytest.mark.slow) for key in (("sam1", "single"), ("sam2", "all"))]


@pytest.mark.parametrize(("family", "masks"), [("sam2", "single"), *SLOW_MASKS])
def test_single_and_all_masks(exports: Exports, family: str, masks: MaskChoice) -> None:
    spec = replace(SPECS[family], masks=masks, stability_delta=2.0, stability_threshold=0.885)
    tensors = {**image_tensors(spec), **prompt_tensors(spec, 6, [1, -1])}
    outputs = run(exports(spec, OnnxOptions()), arrays(tensors))
    for name, want in toy_decoder(spec)(**tensors).items():
        np.testing.assert_allclose(outputs[name], want, rtol=0, atol=CLOSE * float(want.abs().max()))


@pytest.mark.parametrize(("family", "options", "mask_input"), VARIANTS, ids=IDS)
def test_graphs_hold_nothing_that_breaks_builders(
    exports: Exports, family: str, options: OnnxOptions, mask_input: bool
) -> None:
    for model in exports(replace(SPECS[family], mask_input=mask_input), options).values():
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", options.opset)]
        assert not {node.op_type for node in model.graph.node} & FORBIDDEN
        assert not model.functions
        types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        assert set(types.values()) == {onnx.TensorProto.FLOAT}, "a shape tensor is an integer input"


def sizes(model: onnx.ModelProto) -> set[int]:
    """Collect every number that stands as an axis or in a small integer constant."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    axes = {dim.dim_value for value in values for dim in value.type.tensor_type.shape.dim}
    integers = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64]
    return axes | {int(number) for tensor in integers for number in onnx.numpy_helper.to_array(tensor).ravel()}


@pytest.mark.parametrize(("family", "options", "mask_input"), VARIANTS, ids=IDS)
def test_no_example_size_is_baked_in(exports: Exports, family: str, options: OnnxOptions, mask_input: bool) -> None:
    spec = replace(SPECS[family], mask_input=mask_input)
    prompts, points = EXAMPLE_SIZES["prompts"], EXAMPLE_SIZES["points"]
    tokens = points + spec.output_tokens
    traced = {prompts, points, tokens, prompts * tokens, spec.heads * tokens, prompts * points}
    for model in exports(spec, options).values():
        assert not sizes(model) & traced


def test_a_baked_size_is_seen(exports: Exports) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exports(SPECS["sam1"], OnnxOptions())["decoder.onnx"])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = EXAMPLE_SIZES["prompts"]
    assert EXAMPLE_SIZES["prompts"] in sizes(model)


def test_attention_is_an_operator_from_opset_23(exports: Exports) -> None:
    def operators(spec: DecoderSpec, options: OnnxOptions) -> set[str]:
        return {n.op_type for n in exports(spec, options)["decoder.onnx"].graph.node}

    assert "Attention" not in operators(SPECS["sam1"], OnnxOptions())
    assert "Attention" in operators(SPECS["sam2"], OnnxOptions(opset=23))


def test_metadata_tells_a_client_what_it_needs(exports: Exports) -> None:
    spec = SPECS["sam2"]
    model = exports(spec, OnnxOptions(opset=23))["decoder.onnx"]
    found: dict[str, Any] = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert DecoderSpec.from_json(found["samx.spec"], "spec") == spec
    assert found["samx.labels"]["padding"] == -1
    assert found["samx.preprocessing"]["image_size_px"] == 128
    assert found["samx.thresholds"] == {"mask": 0.0, "stability": 0.98, "stability_delta": 0.05}
    assert [entry["name"] for entry in found["samx.inputs"]] == [value.name for value in model.graph.input]


def test_nothing_of_this_machine_is_left_in_the_file(exports: Exports) -> None:
    data = exports(SPECS["sam1"], OnnxOptions())["decoder.onnx"].SerializeToString()
    assert str(Path(__file__).parents[2]).encode() not in data
    assert b"site-packages" not in data


def test_neither_simplification_nor_caching_changes_the_masks(exports: Exports) -> None:
    spec = SPECS["sam1"]
    tensors = {**image_tensors(spec), **prompt_tensors(spec, 2, [1, -1])}
    plain = run(exports(spec, OnnxOptions(simplify=False, prompts=ShapeRange(1, 16, 64))), arrays(tensors))
    simplified = run(exports(spec, OnnxOptions()), arrays(tensors))
    np.testing.assert_allclose(plain["low_res_masks"], simplified["low_res_masks"], rtol=0, atol=1e-4)


def test_the_form_follows_the_points_and_says_why() -> None:
    spec = SPECS["sam1"]
    found = fast_graphs(toy_checkpoint(spec), spec, Needs(points=ShapeRange(1, 40, 40))).facts
    assert found["form"] == "direct"
    assert "360 columns" in str(found["form_reason"])


def test_an_unknown_opset_is_refused(tmp_path: Path) -> None:
    spec = SPECS["sam1"]
    with pytest.raises(UsageError, match="found 17, expected 18 or 23"):
        export_decoder(exporter, ExportJob(toy_checkpoint(spec), spec, OnnxOptions(opset=17)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "opset"), [("sam1", 23), ("sam2", 18)])
def test_float16_is_in_the_graphs_and_at_their_border_alone_between_them(
    family: str, opset: int, tmp_path: Path
) -> None:
    spec = replace(SPECS[family], mask_input=family == "sam1")
    loaded = toy_checkpoint(replace(spec, mask_input=False))
    export_job(job_for("onnx", loaded, spec, "fp16", split=True, opset=opset, simplify=False), tmp_path)
    models = {part: onnx.load(str(tmp_path / f"{part}.onnx")) for part in ("image", "prompt")}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    types = {
        (part, side): {value.name: value.type.tensor_type.elem_type for value in getattr(model.graph, side)}
        for part, model in models.items() for side in ("input", "output")
    }  # fmt: skip
    assert set(types["image", "input"].values()) == set(types["prompt", "output"].values()) == {full}
    state = types["image", "output"]
    assert half in state.values()
    assert all(types["prompt", "input"][name] == kind for name, kind in state.items())
    assert {types["prompt", "input"][tensor.name] for tensor in spec.prompt_inputs} == {full}
    weights = [one for model in models.values() for one in model.graph.initializer if one.data_type in (half, full)]
    assert max(weights, key=lambda one: len(one.raw_data)).data_type == half


def test_float16_computes_what_the_reference_computes_to_its_precision(tmp_path: Path) -> None:
    spec = SPECS["sam2"]
    export_job(job_for("onnx", toy_checkpoint(spec), spec, "fp16", simplify=False), tmp_path)
    exact, images, prompts = toy_decoder(spec), image_tensors(spec), prompt_tensors(spec, 3, [1, -1])
    with torch.no_grad():
        expected = exact(**images, **prompts)
    session = ort.InferenceSession(str(tmp_path / "decoder.onnx"), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(names, {**arrays(images), **arrays(prompts)}), strict=True))
    error = {name: np.abs(found[name] - value.numpy()).max() / value.abs().max() for name, value in expected.items()}
    assert 1e-6 < error["low_res_masks"] < 0.02, error
    assert max(float(value) for value in error.values()) < 0.02, error


def test_groups_of_operations_are_kept_in_float32(tmp_path: Path) -> None:
    spec, kept = SPECS["sam1"], "upscaling"
    with pytest.raises(UsageError, match="everything is in float32 already: found precision fp32"):
        OnnxOptions(keep_float32=(kept,)).check("fp32")
    exported = export_job(
        job_for("onnx", toy_checkpoint(spec), spec, "fp16", simplify=False, keep_float32=(kept,)), tmp_path
    )
    assert kept in exported.options["keep_float32"]
    (tmp_path / "plain").mkdir()
    export_job(job_for("onnx", toy_checkpoint(spec), spec, "fp16", simplify=False), tmp_path / "plain")

    def float32_bytes(folder: Path) -> int:
        weights = onnx.load(str(folder / "decoder.onnx")).graph.initializer
        return sum(len(one.raw_data) for one in weights if one.data_type == onnx.TensorProto.FLOAT)

    first = toy_decoder(spec).get_parameter("mask_decoder.output_upscaling.0.weight")
    assert float32_bytes(tmp_path) >= float32_bytes(tmp_path / "plain") + 4 * first.numel()


class TestRules:
    """Each rule is seen to catch what it is there for."""

    @pytest.fixture
    def model(self, exports: Exports) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(exports(SPECS["sam1"], OnnxOptions())["decoder.onnx"])
        return copy

    def broken(self, model: onnx.ModelProto) -> str:
        spec = SPECS["sam1"]
        return "; ".join(broken_rules(model, 18, spec.inputs, spec.outputs))

    def test_a_sound_graph_breaks_none(self, model: onnx.ModelProto) -> None:
        assert self.broken(model) == ""

    @pytest.mark.parametrize("operator", sorted(FORBIDDEN))
    def test_forbidden_operators(self, model: onnx.ModelProto, operator: str) -> None:
        model.graph.node[0].op_type = operator
        assert f"operator {operator}" in self.broken(model)

    def test_forbidden_operators_inside_functions(self, model: onnx.ModelProto) -> None:
        model.functions.add(name="hidden")
        assert "local functions" in self.broken(model)

    def test_another_opset(self, model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 17
        assert "opset imports" in self.broken(model)

    def test_a_custom_domain(self, model: onnx.ModelProto) -> None:
        model.opset_import.add(domain="com.microsoft", version=1)
        assert "opset imports" in self.broken(model)

    def test_a_dynamic_axis_that_became_a_number(self, model: onnx.ModelProto) -> None:
        model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 3
        assert "point_coords has shape (3, 'points', 2)" in self.broken(model)

    def test_a_shape_tensor_input(self, model: onnx.ModelProto) -> None:
        model.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
        assert "point_labels is not float32" in self.broken(model)

    def test_a_missing_input(self, model: onnx.ModelProto) -> None:
        del model.graph.input[2]
        assert "inputs are" in self.broken(model)

    def test_a_renamed_output(self, model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "masks"
        assert "outputs are" in self.broken(model)

    def test_an_output_of_another_type(self, model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        assert "output low_res_masks is not float32" in self.broken(model)

    def test_an_operator_that_a_graph_may_have(self, model: onnx.ModelProto) -> None:
        spec, allowed = SPECS["sam1"], frozenset({"Resize"})
        model.graph.node[0].op_type, model.graph.node[1].op_type = "Resize", "If"
        found = broken_rules(model, 18, spec.inputs, spec.outputs, allowed)
        assert found == ["operator If"]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("mask_input", [False, True])
def test_a_split_export_with_mask_prompts_says_that_it_keeps_little(
    split: bool, mask_input: bool, tmp_path: Path
) -> None:
    spec = sam1_spec(image_size=64, mask_input=mask_input)
    exported = export_job(job_for("onnx", toy_checkpoint(spec), spec, split=split, simplify=False), tmp_path)
    assert any("--mask-input the image graph keeps" in note for note in exported.notes) is (split and mask_input)
