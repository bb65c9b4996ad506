"""The front door: what it takes and refuses, by argument, and whose picture it answers about."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from upstream_predictors import Noise

from samx.errors import ImageError, PromptError, SamxError, UsageError
from samx.models.session import Feed, Outputs
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.picture_encoder import Encode
from samx.predictor import Predictor
from samx.processing.images import RgbArray
from samx.processing.prompts import Prompt
from samx.runtimes.base import Runtime

SIZE = (120, 160)  # (H, W)
SAM1 = sam1_spec(image_size=256, masks="all", mask_input=True)
SAM2 = sam2_spec(image_size=256, masks="all", mask_input=True)
PICTURE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
POINT: dict[str, Any] = {"point_coords": [(30, 20)], "point_labels": [1]}
LOGITS = np.zeros((1, 64, 64), np.float32)


def feed(spec: DecoderSpec, value: float = 0.0) -> Feed:
    return {tensor.name: np.full(tuple(map(int, tensor.shape)), value, np.float32) for tensor in spec.image_inputs}


def brightness(spec: DecoderSpec) -> Encode:
    """Encode a picture as its first value, the red of its first pixel."""
    return lambda pictures: (feed(spec, float(picture[0, 0, 0])) for picture in pictures)


def noting(seen: list[RgbArray]) -> Encode:
    """Encode any picture alike, and note which it was."""
    return lambda pictures: [seen.append(picture) or feed(SAM1) for picture in pictures]  # type: ignore[func-returns-value]


def predictor(spec: DecoderSpec = SAM1) -> Predictor:
    return Predictor(Noise(spec), brightness(spec))


def ready(spec: DecoderSpec = SAM1) -> Predictor:
    opened = predictor(spec)
    opened.set_image(PICTURE)
    return opened


# Prompts.

BAD_PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "labels that are not whole": ({**POINT, "point_labels": [0.5]}, "point_labels .* found 0.5"),
    "labels that are none": ({**POINT, "point_labels": [7]}, "point_labels.*unknown"),
    "labels as text": ({**POINT, "point_labels": ["1"]}, "point_labels holds no numbers"),
    "labels that are NaN": ({**POINT, "point_labels": [np.nan]}, "point_labels .* found nan"),
    "points as text": ({**POINT, "point_coords": [("30", "20")]}, "point_coords holds no numbers"),
    "points of three": ({**POINT, "point_coords": [(30, 20, 1)]}, "point_coords has the wrong shape"),
    "a point alone": ({**POINT, "point_coords": (30, 20)}, "point_coords has the wrong shape"),
    "points of different lengths": ({**POINT, "point_coords": [(30, 20), (1,)]}, "point_coords has rows"),
    "points that are not finite": ({**POINT, "point_coords": [(np.inf, 20)]}, "point_coords.*not finite"),
    "points outside": ({**POINT, "point_coords": [(163, 20)]}, "point_coords.*outside the picture"),
    "points as y, x outside": ({**POINT, "point_coords": [(20, 150)]}, "point_coords.*outside the picture"),
    "no points": ({"point_coords": [], "point_labels": []}, "point_coords is empty"),
    "points without labels": ({"point_coords": [(30, 20)]}, "point_coords is given without point_labels"),
    "labels without points": ({"point_labels": [1]}, "point_labels is given without point_coords"),
    "too few labels": ({"point_coords": [(30, 20), (1, 1)], "point_labels": [1]}, "point_labels does not match"),
    "a box as text": ({"box": "1,2,3,4"}, "box holds no numbers"),
    "a box of three": ({"box": [1, 2, 3]}, "box has the wrong shape"),
    "an empty box": ({"box": []}, "box is empty"),
    "a box with swapped corners": ({"box": [50, 60, 10, 20]}, "box.*swapped corners"),
    "a box without area": ({"box": [50, 60, 50, 80]}, "box.*no area"),
    "a box outside": ({"box": [50, 60, 500, 80]}, "box.*outside the picture"),
    "a mask that is finished": ({"mask_input": np.ones((1, 64, 64), bool)}, "mask_input.*no low-resolution mask"),
    "a mask of another size": ({"mask_input": LOGITS[:, :9, :9]}, "mask_input.*wrong size"),
    "three masks": ({"mask_input": LOGITS.repeat(3, 0)}, r"mask_input has the wrong shape.*logits\[index\]"),
    "a mask that is not finite": ({"mask_input": LOGITS + np.nan}, "mask_input.*not finite"),
    "a row": ({"mask_input": LOGITS[0, 0]}, "mask_input has the wrong shape"),
    "nothing": ({}, "no prompt given"),
}  # fmt: skip


@pytest.mark.parametrize("spec", [SAM1, SAM2], ids=["sam1", "sam2"])
@pytest.mark.parametrize(("given", "message"), BAD_PROMPTS.values(), ids=list(BAD_PROMPTS))
def test_bad_prompts_are_refused_by_argument(spec: DecoderSpec, given: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        ready(spec).predict(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"box": [[1, 2, 30, 40], [5, 6, 70, 80]]}, "box"),
        ({"point_coords": [[(30, 20)], [(1, 1)]], "point_labels": [[1], [1]]}, "point_coords"),
        ({"mask_input": LOGITS[None].repeat(2, 0)}, "mask_input"),
    ],
)
def test_several_prompts_are_refused_where_one_is_taken(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(PromptError, match=f"{argument} holds several prompts: found 2, .*predict_torch"):
        ready(SAM1).predict(**given)
    assert ready(SAM2).predict(**given)[0].shape == (2, 3, *SIZE)


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({**POINT, "box": [[1, 2, 30, 40], [5, 6, 70, 80]]}, "point_coords"),
        ({"box": [[1, 2, 30, 40]] * 3, "mask_input": LOGITS[None].repeat(2, 0)}, "mask_input"),
    ],
)
def test_prompts_of_different_numbers_are_refused(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(PromptError, match=f"{argument} has another number of prompts"):
        ready(SAM2).predict(**given)


@pytest.mark.parametrize("mask", [LOGITS[0], LOGITS, LOGITS[None]], ids=["S S", "1 S S", "1 1 S S"])
def test_masks_are_taken_in_every_form(mask: Any) -> None:
    session = Noise(SAM1)
    fed: list[Feed] = []
    session.decode = lambda prompts: fed.append(prompts) or Noise.decode(session, prompts)  # type: ignore[method-assign, func-returns-value]
    opened = Predictor(session, brightness(SAM1))
    opened.set_image(PICTURE)
    opened.predict(**POINT, mask_input=mask + 99)  # raw logits, beyond what SAM 2's predictor hands back
    assert fed[0]["mask_input"].shape == (1, 1, 64, 64)
    assert fed[0]["mask_input"].min() == 99
    assert fed[0]["has_mask_input"].tolist() == [1]


def test_arguments_may_be_tensors() -> None:
    coords, labels = torch.tensor([[30.0, 20.0]]), torch.tensor([True])
    assert ready().predict(coords, labels, box=torch.tensor([1, 2, 30, 40]))[1].shape == (3,)


# What an artifact was exported for.


@pytest.mark.parametrize(
    ("masks", "multimask", "option"),
    [("multimask", False, "--single or --all-masks"), ("single", True, "--multimask or --all-masks")],
)
def test_masks_that_the_export_has_not_say_how_to_export_them(masks: Any, multimask: bool, option: str) -> None:
    opened = ready(replace(SAM1, masks=masks))
    with pytest.raises(UsageError, match=f"multimask_output={multimask} .*samx export ... {option}"):
        opened.predict(**POINT, multimask_output=multimask)
    assert len(opened.predict(**POINT, multimask_output=not multimask)[1]) == (1 if multimask else 3)


def test_a_mask_that_the_export_does_not_take_says_how_to_export_it() -> None:
    with pytest.raises(UsageError, match=r"takes no mask_input.*samx export \.\.\. --mask-input"):
        ready(replace(SAM1, mask_input=False)).predict(**POINT, mask_input=LOGITS)


# Pictures.

BAD_PICTURES: dict[str, tuple[Any, str]] = {
    "floats": (PICTURE / 255, "image has the wrong type: found float64, expected uint8"),
    "sixteen bits": (PICTURE.astype(np.uint16), "image has the wrong type: found uint16"),
    "grey": (PICTURE[..., 0], "image has the wrong shape"),
    "four channels": (np.zeros((*SIZE, 4), np.uint8), "image has the wrong shape"),
    "channels first": (np.zeros((3, *SIZE), np.uint8), "image has the wrong shape"),
    "without pixels": (np.zeros((0, 9, 3), np.uint8), "picture has no pixels"),
    "a list": ([[1, 2, 3]], "image is of a type"),
    "a tensor": (torch.zeros(3, 9, 9), "image is of a type"),
    "a missing file": ("missing.jpg", "missing.jpg"),
}


@pytest.mark.parametrize(("image", "message"), BAD_PICTURES.values(), ids=list(BAD_PICTURES))
def test_bad_pictures_are_refused(image: Any, message: str) -> None:
    opened = ready()
    with pytest.raises(ImageError, match=message):
        opened.set_image(image)
    with pytest.raises(UsageError, match="no image is set"):  # and not the one before
        opened.predict(**POINT)


def test_files_pil_images_and_arrays_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    for image in (str(path), path, Image.fromarray(PICTURE), PICTURE, PICTURE[::-1][::-1]):
        seen: list[RgbArray] = []
        opened = Predictor(Noise(SAM1), noting(seen))
        opened.set_image(image)
        np.testing.assert_array_equal(seen[0], PICTURE)
        assert opened.original_size == SIZE


def test_bgr_is_turned_into_rgb() -> None:
    seen: list[RgbArray] = []
    opened = Predictor(Noise(SAM1), noting(seen))
    opened.set_image(PICTURE[..., ::-1], "BGR")
    np.testing.assert_array_equal(seen[0], PICTURE)
    with pytest.raises(UsageError, match="image_format is unknown: found 'GBR'"):
        opened.set_image(PICTURE, "GBR")
    with pytest.raises(UsageError, match="image_format is for arrays"):
        opened.set_image(Image.fromarray(PICTURE), image_format="BGR")


@pytest.mark.parametrize("spec", [SAM1, SAM2], ids=["sam1", "sam2"])
def test_an_embedding_stands_for_a_picture(spec: DecoderSpec, tmp_path: Path) -> None:
    given = feed(spec, 3)
    np.savez(tmp_path / "picture.npz", **given)  # type: ignore[arg-type]
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    halves = {name: value.astype(np.float16) for name, value in given.items()}
    alone = [given["image_embeddings"]] if spec.family == "sam1" else []
    forms: list[Any] = [tmp_path / "picture.npz", str(tmp_path / "picture.npz"), given, tensors, halves, *alone]
    for embedding in forms:
        opened = predictor(spec)
        opened.set_image(embedding=embedding, original_size=SIZE)
        assert opened.original_size == SIZE
        np.testing.assert_array_equal(opened.get_image_embedding(), given["image_embeddings"])
    opened.set_image(PICTURE, embedding=given)
    assert opened.original_size == SIZE


GOOD = feed(SAM1)["image_embeddings"]
BAD_EMBEDDINGS: dict[str, tuple[dict[str, Any], type[SamxError], str]] = {
    "no size": ({"embedding": GOOD}, UsageError, "embedding is given without original_size"),
    "a size of one": ({"embedding": GOOD, "original_size": (9,)}, ImageError, "original_size is no size"),
    "a size of floats": ({"embedding": GOOD, "original_size": (9.5, 9)}, ImageError, "original_size is no size"),
    "another picture's size": (
        {"image": PICTURE, "embedding": GOOD, "original_size": (9, 9)}, ImageError, "original_size is not the picture's"
    ),
    "a size alone": ({"original_size": SIZE}, UsageError, "neither image nor embedding"),
    "nothing": ({}, UsageError, "neither image nor embedding"),
    "another shape": ({"embedding": GOOD[0], "original_size": SIZE}, ImageError, "embedding: .* wrong shape"),
    "another type": ({"embedding": GOOD > 0, "original_size": SIZE}, ImageError, "embedding: .*type: found bool"),
    "not finite": ({"embedding": GOOD + np.nan, "original_size": SIZE}, ImageError, "embedding: .* NaN or infinity"),
    "other names": ({"embedding": {"x": GOOD}, "original_size": SIZE}, ImageError, "embedding: other arrays"),
    "a missing file": ({"embedding": "missing.npz", "original_size": SIZE}, ImageError, "missing.npz"),
}  # fmt: skip


class Numbered(Runtime):
    """Return the number that an image's features have, as every predicted IoU."""

    def placement(self) -> Any: ...

    def _set_image(self, image: Feed) -> None:
        self.number = float(image["image_embeddings"].flat[0])

    def _decode(self, prompts: Feed) -> Outputs:
        shapes = {tensor.name: (len(prompts["point_labels"]), *tensor.shape[1:]) for tensor in self.spec.outputs}
        return {name: np.full(shape, self.number, np.float32) for name, shape in shapes.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "error", "message"), BAD_EMBEDDINGS.values(), ids=list(BAD_EMBEDDINGS))
