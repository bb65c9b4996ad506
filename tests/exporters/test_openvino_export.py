"""OpenVINO files: the graph that they come from, whole and reproducible, in the precision that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from exports import export_job
from onnx import TensorProto
from openvino_toys import SPECS, SPLIT, artifact, exported, job, onnx_files
from toys import arrays, image_tensors, prompt_tensors, toy_decoder

from samx.commands.inspect import inspect
from samx.errors import InputError, SamxError, UsageError
from samx.exporters import openvino
from samx.formats import openvino as ir
from samx.formats.openvino import broken_rules
from samx.models.fast.graphs import Needs
from samx.models.graph import Graphs
from samx.registry import backend
from samx.runtimes.openvino import open_artifact

pytestmark = pytest.mark.long

CLOSE = 2e-5  # float32 sums in another order, relative to the largest output
PROMPT_LABELS = [(1, [1]), (1, [2, 3]), (2, [1, -1]), (5, [1, 0, 1, 0, -1]), (7, [2, 3, 1, -1])]
TARGET = backend("openvino")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "whole" else pytest.mark.slow) for kind in SPECS]
)
def test_files_compute_the_reference_at_any_size(kind: str, tmp_path: Path) -> None:
    spec = SPECS[kind]
    session, reference = open_artifact(artifact(kind, tmp_path / "toy")), toy_decoder(spec)
    image = image_tensors(spec)
    session.set_image(arrays(image))
    cases = [*PROMPT_LABELS, *([(2, [])] if spec.mask_input else [])]  # with a mask, a prompt needs no point
    for prompts, labels in cases:
        asked = prompt_tensors(spec, prompts, labels)
        found = session.decode(arrays(asked))
        for name, want in reference(**image, **asked).items():
            np.testing.assert_allclose(found[name], want, rtol=0, atol=CLOSE * float(want.abs().max()))


@pytest.mark.parametrize("kind", SPECS)
def test_the_files_are_graph_and_weights_of_each_part(kind: str, tmp_path: Path) -> None:
    parts = ["image", "prompt"] if kind in SPLIT else ["decoder"]
    found = exported(kind, tmp_path)
    assert found.files == {f"{p}{end}": p + role for p in parts for end, role in [(".xml", ""), (".bin", "_weights")]}
    assert {path.name for path in tmp_path.iterdir()} == set(found.files)
    assert found.options["precision"] == "fp32"
    assert found.tools["openvino"][:2] == "20"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_same_export_gives_the_same_bytes(precision: str, tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):  # in one process, where OpenVINO's own numbering goes on
        (tmp_path / name).mkdir()
        exported("split", tmp_path / name, precision)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


def test_metadata_is_that_of_the_onnx_file(tmp_path: Path) -> None:
    exported("split", tmp_path)
    found = inspect(tmp_path / "prompt.xml")
    source = onnx.load_from_string(onnx_files("split")[1]["prompt.onnx"])
    assert found["samx"] == {
        entry.key.removeprefix("samx."): json.loads(entry.value) for entry in source.metadata_props
    }
    assert found["kind"] == "openvino"
    assert found["outputs"] == ["low_res_masks", "iou_predictions"]
    assert found["inputs"] == [value.name for value in source.graph.input]


def test_a_graph_without_its_weights_cannot_be_inspected(tmp_path: Path) -> None:
    exported("whole", tmp_path)
    (tmp_path / "decoder.bin").unlink()
    with pytest.raises(InputError, match=r"lacks its weights.*expected decoder\.bin"):
        inspect(tmp_path / "decoder.xml")


def sizes(directory: Path, precision: str) -> dict[str, int]:
    directory.mkdir()
    return {name: (directory / name).stat().st_size for name in exported("split", directory, precision).files}


def test_fp16_stores_weights_in_half_and_leaves_the_border_alone(tmp_path: Path) -> None:
    full, half = sizes(tmp_path / "fp32", "fp32"), sizes(tmp_path / "fp16", "fp16")
    assert half["prompt.bin"] < 0.51 * full["prompt.bin"]
    graph = ir.read(ir.from_directory(tmp_path / "fp16", "prompt"))
    assert {port.get_element_type().to_string() for port in [*graph.inputs, *graph.outputs]} == {"f32"}


def precise(path: Path) -> set[str]:
    """Name the operations that are exempted from the arithmetic of the rest."""
    layers = ElementTree.parse(path).getroot().iter("layer")
    return {str(layer.get("name")) for layer in layers if layer.find("rt_info/attribute[@name='precise']") is not None}


def test_bf16_keeps_the_image_in_half_and_coordinates_in_float32(tmp_path: Path) -> None:
    exported("split", tmp_path, "bf16")
    image, prompt = (ir.read(ir.from_directory(tmp_path, role)) for role in ("image", "prompt"))
    kept = {port.get_any_name(): port.get_element_type().to_string() for port in image.outputs}
    assert set(kept.values()) == {"bf16"}
    taken = {port.get_any_name(): port.get_element_type().to_string() for port in prompt.inputs}
    assert taken == {**kept, "point_coords": "f32", "point_labels": "f32"}
    assert precise(tmp_path / "image.xml") == set()
    exempt, kinds = precise(tmp_path / "prompt.xml"), {op.get_friendly_name(): op for op in prompt.get_ops()}
    assert {"Sin", "Cos"} <= {kinds[name].get_type_name() for name in exempt}
    shapes = [kinds[name].get_output_partial_shape(0) for name in exempt]
    assert all(len(shape) <= 3 and max(shape.get_min_shape(), default=0) <= 256 for shape in shapes), "only points"


def test_a_whole_graph_keeps_nothing(tmp_path: Path) -> None:
    exported("whole", tmp_path, "bf16")
    graph = ir.read(ir.from_directory(tmp_path, "decoder"))
    assert {port.get_element_type().to_string() for port in [*graph.inputs, *graph.outputs]} == {"f32"}


def asked(monkeypatch: pytest.MonkeyPatch, directory: Path, **more: Any) -> dict[str, Any]:
    """Export through the exporter, with the tracing cut off; gives what was asked of it."""
    found: dict[str, Any] = {}

    def fast_graphs(loaded: Any, spec: Any, needs: Needs) -> Graphs:
        found.update(needs=needs)
        return Graphs((), {})

    def write_onnx(graphs: Any, folder: Path, **how: Any) -> Any:
        written, models = onnx_files("whole")
        for name, data in models.items():
            (folder / name).write_bytes(data)
        return written

    monkeypatch.setattr("samx.models.fast.graphs.fast_graphs", fast_graphs)
    monkeypatch.setattr(openvino, "write_onnx", write_onnx)
    return {**found, "exported": export_job(job("whole", **more), directory), "needs": found["needs"]}


def test_onnx_is_not_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = asked(monkeypatch, tmp_path, precision="fp16")
    assert {path.name for path in tmp_path.iterdir()} == {"decoder.xml", "decoder.bin"}
    assert found["needs"].keep_fp32 is None  # the graph that is converted computes in float32
    assert (found["needs"].low_rank, found["needs"].padded_points) == (True, False)
    assert found["exported"].options["precision"] == "fp16"


def test_int8_starts_from_onnx_without_low_rank_norms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = asked(monkeypatch, tmp_path, precision="int8")
    assert {path.name for path in tmp_path.iterdir()} == {"decoder.onnx"}
    assert found["needs"].low_rank is False
    assert found["exported"].options["precision"] == "int8"


@pytest.mark.parametrize("foreign", [{"opset": 23}, {"keep_float32": ("sums",)}, {"weights": "linear8"}, {"ios": 16}])
def test_options_of_other_targets_are_refused(foreign: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="target 'openvino' has no such option"):
        job("whole", **foreign)


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="found int4, expected fp32 or fp16 or bf16 or int8"):
        TARGET.check_precision("int4")


Fault = Callable[[onnx.ModelProto], object]


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "masks"


def fix_prompts(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def drop_input(model: onnx.ModelProto) -> None:
    del model.graph.input[-1]


class TestRules:
    """Each rule is seen to catch what it is there for."""

    def broken(self, model: bytes, role: str = "decoder", graph: Any = None, half_state: bool = False) -> str:
        return "; ".join(broken_rules(graph or ir.convert(model), model, role, half_state=half_state))

    @pytest.fixture
    def model(self) -> bytes:
        return onnx_files("whole")[1]["decoder.onnx"]

    def test_the_export_breaks_none(self, model: bytes) -> None:
        assert self.broken(model) == ""

    @pytest.mark.parametrize(
        ("fault", "words"),
        [(rename_output, "outputs are"), (fix_prompts, "outputs are"), (drop_input, "inputs are")],
    )
    def test_another_border(self, model: bytes, fault: Fault, words: str) -> None:
        source = onnx.load_from_string(model)
        fault(source)
        assert words in self.broken(source.SerializeToString(), graph=ir.convert(model))

    def test_another_type(self, model: bytes) -> None:
        graph = ir.convert(model)
        preprocess = ir._openvino(".preprocess").PrePostProcessor(graph)
        preprocess.output("low_res_masks").tensor().set_element_type(ir._openvino().Type.f16)
        assert "'f16'" in self.broken(model, graph=preprocess.build())

    def test_an_image_that_is_kept_in_float32(self) -> None:
        model = onnx_files("split")[1]["image.onnx"]
        assert self.broken(model, "image") == ""
        assert "outputs are" in self.broken(model, "image", half_state=True)

    def test_an_operation_that_hangs_on_values(self, model: bytes) -> None:
        source = onnx.load_from_string(model)
        source.graph.node.append(onnx.helper.make_node("NonZero", ["point_labels"], ["found"]))
        source.graph.output.append(onnx.helper.make_tensor_value_info("found", TensorProto.INT64, [2, None]))
        assert "operation NonZero" in self.broken(model, graph=ir.convert(source.SerializeToString()))

    def test_metadata_that_is_lost(self, model: bytes) -> None:
        source = onnx.load_from_string(model)
        del source.metadata_props[:]
        assert "role None, not 'decoder'" in self.broken(model, graph=ir.convert(source.SerializeToString()))

    def test_an_export_that_breaks_one_is_not_written(self, tmp_path: Path) -> None:
        found, models = onnx_files("whole")
        source = onnx.load_from_string(models["decoder.onnx"])
        del source.metadata_props[:]
        with pytest.raises(SamxError, match=r"decoder\.xml breaks the rules: its metadata"):
            openvino.convert(found, {"decoder.onnx": source.SerializeToString()}, tmp_path, "fp32")
        assert not list(tmp_path.iterdir())
