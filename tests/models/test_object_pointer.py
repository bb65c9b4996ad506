"""Object pointers: as Meta's and transformers' video models make them, in every form, and judged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from checkpoint_files import meta_sam1, meta_sam2, syscv_sam_hq2
from toys import arrays, image_tensors, prompt_tensors, toy_decoder
from video_upstream import SIZE_PX, hugging_face_video, images, loaded, meta_file, meta_video, shift_score

from samx.artifacts.store import Artifact
from samx.commands.validate import validate
from samx.errors import ArtifactError, CheckpointError
from samx.models.checkpoint import build_reference, load_checkpoint
from samx.models.fast.decoder import FastDecoder
from samx.models.fixed.decoder import NeuralEngineDecoder
from samx.models.object_pointer import ObjectPointer, turned
from samx.models.reference import ReferenceDecoder
from samx.models.spec import DecoderSpec, MaskChoice, sam1_spec, sam2_spec
from samx.runtimes.torch import TorchRuntime
from samx.validators.cases import default_frames, parity_cases
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

TOLERANCE = 5e-5  # of the largest value
EXACT = 1e-10
OBJECTS = 4
SPEC = sam2_spec(image_size=128, object_pointer=True)
MASKS: tuple[MaskChoice, ...] = ("multimask", "single", "all")
PROMPTS = {"click": [1, -1], "box": [2, 3, -1], "no prompt": [-1, -1]}
POINTERS = "object_pointers"


def prompts(labels: list[int]) -> dict[str, torch.Tensor]:
    coords = torch.rand(OBJECTS, len(labels), 2, generator=torch.Generator().manual_seed(5)) * SIZE_PX
    coords[:, [label == -1 for label in labels]] = 0
    return {"point_coords": coords, "point_labels": torch.tensor([labels] * OBJECTS, dtype=torch.float32)}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def both(score: torch.Tensor) -> bool:
    """Tell whether some of the objects are there, and some are not."""
    return bool((score > 0).any()) and bool((score <= 0).any())


def best(outputs: dict[str, torch.Tensor], masks: MaskChoice) -> dict[str, torch.Tensor]:
    """Choose as a host does: of several masks the one of the best predicted IoU, and its pointer."""
    iou = outputs["iou_predictions"]
    chosen = iou.argmax(1) if masks == "multimask" else torch.zeros(len(iou), dtype=torch.long)
    rows = torch.arange(len(iou))
    return {name: outputs[name][rows, chosen] for name in ("low_res_masks", POINTERS)}


# Labels of an upstream's prompt, to which it adds its own padding; None: no prompt.
ASKED = {"click": [1], "box": [2, 3], "no prompt": None}


@pytest.mark.parametrize("masks", ["multimask", "single"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_pointers_are_metas(tmp_path: Path, kind: str, masks: MaskChoice) -> None:
    model, image, given = meta_video(), images(OBJECTS), prompts(PROMPTS[kind])
    read = loaded(meta_file(model, tmp_path / "video.pt"))
    decoder = build_reference(replace(read, spec=replace(read.spec, masks=masks)))
    shift_score(decoder, model.sam_mask_decoder.pred_obj_score_head.layers[2].bias, **image, **given)
    labels = ASKED[kind]
    points = None if labels is None else {
        "point_coords": given["point_coords"][:, : len(labels)],
        "point_labels": given["point_labels"][:, : len(labels)].int(),
    }  # fmt: skip
    embedding, *skips = image.values()
    _, _, _, expected, _, pointer, score = model._forward_sam_heads(
        embedding, points, high_res_features=skips, multimask_output=masks == "multimask"
    )
    outputs = decoder(**image, **given)
    found = best(outputs, masks)
    assert both(score)
    assert error(outputs["object_score_logits"], score) < TOLERANCE
    assert error(found[POINTERS], pointer) < TOLERANCE
    there = score[:, 0] > 0  # upstream makes the others' masks -1024; here that is the host's
    assert error(found["low_res_masks"][there], expected[there, 0]) < TOLERANCE
    assert torch.equal(found[POINTERS][~there], model.no_obj_ptr.expand(int((~there).sum()), -1))


@pytest.mark.parametrize("name", ["Sam2Video", "EdgeTamVideo"])
@pytest.mark.parametrize("masks", ["multimask", "single"])
def test_pointers_are_hugging_faces(tmp_path: Path, name: str, masks: MaskChoice) -> None:
    model, image, given = hugging_face_video(tmp_path, name), images(OBJECTS), prompts([-1, -1])
    read = loaded(tmp_path)
    decoder = build_reference(replace(read, spec=replace(read.spec, masks=masks)))
    shift_score(decoder, model.mask_decoder.pred_obj_score_head.proj_out.bias, **image, **given)
    outputs = decoder(**image, **given)
    scores = []
    for row in range(OBJECTS):  # upstream has one image a call
        one = {feature: tensor[row : row + 1] for feature, tensor in image.items()}
        embedding, *skips = one.values()
        result = model._single_frame_forward(
            image_embeddings=[*skips, embedding], multimask_output=masks == "multimask"
        )
        found = best({output: tensor[row : row + 1] for output, tensor in outputs.items()}, masks)
        assert error(found[POINTERS], result.object_pointer.reshape(1, -1)) < TOLERANCE
        scores.append(result.object_score_logits.reshape(1))
    assert both(torch.stack(scores))


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("form", ["low_rank", "absorbed", "direct", "fixed"])
def test_every_form_computes_the_references_pointers(form: Any, masks: MaskChoice, kind: str) -> None:
    spec = replace(SPEC, masks=masks)
    image = image_tensors(spec, torch.float64)
    reference = pointing_toy(spec, PROMPTS[kind])
    feed = {**image, **prompt_tensors(spec, 6, PROMPTS[kind], torch.float64)}
    with torch.no_grad():
        expected = reference(**feed)
        if form == "fixed":
            values = NeuralEngineDecoder(reference)(*[feed[tensor.name] for tensor in spec.inputs])
            found = dict(zip([tensor.name for tensor in spec.outputs], values, strict=True))
        else:
            found = FastDecoder(reference, form)(**feed)
    assert both(expected["object_score_logits"]) or kind == "no prompt"  # which are all the same
    for name, value in expected.items():
        assert error(found[name], value) < EXACT, name


def pointing_toy(spec: DecoderSpec, labels: list[int] = PROMPTS["click"], seed: int = 7) -> ReferenceDecoder:
    """Make a toy decoder in float64 for which half of the objects that are asked about are there."""
    decoder = toy_decoder(spec, seed).double()
    with torch.no_grad():
        decoder.get_parameter("object_pointer.absent").normal_(generator=torch.Generator().manual_seed(seed))
    asked = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 6, labels, torch.float64)}
    middle = decoder(**asked)["object_score_logits"].sort(0).values[2:4].mean() + 1e-3  # no score is zero
    decoder.mask_decoder.get_submodule("pred_obj_score_head.layers.2").get_parameter("bias").data -= middle
    return decoder


@pytest.fixture(scope="module")
def toy() -> ReferenceDecoder:
    return pointing_toy(SPEC).float()


@pytest.fixture(scope="module")
def suite(toy: ReferenceDecoder) -> ParitySuite:
    """Ask a reference about an image and about the same one with the other object scores."""
    image = arrays(image_tensors(SPEC))
    cases = parity_cases(SPEC, frames=default_frames(SPEC, 2), most_points=4)
    return ParitySuite.build(TorchRuntime(toy), [image, turned(toy, image)], cases, far=True)


def judged(module: ReferenceDecoder, suite: ParitySuite) -> ParityReport:
    return run_gate(TorchRuntime(module), suite, BOUNDS["fp32"], level="graph")


def spoilt(toy: ReferenceDecoder, spoil: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """Copy a decoder whose pointers are others."""

    class Spoilt(ObjectPointer):
        def forward(self, tokens: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
            return spoil(super().forward, tokens, score)

    module = copy.deepcopy(toy)
    cast(Any, module).object_pointer.__class__ = Spoilt
    return module


def test_the_gate_sees_both_kinds_of_pointer(toy: ReferenceDecoder, suite: ParitySuite) -> None:
    scores = np.concatenate([expected.scores["object_score_logits"] for expected in suite.expected])
    assert both(torch.from_numpy(scores))
    assert suite.unseen() == ()
    report = judged(copy.deepcopy(toy), suite)
    assert report.passed, report.all_failures()
    assert report.worst()["object_pointer_error"][0] == 0


FAULTS: dict[str, Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "no branch for an object that is not there": lambda head, tokens, score: head(tokens, score.abs() + 1),
    "every object is out": lambda head, tokens, score: head(tokens, -score.abs()),
    "the branches are changed over": lambda head, tokens, score: head(tokens, -score),
    "a soft branch": lambda head, tokens, score: (
        head(tokens, score + 1) * score.sigmoid().unsqueeze(2)
        + head(tokens, score - score - 1) * (1 - score.sigmoid()).unsqueeze(2)
    ),
    "the pointer of another mask": lambda head, tokens, score: head(tokens.roll(1, 1), score),
    "the first mask's for all": lambda head, tokens, score: head(tokens[:, :1].expand_as(tokens), score),
    "of another prompt": lambda head, tokens, score: head(tokens, score).roll(1, 0),
    "not projected": lambda head, tokens, score: torch.where(score.unsqueeze(2) > 0, tokens, head(tokens, score)),
    "scaled a little": lambda head, tokens, score: head(tokens, score) * 1.001,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_pointer_fails_the_gate(toy: ReferenceDecoder, suite: ParitySuite, fault: str) -> None:
    report = judged(spoilt(toy, FAULTS[fault]), suite)
    assert not report.passed
    assert all("object_pointer_error" in line for line in report.all_failures())


def test_a_stored_suite_judges_pointers_too(toy: ReferenceDecoder, suite: ParitySuite) -> None:
    stored = ParitySuite.load(suite.to_bytes())
    assert judged(copy.deepcopy(toy), stored).passed
    wrong = spoilt(toy, FAULTS["no branch for an object that is not there"])
    assert "object_pointer_error" in judged(wrong, stored).all_failures()[0]


@pytest.mark.parametrize(("shift", "said"), [(1000, "object is not"), (-1000, "object is in the picture")])
def test_what_no_case_asks_about_is_said(toy: ReferenceDecoder, suite: ParitySuite, shift: float, said: str) -> None:
    module = copy.deepcopy(toy)
    module.mask_decoder.get_submodule("pred_obj_score_head.layers.2").get_parameter("bias").data += shift
    (line,) = ParitySuite.build(TorchRuntime(module), suite.images[:1], suite.cases[:1], far=False).unseen()
    assert said in line


@pytest.mark.parametrize("start", [-3.0, 3.0])
def test_an_image_is_moved_until_the_score_turns(toy: ReferenceDecoder, start: float) -> None:
    decoder, feed = copy.deepcopy(toy), prompt_tensors(SPEC, 8, [1, -1], seed=3)
    image = image_tensors(SPEC)
    bias = decoder.mask_decoder.get_submodule("pred_obj_score_head.layers.2").get_parameter("bias")
    bias.data += start - decoder(**image, **feed)["object_score_logits"].median()
    moved = {name: torch.from_numpy(value) for name, value in turned(decoder, arrays(image)).items()}
    before, after = (decoder(**one, **feed)["object_score_logits"].median() for one in (image, moved))
    assert before * start > 0
    assert after * start < 0


REFUSED: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "SAM": meta_sam1,
    "HQ-SAM 2": syscv_sam_hq2,
    "SAM 2, the decoder alone": lambda: {
        key: value for key, value in meta_sam2().items() if not key.startswith(("obj_ptr", "no_obj"))
    },
    "pointers of another size": meta_sam2,  # 8 by 8
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_without_pointers_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(REFUSED[what](), path)
    load_checkpoint(path)
    with pytest.raises(CheckpointError, match="pointer") as caught:
        load_checkpoint(path, object_pointer=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec(object_score=False)])
def test_a_spec_of_pointers_that_no_decoder_has_is_refused(spec: DecoderSpec) -> None:
    with pytest.raises(ArtifactError, match="object_pointer"):
        DecoderSpec.from_json({**spec.to_json(), "object_pointer": True}, "spec")


def test_an_export_is_judged_with_its_pointers(video_export: Path) -> None:
    out = video_export / "artifact"
    spec = Artifact.open(out).manifest.spec
    assert [(tensor.name, tensor.shape) for tensor in spec.outputs][-1] == (POINTERS, ("prompts", 3, 256))
    report = validate(out, checkpoint=video_export / "video.pt")
    assert report.passed
    assert report.worst()["object_pointer_error"][0] < 1e-4
    assert "padding_twice" in {case.name.removesuffix(", other threads") for case in report.cases}
