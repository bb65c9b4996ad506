"""A suite of pictures survives its file, the file is small, and a damaged file is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from npz_damage import Arrays, damaged, header, put
from stub_session import StubSession, pooled

from samx.errors import ArtifactError, ImageError, ParityError
from samx.models.session import Feed, Outputs
from samx.models.spec import PIXELS, DecoderSpec, PixelRule, sam1_spec, sam2_spec
from samx.validators import arrays
from samx.validators.encoder_gate import judge_encoder, steady
from samx.validators.encoder_suite import EncoderSuite, pixels
from samx.validators.metrics import encoder_bounds
from samx.validators.pictures import frame_of, framed

SMALL = sam1_spec(image_size=128)
SIZE_CAP_MIB = 6  # of a suite at full size; it lies in every artifact that has an encoder


def built(spec: DecoderSpec, **more: Any) -> EncoderSuite:
    return EncoderSuite.build(pooled(spec), StubSession(spec), spec.image_size, **more)


@pytest.fixture(scope="module")
def live() -> EncoderSuite:
    return built(SMALL)


@pytest.fixture(scope="module")
def data(live: EncoderSuite) -> bytes:
    return live.to_bytes()


def test_stored_suite_asks_and_expects_the_same(live: EncoderSuite, data: bytes) -> None:
    stored = EncoderSuite.load(data)
    assert (stored.spec, stored.picture_px, stored.reference) == (SMALL, 128, live.reference)
    for one, other in zip(live.pictures, stored.pictures, strict=True):
        assert (one.name, one.frame, one.digest) == (other.name, other.frame, other.digest)
        right, again = (found.features["image_embeddings"] for found in (one, other))
        assert all((getattr(right, part) == getattr(again, part)).all() for part in right._fields)
        for asked, kept in zip(one.answers, other.answers, strict=True):
            assert all((asked.prompts[key] == kept.prompts[key]).all() for key in asked.prompts)
            assert all((getattr(asked, key) == getattr(kept, key)).all() for key in ("above", "undecided", "stability"))
            assert (asked.scores["iou_predictions"] == kept.scores["iou_predictions"]).all()
    assert stored.to_bytes() == data


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec()])
def test_suite_is_compact(spec: DecoderSpec) -> None:
    assert len(built(spec).to_bytes()) < SIZE_CAP_MIB * 1024**2


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_are_what_the_family_says(kind: PixelRule) -> None:
    """Written out here once more, value by value."""
    photo = np.random.default_rng(0).integers(3, 250, (20, 40, 3), np.uint8)
    spec = replace(SMALL, pixels=kind)
    frame = frame_of(spec, 64, photo)
    square = framed(photo, frame)
    found = pixels(square, frame, spec)
    assert found.shape == (1, 3, 64, 64)
    assert not found[:, :, 32:].any()
    least, most = square[:32].min() / 255, square[:32].max() / 255
    for y, x, channel in [(0, 0, 0), (31, 63, 1), (10, 20, 2)]:
        value = square[y, x, channel] / 255
        right = {
            "imagenet": (value - (0.485, 0.456, 0.406)[channel]) / (0.229, 0.224, 0.225)[channel],
            "half": 2 * value - 1,
            "minmax": (value - least) / (most - least),
            "unit": value,
        }
        assert found[0, channel, y, x] == pytest.approx(right[kind], abs=1e-6)


def test_feed_names_what_of_a_picture_is_used(live: EncoderSuite) -> None:
    feed = live.feed([2, 3])
    assert feed["picture"].dtype == np.uint8
    assert feed["picture"].shape == (2, 128, 128, 3)
    assert feed["valid"].dtype == np.int32
    assert feed["valid"].tolist() == [[85, 128], [128, 72]]  # height and width: of the wide one, of the tall one
    assert list(built(replace(SMALL, frame="stretch")).feed([0])) == ["picture"]


def test_prompts_lie_in_the_decoder_s_frame() -> None:
    """The encoder's square may be smaller."""
    suite = EncoderSuite.build(pooled(SMALL), StubSession(SMALL), 64)
    coords = np.concatenate([one.prompts["point_coords"][:, 0] for one in suite.pictures[0].answers])
    assert 64 < coords.max() <= 128
    for place, (width, height) in {2: (128, 85), 3: (72, 128)}.items():
        coords = np.concatenate([one.prompts["point_coords"][:, 0] for one in suite.pictures[place].answers])
        assert (coords <= (width, height)).all(), "the wide and the tall picture fill a part of it"


def test_prompts_of_more_tokens_than_an_export_takes_are_not_asked(live: EncoderSuite) -> None:
    tokens = [one.prompts["point_labels"].shape[1] for one in live.pictures[0].answers]
    assert len(tokens) == 2
    fewer = built(SMALL, most_points=min(tokens))
    assert [one.prompts["point_labels"].shape[1] for one in fewer.pictures[0].answers] == [
        count for count in tokens if count <= min(tokens)
    ]


def test_steadiest_third_counts_where_few_masks_are_steady(live: EncoderSuite) -> None:
    every = np.concatenate([one.stability.ravel() for picture in live.pictures for one in picture.answers])
    share = float((every >= steady(live)).mean())
    assert steady(live) <= 0.9
    assert share >= 1 / 3
    assert share < 0.5 or steady(live) == pytest.approx(0.9)
    steadier = [replace(picture, answers=tuple(
        replace(one, stability=np.full_like(one.stability, 0.95)) for one in picture.answers
    )) for picture in live.pictures]  # fmt: skip
    assert steady(replace(live, pictures=tuple(steadier))) == 0.9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: {}, "image_embeddings is missing"),
        (lambda found: {**found, "more": found["image_embeddings"]}, "more is not in the spec"),
        (lambda found: {key: value[:, 1:] for key, value in found.items()}, "has shape"),
        (lambda found: {key: value * np.float32(np.nan) for key, value in found.items()}, "not finite"),
        (lambda found: {key: value * 0 for key, value in found.items()}, "is zero throughout"),
    ],
)
def test_reference_without_usable_features_is_refused(change: Callable[[Feed], Feed], said: str) -> None:
    with pytest.raises(ParityError, match=said):
        EncoderSuite.build(lambda values: change(pooled(SMALL)(values)), StubSession(SMALL), 128)


