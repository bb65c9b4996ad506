"""Engines are built for real, without a GPU; what the library understood otherwise than planned is caught."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engine_toys import MODEL, float_shape_onnx, toy_onnx, toy_plan

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UnavailableError
from samx.exporters.tensorrt import build
from samx.exporters.tensorrt.build import build_engine
from samx.formats.tensorrt.library import Opened, concerns
from samx.formats.tensorrt.plan import BuildPlan, Port
from samx.models.shape_range import ShapeRange


@pytest.fixture(scope="module")
def rtx() -> Opened:
    return toy_plan().library.start()


def one_line(error: pytest.ExceptionInfo[ArtifactError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_small_graph_is_built_and_read_back(rtx: Opened) -> None:
    engine, understood, cache = build_engine(toy_onnx(), toy_plan(), rtx)
    assert len(engine) > 1000
    assert understood.strongly_typed
    assert not understood.tf32
    assert understood.profiles == (dict(toy_plan().profile),)
    assert [port.name for port in understood.outputs] == ["low_res_masks", "iou_predictions"]
    assert cache is None  # this library has none


def test_the_demo_decoder_is_built_without_a_warning_in_under_a_minute(demo_artifact: Path, rtx: Opened) -> None:
    artifact = Artifact.open(demo_artifact)
    onnx = artifact.read(MODEL)
    sha256 = hashlib.sha256(onnx).hexdigest()
    plan = BuildPlan.of("trt-rtx", artifact.manifest.spec, MODEL, sha256, ShapeRange(1, 8, 64), ShapeRange(1, 2, 16))
    started = time.perf_counter()
    engine, *_ = build_engine(onnx, plan, rtx)
    assert time.perf_counter() - started < 60
    assert {severity for severity, _ in rtx.messages} == {"INFO"}
    assert len(engine) < 40 * 2**20  # float32; its weights are 20 MB


def test_a_shape_that_comes_in_as_float_does_not_parse(rtx: Opened) -> None:
    with pytest.raises(ArtifactError, match=r"TensorRT for RTX cannot read 'decoder\.onnx': found Resize") as caught:
        build_engine(float_shape_onnx(), toy_plan(), rtx)
    assert len(one_line(caught)) < 800


def test_a_file_that_is_no_graph_does_not_parse(rtx: Opened) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read 'decoder\.onnx': found .*Failed to parse") as caught:
        build_engine(b"no graph", toy_plan(), rtx)
    one_line(caught)


def test_a_turing_engine_is_for_turing(rtx: Opened) -> None:
    assert build_engine(toy_onnx(), toy_plan(turing=True), rtx)[1].compute_capabilities == ("SM75",)


def test_what_the_compiler_refuses_is_one_line(demo_artifact: Path, rtx: Opened) -> None:
    artifact = Artifact.open(demo_artifact)  # in float32, which Turing's compiler does not take
    spans = {"prompts": ShapeRange(1, 8, 64), "points": ShapeRange(1, 2, 16)}
    plan = BuildPlan.of("trt-rtx", artifact.manifest.spec, MODEL, "0" * 64, **spans, turing=True)
    with pytest.raises(ArtifactError, match=r"cannot build 'decoder\.onnx': found .*Turing") as caught:
        build_engine(artifact.read(MODEL), plan, rtx)
    one_line(caught)


def test_tensorrt_builds_on_its_gpu_only(rtx: Opened) -> None:
    with pytest.raises(UnavailableError, match="TensorRT builds only on the GPU that runs the engine"):
        build_engine(toy_onnx(), toy_plan("trt"), rtx)


LABELS = Port("point_labels", ("prompts", "points"), "float32")
IMAGE = toy_plan().inputs[0]
PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"inputs": (IMAGE, toy_plan().inputs[1], replace(LABELS, dtype="int32"))}, "point_labels: found float32"),
    "name": ({"inputs": (replace(IMAGE, name="image"), *toy_plan().inputs[1:])}, "inputs: found"),
    "shape": ({"inputs": (replace(IMAGE, shape=(1, 256, 2, 2)), *toy_plan().inputs[1:])}, "input image_embeddings"),
    "fewer outputs": ({"outputs": toy_plan().outputs[:1]}, "outputs: found"),
    "output shape": (
        {"outputs": (replace(toy_plan().outputs[0], shape=("prompts", 1, 4, 4)), toy_plan().outputs[1])},
        "output low_res_masks: found",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANS)
def test_a_graph_with_other_tensors_than_planned_is_refused(what: str, rtx: Opened) -> None:
    changes, words = PLANS[what]
    with pytest.raises(ArtifactError, match=f"understood 'decoder.onnx' otherwise than the plan says: found .*{words}"):
        build_engine(toy_onnx(), replace(toy_plan(), **changes), rtx)


def _lost_profile(profile: Any, plan: BuildPlan) -> None:
    low, opt, high = plan.profile["point_coords"]
    profile.set_shape("point_coords", low, opt, high)
    profile.set_shape("point_labels", low[:2], opt[:2], (high[0], 99))


def _weak_profile(profile: Any, plan: BuildPlan) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "planted", "words"),
    [
        ("_set_profile", _lost_profile, "profiles: found"),
        ("configure", lambda config, plan, module, memory: None, "TF32: found True, expected False"),
        ("shape_tensors", lambda network: ("orig_im_size",), r"shape tensors: found \('orig_im_size',\)"),
    ],
)
def test_what_the_library_holds_is_read_back(
    function: str, planted: Any, words: str, rtx: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, function, planted)
    with pytest.raises(ArtifactError, match=words):
        build_engine(toy_onnx(), toy_plan(), rtx)


def test_an_engine_of_fixed_sizes_is_built(rtx: Opened) -> None:
    plan = toy_plan(prompts=ShapeRange(2, 2, 2), points=ShapeRange(3, 3, 3))
    _, understood, _ = build_engine(toy_onnx(), plan, rtx)
    assert understood.profiles[0]["point_labels"] == ((2, 3), (2, 3), (2, 3))


def test_a_library_that_dropped_the_flag_is_strongly_typed(rtx: Opened) -> None:
    module = ModuleType("later")
    module.__dict__.update({k: v for k, v in rtx.module.__dict__.items() if k != "NetworkDefinitionCreationFlag"})
    later = replace(rtx, module=module)
    assert build_engine(toy_onnx(), toy_plan(), later)[1].strongly_typed


def test_a_profile_that_was_not_set_is_seen(rtx: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_set_profile", _weak_profile)
    with pytest.raises(ArtifactError, match="profiles: found"):
        build_engine(toy_onnx(), toy_plan(), rtx)


def test_a_capability_that_was_not_taken_is_seen(rtx: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(config: Any, plan: BuildPlan, module: Any, memory: int | None) -> None:
        config.clear_flag(module.BuilderFlag.TF32)
        config.num_compute_capabilities = 1
        config.set_compute_capability(module.ComputeCapability.SM89, 0)

    monkeypatch.setattr(build, "configure", another)
    with pytest.raises(ArtifactError, match=r"compute capabilities: found \('SM89',\), expected \('SM75',\)"):
        build_engine(toy_onnx(), toy_plan(turing=True), rtx)


def test_one_warning_about_precision_stops_the_engine(rtx: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    build_really = build._built

    def warn(*arguments: Any) -> Any:
        rtx.messages.append(("WARNING", "Running layernorm in FP16 may cause overflow"))
        return build_really(*arguments)

    monkeypatch.setattr(build, "_built", warn)
    with pytest.raises(ArtifactError, match=r"warns about 'decoder\.onnx': found precision: Running layernorm"):
        build_engine(toy_onnx(), toy_plan(), rtx)


def test_every_build_has_a_log_of_its_own(rtx: Opened) -> None:
    rtx.messages.append(("WARNING", "FP16 overflow of an earlier build"))
    build_engine(toy_onnx(), toy_plan(), rtx)
    assert concerns(rtx.messages) == []
