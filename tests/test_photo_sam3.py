"""From a photo to its masks with SAM 3's encoder and decoder: what transformers' processor and tracker give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sam3_models as models
import torch
from upstream_predictors import iou

from samx.demo.scenes import generate_scene
from samx.models.checkpoint import load_checkpoint
from samx.models.encoders import sam3
from samx.models.encoders.load import find_encoder
from samx.models.session import Feed
from samx.models.spec import family_spec
from samx.models.weight_files import open_weights
from samx.predictor import Predictor
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, normalised, to_frame
from samx.runtimes.torch import reference_session

transformers = pytest.importorskip("transformers")
SHAPES = ((300, 200), (180, 400))  # (H, W)
LOGITS, SCORES = 1e-5, 1e-5  # of the largest logit; absolute
MOST_MOVED = 0.005  # of a picture's values, by one level of 255


def image_processor() -> Any:
    return transformers.Sam3ImageProcessor(size={"height": models.SIZE_PX, "width": models.SIZE_PX})


@pytest.mark.parametrize("shape", [*SHAPES, (900, 700)])
def test_a_picture_is_resized_and_normalised_as_transformers_does(shape: tuple[int, int]) -> None:
    picture = np.asarray(generate_scene(900_003, shape[::-1]).image)
    theirs = image_processor()(images=picture, return_tensors="pt")["pixel_values"]
    spec = family_spec("sam3", image_size=models.SIZE_PX)
    frame = Frame.of(spec, shape[1], shape[0])
    ours = normalised(to_frame(picture, frame), frame, str(spec.pixels))
    levels = np.abs(ours - theirs.numpy()) * 255 / 2
    assert levels.max() < 1.001  # PyTorch's whole numbers are rounded a little otherwise than Pillow's
    assert (levels > 0.5).mean() < MOST_MOVED
    as_numbers = to_frame(picture, replace(frame, resizes_floats=True)) * 255
    assert (np.abs(np.round(as_numbers) - (theirs.numpy() + 1) * 255 / 2) > 0.5).mean() > 5 * MOST_MOVED


@pytest.fixture
def predictors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Predictor, Any, Any]:
    """Open ours on the reference forms; return transformers' tracker and processor with it."""
    monkeypatch.setattr(sam3, "LAYOUTS", {**sam3.LAYOUTS, **models.LAYOUTS})
    model = models.tracker()
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    found, names = find_encoder(open_weights(tmp_path), loaded.spec).encoder, [t.name for t in loaded.spec.image_inputs]
    assert found is not None
    encoder, images = found.module, image_processor()

    def encode(pictures: Iterable[RgbArray]) -> Iterator[Feed]:
        for picture in pictures:
            pixels = images(images=picture, return_tensors="pt")["pixel_values"]
            yield {name: value.numpy() for name, value in zip(names, encoder(pixels), strict=True)}

    processor = transformers.Sam3TrackerProcessor(images, target_size=models.SIZE_PX)
    spec = replace(loaded.spec, masks="all")
    return Predictor(reference_session(loaded, spec), encode), model, processor


@pytest.mark.parametrize("shape", SHAPES)
def test_a_photo_gives_transformers_masks(predictors: tuple[Predictor, Any, Any], shape: tuple[int, int]) -> None:
    ours, model, processor = predictors
    picture = np.asarray(generate_scene(900_003, shape[::-1]).image)
    ours.set_image(picture)
    box = [0.1 * shape[1], 0.2 * shape[0], 0.7 * shape[1], 0.9 * shape[0]]
    point = [shape[1] / 3, shape[0] / 2]
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"point_coords": np.array([point]), "point_labels": np.array([1])}, {"input_points": [[[point]]]}),
        ({"box": np.array(box)}, {"input_boxes": [[box]]}),
    ]
    for given, theirs in asked:
        labels = {"input_labels": [[[1]]]} if "input_points" in theirs else {}
        inputs = processor(images=picture, **theirs, **labels, return_tensors="pt")
        sizes = inputs.pop("original_sizes")
        with torch.inference_mode():
            expected = model(**inputs, multimask_output=True)
        logits = processor.post_process_masks([expected.pred_masks[0]], sizes, binarize=False)[0][0].numpy()
        found, scores, low = ours.predict(**given, multimask_output=True, return_logits=True)
        assert expected.pred_masks.std() > 0
        limit = LOGITS * float(expected.pred_masks.abs().max())
        np.testing.assert_allclose(low, expected.pred_masks[0, 0].clamp(-32, 32), rtol=0, atol=limit)
        np.testing.assert_allclose(found, logits, rtol=0, atol=limit)
        np.testing.assert_allclose(scores, expected.iou_scores[0, 0], rtol=0, atol=SCORES)
        assert iou((found > 0).astype(np.float32), (logits > 0).astype(np.float32)) > 0.9999
