"""Small graphs, artifacts and stand-ins for tests about engines."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from samx.artifacts import trust
from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, EncoderEntry, Manifest
from samx.artifacts.store import Artifact
from samx.commands.build import build
from samx.exporters.tensorrt import SCRIPT_FILE, SCRIPT_ROLE, reproduce_script
from samx.formats.tensorrt.plan import DECODER, ENCODER, BuildPlan, EncoderPlan, Port, compute_of
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, TensorSpec, sam1_spec

SPEC = sam1_spec(image_size=16)  # one cell of embedding, masks of 4 x 4
PROMPTS, POINTS, PICTURES = ShapeRange(1, 2, 4), ShapeRange(1, 2, 3), ShapeRange(1, 2, 3)
MODEL = "decoder.onnx"
CHECKPOINT = CheckpointEntry("toy.pth", "sam1", hashlib.sha256(b"toy").hexdigest(), 3)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give samx a state and a cache directory of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def toy_masks(image: NDArray[Any], coords: NDArray[Any], labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Compute what toy_onnx() computes. Shapes: spec.inputs -> spec.outputs."""
    score = (coords.sum((1, 2)) + labels.sum(1))[:, None] + np.arange(3, dtype=np.float32)
    masks = np.broadcast_to((score + image.mean())[:, :, None, None], (len(coords), 3, 4, 4))
    return {"low_res_masks": masks.astype(np.float32), "iou_predictions": score.astype(np.float32)}


