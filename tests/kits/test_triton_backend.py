"""What Triton's own backends compute: model.py asks the server's other models; the masks stay those of the predictor.

Stand-ins have the place of Triton and of its backends here; `make triton` runs a real server.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import triton_stub
from engine_toys import home as home
from kits import GRAPH, artifact, engine_artifact
from numpy.typing import NDArray
from test_triton import KEYS, PICTURES, STAND_IN, USERS, WRONG, click, decoded, started
from typer.testing import CliRunner

import samx
from samx.artifacts import trust
from samx.artifacts.store import Artifact
from samx.cli import app
from samx.commands.bundle import bundle_triton
from samx.errors import ArtifactError, ParityError, UsageError
from samx.kits import triton_model
from samx.kits.triton import _models
from samx.kits.triton_parts import BACKENDS

Arrays = Mapping[str, NDArray[Any]]
TYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8, "TYPE_INT32": np.int32}
DECLARED = re.compile(r'\{ name: "(\w+)" data_type: (\w+) dims: \[ ([-\d, ]+) \] \}')


@pytest.fixture(scope="module")
def models(sam2_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "models"
    bundle_triton(sam2_artifact, path, backend="onnxruntime")
    return path


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, STAND_IN, triton_stub)
    monkeypatch.setattr(triton_stub, "OTHERS", {})
    triton_stub.LOG.clear()
    return triton_stub


class OnnxRuntimeModel:
    """Serve a written model as Triton's backend does: by its config.pbtxt, which it is strict about."""

    def __init__(self, folder: Path) -> None:
        config = (folder / "config.pbtxt").read_text()
        sides = config[config.index("input [") :].split("output [")
        self.inputs, self.outputs = (
            {name: (TYPES[kind], list(map(int, sizes.split(",")))) for name, kind, sizes in DECLARED.findall(side)}
            for side in sides
        )
        self.session = ort.InferenceSession(folder / "1" / "model.onnx")
        self.calls = 0

    def __call__(self, given: Arrays) -> Arrays:
        self.calls += 1
        check(given, self.inputs)
        found = dict(zip(self.outputs, self.session.run(list(self.outputs), dict(given)), strict=True))
        check(found, self.outputs)
        return found


def check(tensors: Arrays, declared: Mapping[str, Any]) -> None:
    assert set(tensors) == set(declared), sorted(tensors)
    for name, (kind, sizes) in declared.items():
        assert tensors[name].dtype == kind, name
        assert len(sizes) == tensors[name].ndim, name
        assert all(size in (-1, there) for size, there in zip(sizes, tensors[name].shape, strict=True)), name


@pytest.fixture(scope="module")
def backend(models: Path) -> dict[str, OnnxRuntimeModel]:
    return {path.name: OnnxRuntimeModel(path) for path in models.glob("samx_*")}


@pytest.fixture
def model(models: Path, triton: Any, backend: dict[str, OnnxRuntimeModel]) -> Any:
    """Start model.py with every part loaded."""
    triton.OTHERS.update(backend)
    return started(models)


def first(model: Any, triton: Any) -> Any:
    (found,) = model.execute([triton.Request(click(KEYS[0], picture=PICTURES[0]))])
    return found


