"""What TensorRT receives: types in the file, float32 at the border, a plan that fits, and engines built from it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from engine_toys import home as home
from exports import export_job, job_for
from onnx import TensorProto
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint

from samx.artifacts.store import Artifact
from samx.commands.build import build
from samx.commands.export import ExportRequest, export
from samx.commands.validate import validate
from samx.errors import PromptError, UnavailableError, UsageError
from samx.exporters.base import Exported
from samx.exporters.onnx import DECODER_FILE
from samx.exporters.tensorrt import POINTS, PROMPTS
from samx.formats.tensorrt.plan import DECODER, BuildPlan
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.runtimes import base
from samx.runtimes.base import Padding
from samx.runtimes.onnxruntime import OnnxRuntimeRuntime, open_artifact
from samx.runtimes.torch import reference_session
from samx.validators.cases import parity_cases
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.suite import ParitySuite

pytestmark = pytest.mark.long

SPECS = {"sam1": sam1_spec(image_size=128), "sam2": sam2_spec(image_size=128, masks="single", mask_input=True)}
ENGINE_CAP_BYTES = 22_000_000
BUILD_CAP_S = 60


def run_export(directory: Path, spec: DecoderSpec, **options: Any) -> Exported:
    return export_job(job_for("trt", toy_checkpoint(spec), spec, **{"precision": "fp16", **options}), directory)


def float32_weights(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)


FIXED = ShapeRange(4, 4, 4)
EXPORTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sam1-18": ("sam1", {"points": ShapeRange(1, 4, 9)}),
    "sam1-23": ("sam1", {"opset": 23}),
    "sam2-18": ("sam2", {}),
    "sam2-23": ("sam2", {"opset": 23}),
    "fixed-18": ("sam1", {"precision": "fp32", "points": FIXED, "prompts": FIXED}),
    "fixed-23": ("sam1", {"precision": "fp32", "points": FIXED, "prompts": FIXED, "opset": 23}),
}
SLOW_TYPES = [pytest.param(*key, marks=pytest.mark.slow) for key in (("sam1-23", 23), ("sam2-18", 18))]
Made = Callable[[str], tuple[Path, Exported]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Export on demand, each once; no test changes the files."""

    @functools.cache
    def make(name: str) -> tuple[Path, Exported]:
        spec, options = EXPORTS[name]
        directory = tmp_path_factory.mktemp(name)
        return directory, run_export(directory, SPECS[spec], **options)

    return make


@pytest.mark.parametrize(("name", "opset"), [("sam1-18", 18), ("sam2-23", 23), *SLOW_TYPES])
def test_the_types_are_in_the_file(name: str, opset: int, made: Made) -> None:
    model = onnx.load(made(name)[0] / DECODER_FILE)
    assert model.opset_import[0].version == opset
    halves = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16)
    assert halves > 3_000_000
    assert float32_weights(model) < 3_000  # point encoding: a Gaussian matrix, a table of labels, constants
    border = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in border} == {TensorProto.FLOAT}
    assert {node.op_type for node in model.graph.node} >= {"LayerNormalization", "Cast"}


def test_a_group_can_be_kept_in_float32(tmp_path: Path) -> None:
    exported = run_export(tmp_path, SPECS["sam1"], keep_float32=("token MLP",))
    assert float32_weights(onnx.load(tmp_path / DECODER_FILE)) > 2_000_000
    assert exported.options["keep_float32"] == ["point encoding", "token MLP"]


def test_the_plan_fits_the_file(made: Made) -> None:
    directory, exported = made("sam1-18")
    plan = BuildPlan.from_bytes((directory / DECODER.plan_file).read_bytes(), "plan")
    assert plan.onnx_sha256 == hashlib.sha256((directory / DECODER_FILE).read_bytes()).hexdigest()
    assert (plan.points, plan.prompts) == (ShapeRange(1, 4, 9), PROMPTS)
    assert (exported.most_points, exported.options["points"]) == (9, [1, 4, 9])
    assert set(exported.files) == {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("trt", {"turing": True}, "--turing"),
        ("trt", {"precision": "fp32", "keep_float32": ("token MLP",)}, "precision fp32"),
        ("trt", {"precision": "fp16", "keep_float32": ("atlantis",)}, "atlantis"),
    ],
)
def test_what_does_not_go_together_is_refused(
    target: str, options: dict[str, object], words: str, tmp_path: Path
) -> None:
    spec = SPECS["sam1"]
    with pytest.raises(UsageError, match=words):
        export_job(job_for(target, toy_checkpoint(spec), spec, **options), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "option", "flag"),
    [
        ("trt", {"split": True}, "--split"),
        ("trt", {"turing": True}, "--turing"),
        ("onnx", {"turing": True}, "--turing"),
        ("coreml", {"keep_float32": ("token MLP",)}, "--keep-float32"),
        ("trt-rtx", {"contract": "apple"}, "--contract"),
    ],
)
def test_an_option_of_another_target_is_refused(
    target: str, option: dict[str, object], flag: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"target '{target}' has no such option: found {flag}"):
        export(ExportRequest(out=tmp_path / "out", target=target, options=option))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the demo's decoder for TensorRT for RTX, for small frames, with the engine, in a home of its own."""
    folder = tmp_path_factory.mktemp("rtx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        request = ExportRequest(
            out=folder / "artifact", target="trt-rtx", precision="fp16", image_size=256, encoder=False
        )
        result = export(request)
    assert result.next_step is not None
    assert "--device cuda" in result.next_step
    return result.path


