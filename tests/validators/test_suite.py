"""A suite survives its file, the file is small, and a damaged file is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from npz_damage import Arrays, damaged, header, put
from stub_session import StubSession

from samx.errors import ArtifactError
from samx.models.session import Feed, Outputs
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.validators import arrays
from samx.validators.arrays import frozen
from samx.validators.cases import parity_cases, synthetic_images
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS, CODE_STEPS, code_error
from samx.validators.suite import CASE_PIXELS, ParitySuite, lattice

SMALL = sam1_spec(image_size=128, mask_input=True)
SIZE_CAP_MIB = 6  # of the default suite at full size; it lies in every artifact


@pytest.fixture(scope="module")
def live() -> ParitySuite:
    return ParitySuite.build(StubSession(SMALL))


@pytest.fixture(scope="module")
def data(live: ParitySuite) -> bytes:
    return live.to_bytes()


def test_stored_suite_asks_and_expects_the_same(live: ParitySuite, data: bytes) -> None:
    stored = ParitySuite.load(data)
    assert (stored.spec, stored.image_source, stored.reference) == (live.spec, "synthetic, seed 0", live.reference)
    assert stored.reference_session is None
    for a, b in zip(live.images, stored.images, strict=True):
        assert all((a[name] == b[name]).all() for name in a)
    for case, other in zip(live.cases, stored.cases, strict=True):
        assert (case.name, case.image) == (other.name, other.image)
        assert all((case.prompts[name] == other.prompts[name]).all() for name in case.prompts)
    for full, kept in zip(live.expected, stored.expected, strict=True):
        assert (full.above == kept.above).all()
        assert (full.undecided == kept.undecided).all()
        assert (full.logits[..., kept.pixels] == kept.logits).all()
        assert (full.scores["iou_predictions"] == kept.scores["iou_predictions"]).all()


def test_lattice_visits_every_cell_and_every_position() -> None:
    grid = 64
    y, x = np.divmod(lattice(grid), 4 * grid)
    assert len(set(zip(y // 4, x // 4, strict=True))) == grid * grid
    positions = (4 * (y % 4) + x % 4).reshape(grid, grid)
    assert (np.bincount(positions.ravel()) == grid * grid / 16).all()
    assert all(len(set(positions[i, j : j + 16])) == 16 for i in range(grid) for j in range(0, grid, 16))
    assert all(len(set(positions[i : i + 16, j])) == 16 for i in range(0, grid, 16) for j in range(grid))


@pytest.mark.parametrize("spec", [sam1_spec(mask_input=True), sam2_spec()])
def test_default_suite_is_compact(spec: DecoderSpec, tmp_path: Path) -> None:
    size = ParitySuite.build(StubSession(spec)).save(tmp_path / "suite.npz")
    assert size < SIZE_CAP_MIB * 1024**2


def _real_images(spec: DecoderSpec) -> list[Feed]:
    rng = np.random.default_rng(0)
    shape = (1, spec.width, spec.grid, spec.grid)
    return [{"image_embeddings": rng.normal(size=shape).astype(np.float32)} for _ in range(2)]


def test_given_images_are_rounded_before_the_reference_sees_them() -> None:
    given = _real_images(SMALL)
    suite = ParitySuite.build(StubSession(SMALL), given, image_source="noise")
    assert suite.image_source == "noise"
    assert not (suite.images[0]["image_embeddings"] == given[0]["image_embeddings"]).all()
    stored = ParitySuite.load(suite.to_bytes())
    assert (stored.images[0]["image_embeddings"] == suite.images[0]["image_embeddings"]).all()
    assert run_gate(StubSession(SMALL), stored, BOUNDS["fp32"], level="graph").passed


class SmallOnTheLeft(StubSession):
    """Answer prompts of the left with empty masks."""

    def decode(self, prompts: Feed) -> Outputs:
        outputs = super().decode(prompts)
        left = prompts["point_coords"][..., 0].max(axis=1, initial=0) < self.spec.image_size * 0.6
        shrink = np.where(left, np.float32(100), np.float32(0))[:, None, None, None]
        return {**outputs, "low_res_masks": outputs["low_res_masks"] - shrink}


def test_prompts_whose_masks_are_too_small_to_be_judged_are_drawn_again() -> None:
    spec = sam1_spec(mask_input=True)
    suite = ParitySuite.build(SmallOnTheLeft(spec), seed=1)
    first = {case.name: case for case in parity_cases(spec, 1)}
    moved = {
        case.name
        for case in suite.cases
        if (case.prompts["point_coords"] != first[case.name].prompts["point_coords"]).any()
    }
    areas = {case.name: answer.above.sum() for case, answer in zip(suite.cases, suite.expected, strict=True)}
    # Random prompts leave the left half; those that are what they are stay in it.
    assert moved
    fixed = {"no_points", "padding_only", "padding_twice", "bare_point", "mask_only"}
    assert {name for name, area in areas.items() if area < CASE_PIXELS} == fixed
    again = ParitySuite.build(SmallOnTheLeft(spec), seed=1)
    assert suite.to_bytes() == again.to_bytes()


def test_the_same_prompt_on_two_images_stays_the_same() -> None:
    for seed in range(8):
        cases = {case.name: case for case in ParitySuite.build(SmallOnTheLeft(SMALL), seed=seed).cases}
        one, other = cases["one_point"].prompts, cases["one_point_again"].prompts
        assert (one["point_coords"] == other["point_coords"]).all()


def test_prompts_with_masks_that_can_be_judged_stay() -> None:
    spec = sam1_spec(mask_input=True)
    suite = ParitySuite.build(StubSession(spec))
    for case, first in zip(suite.cases, parity_cases(spec), strict=True):
        assert (case.prompts["point_coords"] == frozen(first.prompts)["point_coords"]).all()


def test_a_suite_on_one_given_image() -> None:
    spec = sam1_spec(image_size=128)
    cases = parity_cases(spec, frames=[(128, 64)])
    suite = ParitySuite.build(StubSession(spec), synthetic_images(spec, 9, 1), cases)
    assert suite.seed is None
    stored = ParitySuite.load(suite.to_bytes())
    assert (len(stored.images), stored.far) == (2, True)  # the far image is made again, and not stored
    assert (stored.images[1]["image_embeddings"] == 8 * stored.images[0]["image_embeddings"]).all()


def test_codes_look_at_every_pixel(live: ParitySuite, data: bytes) -> None:
    for full, kept in zip(live.expected, ParitySuite.load(data).expected, strict=True):
        assert kept.codes is not None
        assert kept.peaks is not None
        assert code_error(full.logits, kept.codes, kept.peaks) == 0
        step = float(kept.peaks[0, 0]) / CODE_STEPS
        for pixel in (0, 333, full.logits.shape[-1] - 1):
            moved = full.logits.copy()
            moved[0, 0, pixel] += 2 * step
            assert step < code_error(moved, kept.codes, kept.peaks) < 2.5 * step


# --- Damage -----------------------------------------------------------------------------------------------------


DAMAGES: dict[str, Callable[[Arrays], object]] = {
    "no header": lambda arrays: arrays.pop("header"),
    "header no JSON": put("header", lambda header: header[:-1]),
    "other schema": header(lambda found: found.update(schema_version=9)),
    "unknown header field": header(lambda found: found.update(more=1)),
    "header lacks a field": header(lambda found: found.pop("reference")),
    "other image": header(lambda found: found.update(seed=1)),
    "seed negative": header(lambda found: found.update(seed=-1)),
    "seed text": header(lambda found: found.update(seed="0")),
    "too many images": header(lambda found: found.update(images=["x"] * 1000)),
    "images not stored": header(lambda found: found.update(seed=None)),
    "a case lacks an image": header(lambda found: found["cases"][0].update(image=7)),
    "a case too many": header(lambda found: found["cases"].append({"name": "more", "image": 0})),
    "a case too few": header(lambda found: found["cases"].pop()),
    "cases no list": header(lambda found: found.update(cases={})),
    "spec of another size": header(lambda found: found["spec"].update(image_size=256)),
    "array missing": lambda arrays: arrays.pop("case3.logits"),
    "array unknown": lambda arrays: arrays.update(more=np.zeros(3)),
    "logits float64": put("case0.logits", lambda logits: logits.astype(np.float64)),
    "logits short": put("case0.logits", lambda logits: logits[..., 1:]),
    "logits NaN": put("case0.logits", lambda logits: logits * np.float32(np.nan)),
    "codes short": put("case0.codes", lambda codes: codes[..., 1:]),
    "code of no logit": put("case0.codes", lambda codes: codes + np.uint8(100)),
    "codes missing": lambda arrays: arrays.pop("case1.codes"),
    "peaks NaN": put("case0.peaks", lambda peaks: peaks * np.float32(np.nan)),
    "far image of none": header(lambda found: found.update(images=found["images"][:1])),
    "far as a number": header(lambda found: found.update(far=1)),
    "drawn as text": header(lambda found: found.update(drawn="1")),
    "earlier schema": header(lambda found: found.update(schema_version=1, logits="lattice")),
    "bits short": put("case0.above", lambda bits: bits[..., 1:]),
    "bits as bool": put("case0.undecided", lambda bits: bits.astype(np.bool_)),
    "prompts disagree": put("case0.point_labels", lambda labels: labels.repeat(2, 0)),
    "points disagree": put("case0.point_labels", lambda labels: labels[:, 1:]),
    "unknown label": put("case0.point_labels", lambda labels: labels + 5),
    "mask input float32": put("case0.mask_input", lambda mask: mask.astype(np.float32)),
    "scores of fewer prompts": put("case0.iou_predictions", lambda iou: iou[:0]),
    "objects": put("case0.iou_predictions", lambda iou: iou.astype(object)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(data: bytes, damage: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        ParitySuite.load(damaged(data, DAMAGES[damage]), "the suite")
    assert "\n" not in str(caught.value)


def test_undamaged_copy_is_accepted(data: bytes) -> None:
    assert len(ParitySuite.load(damaged(data, lambda arrays: None)).cases) == len(parity_cases(SMALL))


@pytest.mark.parametrize("length", [0, 1, 100, -1, -1000])
def test_truncated_file_is_refused(data: bytes, length: int) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        ParitySuite.load(data[:length])


def test_altered_byte_is_refused(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as file:  # not every byte between the arrays means something
        largest = max(file.infolist(), key=lambda entry: entry.compress_size)
    middle = largest.header_offset + largest.compress_size // 2
    with pytest.raises(ArtifactError):
        ParitySuite.load(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])


def test_file_that_unpacks_to_too_much_is_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "UNPACKED_CAP_BYTES", 1000)
    with pytest.raises(ArtifactError, match="cannot be read"):
        ParitySuite.load(data)
