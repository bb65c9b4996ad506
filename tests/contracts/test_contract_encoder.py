"""An image encoder in a program's signature gives the features of samx's own, of pictures as the program sends them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from contract_files import Array, assert_same, checkpoint, hugging_face
from exports import job_for

import samx
from samx.artifacts.commit import seal
from samx.artifacts.store import Artifact
from samx.contracts import table
from samx.contracts.client import encoded
from samx.contracts.encoder import adapted_encoder, positional_encoding, write_companions
from samx.contracts.table import CONTRACTS, Contract
from samx.demo import demo_checkpoint
from samx.demo.model import load_demo
from samx.errors import UsageError
from samx.exporters.base import Exported
from samx.exporters.encoder import NO_CLIENT, export_encoder
from samx.exporters.onnx import POSITION_MATRIX, write_encoder, write_onnx
from samx.models.checkpoint import load_checkpoint
from samx.models.encoders.picture import picture_graph
from samx.models.shape_range import ShapeRange
from samx.models.spec import family_spec

pytestmark = pytest.mark.long

FRAME_PX = 256
PICTURES = [(171, 256), (256, 150), (256, 256)]  # height and width of the part of the frame that is used
EVERY = list(CONTRACTS.values())
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@lru_cache
def own(family: str, folder: Path) -> tuple[onnx.ModelProto, Any]:
    """Export the demo model's encoder as samx does; return the model and a session of it."""
    model = load_demo(family, demo_checkpoint(family), FRAME_PX // 16)
    write_onnx([picture_graph(model.encoder, model.spec)], folder, simplify=False)
    path = folder / "encoder.onnx"
    return onnx.load(path), ort.InferenceSession(path.read_bytes())


@lru_cache
def program(contract: Contract, folder: Path) -> Any:
    """Open an encoder in a contract's signature."""
    family = contract.families[0]
    spec = load_demo(family, demo_checkpoint(family), FRAME_PX // 16).spec
    positions = np.zeros((1, spec.width, spec.grid, spec.grid), np.float32)
    model = adapted_encoder(own(family, folder)[0], contract, spec, positions)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString())


def picture(size: tuple[int, int], seed: int = 0) -> Array:
    """Draw a picture that is smooth and reaches both ends of the levels. Shapes: -> (H, W, 3), uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 9, 3))
    rows, columns = (np.arange(side) * 9 // side for side in size)
    found: Array = coarse[rows][:, columns].astype(np.uint8)
    return found


def own_features(family: str, folder: Path, levels: Array) -> dict[str, Array]:
    session = own(family, folder)[1]
    height, width = levels.shape[:2]
    kinds = {one.name: one.type for one in session.get_inputs()}
    frame = np.full((1, FRAME_PX, FRAME_PX, 3), 99, np.uint8 if kinds["picture"] == "tensor(uint8)" else np.float32)
    frame[0, :height, :width] = levels
    feed: dict[str, Array] = {"picture": frame}
    if "valid" in kinds:
        feed["valid"] = np.array([[height, width]], np.int32)
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feed), strict=True))


@pytest.mark.parametrize("size", PICTURES)
@pytest.mark.parametrize("contract", EVERY, ids=lambda contract: contract.name)
def test_a_picture_as_the_program_sends_it(contract: Contract, size: tuple[int, int], folder: Path) -> None:
    family = contract.families[0]
    levels = picture(size if family == "sam1" else (FRAME_PX, FRAME_PX))
    if contract.encoder.levels:
        sent = levels.astype(np.float32)  # OpenCV's array, height first, RGB
    else:
        pixels = np.zeros((FRAME_PX, FRAME_PX, 3))
        pixels[: levels.shape[0], : levels.shape[1]] = (levels / 255 - MEAN) / STD
        sent = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    session = program(contract, folder)
    found = session.run(None, {session.get_inputs()[0].name: sent})
    assert [one.name for one in session.get_outputs()] == [port.name for port in contract.encoder.outputs]
    wanted = own_features(family, folder, levels)
    for port, value in zip(contract.encoder.outputs, found, strict=True):
        if port.holds != "unread":
            np.testing.assert_allclose(value, wanted[port.holds], rtol=0, atol=1e-4 * np.abs(wanted[port.holds]).max())


@pytest.mark.parametrize("name", ["meta-single", "osam", "samexporter-sam2", "sam2-onnx"])
def test_the_gate_sends_what_the_program_sends(name: str, folder: Path) -> None:
    contract = CONTRACTS[name]
    family, size = contract.families[0], PICTURES[0] if contract.families[0] == "sam1" else PICTURES[2]
    levels, session = picture(size), program(contract, folder)
    frame = np.full((1, FRAME_PX, FRAME_PX, 3), 7, np.float32)
    frame[0, : size[0], : size[1]] = levels
    found = encoded(
        contract, lambda values: session.run(None, {session.get_inputs()[0].name: values[0]}),
        {"picture": frame, "valid": np.array([size], np.int32)},
    )  # fmt: skip
    for holds, value in own_features(family, folder, levels).items():
        np.testing.assert_allclose(found[holds], value, rtol=0, atol=1e-4 * np.abs(value).max())


def test_sam2s_encoder_states_the_size_that_programs_read(folder: Path) -> None:
    for name in ("samexporter-sam2", "rectlabel", "osam", "hf-sam1", "hf-sam2", "sam2-onnx"):
        assert program(CONTRACTS[name], folder).get_inputs()[0].shape == [1, 3, FRAME_PX, FRAME_PX]
    assert program(CONTRACTS["osam"], folder).get_inputs()[0].name == "x"
    assert len(program(CONTRACTS["meta-single"], folder).get_inputs()[0].shape) == 3


def test_the_positional_encoding_is_transformers() -> None:
    loaded = checkpoint("sam1")
    theirs = hugging_face("sam1").get_image_wide_positional_embeddings().detach().numpy()
    ours = positional_encoding(loaded.weights[POSITION_MATRIX].numpy(), loaded.spec.grid)
    assert ours.shape == (1, 256, loaded.spec.grid, loaded.spec.grid)
    np.testing.assert_allclose(ours[0], theirs.reshape(ours.shape[1:]), atol=1e-5)


SPEC = family_spec("sam1")
REQUIRED = {"type", "name", "display_name", "encoder_model_path", "decoder_model_path"}


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [
        ("meta-single", "config.yaml", "segment_anything"),
        ("samexporter-sam2", "config.yaml", "segment_anything"),
        ("samexporter-sam2", "x-anylabeling.yaml", "segment_anything_2"),
    ],
)
def test_configurations_of_annotation_programs(name: str, file: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    assert f"client/{file}" in write_companions(CONTRACTS[name], SPEC, "sam: #1", tmp_path)
    found = yaml.safe_load((tmp_path / "client" / file).read_text(encoding="utf-8"))
    assert set(found) >= REQUIRED
    assert (found["type"], found["name"]) == (kind, "sam: #1")
    assert (found["encoder_model_path"], found["decoder_model_path"]) == ("encoder.onnx", CONTRACTS[name].file)
    assert kind == "segment_anything_2" or {"input_size", "max_width", "max_height"} <= set(found)


@pytest.mark.parametrize(("name", "model_type"), [("hf-sam1", "sam"), ("hf-sam2", "sam2")])
def test_configurations_of_transformers(name: str, model_type: str, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    written = write_companions(CONTRACTS[name], SPEC, "vit-b", tmp_path)
    assert set(written) == {"client/config.json", "client/preprocessor_config.json"}
    config, processor = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in sorted(written))
    assert config["model_type"] == model_type
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    assert processor["image_mean"] == MEAN.tolist()
    assert processor["image_std"] == STD.tolist()
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(str(tmp_path / "client")).model_type == model_type


@pytest.mark.parametrize("frame_px", [1024, 512])
def test_what_sam2_onnx_reads_of_the_model(frame_px: int, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    spec = family_spec("sam2", image_size=frame_px)
    assert list(write_companions(CONTRACTS["sam2-onnx"], spec, "tiny", tmp_path)) == ["client/metadata.json"]
    found = json.loads((tmp_path / "client" / "metadata.json").read_text(encoding="utf-8"))
    assert found == {
        "image_size": frame_px, "embed_dim": 256, "backbone_stride": 16, "num_multimask_outputs": 3,
        "mask_threshold": 0.0,
    }  # fmt: skip
    # The program makes a mask that is none of this many pixels a side.
    assert 4 * (found["image_size"] // found["backbone_stride"]) == spec.mask_size


def test_a_whole_export_for_sam2_onnx_of_another_frame(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    artifact = samx.export(None, out, family="sam2", image_size=FRAME_PX, contract="sam2-onnx", simplify=False)
    found = {name for name in artifact.manifest.files if name.startswith("client/")}
    assert found == {f"client/{name}" for name in ("decoder.onnx", "encoder.onnx", "metadata.json")}
    assert json.loads(artifact.read("client/metadata.json"))["image_size"] == FRAME_PX
    report = json.loads(artifact.read("parity_report.json"))
    assert report["passed"]
    assert report["suite"]["contract"]["name"] == "sam2-onnx"
    levels = picture(PICTURES[2])
    frame = ((levels / 255 - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
    sessions = [ort.InferenceSession(str(out / "client" / f"{name}.onnx")) for name in ("encoder", "decoder")]
    features = sessions[0].run(None, {"image": frame})  # read by place
    masks, iou = sessions[1].run(None, {
        **dict(zip(("image_embed", "high_res_feat_0", "high_res_feat_1"), features, strict=True)),
        "point_coords": np.array([[[90, 70]]], np.float32), "point_labels": np.array([[1]], np.int64),
        "mask_input": np.zeros((1, 1, FRAME_PX // 4, FRAME_PX // 4), np.float32),
        "has_mask_input": np.zeros((1, 1), np.float32),
    })  # fmt: skip
    predictor = samx.open(out)
    predictor.set_image(levels)
    _, scores, logits = predictor.predict(point_coords=[(90, 70)], point_labels=[1])
    assert_same(np.clip(masks, -32, 32), logits[None])
    np.testing.assert_allclose(iou[0], scores, atol=1e-4)


def test_a_name_in_a_configuration_stays_a_name(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    write_companions(CONTRACTS["meta-single"], SPEC, 'a"b\nc', tmp_path)
    assert yaml.safe_load((tmp_path / "client" / "config.yaml").read_text(encoding="utf-8"))["name"] == 'a"b\nc'


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("whole") / "demo"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table, "FRAME_PX", FRAME_PX)  # a sixteenth of the work
        return samx.export(None, out, image_size=FRAME_PX, contract="meta-single", simplify=False)


def test_a_whole_export_leaves_what_the_program_loads(exported: Artifact) -> None:
    found = {name for name in exported.manifest.files if name.startswith("client/")}
    assert found == {f"client/{name}" for name in ("decoder.onnx", "encoder.onnx", "config.yaml")}
    report = json.loads(exported.read("parity_report.json"))
    assert report["passed"]
    assert report["suite"]["contract"]["name"] == "meta-single"


def test_validate_fails_on_another_encoder(exported: Artifact, tmp_path: Path) -> None:
    """Swap the two channels of colour: an encoder that takes BGR."""
    for name in exported.manifest.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(exported.read(name))
    path = tmp_path / "client/encoder.onnx"
    model = onnx.load(path)
    first = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["swapped" if name == first else name for name in node.input]
    order = onnx.numpy_helper.from_array(np.array([2, 1, 0]), "order")
    model.graph.initializer.append(order)
    model.graph.node.insert(0, onnx.helper.make_node("Gather", [first, "order"], ["swapped"], axis=2))
    onnx.save(model, path)
    seal(tmp_path, exported.manifest, {name: entry.role for name, entry in exported.manifest.files.items()})
    report = samx.validate(tmp_path)
    assert not report.passed
    assert not report.failures, "the decoder is right"
    assert report.encoder is not None
    assert report.encoder.failures[0].startswith("contract meta-single: ")


def test_several_pictures_a_call_are_refused(tmp_path: Path) -> None:
    model = load_demo("sam1", demo_checkpoint("sam1"), FRAME_PX // 16)
    graph = picture_graph(model.encoder, model.spec, ShapeRange(2, 2, 2))
    with pytest.raises(UsageError, match="--pictures: 2"):
        write_encoder(graph, job_for("onnx", checkpoint("sam1"), model.spec, contract="osam"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_of_smaller_pictures_is_left_out_and_it_is_said(tmp_path: Path) -> None:
    model = load_demo("sam1", demo_checkpoint("sam1"), 8)
    graph = picture_graph(model.encoder, model.spec)
    spec = family_spec("sam1")
    written = write_encoder(graph, job_for("onnx", checkpoint("sam1"), spec, contract="osam"), tmp_path)
    assert written.notes == ("client/ has no image encoder: it takes pictures of 128 px.",)
    assert set(written.files) == {"encoder.onnx"}


def test_an_encoder_of_int8_is_left_out_and_it_is_said(tmp_path: Path) -> None:
    path = demo_checkpoint("sam1")
    loaded = load_checkpoint(path, image_size=FRAME_PX)
    job = job_for("onnx", loaded, loaded.spec, contract="osam")
    written = export_encoder(path, job, None, tmp_path, "int8", lambda graph, job, directory: Exported({}, {}, {}))
    assert NO_CLIENT in written.notes
    assert NO_CLIENT not in export_encoder(path, job, None, tmp_path).notes
