"""The decoder of objects: as Meta's video model decodes objects that have an embedding each, and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from checkpoint_files import meta_sam1
from toys import toy_decoder
from video_upstream import GRID, SIZE_PX, images, meta_video

from samx.artifacts.store import Artifact
from samx.commands.export import ExportRequest, export
from samx.errors import ParityError, UsageError
from samx.models.checkpoint import LoadedDecoder, build_reference, load_checkpoint
from samx.models.fast.graphs import object_graph
from samx.models.session import Outputs
from samx.models.spec import DecoderSpec, sam2_spec
from samx.validators.video_pieces import compare, object_calls

OBJECTS, TOLERANCE = 3, 5e-5  # of the largest value
LABELS = {"click": [1, -1], "no prompt": [-1, -1]}


@pytest.fixture(scope="module")
def artifact(video_export: Path) -> Artifact:
    return Artifact.open(video_export / "artifact")


def given(labels: list[int]) -> dict[str, torch.Tensor]:
    coords = torch.rand(OBJECTS, len(labels), 2, generator=torch.Generator().manual_seed(5)) * SIZE_PX
    coords[:, [label == -1 for label in labels]] = 0
    return {"point_coords": coords, "point_labels": torch.tensor([labels] * OBJECTS, dtype=torch.float32)}


def decoded(artifact: Artifact, feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    session = ort.InferenceSession(str(artifact.path / "object_decoder.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in feed.items()})
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", LABELS)
def test_objects_are_decoded_as_meta_does(artifact: Artifact, kind: str) -> None:
    model, image, prompt = meta_video(), images(OBJECTS), given(LABELS[kind])
    frame = {name: tensor if name == "image_embeddings" else tensor[:1] for name, tensor in image.items()}
    points = {"point_coords": prompt["point_coords"][:, :1], "point_labels": prompt["point_labels"][:, :1].int()}
    embedding, *skips = frame.values()
    model.pred_obj_scores = False  # else the masks of objects that are not there are made -1024; that is the host's
    masks, _, iou, _, _, _, score = model._forward_sam_heads(
        embedding, points if kind == "click" else None, high_res_features=skips, multimask_output=True
    )
    found = decoded(artifact, {**frame, **prompt})
    assert error(found["iou_predictions"], iou) < TOLERANCE
    assert error(found["object_score_logits"], score) < TOLERANCE
    assert error(found["low_res_masks"], masks) < TOLERANCE
    other = decoded(artifact, {**frame, **prompt, "image_embeddings": embedding[:1].expand(OBJECTS, -1, -1, -1)})
    assert error(other["low_res_masks"], found["low_res_masks"]) > 100 * TOLERANCE  # the embeddings differ


@pytest.mark.parametrize("changes", [{}, {"mask_input": True}, {"masks": "single"}, {"masks": "all"}], ids=str)
def test_its_form_is_the_reference(changes: dict[str, object]) -> None:
    spec = sam2_spec(image_size=128, **changes)
    reference = toy_decoder(spec, 3)
    loaded = LoadedDecoder(spec, reference.state_dict(), "toy", "0" * 64, 1, "torch", "float32")
    graph = object_graph(loaded, spec)
    for feed in object_calls(spec):
        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
        expected = build_reference(replace(loaded, spec=spec))(**tensors)
        found = graph.module(*(tensors[tensor.name] for tensor in graph.inputs))
        for tensor, value in zip(graph.outputs, found, strict=True):
            assert error(value, expected[tensor.name]) < TOLERANCE, tensor.name


def test_an_export_has_it(artifact: Artifact) -> None:
    said = artifact.manifest.options["object_decoder"]
    assert said["inputs"][0]["shape"] == ["prompts", 256, GRID, GRID]
    assert 0 < said["relative_error"] < said["bound"]
    assert artifact.manifest.files["object_decoder.onnx"].role == "object_decoder"


Answer = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def answers(artifact: Artifact, file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> list[Outputs]:
    """Answer the calls that a decoder of objects is judged by, of feeds that were changed."""
    spec = artifact.manifest.spec
    loaded = load_checkpoint(file, image_size=SIZE_PX, object_pointer=True)
    reference, found = build_reference(replace(loaded, spec=spec)), []
    for feed in object_calls(spec):
        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
        change(tensors)
        with torch.inference_mode():
            found.append({name: value.numpy() for name, value in reference(**tensors).items()})
    return found


def judged(artifact: Artifact, expected: list[Outputs]) -> float:
    graph = (artifact.path / "object_decoder.onnx").read_bytes()
    return compare(graph, "object_decoder", artifact.manifest.spec, expected)


def test_the_references_answers_are_accepted(artifact: Artifact, video_export: Path) -> None:
    assert judged(artifact, answers(artifact, video_export / "video.pt", lambda feed: None)) < 1e-4


FAULTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "the first embedding for all": lambda feed: feed.update(
        image_embeddings=feed["image_embeddings"][:1].expand_as(feed["image_embeddings"])
    ),
    "embeddings of other objects": lambda feed: feed.update(image_embeddings=feed["image_embeddings"].roll(1, 0)),
    "other labels": lambda feed: feed.update(point_labels=feed["point_labels"].roll(1, 1)),
    "other skips": lambda feed: feed.update(high_res_features_1=feed["high_res_features_1"].roll(1, 3)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_answer_is_refused(artifact: Artifact, video_export: Path, fault: str) -> None:
    with pytest.raises(ParityError, match="decoder of objects") as caught:
        judged(artifact, answers(artifact, video_export / "video.pt", FAULTS[fault]))
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_not_finite_or_missing_is_refused(artifact: Artifact, video_export: Path) -> None:
    expected = answers(artifact, video_export / "video.pt", lambda feed: None)
    broken = [{**expected[0], "iou_predictions": expected[0]["iou_predictions"] * np.float32(np.nan)}, *expected[1:]]
    with pytest.raises(ParityError, match="not finite"):
        judged(artifact, broken)
    fewer = [{name: value for name, value in answer.items() if name != "iou_predictions"} for answer in expected]
    with pytest.raises(ParityError, match="outputs"):
        judged(artifact, fewer)


def test_a_decoder_without_memory_is_refused_before_the_work(tmp_path: Path) -> None:
    torch.save(meta_sam1(), tmp_path / "sam.pth")
    with pytest.raises(UsageError, match="no objects with an embedding each"):
        export(ExportRequest(tmp_path / "out", checkpoint=tmp_path / "sam.pth", encoder=False, object_embeddings=True))
    assert not (tmp_path / "out").exists()


def test_calls_ask_about_objects_that_differ() -> None:
    spec: DecoderSpec = sam2_spec(image_size=128)
    for feed in object_calls(spec):
        embeddings = feed["image_embeddings"]
        assert all(not np.array_equal(embeddings[0], other) for other in embeddings[1:])
