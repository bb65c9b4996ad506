"""The cases cross the edges and follow each family's rules; synthetic images are the same bits everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from samx.models.session import Feed
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.validators.cases import Case, default_frames, far_image, parity_cases, synthetic_images

SPECS = [sam1_spec(), sam1_spec(mask_input=True), sam2_spec(), sam2_spec(mask_input=True)]
# Pinned: stored suites name the generator's version and seed only. If this changes, raise GENERATOR_VERSION.
SHA256_OF_SAM2_AT_128_PX = "4104d8beca4298c567c724cd766f9dc67fa0eed194ac09e31725ad67c7433209"


def by_name(spec: DecoderSpec) -> dict[str, Feed]:
    return {case.name: case.prompts for case in parity_cases(spec)}


def labels(spec: DecoderSpec, name: str) -> list[float]:
    return list(by_name(spec)[name]["point_labels"][0])


@pytest.mark.parametrize("spec", SPECS)
def test_feeds_fit_the_spec(spec: DecoderSpec) -> None:
    for case in parity_cases(spec):
        sizes = dict(zip(("prompts", "points"), case.prompts["point_labels"].shape, strict=True))
        assert list(case.prompts) == [tensor.name for tensor in spec.prompt_inputs]
        for tensor in spec.prompt_inputs:
            value = case.prompts[tensor.name]
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
            assert value.shape == shape, (case.name, tensor.name)
            assert value.dtype == np.float32
            assert np.isfinite(value).all()


def test_padding_and_order_of_sam1() -> None:
    spec = sam1_spec()
    assert labels(spec, "one_point") == [1, -1]
    assert labels(spec, "box") == [2, 3]
    assert labels(spec, "box_and_points") == [1, 1, 0, 2, 3]
    assert labels(spec, "no_points") == []
    assert labels(spec, "padding_only") == [-1]


def test_padding_and_order_of_sam2() -> None:
    spec = sam2_spec()
    assert labels(spec, "one_point") == [1, -1]
    assert labels(spec, "box") == [2, 3, -1]
    assert labels(spec, "box_and_points") == [2, 3, 1, 1, 0, -1]
    assert labels(spec, "no_points") == [-1]


@pytest.mark.parametrize("spec", SPECS)
def test_the_edges_are_there(spec: DecoderSpec) -> None:
    cases = parity_cases(spec)
    assert {1, 2, 8, 16} <= {len(case.prompts["point_labels"]) for case in cases}
    assert {case.prompts["point_labels"].shape[1] for case in cases} >= {*range(1, 20)}
    assert {-1, 0, 1, 2, 3} == {label for case in cases for label in case.prompts["point_labels"].ravel()}
    assert {case.image for case in cases} == {0, 1, 2}  # the last one is the far image
    negative = by_name(spec)["negative_points"]["point_labels"]
    assert set(negative.ravel()) == {0, -1}


@pytest.mark.parametrize("spec", SPECS)
def test_points_stay_in_the_picture_and_boxes_are_ordered(spec: DecoderSpec) -> None:
    frames = default_frames(spec, 3)  # the far image is the first one, with larger features
    for case in parity_cases(spec):
        coords, codes = case.prompts["point_coords"], case.prompts["point_labels"]
        assert (coords >= 0).all()
        assert (coords < np.array(frames[case.image])).all(), case.name
        corners = coords[np.isin(codes, (2, 3))].reshape(-1, 2, 2)
        assert (corners[:, 0] < corners[:, 1]).all()


def test_border_points_of_a_picture_that_is_not_square() -> None:
    case = next(case for case in parity_cases(sam1_spec()) if case.name == "borders")
    assert default_frames(sam1_spec(), 2)[case.image] == (1024, 768)
    points = {(float(x), float(y)) for x, y in case.prompts["point_coords"][:, 0]}
    assert {(0, 0), (1023, 767), (1023, 0), (0, 767)} <= points


def test_mask_prompts_are_on_and_off_within_a_batch() -> None:
    cases = by_name(sam1_spec(mask_input=True))
    flags = cases["masks_on_and_off"]["has_mask_input"]
    masks = cases["masks_on_and_off"]["mask_input"]
    assert list(flags) == [1, 0, 1, 0]
    assert masks[0].min() == -10
    assert masks[0].max() == 10
    assert masks[1].min() != 0  # unused, and would show if it were used
    assert np.abs(cases["mask_and_box"]["mask_input"]).max() == 32
    assert cases["mask_only"]["point_coords"].shape == (1, 0, 2)
    assert np.abs(cases["far_mask"]["mask_input"]).max() == 300
    assert len(np.unique(cases["mask_only"]["mask_input"] % 0.125)) > 100  # not in steps
    assert "mask_only" not in by_name(sam1_spec())


def test_half_precision_holds_mask_prompts() -> None:
    for feed in by_name(sam2_spec(mask_input=True)).values():
        assert (feed["mask_input"] == feed["mask_input"].astype(np.float16)).all()


def _same(a: list[Case], b: list[Case]) -> bool:
    return all((x.prompts["point_coords"] == y.prompts["point_coords"]).all() for x, y in zip(a, b, strict=True))


def test_seed_decides() -> None:
    assert _same(parity_cases(sam1_spec(), 3), parity_cases(sam1_spec(), 3))
    assert not _same(parity_cases(sam1_spec(), 3), parity_cases(sam1_spec(), 4))


def tokens(cases: list[Case]) -> set[int]:
    return {case.prompts["point_labels"].shape[1] for case in cases}


@pytest.mark.parametrize("spec", SPECS)
def test_numbers_of_points_are_drawn_over_what_there_is(spec: DecoderSpec) -> None:
    drawn = [tokens(parity_cases(spec, drawn=seed)) - tokens(parity_cases(spec)) for seed in range(20)]
    assert all(len(more) == 2 and min(more) >= 20 and max(more) <= 65 for more in drawn)
    assert len({count for more in drawn for count in more}) > 15
    assert tokens(parity_cases(spec, drawn=3)) == tokens(parity_cases(spec, drawn=3))


@pytest.mark.parametrize("most", [1, 2, 3, 9, 17, 20, 30, 200])
def test_where_there_are_only_so_many_points_the_largest_number_is_asked(most: int) -> None:
    asked = tokens(parity_cases(sam2_spec(), most_points=most, drawn=1))
    assert max(asked) == most
    assert {*range(1, min(most, 19) + 1)} <= asked


def test_the_second_case_is_the_first_on_another_image() -> None:
    first, second = parity_cases(sam1_spec())[:2]
    assert (first.image, second.image) == (0, 1)
    assert (first.prompts["point_coords"] == second.prompts["point_coords"]).all()


def test_far_features_stay_within_float16() -> None:
    image = {"image_embeddings": np.array([0.5, -3, 9e3], np.float32)}
    assert far_image(image)["image_embeddings"].tolist() == [4, -24, 6e4]


def test_given_frames_are_used() -> None:
    for case in parity_cases(sam1_spec(), frames=[(100, 40)]):
        assert case.image == int(case.name.startswith("far_"))
        assert (case.prompts["point_coords"] < (100, 40)).all()


# --- Synthetic images: of trained size, and exact in half precision -------------------------------------------------


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec()])
def test_images_fit_the_spec(spec: DecoderSpec) -> None:
    for image in synthetic_images(spec):
        assert {name: value.shape for name, value in image.items()} == {t.name: t.shape for t in spec.image_inputs}
        for value in image.values():
            assert value.dtype == np.float32
            assert (value == value.astype(np.float16)).all()
            assert 0.3 < value.std() < 1


def test_bits_are_pinned() -> None:
    digest = hashlib.sha256()
    for image in synthetic_images(sam2_spec(image_size=128), seed=5):
        for value in image.values():
            digest.update(value.astype("<f4").tobytes())
    assert digest.hexdigest() == SHA256_OF_SAM2_AT_128_PX


def test_images_and_seeds_differ() -> None:
    first, second = (image["image_embeddings"] for image in synthetic_images(sam2_spec(image_size=128), 0))
    other = synthetic_images(sam2_spec(image_size=128), 1)[0]["image_embeddings"]
    assert np.abs(np.corrcoef([first.ravel(), second.ravel(), other.ravel()]) - np.eye(3)).max() < 0.2


def test_second_sam1_image_has_padding() -> None:
    square, padded = (image["image_embeddings"][0] for image in synthetic_images(sam1_spec()))
    assert (padded[:, 48:].std(axis=(1, 2)) < 1e-6).all()
    assert (padded[:, :48].std(axis=(1, 2)) > 0.1).all()
    assert (square[:, 48:].std(axis=(1, 2)) > 0.1).all()


def test_a_decoder_that_pads_for_itself_is_not_asked_without_padding() -> None:
    names, padded = ({case.name for case in parity_cases(sam2_spec(), bare=bare)} for bare in (True, False))
    assert names - padded == {"bare_point"}
