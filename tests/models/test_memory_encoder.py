"""The memory encoder: as Meta's and transformers' video models encode a frame, and judged at the export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from checkpoint_files import meta_sam1, meta_sam2, syscv_sam_hq2
from torch import Tensor
from torch.nn import functional as F
from video_upstream import GRID, SIZE_PX, TOKEN_ENCODER, WIDTH, hugging_face_video, images, meta_file, meta_video

from samx.artifacts.store import Artifact
from samx.commands.export import ExportRequest, export
from samx.errors import CheckpointError, ParityError
from samx.models.checkpoint import load_checkpoint
from samx.models.memory_encoder import MemoryEncoder, enlarged, load_memory_encoder
from samx.models.session import Outputs
from samx.models.spec import sam2_spec
from samx.models.weight_files import open_weights
from samx.validators.video_pieces import compare, memory_calls

TOLERANCE = 5e-5  # of the largest value
OBJECTS = 4
SCORES = torch.tensor([[3.0], [-3.0], [0.5], [0.0]])
SPEC = sam2_spec(image_size=SIZE_PX)


def built(path: Path) -> MemoryEncoder:
    return load_memory_encoder(open_weights(path), SPEC, None)


def masks(seed: int = 0) -> Tensor:
    """Draw low-resolution logits."""
    return 2 * torch.randn(OBJECTS, 1, 4 * GRID, 4 * GRID, generator=torch.Generator().manual_seed(seed))


def upstream_masks() -> Tensor:
    """Do what upstream's decoder, or its predictor, does to the logits before they are encoded."""
    decided = torch.where(SCORES[:, :, None, None] > 0, masks(), torch.tensor(-1024.0))
    return F.interpolate(decided, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False)


def plain_features(no_mem_embed: Tensor) -> tuple[Tensor, Tensor]:
    """Return a frame's features as the encoder leaves them, and as it hands them to the decoder."""
    features = images(1)["image_embeddings"]
    return features, features + no_mem_embed.reshape(1, -1, 1, 1)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape == (OBJECTS, 64, GRID, GRID)
    return float((found - expected).abs().max() / expected.abs().max())


def flat(features: Tensor) -> Tensor:
    return features.expand(OBJECTS, -1, -1, -1).flatten(2).permute(2, 0, 1)


@pytest.mark.parametrize("spatial", [True, False], ids=["2.1", "2"])
@pytest.mark.parametrize("clicked", [True, False])
def test_memories_are_metas(tmp_path: Path, clicked: bool, spatial: bool) -> None:
    model = meta_video(spatial)
    ours = built(meta_file(model, tmp_path / "video.pt"))
    features, given = plain_features(model.no_mem_embed)
    expected, positions = model._encode_new_memory([flat(features)], [(GRID, GRID)], upstream_masks(), SCORES, clicked)
    assert error(ours(given, masks(), SCORES, torch.full((OBJECTS,), float(clicked))), expected) < TOLERANCE
    assert (ours.positions() - positions[0][:1]).abs().max() < 1e-5
    other = ours(given, masks(), SCORES, torch.full((OBJECTS,), float(not clicked)))
    assert error(other, expected) > 20 * TOLERANCE  # the comparison sees the flag


@pytest.mark.parametrize("name", ["Sam2Video", "EdgeTamVideo"])
@pytest.mark.parametrize("clicked", [True, False])
def test_memories_are_hugging_faces(tmp_path: Path, clicked: bool, name: str) -> None:
    model = hugging_face_video(tmp_path, name)
    ours = built(tmp_path)
    features, given = plain_features(model.no_memory_embedding)
    found = ours(given, masks(), SCORES, torch.full((OBJECTS,), float(clicked)))
    values = (upstream_masks() > 0).float() if clicked else upstream_masks().sigmoid()
    expected, positions = model.memory_encoder(features.expand(OBJECTS, -1, -1, -1), values * 20 - 10)
    embedding = model.occlusion_spatial_embedding_parameter
    if embedding is not None:
        expected = expected + (1 - (SCORES > 0).float())[..., None, None] * embedding[..., None, None]
    assert error(found, expected) < TOLERANCE
    assert (ours.positions() - positions[:1]).abs().max() < 1e-5


def test_memories_are_those_of_hugging_faces_whole_step(tmp_path: Path) -> None:
    model = hugging_face_video(tmp_path)
    model.backbone_feature_sizes = [[4 * GRID] * 2, [2 * GRID] * 2, [GRID] * 2]
    features, given = plain_features(model.no_memory_embedding)
    # Upstream takes the scores of objects along another axis than its masks, one object a call.
    for row, score in enumerate(SCORES):
        one = flat(features)[:, :1]
        rounded, _ = model._encode_new_memory(one, upstream_masks()[row : row + 1], score[None, None], False)
        expected = rounded.float().permute(1, 2, 0).reshape(64, GRID, GRID)
        found = built(tmp_path)(given, masks()[row : row + 1], score[None], torch.zeros(1))[0]
        assert (found - expected).abs().max() / expected.abs().max() < 2**-8  # upstream rounds to bfloat16


@pytest.mark.parametrize("axis", [2, 3])
def test_enlarging_is_interpolates(axis: int) -> None:
    x = torch.randn(2, 3, 7, 7)
    scale = (4.0, 1.0) if axis == 2 else (1.0, 4.0)
    assert torch.allclose(enlarged(x, axis), F.interpolate(x, scale_factor=scale, mode="bilinear"), atol=1e-6)


@pytest.fixture(scope="module")
def file(video_export: Path) -> Path:
    return video_export / "video.pt"