def test_the_backend_computes_and_the_masks_are_the_predictor_s(
    model: Any, triton: Any, backend: dict[str, OnnxRuntimeModel], sam2_artifact: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(triton_model, "open_session", refused)  # nothing may be opened in this process
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    before = {name: one.calls for name, one in backend.items()}
    sent = [triton.Request(click(key, picture=data)) for key, data in zip(KEYS, PICTURES, strict=True)]
    found = model.execute([*sent, *(triton.Request(click(KEYS[place], points)) for place, points in USERS)])
    assert {name for name, one in backend.items() if one.calls > before[name]} == {
        "samx_encoder", "samx_image", "samx_prompt"
    }  # fmt: skip
    monkeypatch.undo()
    predictor = samx.open(sam2_artifact, threads=1)
    for (place, points), answer in zip(USERS, found[2:], strict=True):
        assert not answer.has_error(), answer.error().words
        (tmp_path / "one.png").write_bytes(PICTURES[place])
        predictor.set_image(tmp_path / "one.png")
        for row, prompt in enumerate(points):
            logits, scores, _ = predictor.predict(prompt, np.ones(len(prompt), np.int32))
            assert np.allclose(answer.tensors["scores"][row], scores, atol=1e-5)
            masks = np.array([decoded(runs) for runs in answer.tensors["masks"][row]])
            assert np.array_equal(masks, logits > 0)


def refused(*_: object) -> Any:
    raise AssertionError("opened in this process")


def test_without_the_backend_model_py_computes_and_the_log_says_so(
    models: Path, triton: Any, backend: dict[str, OnnxRuntimeModel]
) -> None:
    triton.OTHERS.update({name: one for name, one in backend.items() if name != "samx_image"})
    before = [one.calls for one in backend.values()]
    found = first(started(models), triton)
    assert not found.has_error()
    assert [one.calls for one in backend.values()] == before
    assert triton.LOG == ["samx: not loaded by Triton's onnxruntime backend: samx_image; model.py computes itself"]


def test_what_cannot_be_opened_is_told_to_who_asks(models: Path, triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Any:
        raise ArtifactError("there is no runtime")

    monkeypatch.setattr(triton_model, "open_session", missing)
    found = first(started(models), triton)
    assert (found.error().code, found.error().words) == ("internal", "there is no runtime")


def renamed(name: str, to: str) -> Callable[[Arrays], Arrays]:
    return lambda found: {to if key == name else key: value for key, value in found.items()}


def cut(name: str, rows: slice) -> Callable[[Arrays], Arrays]:
    return lambda found: {**found, name: found[name][rows]}


def halved(found: Arrays) -> Arrays:
    return {name: value.astype(np.float16) for name, value in found.items()}


def dropped(found: Arrays) -> Arrays:
    return dict(list(found.items())[1:])


def broken(_: Arrays) -> Arrays:
    raise RuntimeError("CUDA error 700")


def not_finite(found: Arrays) -> Arrays:
    return {name: value * np.float32(np.nan) for name, value in found.items()}


FAULTS: dict[str, tuple[str, Callable[[Arrays], Arrays], str]] = {
    "error of the prompts": ("samx_prompt", broken, "model 'samx_prompt' gives no answer: found CUDA error 700"),
    "error of the image": ("samx_image", broken, "model 'samx_image' gives no answer: found CUDA error 700"),
    "error of the encoder": ("samx_encoder", broken, "model 'samx_encoder' gives no answer: found CUDA error 700"),
    "another name": (
        "samx_prompt", renamed("iou_predictions", "scores"),
        "'samx_prompt' answers with other tensors than the file has: found iou_predictions nothing, scores (",
    ),
    "no prompts": (
        "samx_prompt", cut("low_res_masks", slice(0)),
        "found low_res_masks (0, 3, 64, 64), expected low_res_masks (1, 3, 64, 64)",
    ),
    "another type": ("samx_prompt", halved, "found low_res_masks float16, "),
    "a tensor less of the image": ("samx_image", dropped, "'samx_image' answers with other tensors"),
    "no features": ("samx_encoder", cut("image_embeddings", slice(0)), "found image_embeddings (0, 256, "),
    "another name of the encoder": ("samx_encoder", renamed("image_embeddings", "x"), "found image_embeddings nothing"),
    "not finite": ("samx_prompt", not_finite, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_backend_is_told_and_the_next_answer_is_right(
    model: Any, triton: Any, backend: dict[str, OnnxRuntimeModel], name: str
) -> None:
    part, fault, words = FAULTS[name]
    triton.OTHERS[part] = lambda given: fault(backend[part](given))
    found = first(model, triton)
    assert found.has_error()
    assert words in found.error().words
    assert found.error().code == "internal"
    assert found.tensors == {}
    del triton.OTHERS[part]  # unloaded
    assert f"'{part}' gives no answer" in first(model, triton).error().words
    triton.OTHERS[part] = backend[part]
    assert not first(model, triton).has_error()


def test_a_wrong_request_is_the_user_s(model: Any, triton: Any) -> None:
    good, bad = model.execute([
        triton.Request(click(KEYS[0], picture=PICTURES[0])), triton.Request(WRONG["outside"][0])
    ])  # fmt: skip
    assert not good.has_error()
    assert bad.error().code == "invalid"


def test_a_copy_that_was_altered_is_not_served(models: Path, triton: ModuleType, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    file = copy / "samx_prompt" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match=r"samx_prompt/1/model\.onnx is not the artifact's prompt\.onnx"):
        started(copy)
    shutil.rmtree(copy / "samx_prompt")  # as where Triton brings one model at a time
    started(copy)


# ---- writing


def test_the_folder_holds_a_model_of_each_part(models: Path) -> None:
    names = {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}
    assert names == set(json.loads((models / "samx-triton.json").read_text())["files"])
    own = Artifact.open(models / "samx" / "1" / "artifact")
    for role in ("encoder", "image", "prompt"):
        config = (models / f"samx_{role}" / "config.pbtxt").read_text()
        for words in (f'name: "samx_{role}"', 'backend: "onnxruntime"', "max_batch_size: 0", "KIND_CPU", '"use_tf32"'):
            assert words in config
        assert (models / f"samx_{role}" / "1" / "model.onnx").read_bytes() == own.read(f"{role}.onnx")
    prompt = (models / "samx_prompt" / "config.pbtxt").read_text()
    assert '{ name: "point_coords" data_type: TYPE_FP32 dims: [ -1, -1, 2 ] }' in prompt
    assert '{ name: "low_res_masks" data_type: TYPE_FP32 dims: [ -1, 3, 64, 64 ] }' in prompt


def test_weights_beside_a_graph_keep_their_name(tmp_path: Path) -> None:
    ((name, (_, graph)),) = GRAPH.items()
    encoder = {"encoder.onnx": ("encoder", graph), "encoder.onnx.data": ("encoder_weights", b"weights")}
    found = BACKENDS["onnxruntime"].parts(Artifact.open(artifact(tmp_path / "toy", {**GRAPH, **encoder})))
    assert found.parts["encoder"].files == {"model.onnx": "encoder.onnx", "encoder.onnx.data": "encoder.onnx.data"}
    assert found.parts["decoder"].files == {"model.onnx": name}


def built(path: Path) -> Path:
    """Write an artifact whose engine is a few bytes, compared on a device."""
    made = Artifact.open(engine_artifact(path / "plain", "trt"))
    engine = {"decoder.engine": ("engine", b"engine"), "build.json": ("build_plan", made.read("build.json"))}
    options = made.manifest.options
    return artifact(path / "built", {**GRAPH, **engine}, "trt", options, evidence={"level": "device"})


def test_an_engine_is_taken_that_was_compared_here(tmp_path: Path, home: Path) -> None:
    parts = BACKENDS["tensorrt"].parts
    path = built(tmp_path)
    with pytest.raises(ArtifactError, match="neither built nor named by this user"):
        parts(Artifact.open(path))
    trust.remember(Artifact.open(path).manifest.files["decoder.engine"].sha256, "test")
    found = parts(Artifact.open(path))
    assert found.most_prompts == 4
    assert found.parts["decoder"].files == {"model.plan": "decoder.engine"}
    assert [port.shape for port in found.parts["decoder"].outputs] == [("prompts", 3, 4, 4), ("prompts", 3)]
    written = _models(Artifact.open(path), found)
    assert written["samx_decoder/1/model.plan"] == b"engine"
    config = written["samx_decoder/config.pbtxt"].decode()
    for words in ('backend: "tensorrt"', 'filename: "model.plan"', "KIND_GPU", "dims: [ -1, 3, 4, 4 ]"):
        assert words in config
    with pytest.raises(ParityError, match=r"was not compared with PyTorch\. Run it on the GPU: samx validate"):
        parts(Artifact.open(engine_artifact(tmp_path / "graph", "trt")))


def test_what_the_backend_cannot_run_is_refused_before_the_work(sam2_artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    for backend, words in {
        "tensorrt": "Triton's tensorrt cannot hold this target: found 'onnx', expected trt",
        "pytorch": "Triton has no such backend: found 'pytorch', expected onnxruntime or tensorrt",
    }.items():
        with pytest.raises(UsageError, match=words):
            bundle_triton(sam2_artifact, out, backend=backend)
    done = CliRunner().invoke(app, ["bundle", str(sam2_artifact), "--backend", "onnxruntime"])
    assert "only a server has backends: found --backend onnxruntime. Add --for triton." in str(done.exception)
    assert not out.exists()