def test_bad_embeddings_are_refused_by_argument(given: dict[str, Any], error: type[SamxError], message: str) -> None:
    opened = Predictor(Numbered(SAM1), brightness(SAM1))
    with pytest.raises(error, match=message):
        opened.set_image(**given)
    assert not opened.is_image_set


# Its life.


def test_nothing_is_predicted_without_a_picture() -> None:
    opened = ready()
    opened.reset_image()
    calls: Sequence[Callable[[], object]] = (
        lambda: opened.predict(**POINT), lambda: opened.segment([Prompt(box=(1, 2, 30, 40))]),
        lambda: opened.predict_torch(None, None, boxes=np.ones((1, 4))), lambda: opened.original_size,
        opened.get_image_embedding, opened.predict_batch,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(UsageError, match="no image is set"):
            call()


def test_a_closed_predictor_says_so() -> None:
    with ready() as opened:
        assert opened.is_image_set
    for call in (lambda: opened.set_image(PICTURE), lambda: opened.predict(**POINT)):
        with pytest.raises(UsageError, match="this predictor is closed"):
            call()
    opened.close()


def test_batches_are_refused_by_argument() -> None:
    opened = ready(SAM2)
    with pytest.raises(UsageError, match="no batch of pictures is set"):
        opened.predict_batch([[(1, 1)]], [[1]])
    lists: list[Any] = [[], PICTURE, "photo.jpg"]
    for wrong in lists:
        with pytest.raises(ImageError, match="image_list is no list of pictures"):
            opened.set_image_batch(wrong)
    opened.set_image_batch([PICTURE, PICTURE])
    with pytest.raises(PromptError, match="box_batch does not match the pictures: found 1, expected 2"):
        opened.predict_batch(box_batch=[[1, 2, 3, 4]])


def test_a_batch_that_fails_leaves_the_right_picture() -> None:
    opened = Predictor(Numbered(SAM2), brightness(SAM2))
    opened.set_image_batch([np.full_like(PICTURE, 5), np.full_like(PICTURE, 7)])
    assert [scores[0] for scores in opened.predict_batch(box_batch=[[1, 2, 3, 4]] * 2)[1]] == [5, 7]
    with pytest.raises(PromptError, match="box"):
        opened.predict_batch(box_batch=[[1, 2, 3, 4], [9, 9, 1, 1]])
    assert opened.predict(box=[1, 2, 3, 4])[1][0] == 7


# Threads.


def in_thread(call: Callable[[], Any]) -> Any:
    """Return what a call returns or raises on a thread of its own."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except SamxError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def numbered() -> Predictor:
    return Predictor(Numbered(SAM1), brightness(SAM1))


def number(opened: Predictor) -> float:
    return float(opened.predict(box=[1, 2, 3, 4])[1][0])


def test_a_thread_is_not_answered_about_anothers_picture() -> None:
    opened = numbered()
    opened.set_image(np.full_like(PICTURE, 5))
    assert in_thread(lambda: number(opened)) == 5  # which set none of its own
    in_thread(lambda: opened.set_image(np.full_like(PICTURE, 7)))
    with pytest.raises(UsageError, match="another thread has set another image"):
        number(opened)
    assert in_thread(lambda: number(opened)) == 7
    opened.set_image(np.full_like(PICTURE, 9))
    assert number(opened) == 9


def test_a_session_refuses_as_its_predictor_does() -> None:
    session = Numbered(SAM1)
    session.set_image(feed(SAM1, 5))
    shapes = {"point_coords": (1, 1, 2), "point_labels": (1, 1), "mask_input": (1, 1, 64, 64), "has_mask_input": (1,)}
    prompts = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert session.decode(prompts)["iou_predictions"][0, 0] == 5
    in_thread(lambda: session.set_image(feed(SAM1, 7)))
    with pytest.raises(UsageError, match="another thread has set another image"):
        session.decode(prompts)
    with pytest.raises(SamxError, match="image_embeddings"):  # a picture that failed is nobody's
        session.set_image({})
    with pytest.raises(UsageError, match="no image is set"):
        session.decode(prompts)


def test_a_batch_on_another_thread_leaves_the_picture_to_its_owner() -> None:
    opened = numbered()
    opened.set_image_batch([np.full_like(PICTURE, 5), np.full_like(PICTURE, 7)])
    assert number(opened) == 7
    found = in_thread(lambda: opened.predict_batch(box_batch=[[1, 2, 3, 4]] * 2)[1])
    assert [scores[0] for scores in found] == [5, 7]
    assert number(opened) == 7


@pytest.mark.parametrize("locked", [True, False])
def test_threads_that_set_pictures_get_their_own_answer_or_none(locked: bool) -> None:
    opened = numbered()
    wrong: list[float] = []
    right: list[float] = []
    refused: list[str] = []

    def work(mine: int) -> None:
        for _ in range(40):
            try:
                with opened.lock if locked else nullcontext():
                    opened.set_image(np.full_like(PICTURE, mine))
                    found = number(opened)
            except UsageError as error:
                refused.append(str(error))
            else:
                (right if found == mine else wrong).append(found)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(right) + len(refused) == 120
    assert all("another thread" in message for message in refused)
    assert (len(right) == 120) or not locked