@pytest.fixture(scope="module")
def artifact(video_export: Path) -> Artifact:
    return Artifact.open(video_export / "artifact")


def test_an_export_has_the_graph_and_its_positions(artifact: Artifact, file: Path) -> None:
    manifest, module = artifact.manifest, built(file)
    assert {name: entry.role for name, entry in manifest.files.items() if "memory" in name} == {
        "memory_encoder.onnx": "memory_encoder", "memory_positions.npy": "memory_positions",
    }  # fmt: skip
    said = manifest.options["memory_encoder"]
    assert 0 < said["relative_error"] < said["bound"] == TOLERANCE
    assert np.array_equal(np.load(artifact.path / "memory_positions.npy"), module.positions().numpy())
    session = ort.InferenceSession(str(artifact.path / "memory_encoder.onnx"), providers=["CPUExecutionProvider"])
    _, given = plain_features(module.no_mem_embed)
    feed = [given, masks(), SCORES, torch.tensor([0.0, 1.0, 1.0, 0.0])]
    names = [tensor["name"] for tensor in said["inputs"]]
    assert names == [value.name for value in session.get_inputs()]
    found = session.run(None, dict(zip(names, (tensor.numpy() for tensor in feed), strict=True)))[0]
    assert error(torch.from_numpy(found), module(*feed)) < TOLERANCE
    spec = json.loads(session.get_modelmeta().custom_metadata_map["samx.spec"])
    assert spec["image_size"] == SIZE_PX


def answers(module: MemoryEncoder) -> list[Outputs]:
    """Answer the calls that a memory encoder is judged by."""
    names = [tensor.name for tensor in module.inputs]
    with torch.inference_mode():
        return [
            {"memory_features": module(*(torch.from_numpy(feed[name]) for name in names)).numpy()}
            for feed in memory_calls(SPEC)
        ]


def judged_by(artifact: Artifact, module: MemoryEncoder) -> float:
    graph = (artifact.path / "memory_encoder.onnx").read_bytes()
    return compare(graph, "memory_encoder", artifact.manifest.spec, answers(module))


def test_its_own_weights_are_accepted(artifact: Artifact, file: Path) -> None:
    assert judged_by(artifact, built(file)) < TOLERANCE


def _flip_order(module: Any) -> None:
    module.memory_encoder.fuser.layers = module.memory_encoder.fuser.layers[::-1]


FAULTS: dict[str, Callable[[Any], object]] = {
    "no_mem_embed left in": lambda module: module.no_mem_embed.data.zero_(),
    "no embedding of no object": lambda module: module.no_obj_embed_spatial.data.zero_(),
    "blocks in another order": _flip_order,
    "another norm": lambda module: setattr(module.memory_encoder.fuser.layers[0].norm, "eps", 1e-2),
    "another gain": lambda module: module.memory_encoder.fuser.layers[1].gamma.data.mul_(1.01),
    "one tap": lambda module: module.memory_encoder.mask_downsampler.encoder[0].weight.data[0, 0, 0].mul_(1.1),
    "not finite": lambda module: module.memory_encoder.out_proj.bias.data.mul_(torch.inf),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_weights_than_the_graphs_are_refused(artifact: Artifact, file: Path, fault: str) -> None:
    other = built(file)
    with torch.no_grad():
        FAULTS[fault](other)
    with pytest.raises(ParityError, match="memory encoder") as caught:
        judged_by(artifact, other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["binarised", "sigmoid", "score ignored", "a pixel off"])
def test_another_step_than_the_graphs_is_refused(artifact: Artifact, file: Path, fault: str) -> None:
    class Other(MemoryEncoder):
        def forward(self, *inputs: Tensor) -> Tensor:
            image, masks, score, clicked = inputs
            changed = {
                "binarised": (image, masks, score, clicked.abs() + 1),
                "sigmoid": (image, masks, score, clicked * 0),
                "score ignored": (image, masks, score.abs() + 1, clicked),
                "a pixel off": (image, masks.roll(1, 3), score, clicked),
            }
            return super().forward(*changed[fault])

    other = built(file)
    other.__class__ = Other
    with pytest.raises(ParityError, match="relative error"):
        judged_by(artifact, other)


def video() -> dict[str, Tensor]:
    return {**meta_video().state_dict(), **TOKEN_ENCODER}


REFUSED: dict[str, Callable[[], dict[str, Tensor]]] = {
    "SAM": meta_sam1,
    "HQ-SAM 2": lambda: {**syscv_sam_hq2(), "memory_encoder.out_proj.weight": torch.zeros(64, WIDTH, 1, 1)},
    "the decoder alone": meta_sam2,
    "another layer": lambda: {**video(), "memory_encoder.extra.weight": torch.zeros(1)},
    "of integers": lambda: {**video(), "memory_encoder.out_proj.weight": torch.zeros(64, WIDTH, 1, 1).char()},
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_without_the_encoder_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(REFUSED[what](), path)
    spec = load_checkpoint(path).spec
    with pytest.raises(CheckpointError) as caught:
        load_memory_encoder(open_weights(path), spec, None)
    assert "\n" not in str(caught.value)


def test_an_export_is_refused_before_the_work(tmp_path: Path) -> None:
    torch.save(meta_sam1(), tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="memory encoder"):
        export(ExportRequest(tmp_path / "out", checkpoint=tmp_path / "sam.pth", encoder=False, memory_encoder=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "value"), [("sigmoid_bias_for_mem_enc", -9.0), ("memory_fuser_hidden_act", "relu")])
def test_a_configuration_of_another_encoder_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    hugging_face_video(tmp_path, **{field: value})
    with pytest.raises(CheckpointError, match=field):
        built(tmp_path)