def toy_onnx() -> bytes:
    """Write a graph with a decoder's tensors that a builder takes in a moment."""
    constants = {
        "last": np.array([1, 2]), "one": np.array([1]), "plane": np.array([2, 3]), "all": np.array([0, 1, 2, 3]),
        "steps": np.arange(3, dtype=np.float32)[None], "canvas": np.zeros((1, 3, 4, 4), np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceSum", ["point_coords", "last"], ["a"], keepdims=0),
        helper.make_node("ReduceSum", ["point_labels", "one"], ["b"], keepdims=0),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Unsqueeze", ["c", "one"], ["d"]),
        helper.make_node("Add", ["d", "steps"], ["iou_predictions"]),
        helper.make_node("ReduceMean", ["image_embeddings", "all"], ["e"], keepdims=1),
        helper.make_node("Unsqueeze", ["iou_predictions", "plane"], ["f"]),
        helper.make_node("Add", ["f", "canvas"], ["g"]),
        helper.make_node("Add", ["g", "e"], ["low_res_masks"]),
    ]
    return _model(nodes, [_value(t) for t in SPEC.inputs], [_value(t) for t in SPEC.outputs], constants)


def float_shape_onnx() -> bytes:
    """Write a graph that resizes to a size which comes in as float numbers, as Meta's own export does."""
    inputs = [
        helper.make_tensor_value_info("low_res_masks", TensorProto.FLOAT, [1, 1, 8, 8]),
        helper.make_tensor_value_info("orig_im_size", TensorProto.FLOAT, [2]),
    ]
    outputs = [helper.make_tensor_value_info("masks", TensorProto.FLOAT, [1, 1, "height", "width"])]
    nodes = [
        helper.make_node("Cast", ["orig_im_size"], ["side"], to=TensorProto.INT64),
        helper.make_node("Concat", ["planes", "side"], ["size"], axis=0),
        helper.make_node("Resize", ["low_res_masks", "", "", "size"], ["masks"], mode="linear"),
    ]
    return _model(nodes, inputs, outputs, {"planes": np.array([1, 1])})


def toy_features(picture: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Compute what toy_encoder_onnx() computes: each picture's mean, everywhere. Shapes: (B, 16, 16, 3) -> as SPEC."""
    means = picture.astype(np.float32).mean((1, 2, 3)).reshape(-1, 1, 1, 1)
    return {"image_embeddings": np.broadcast_to(means, (len(picture), 256, 1, 1)).astype(np.float32)}


def toy_encoder_onnx() -> bytes:
    """Write a graph with an image encoder's tensors that a builder takes in a moment."""
    constants = {"pixels": np.array([1, 2, 3]), "flat": np.array([1]), "canvas": np.zeros((1, 256, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Cast", ["picture"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "pixels"], ["mean"], keepdims=1),
        helper.make_node("Cast", ["valid"], ["used"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["used", "used"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing", "flat"], ["none"], keepdims=1),
        helper.make_node("Unsqueeze", ["none", "planes"], ["no"]),
        helper.make_node("Add", ["mean", "no"], ["same"]),
        helper.make_node("Add", ["same", "canvas"], ["image_embeddings"]),
    ]
    plan = toy_encoder_plan(b"")
    types = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
    inputs, outputs = (
        [helper.make_tensor_value_info(port.name, types[port.dtype], list(port.shape)) for port in ports]
        for ports in (plan.inputs, plan.outputs)
    )
    return _model(nodes, inputs, outputs, {**constants, "planes": np.array([2, 3])})


def toy_encoder_plan(data: bytes | None = None, target: str = "trt-rtx") -> EncoderPlan:
    """Plan the toy encoder's engine."""
    sha256 = hashlib.sha256(toy_encoder_onnx() if data is None else data).hexdigest()
    inputs = (Port("picture", ("pictures", 16, 16, 3), "uint8"), Port("valid", ("pictures", 2), "int32"))
    outputs = (Port("image_embeddings", ("pictures", 256, 1, 1), "float32"),)
    compute = compute_of(target, turing=False)
    return EncoderPlan(target, "encoder.onnx", sha256, inputs, outputs, compute, PICTURES)


def with_encoder(directory: Path) -> Mapping[str, str]:
    """Write the toy encoder into an artifact in the making; return its files' roles."""
    (directory / "encoder.onnx").write_bytes(toy_encoder_onnx())
    (directory / ENCODER.plan_file).write_bytes(toy_encoder_plan().to_bytes())
    return {"encoder.onnx": "encoder", ENCODER.plan_file: ENCODER.plan_role}


def toy_plan(target: str = "trt-rtx", data: bytes | None = None, **changes: Any) -> BuildPlan:
    """Plan the toy graph's engine."""
    sha256 = hashlib.sha256(toy_onnx() if data is None else data).hexdigest()
    spans = {"prompts": PROMPTS, "points": POINTS, **changes}
    return BuildPlan.of(target, SPEC, MODEL, sha256, **spans)


def toy_artifact(
    path: Path, target: str = "trt-rtx", data: bytes | None = None, plan: BuildPlan | None = None,
    spec: DecoderSpec = SPEC, more: Callable[[Path], Mapping[str, str]] = lambda directory: {},
) -> Path:  # fmt: skip
    """Write an artifact as an exporter leaves it, without an engine."""
    data = toy_onnx() if data is None else data
    plan = toy_plan(target, data) if plan is None else plan
    with staging(path, overwrite=False) as directory:
        (directory / MODEL).write_bytes(data)
        (directory / DECODER.plan_file).write_bytes(plan.to_bytes())
        (directory / SCRIPT_FILE).write_text(reproduce_script(plan, spec.image_size))
        roles = {MODEL: "decoder", DECODER.plan_file: DECODER.plan_role, SCRIPT_FILE: SCRIPT_ROLE, **more(directory)}
        said = {"encoder": EncoderEntry("toy", 16, "fp32", PICTURES).to_json()} if "encoder" in roles.values() else {}
        seal(directory, Manifest(target, "fp32", spec, CHECKPOINT, said), roles)
    return path


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.shape))


def _model(nodes: Any, inputs: Any, outputs: Any, constants: Mapping[str, NDArray[Any]]) -> bytes:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


@cache
def _toy_engine() -> tuple[dict[str, bytes], str]:
    """Build the toy artifact's engine once; gives all files and the engine's hash."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, folder)
        path = toy_artifact(Path(folder, "toy"))
        build(path)
        manifest = Artifact.open(path).manifest
        files = {file.name: file.read_bytes() for file in path.iterdir()}
    return files, manifest.files[DECODER.engine_file].sha256


def built_toy(path: Path) -> Path:
    """Write the toy artifact as 'samx build' leaves it, its engine trusted by this user."""
    files, sha256 = _toy_engine()
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    trust.remember(sha256, "built for a test")
    return path


def named_at_once(count: int) -> list[str]:
    """Name engines as trusted from as many threads, and return their hashes."""
    names = [f"{number:064x}" for number in range(count)]
    threads = [threading.Thread(target=trust.remember, args=(name, "at once")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names
