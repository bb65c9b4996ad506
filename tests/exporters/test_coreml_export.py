"""Core ML packages: what lies in them, what they compute, and what is refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import export_job, job_for
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint

from samx.artifacts.commit import seal
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.commands.export import ExportRequest, export
from samx.commands.inspect import inspect
from samx.commands.validate import validate
from samx.errors import ArtifactError, PromptError, UnavailableError, UsageError
from samx.exporters.base import Exported
from samx.exporters.coreml.convert import prepare, spared
from samx.exporters.coreml.export import LINT_FILE, SWIFT_FILE
from samx.formats.coreml.lint import forbidden
from samx.formats.coreml.package import package_from_directory
from samx.formats.coreml.program import Program, load_program, open_coremltools, operations
from samx.models.session import FloatArray, Outputs
from samx.models.shape_range import ShapeRange
from samx.models.spec import PADDED_POINT, DecoderSpec, sam1_spec, sam2_spec
from samx.registry import backend
from samx.runtimes.mil.runtime import MilRuntime, open_artifact
from samx.runtimes.torch import reference_session
from samx.validators.cases import parity_cases
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

pytestmark = pytest.mark.long

SIZE = 128  # of the frame: 8 x 8 image tokens
SPECS = {
    "small": sam1_spec(image_size=SIZE, mlp_width=64, masks="all"),
    "sam1": sam1_spec(image_size=SIZE),
    "sam1_single_mask": sam1_spec(image_size=SIZE, masks="single", mask_input=True),
    "sam2": sam2_spec(image_size=SIZE),
    "sam2_single_mask": sam2_spec(image_size=SIZE, masks="single", mask_input=True),
}
POINTS = ShapeRange(1, 2, 4)
FLOAT32_LOGITS = 1e-4  # of logits up to about 20


def run_export(directory: Path, spec: DecoderSpec, **options: Any) -> Exported:
    return export_job(job_for("coreml", toy_checkpoint(spec), spec, **{"points": POINTS, **options}), directory)


def opened(directory: Path, spec: DecoderSpec, exported: Exported, precision: str) -> MilRuntime:
    """Seal what was exported, and open it with the evaluator."""
    checkpoint = CheckpointEntry("toy", "toy", "0" * 64, 1)
    manifest = Manifest("coreml", precision, spec, checkpoint, options=exported.options)
    seal(directory, manifest, exported.files)
    return open_artifact(Artifact.open(directory))


def judged(session: MilRuntime, spec: DecoderSpec, exported: Exported, precision: str) -> ParityReport:
    loaded = toy_checkpoint(spec)
    every = parity_cases(spec, most_points=exported.most_points, bare=exported.bare)
    cases = [case for case in every if len(case.prompts["point_labels"]) < 9]
    suite = ParitySuite.build(reference_session(loaded, spec), cases=cases)
    return run_gate(session, suite, bounds_for(precision), level="graph")


@dataclass(frozen=True)
class Made:
    """An export that several tests look at."""

    path: Path
    spec: DecoderSpec
    exported: Exported
    precision: str

    @functools.cached_property
    def session(self) -> MilRuntime:
        return opened(self.path, self.spec, self.exported, self.precision)

    def judge(self, precision: str | None = None) -> ParityReport:
        return judged(self.session, self.spec, self.exported, precision or self.precision)


MADE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sam1": ("sam1", {"points": ShapeRange(1, 1, 4)}),
    "sam1_many_points": ("sam1", {"points": ShapeRange(1, 1, 16)}),
    "sam1_mask_fp16": ("sam1_single_mask", {"precision": "fp16", "points": ShapeRange(4, 4, 4)}),
    "sam2_fp16": ("sam2", {"precision": "fp16"}),
    "sam2_mask": ("sam2_single_mask", {"points": ShapeRange(2, 2, 4)}),
    "ios16": ("sam1", {"precision": "fp16", "ios": 16, "points": None}),
    "apple": ("sam2", {"contract": "apple", "points": ShapeRange(3, 3, 5)}),
    "plain": ("small", {"precision": "fp16", "points": ShapeRange(2, 2, 2)}),
    "linear8": ("small", {"precision": "fp16", "points": ShapeRange(2, 2, 2), "weights": "linear8"}),
    "palette8": ("small", {"precision": "fp16", "points": ShapeRange(2, 2, 2), "weights": "palette8"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Export on demand, each once."""

    @functools.cache
    def make(name: str) -> Made:
        spec, options = MADE[name]
        path = tmp_path_factory.mktemp(name)
        return Made(path, SPECS[spec], run_export(path, SPECS[spec], **options), options.get("precision", "fp32"))

    return make