class OnTheThreshold(StubSession):
    """Put many pixels where they have no side."""

    def decode(self, prompts: Feed) -> Outputs:
        outputs = super().decode(prompts)
        outputs["low_res_masks"][..., :3] = 0
        return outputs


def test_reference_whose_masks_have_no_sides_is_refused() -> None:
    with pytest.raises(ParityError, match="lie on the threshold"):
        EncoderSuite.build(pooled(SMALL), OnTheThreshold(SMALL), 128)


def test_picture_of_an_odd_size_is_refused() -> None:
    with pytest.raises(ImageError, match="has an odd size"):
        built(SMALL, photos=[("long", np.zeros((1, 5000, 3), np.uint8))])


def test_stored_suite_judges() -> None:
    """Without torch, and without Pillow: what is stored is enough."""
    spec = sam2_spec(image_size=128)
    suite = EncoderSuite.load(built(spec).to_bytes())

    def encode(feed: Feed) -> Feed:
        photo = suite.pictures[0].photo
        return pooled(spec)(pixels(np.asarray(feed["picture"][0]), frame_of(spec, 128, photo), spec))

    assert judge_encoder(encode, StubSession(spec), suite, encoder_bounds("fp32", "fp32")).passed


# --- Damage -----------------------------------------------------------------------------------------------------


def first(change: Callable[[dict[str, Any]], object]) -> Callable[[Arrays], None]:
    return header(lambda found: change(found["pictures"][0]))


DAMAGES: dict[str, Callable[[Arrays], object]] = {
    "no header": lambda arrays: arrays.pop("header"),
    "other schema": header(lambda found: found.update(schema_version=9)),
    "a decoder's suite": header(lambda found: found.update(format="samx-parity-suite")),
    "unknown header field": header(lambda found: found.update(more=1)),
    "header lacks a field": header(lambda found: found.pop("reference")),
    "no picture": header(lambda found: found.update(pictures=[])),
    "too many pictures": header(lambda found: found.update(pictures=found["pictures"] * 4)),
    "a picture too few": header(lambda found: found["pictures"].pop()),
    "another square": first(lambda picture: picture.update(frame="0" * 64)),
    "no hash": first(lambda picture: picture.update(frame="x")),
    "no case": first(lambda picture: picture.update(cases=0)),
    "a case too many": first(lambda picture: picture.update(cases=3)),
    "very many cases": first(lambda picture: picture.update(cases=2**40)),
    "a huge square": header(lambda found: found.update(picture_px=2**20)),
    "a square of nothing": header(lambda found: found.update(picture_px=0)),
    "a square of another size": header(lambda found: found.update(picture_px=64)),
    "spec of another size": header(lambda found: found["spec"].update(image_size=256)),
    "seed as text": header(lambda found: found.update(seed="1")),
    "array missing": lambda arrays: arrays.pop("picture1.image_embeddings.sums"),
    "array unknown": lambda arrays: arrays.update(more=np.zeros(3)),
    "photo as float": put("picture0.photo", lambda photo: photo.astype(np.float32)),
    "photo of grey": put("picture0.photo", lambda photo: photo[..., 0]),
    "photo with a wrong pixel": put("picture0.photo", lambda photo: photo ^ np.uint8(8)),
    "photo of nothing": put("picture0.photo", lambda photo: photo[:0]),
    "photo too long": put("picture0.photo", lambda photo: np.zeros((1, 5000, 3), np.uint8)),
    "photo too thin": put("picture0.photo", lambda photo: np.zeros((1, 4000, 3), np.uint8)),
    "sums short": put("picture0.image_embeddings.sums", lambda sums: sums[1:]),
    "sums NaN": put("picture0.image_embeddings.sums", lambda sums: sums * np.float32(np.nan)),
    "lattice float64": put("picture0.image_embeddings.lattice", lambda values: values.astype(np.float64)),
    "scale zero": put("picture0.image_embeddings.scale", lambda scale: scale * 0),
    "bits short": put("picture0.case0.above", lambda bits: bits[..., 1:]),
    "bits as bool": put("picture0.case1.undecided", lambda bits: bits.astype(np.bool_)),
    "stability of fewer": put("picture0.case0.stability", lambda values: values[1:]),
    "prompts disagree": put("picture0.case0.point_labels", lambda labels: labels.repeat(2, 0)),
    "no prompt": lambda arrays: arrays.update(
        {name: value[:0] for name, value in arrays.items() if name.startswith("picture0.case0.")}
    ),
    "unknown label": put("picture0.case0.point_labels", lambda labels: labels + 5),
    "scores of fewer prompts": put("picture0.case0.iou_predictions", lambda iou: iou[:0]),
    "objects": put("picture0.case0.iou_predictions", lambda iou: iou.astype(object)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(data: bytes, damage: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        EncoderSuite.load(damaged(data, DAMAGES[damage]), "the suite")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 100, -1, -1000])
def test_truncated_file_is_refused(data: bytes, length: int) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        EncoderSuite.load(data[:length])


def test_file_that_unpacks_to_too_much_is_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "UNPACKED_CAP_BYTES", 1000)
    with pytest.raises(ArtifactError, match="cannot be read"):
        EncoderSuite.load(data)