def test_the_engine_is_built_here_and_claims_no_more(rtx: Path) -> None:
    manifest = Artifact.open(rtx).manifest
    assert [evidence.level for evidence in manifest.evidence] == ["graph", "lowered"]
    assert manifest.evidence[0].runtime == "onnxruntime"
    assert manifest.evidence[1].device.startswith("none")
    report = json.loads((rtx / "lowering.json").read_bytes())
    assert report["seconds"] < BUILD_CAP_S
    assert (rtx / "decoder.engine").stat().st_size <= ENGINE_CAP_BYTES
    assert report["engine_bytes"] == (rtx / "decoder.engine").stat().st_size
    names = [tensor.name for tensor in manifest.spec.inputs]
    assert [tensor["name"] for tensor in report["network"]["inputs"]] == names


def test_the_graph_is_judged_again_without_a_gpu(rtx: Path) -> None:
    report = validate(rtx)
    assert report.passed
    assert (report.level, report.placement["runtime"]) == ("graph", "onnxruntime")


def test_running_the_engine_needs_the_gpu(rtx: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        validate(rtx, device="cuda")
    assert caught.value.exit_code == 5


def test_the_device_step_finds_the_engine_up_to_date(rtx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(rtx.parent / "state"))
    assert not build(rtx)["built"]


def test_an_engine_of_somebody_else_is_built_anew(rtx: Path, home: Path) -> None:
    result = build(rtx)
    assert result["built"]
    assert result["reasons"] == ("it was not built or named by this user",)
    assert [evidence.level for evidence in Artifact.open(rtx).manifest.evidence] == ["graph", "lowered"]


class TestPadding:
    """The runtime fills what the engine's shapes need, through the file that the builder receives."""

    def test_no_points_are_one_padded_point(self, rtx: Path) -> None:
        session = open_artifact(Artifact.open(rtx))
        session.set_image(arrays(image_tensors(session.spec)))
        prompts = {"point_coords": np.zeros((1, 0, 2), np.float32), "point_labels": np.zeros((1, 0), np.float32)}
        assert session.decode(prompts)["low_res_masks"].shape == (1, 3, 64, 64)

    def test_too_many_points_are_refused_with_the_limit(self, rtx: Path) -> None:
        session = open_artifact(Artifact.open(rtx))
        session.set_image(arrays(image_tensors(session.spec)))
        with pytest.raises(PromptError, match=f"found 17, expected at most {POINTS.max}"):
            session.decode(arrays(prompt_tensors(session.spec, 1, [1] * 17)))

    @pytest.mark.parametrize("name", ["fixed-23", pytest.param("fixed-18", marks=pytest.mark.slow)])
    def test_a_fixed_shape_gives_every_prompt_its_own_masks(self, name: str, made: Made) -> None:
        """Four prompts of four points, padded: what is asked for is computed as if nothing else were there."""
        spec = SPECS["sam1"]
        checkpoint = toy_checkpoint(spec)
        fixed = Padding(points=FIXED, prompts=FIXED)
        directory, exported = made(name)
        assert Padding.of(exported.options, "options") == fixed
        settings = ort.SessionOptions()
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = ort.InferenceSession((directory / DECODER_FILE).read_bytes(), settings, ["CPUExecutionProvider"])
        candidate = OnnxRuntimeRuntime(spec, [session], "cpu", padding=fixed)
        cases = parity_cases(spec, most_points=fixed.points.max)
        suite = ParitySuite.build(reference_session(checkpoint, spec), cases=cases)
        assert {case.name for case in cases} > {"one_point", "box", "many_points", "no_points", "boxes_x8"}
        report = run_gate(candidate, suite, bounds_for("fp32"), level="graph")
        assert report.passed, report.summary()

    def test_an_unmasked_padded_point_fails_the_gate(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        """The fault planted: padded points are filled with padding tokens, which are attended to."""
        monkeypatch.setattr(base, "PADDED_POINT", -1)
        with pytest.raises(AssertionError, match="parity failed"):
            self.test_a_fixed_shape_gives_every_prompt_its_own_masks("fixed-23", made)