def program(directory: Path, folder: str = "decoder.mlpackage") -> Program:
    return load_program(package_from_directory(directory / folder), folder)


Make = Callable[[str], Made]


SLOW_FLOAT32 = [pytest.param(name, marks=pytest.mark.slow) for name in ("sam1_many_points", "sam2_mask")]


@pytest.mark.parametrize("name", ["sam1", "apple", *SLOW_FLOAT32])
def test_float32_packages_compute_the_reference_s_masks(name: str, made: Make) -> None:
    report = made(name).judge()
    assert report.all_failures() == []
    near, far = (
        [case.metrics for case in report.cases if case.name.startswith("far_") == is_far] for is_far in (False, True)
    )
    assert max(metrics["logit_error"] for metrics in near) <= FLOAT32_LOGITS
    assert max(metrics["logit_error_relative"] for metrics in far) <= FLOAT32_LOGITS / 10  # its logits are far larger
    assert len(report.cases) >= 8


@pytest.mark.parametrize("name", ["sam1_mask_fp16", "sam2_fp16", "ios16"])
def test_float16_packages_stay_within_float16_s_bounds(name: str, made: Make) -> None:
    # Random weights give masks that are all border: the share of flipped pixels tells more than their IoU.
    failures = made(name).judge().all_failures()
    assert [line for line in failures if "iou_min" not in line and "iou_case" not in line] == []


def test_a_package_is_made_of_fixed_shapes_and_plain_types(made: Make) -> None:
    export = made("sam2_fp16")
    found, spec, options = program(export.path), export.spec, export.exported.options
    assert dict(options["functions"]) == {"points_1": 1, "points_2": 2, "points_4": 4}
    assert found.default == options["default_function"] == "points_2"
    assert forbidden(found.functions) == []
    for name, rows in options["functions"].items():
        sizes = {"prompts": 1, "points": rows}
        expected = {t.name: tuple(sizes[d] if isinstance(d, str) else d for d in t.shape) for t in spec.inputs}
        assert {t.name: t.shape for t in found.inputs(name)} == expected
        types = {t.name: t.dtype for t in (*found.inputs(name), *found.outputs(name))}
        assert {n for n, dtype in types.items() if dtype == "fp32"} == {"point_coords", "point_labels"}
        assert [t.name for t in found.outputs(name)] == [t.name for t in spec.outputs]


def test_functions_share_their_weights(made: Make) -> None:
    one, three = (
        sum(entry.stat().st_size for entry in made(name).path.rglob("weight.bin")) for name in ("ios16", "sam1")
    )
    assert three <= 2 * one + 8192  # float32 against float16


