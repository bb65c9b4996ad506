"""An image encoder for TensorRT: types in the file, an engine built from it, and graphs that compute something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from engine_toys import home as home
from engine_toys import toy_artifact, toy_plan, with_encoder
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from stub_session import StubSession

from samx import errors
from samx.artifacts.commit import seal
from samx.artifacts.manifest import Manifest
from samx.artifacts.store import Artifact
from samx.commands import build as finishing
from samx.commands.build import build
from samx.commands.build import trust as trust_engines
from samx.demo import demo_checkpoint
from samx.errors import ArtifactError, Doubt, ParityError, SamxError, UnavailableError, UsageError
from samx.exporters.base import ExportJob
from samx.exporters.encoder import export_encoder, load_encoder
from samx.exporters.tensorrt import RtxOptions, child, write_plan
from samx.exporters.tensorrt import lower as engines
from samx.exporters.tensorrt.build import configure
from samx.exporters.tensorrt.lower import memory_bytes
from samx.formats.tensorrt.known_wrong import known_wrong
from samx.formats.tensorrt.library import library_of
from samx.formats.tensorrt.plan import BuildPlan, EncoderPlan
from samx.formats.tensorrt.stamp import Machine
from samx.models.checkpoint import load_checkpoint
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec
from samx.runtimes.torch import reference_encoder, reference_session
from samx.validators.cases import parity_cases
from samx.validators.encoder_gate import judge_encoder
from samx.validators.encoder_suite import EncoderSuite
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for, encoder_bounds
from samx.validators.report import EncoderReport, ParityReport
from samx.validators.suite import ParitySuite

pytestmark = pytest.mark.usefixtures("home")
SPEC = sam1_spec(image_size=256)
BATCHES = ShapeRange(1, 2, 4)


def job(precision: str, **options: Any) -> ExportJob:
    return ExportJob(None, SPEC, RtxOptions(**options), precision, "trt-rtx")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    export_encoder(demo_checkpoint("sam1"), job("fp16"), BATCHES, folder, "fp16")
    return folder


def plan_in(folder: Path) -> EncoderPlan:
    return EncoderPlan.from_bytes((folder / "encoder_build.json").read_bytes(), "plan")


def test_the_types_are_in_the_file_and_the_border_is_as_it_was(half: Path) -> None:
    model = onnx.load(half / "encoder.onnx")
    border = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert border == {
        "picture": TensorProto.UINT8, "valid": TensorProto.INT32, "image_embeddings": TensorProto.FLOAT,
    }  # fmt: skip
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    convolutions = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    assert {kinds[name] for name in convolutions} == {TensorProto.FLOAT16}
    roots = [node for node in model.graph.node if node.op_type in ("Sqrt", "Reciprocal", "Pow")]
    values = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    found = {values[name] for node in roots for name in node.output if name in values}
    assert found == {TensorProto.FLOAT}, "norms that are written out are computed in float32"


def test_bytes_are_cast_before_anything_else_is_done_with_them(half: Path) -> None:
    readers = [node for node in onnx.load(half / "encoder.onnx").graph.node if "picture" in node.input]
    assert [node.op_type for node in readers] == ["Cast"]


@pytest.mark.parametrize(("precision", "pictures"), [("fp16", BATCHES), ("fp32", None)])
def test_an_engine_of_the_demo_encoder_is_built_here(
    precision: str, pictures: ShapeRange | None, half: Path, tmp_path: Path
) -> None:
    folder = half
    if precision == "fp32":
        exported = export_encoder(demo_checkpoint("sam1"), job(precision), pictures, tmp_path, precision)
        folder = tmp_path
        assert set(exported.files) == {path.name for path in tmp_path.iterdir()}
    plan = plan_in(folder)
    built = child.build_apart(child.Order(folder / plan.model, plan, None, memory_bytes("1GiB")))
    assert len(built.engine) > 1_000_000
    assert {severity for severity, _ in built.messages} == {"INFO"}
    (profile,) = built.understood["profiles"]
    sizes = [[shape[0] for shape in limits] for limits in profile.values()]
    assert sizes == ([[1, 2, 4]] * 2 if pictures else [])


def test_beside_an_int8_decoder_for_turing_the_encoder_is_in_float32_and_for_turing_too(tmp_path: Path) -> None:
    """Both plans name the GPUs; the encoder's engine is built here, and only such a GPU could open it."""
    turing = job("int8", turing=True)
    exported = export_encoder(demo_checkpoint("sam1"), turing, None, tmp_path)
    assert exported.options["encoder"]["precision"] == "fp32"
    assert any("float32" in note for note in exported.notes)
    kinds = {t.data_type for t in onnx.load(tmp_path / "encoder.onnx").graph.initializer}
    assert not kinds & {TensorProto.FLOAT16, TensorProto.INT8}
    (tmp_path / "decoder.onnx").write_bytes(b"a decoder in INT8")
    write_plan(turing, tmp_path)
    decoder = BuildPlan.from_bytes((tmp_path / "build.json").read_bytes(), "plan")
    encoder = plan_in(tmp_path)
    assert (decoder.compute, encoder.compute) == ("sm75", "sm75")
    assert "--computeCapabilities=75" in encoder.command
    built = child.build_apart(child.Order(tmp_path / encoder.model, encoder, None))
    assert built.understood["compute_capabilities"] == ["SM75"]
    assert len(built.engine) > 1_000_000


def test_the_vendors_command_and_the_script_build_the_encoder_too(half: Path) -> None:
    plan, script = plan_in(half), (half / "reproduce_encoder.sh").read_text()
    assert "--onnx=encoder.onnx --saveEngine=encoder.engine" in plan.command
    assert "--maxShapes=picture:4x256x256x3,valid:4x2" in plan.command
    assert "'encoder.onnx'" in script
    assert "--trt-max-shapes 'picture:[4,256,256,3]'" in script
    assert "reproduce.sh" not in script


@cache
def suite() -> EncoderSuite:
    checkpoint = demo_checkpoint("sam1")
    found = load_encoder(checkpoint, job("fp32")).encoder
    assert found is not None
    session = reference_session(load_checkpoint(checkpoint, image_size=256), SPEC)
    return EncoderSuite.build(reference_encoder(found.module, SPEC), session, 256)


def judged(model: bytes) -> EncoderReport:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def encode(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        return {"image_embeddings": session.run(None, dict(feed))[0]}

    decoder = reference_session(load_checkpoint(demo_checkpoint("sam1"), image_size=256), SPEC)
    return judge_encoder(encode, decoder, suite(), encoder_bounds("fp16", "fp16"), batches=[1, 2, 4])


def test_the_half_precision_graph_passes_the_gate_at_every_batch_size_and_a_wrong_constant_does_not(half: Path) -> None:
    model = onnx.load(half / "encoder.onnx")
    assert judged(model.SerializeToString()).passed
    weights = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16 and len(t.dims) == 4)
    wrong = numpy_helper.to_array(weights).copy()
    wrong[0] *= 2
    weights.CopyFrom(numpy_helper.from_array(wrong, weights.name))
    assert not judged(model.SerializeToString()).passed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy_artifact(tmp_path / "toy", more=with_encoder)


def content(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}


def test_both_engines_are_built_stamped_and_trusted(path: Path) -> None:
    result = build(path, memory="64MiB")
    assert result["built"]
    manifest = Artifact.open(path).manifest
    roles = {entry.role for entry in manifest.files.values()}
    assert roles >= {"engine", "engine_stamp", "encoder_engine", "encoder_engine_stamp"}
    report = json.loads((path / "lowering.json").read_bytes())
    for said, part in ((report, "decoder"), (report["image_encoder"], "encoder")):
        assert said["memory_limit_bytes"] == 64 * 2**20
        assert said["engine_sha256"] == manifest.files[f"{part}.engine"].sha256
    stamp = json.loads((path / "encoder_engine.json").read_bytes())
    assert stamp["engine_sha256"] == manifest.files["encoder.engine"].sha256
    assert stamp["onnx_sha256"] == manifest.files["encoder.onnx"].sha256
    assert set(trust_engines(path)["files"]) == {"decoder.engine", "encoder.engine"}
    assert not build(path)["built"]


def test_an_encoder_of_another_stamp_is_built_anew(path: Path) -> None:
    build(path)
    with (path / "encoder.engine").open("ab") as file:
        file.write(b"more")
    manifest = Manifest.from_bytes((path / "manifest.json").read_bytes(), "toy")
    seal(path, manifest, {name: entry.role for name, entry in manifest.files.items()})
    assert "its stamp is of another engine" in build(path)["reasons"]


def test_the_builder_is_held_to_its_memory() -> None:
    opened = toy_plan().library.start()
    config = opened.module.Builder(opened.logger).create_builder_config()
    configure(config, toy_plan(), opened.module, memory_bytes("32MiB"))
    assert config.get_memory_pool_limit(opened.module.MemoryPoolType.WORKSPACE) == 32 * 2**20