def ask(session: MilRuntime, spec: DecoderSpec, labels: list[int], coords: FloatArray) -> Outputs:
    feed = {"point_coords": coords[:, : len(labels)], "point_labels": np.array([labels], np.float32)}
    session.set_image(arrays(image_tensors(spec)))
    return session.decode({name: np.ascontiguousarray(value, np.float32) for name, value in feed.items()})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("sam1", (2, 4)), ("sam2_fp16", (2, 4)),
        pytest.param("sam1_many_points", (2, 4, 8, 16), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_padded_point_changes_no_bit(name: str, sizes: tuple[int, ...], made: Make) -> None:
    session, spec = made(name).session, made(name).spec
    coords = arrays(prompt_tensors(spec, 1, [1] * 16))["point_coords"]
    alone = ask(session, spec, [1], coords)
    for num_points in sizes:
        filled = ask(session, spec, [1] + [PADDED_POINT] * (num_points - 1), coords)
        assert all(np.array_equal(alone[output], filled[output]) for output in alone), num_points
    other = ask(session, spec, [1, 0], coords)
    assert not np.array_equal(alone["low_res_masks"], other["low_res_masks"])


def test_too_many_points_are_refused_with_the_limit(made: Make) -> None:
    spec = SPECS["sam1"]
    coords = arrays(prompt_tensors(spec, 1, [1] * 5))["point_coords"]
    with pytest.raises(PromptError, match="at most 4"):
        ask(made("sam1").session, spec, [1] * 5, coords)


def test_older_systems_get_one_function(made: Make) -> None:
    export = made("ios16")
    assert dict(export.exported.options["functions"]) == {"main": 8}
    assert "iOS 16" in program(export.path).minimum_os
    assert "functionName" not in (export.path / SWIFT_FILE).read_text()


def test_apple_s_contract_has_apple_s_names(made: Make) -> None:
    export = made("apple")
    encoder, decoder = (program(export.path, f"{name}.mlpackage") for name in ("prompt_encoder", "mask_decoder"))
    functions = {"points_2": 3, "points_4": 5}
    assert dict(export.exported.options["functions"]) == functions
    assert {t.name: (t.shape, t.dtype) for t in encoder.inputs("points_2")} == {
        "points": ((1, 2, 2), "fp32"), "labels": ((1, 2), "int32"),
    }  # fmt: skip
    assert [t.name for t in encoder.outputs("points_2")] == ["sparse_embeddings", "dense_embeddings"]
    names = ["image_embedding", "sparse_embedding", "dense_embedding", "feats_s0", "feats_s1"]
    assert [t.name for t in decoder.inputs("points_2")] == names
    assert {t.name: t.shape for t in decoder.outputs("points_2")} == {
        "low_res_masks": (1, 3, 32, 32), "scores": (1, 3), "object_score_logits": (1, 1),
    }  # fmt: skip


def test_apple_s_packages_want_their_own_padding(made: Make) -> None:
    export = made("apple")
    coords = arrays(prompt_tensors(export.spec, 1, [1, 1]))["point_coords"]
    with pytest.raises(PromptError, match="-1"):
        ask(export.session, export.spec, [1, 1], coords)


@pytest.mark.parametrize("weights", ["linear8", pytest.param("palette8", marks=pytest.mark.slow)])
def test_smaller_weights_are_smaller(weights: str, made: Make) -> None:
    plain, small = (package_from_directory(made(name).path / "decoder.mlpackage").size for name in ("plain", weights))
    assert small < 0.66 * plain
    assert made(weights).judge("int8").metrics["flipped_share"] < 0.02


def test_a_palette_has_no_more_values_than_its_bits_tell_apart() -> None:
    planes = torch.nn.ModuleDict({"second": torch.nn.Conv2d(64, 64, 1)})
    module = torch.nn.ModuleDict({"mlp": torch.nn.Conv2d(64, 64, 1), "planes": planes})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    prepare(module, "palette8")
    after = module.state_dict()
    assert len(after["mlp.weight"].unique()) == 256
    assert (after["mlp.weight"] - before["mlp.weight"]).abs().max() < 0.01
    assert torch.equal(after["planes.second.weight"], before["planes.second.weight"])
    assert spared(module) == ["p_planes_second_weight"]


def test_the_weights_that_8_bits_hurt_keep_float16(made: Make) -> None:
    stored = {}
    for operation in operations(program(made("linear8").path).function("points_2")):
        if operation.op_type.startswith("constexpr"):
            stored[operation.outputs[0].name] = operation.outputs[0].shape
    assert any("mlp_layers_0_weight" in name for name in stored)
    assert not any("image_to_token" in name or "planes" in name for name in stored)


def test_the_lint_and_the_example_lie_beside_the_package(made: Make) -> None:
    export = made("sam2_fp16")
    report = json.loads((export.path / LINT_FILE).read_text())["decoder.mlpackage"]
    assert report["kind"] == "lint"
    assert "points_4" in (export.path / SWIFT_FILE).read_text()
    listed = {path.relative_to(export.path).as_posix() for path in export.path.rglob("*") if path.is_file()}
    assert listed - {"manifest.json"} == set(export.exported.files)


def test_the_same_export_gives_the_same_bytes(made: Make, tmp_path: Path) -> None:
    run_export(tmp_path, SPECS["small"], precision="fp16", points=ShapeRange(2, 2, 2))
    found = [package_from_directory(path / "decoder.mlpackage").files for path in (made("plain").path, tmp_path)]
    assert found[0] == found[1]


def test_the_package_says_what_it_is(made: Make) -> None:
    data = package_from_directory(made("plain").path / "decoder.mlpackage").model
    spec = open_coremltools("a test").proto.Model_pb2.Model.FromString(data)
    facts = spec.description.metadata.userDefined
    assert json.loads(facts["samx.spec"])["image_size"] == SIZE
    assert json.loads(facts["samx.labels"])["padding"] == -1


REFUSED: Mapping[str, tuple[DecoderSpec, dict[str, Any], str]] = {
    "contract": (SPECS["sam1"], {"contract": "google"}, "google"),
    "apple_sam1": (SPECS["sam1"], {"contract": "apple"}, "SAM 2.1 only"),
    "apple_masks": (replace(SPECS["sam2"], mask_input=True), {"contract": "apple"}, "--mask-input"),
    "apple_points": (SPECS["sam2"], {"contract": "apple", "points": ShapeRange(1, 1, 1)}, "no room"),
    "ios": (SPECS["sam1"], {"ios": 15}, "15"),
    "ios_functions": (SPECS["sam1"], {"ios": 16, "points": ShapeRange(1, 2, 8)}, "one function"),
    "prompts": (SPECS["sam1"], {"prompts": ShapeRange(1, 4, 8)}, "one prompt"),
    "weights": (SPECS["sam1"], {"weights": "linear3", "precision": "fp16"}, "linear3"),
    "weights_float32": (SPECS["sam1"], {"weights": "linear8"}, "--fp16"),
    "weights_int8": (SPECS["sam1"], {"weights": "linear8", "precision": "int8"}, "a search chooses"),
    "ios_int8": (SPECS["sam1"], {"precision": "int8", "ios": 16}, "found --ios 16, expected --ios 17 or later"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_what_does_not_go_together_is_refused(case: tuple[DecoderSpec, dict[str, Any], str], tmp_path: Path) -> None:
    spec, options, words = case
    with pytest.raises(UsageError, match=words):
        run_export(tmp_path, spec, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "flag"), [("opset", "--opset"), ("split", "--split"), ("turing", "--turing")])
def test_other_targets_options_are_refused(option: str, flag: str, tmp_path: Path) -> None:
    value: Any = {"opset": 23}.get(option, True)
    request = ExportRequest(out=tmp_path / "out", target="coreml", precision="fp16", options={option: value})
    with pytest.raises(UsageError, match=flag):
        export(request)


def test_a_package_that_computes_something_else_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: Any) -> Any:
        module = module.half()
        module.points.position.float()
        module.decoder.transformer.final_norm.bias.add_(0.5)
        return module

    monkeypatch.setattr("samx.models.fixed.decoder.to_half", broken)
    exported = run_export(tmp_path, SPECS["small"], precision="fp16", points=ShapeRange(8, 8, 8))
    session = opened(tmp_path, SPECS["small"], exported, "fp16")
    failures = judged(session, SPECS["small"], exported, "fp16").all_failures()
    assert any("iou_prediction_error" in line for line in failures)


def test_inspect_looks_into_a_package(made: Make) -> None:
    facts = inspect(made("plain").path / "decoder.mlpackage")
    assert facts["kind"] == "coreml package"
    assert facts["functions"]["points_2"]["outputs"][0] == "low_res_masks (1, 4, 32, 32) fp16"
    assert facts["lint"][0].startswith("lint, not a measurement")


def test_a_bare_package_is_no_artifact(made: Make) -> None:
    with pytest.raises(ArtifactError, match="bare Core ML package"):
        Artifact.open(made("plain").path / "decoder.mlpackage")


def test_validate_says_what_can_be_done_without_a_mac(made: Make) -> None:
    assert made("sam1").session.spec == SPECS["sam1"]  # sealed
    with pytest.raises(UnavailableError, match=r"found no device, expected a Mac\. --device cpu compares"):
        validate(made("sam1").path, device="cpu+ane")


def test_the_backend_is_registered() -> None:
    entry = backend("coreml")
    assert entry.runner("cpu").target == "mil"
    assert (entry.level("cpu"), entry.level("cpu+ane")) == ("graph", "device")
    assert entry.here() == []