@pytest.mark.parametrize("text", ["6GB", "6", "", "-1GiB", "0GiB", "1.5GiB", "6 GiB", "9999999GiB"])
def test_a_memory_that_is_no_size_is_refused(text: str, path: Path) -> None:
    with pytest.raises(UsageError, match="memory is no size"):
        build(path, memory=text)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
@pytest.mark.parametrize(
    ("signal", "error", "words"),
    [
        ("SIGKILL", UnavailableError, r"builds the decoder's engine was killed: found SIGKILL.*--memory 2GiB"),
        ("SIGSEGV", SamxError, r"builds the decoder's engine ended without one: found it was killed by SIGSEGV"),
    ],
)
def test_a_builder_that_is_killed_is_one_line(
    signal: str, error: type[SamxError], words: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(path)
    code = f"import os, signal; os.kill(os.getpid(), signal.{signal})"
    monkeypatch.setattr(child, "CHILD", (sys.executable, "-c", code))
    with pytest.raises(error, match=words) as caught:
        build(path)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert content(path) == before


def test_what_the_builder_refuses_comes_back_as_it_was_and_nothing_is_pickled(path: Path) -> None:
    """An error of the process's own has the same class, facts and exit code; order and answer are JSON."""
    order = child.Order(path / "decoder.onnx", replace(toy_plan(), onnx_sha256="0" * 64), None)
    with pytest.raises(ArtifactError) as here:
        child.build_here(order)
    with pytest.raises(ArtifactError) as apart:
        child.build_apart(order)
    assert apart.value.to_json() == here.value.to_json()
    for part in (child, errors):
        assert "pickle" not in Path(part.__file__ or "").read_text(encoding="utf-8")
    missing = errors.MissingExtraError("tensorrt", "trt", "building")
    assert errors.SamxError.from_json(missing.to_json()).to_json() == missing.to_json()


PAIRS = [
    ("10.4.0.26", "NVIDIA RTX A6000", "8.6", True),
    ("10.7.0", "NVIDIA L4", "8.9", True),
    ("10.7.0", "NVIDIA L40S", "8.9", False),
    ("10.8.0", "NVIDIA L4", "8.9", False),
    ("10.11.0", "NVIDIA L4", "8.9", True),
    ("10.11.0", "NVIDIA GeForce RTX 5090", "12.0", True),
    ("11.1.0", "NVIDIA B200", "10.0", True),
    ("10.13.3.9", "NVIDIA Thor", "11.0", True),
    ("10.13.2", "NVIDIA Thor", "11.0", False),
    ("10.16.1", "NVIDIA GeForce RTX 3090", "8.6", True),
    ("10.3.0", "Orin", "8.7", False),
]


@pytest.mark.parametrize(("version", "gpu", "capability", "wrong"), PAIRS)
def test_pairs_that_are_known_to_build_wrong_engines_are_named(
    version: str, gpu: str, capability: str, wrong: bool
) -> None:
    machine = Machine(version, "Linux", gpu, capability, "CUDA 12.6")
    found = known_wrong(library_of("trt"), machine)
    assert bool(found) is wrong
    assert all(gpu in line and "github.com/NVIDIA" in line for line in found)
    assert known_wrong(library_of("trt-rtx"), machine) == []


@pytest.mark.parametrize("passed", [True, False])
def test_a_pair_that_is_known_is_warned_of_and_nothing_is_kept_that_was_not_compared(
    passed: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    spec = sam1_spec(image_size=128)
    suite = ParitySuite.build(StubSession(spec), cases=parity_cases(spec)[:2])
    report = run_gate(StubSession(spec), suite, bounds_for("fp16"), level="device")

    def gate(directory: Path, **how: object) -> ParityReport:
        assert (directory / "encoder.engine").exists()
        asked.append(how)
        return report if passed else replace(report, cases=())

    monkeypatch.setattr(engines, "known_wrong", lambda library, machine: ["a planted pair"])
    monkeypatch.setattr(finishing, "gate_in_child", gate)
    before = content(path)
    outcome = nullcontext() if passed else pytest.raises(ParityError, match=r"parity failed.*use another version")
    with pytest.warns(Doubt, match="a planted pair"), outcome:
        build(path)
    assert asked == [{"level": "device", "device": "cuda"}]
    assert (content(path) == before) is not passed
    manifest = Artifact.open(path).manifest
    shown = {entry.level: entry for entry in manifest.evidence}
    assert ("device" in shown) is passed
    if passed:
        entry = shown["device"]
        assert (entry.runtime, entry.device, entry.passed) == ("stub", "cpu", True)  # as the report's placement has it
        assert manifest.files[entry.report].role == "parity_report"
        assert ParityReport.from_bytes((path / entry.report).read_bytes(), "it") == report
