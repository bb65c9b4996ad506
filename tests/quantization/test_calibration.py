"""A calibration set survives its file, serves the decoder it is for, and does not exist where it would mean nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_toys import CHECKPOINT, SPEC, click, features, toy_set
from npz_damage import Arrays, damaged, header, put

from samx.errors import ArtifactError, InputError, WriteError
from samx.models.spec import sam2_spec
from samx.quantization import calibration
from samx.quantization.calibration import MIN_IMAGES, MIN_SAMPLES, MOST_IMAGES, SHARES, CalibrationSet, kinds
from samx.validators.cases import Case


@pytest.fixture(scope="module")
def data() -> bytes:
    return toy_set().to_bytes()


def stored(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "set.npz"
    path.write_bytes(data)
    return path


def same_samples(a: tuple[Case, ...], b: tuple[Case, ...]) -> bool:
    return all(
        (x.name, x.image, set(x.prompts)) == (y.name, y.image, set(y.prompts))
        and all(np.array_equal(x.prompts[name], y.prompts[name]) for name in x.prompts)
        for x, y in zip(a, b, strict=True)
    )


def test_a_set_survives_its_file(tmp_path: Path) -> None:
    live = toy_set()
    path = tmp_path / "set.npz"
    assert live.save(path) == path.stat().st_size
    read = CalibrationSet.load(path)
    for name in ("spec", "scenes", "source", "seed", "checkpoint_sha256", "sha256"):
        assert getattr(read, name) == getattr(live, name)
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(read.images, live.images, strict=True) for name in a)
    assert same_samples(read.samples, live.samples)
    assert same_samples(read.held_out, live.held_out)


def test_the_same_set_gives_the_same_bytes_and_another_does_not() -> None:
    assert toy_set().to_bytes() == toy_set().to_bytes()
    assert toy_set().sha256 == toy_set().sha256
    assert len({toy_set().sha256, toy_set(seed=4).sha256, toy_set(samples=toy_set().samples[1:]).sha256}) == 3


def test_a_set_holds_what_its_file_keeps_and_nobody_changes_it() -> None:
    given = features(SPEC, 0)["image_embeddings"]
    kept = toy_set().images[0]["image_embeddings"]
    np.testing.assert_array_equal(kept, given.astype(np.float16).astype(np.float32))
    assert not np.array_equal(kept, given)
    with pytest.raises(ValueError, match="read-only"):
        kept[...] = 0


def test_what_a_manifest_remembers() -> None:
    summary = toy_set().summary()
    assert summary["samples"] == dict(Counter(click(i, 4).name for i in range(28)))
    assert (summary["images"], summary["held_out"], summary["seed"], summary["source"]) == (4, 4, 3, "toys")
    assert json.loads(json.dumps(summary)) == summary


# --- Kinds and exports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [24, 48, 96, 97, 1024])
def test_every_kind_has_its_share(total: int) -> None:
    counts = Counter(kinds(total))
    assert sum(counts.values()) == total
    assert all(abs(counts[kind] - share * total) < 1 for kind, share in SHARES.items())


def test_the_shares_are_everything() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("masks", ["multimask", "single", "all"])
def test_a_set_serves_every_export_of_its_decoder(masks: Any) -> None:
    plain, with_mask = replace(SPEC, masks=masks, mask_input=False), replace(SPEC, masks=masks, mask_input=True)
    found = toy_set()
    for spec in (plain, with_mask):
        found.check_for(spec, CHECKPOINT)
        cases = found.cases(spec)
        assert len({case.name for case in cases}) == len(cases) == len(found.samples)
        assert all(list(case.prompts) == [tensor.name for tensor in spec.prompt_inputs] for case in cases)
    asked = [case.prompts for case in found.cases(with_mask)]
    assert [float(feed["has_mask_input"][0]) for feed in asked] == [float(i % 5 == 0) for i in range(28)]
    assert [bool(feed["mask_input"].any()) for feed in asked] == [i % 5 == 0 for i in range(28)]


def test_an_export_of_few_points_is_not_asked_about_more() -> None:
    assert len(toy_set().cases(SPEC, most_points=2)) == 28
    assert toy_set().cases(SPEC, most_points=1) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(SPEC, family="sam2"), "another decoder (family): found sam1, expected sam2"),
        (replace(SPEC, image_size=1024), "(image size): found 128, expected 1024"),
        (replace(SPEC, width=128), "(width): found 256, expected 128"),
        (replace(SPEC, high_res_features=True), "(high res features): found False, expected True"),
    ],
)
def test_a_set_of_another_decoder_is_refused(other: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        toy_set().check_for(other, CHECKPOINT)
    assert words in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_set_of_another_checkpoint_is_refused_naming_both() -> None:
    with pytest.raises(InputError, match="another checkpoint") as caught:
        toy_set().check_for(SPEC, "d" * 64)
    assert CHECKPOINT in str(caught.value)
    assert "d" * 64 in str(caught.value)


# --- What means nothing ---------------------------------------------------------------------------------------------


def images(count: int = 4, **first: Any) -> Any:
    made = [dict(features(SPEC, i)) for i in range(count)]
    made[0].update(first)
    return tuple(made)


def embedding(change: Callable[[Any], Any]) -> Any:
    return {"images": images(image_embeddings=change(features(SPEC, 0)["image_embeddings"].copy()))}


def spoiled(value: float) -> Any:
    def change(array: Any) -> Any:
        array.flat[5] = value
        return array

    return embedding(change)


def sample(**changes: Any) -> Any:
    first = click(0, 4)
    prompts = {name: value for name, value in changes.items() if name in first.prompts}
    rest = {name: value for name, value in changes.items() if name not in first.prompts}
    return {"samples": (replace(first, prompts={**first.prompts, **prompts}, **rest), *toy_set().samples[1:])}


DEGENERATE: dict[str, tuple[Any, str]] = {
    "no image": ({"images": ()}, "image 0 of 0"),
    "too few images": (
        {"samples": tuple(click(i, MIN_IMAGES - 1) for i in range(28)), "held_out": ()},
        f"too few images: found {MIN_IMAGES - 1}, expected at least {MIN_IMAGES}. .* probability of 25%",
    ),
    "too many images": ({"images": images(MOST_IMAGES + 1)}, f"too many images: found {MOST_IMAGES + 1}"),
    "no prompt at all": ({"samples": ()}, "too few images: found 0"),
    "too few prompts": ({"samples": tuple(click(i, 4) for i in range(MIN_SAMPLES - 1))}, "too few different prompts"),
    "all prompts equal": ({"samples": tuple(replace(click(1, 4), image=i % 4) for i in range(28))}, "found 4"),
    "all images equal": ({"images": (features(SPEC, 0),) * 4}, "images 0 and 1 of the calibration set are the same"),
    "two images equal": ({"images": (*images(3), features(SPEC, 1))}, "images 1 and 3"),
    "constant image": (embedding(np.zeros_like), "constant: found 0 throughout"),
    "NaN": (spoiled(np.nan), "is not finite"),
    "infinity": (spoiled(-np.inf), "is not finite"),
    "beyond float16": (spoiled(1e6), "expected values that float16 holds"),
    "wrong shape": (embedding(lambda value: value[:, :128]), "has the wrong shape"),
    "other tensors": ({"images": images(more=np.ones(3, np.float32))}, "has other features"),
    "unknown kind": (sample(name="guess"), "unknown kind 'guess'"),
    "image that is not there": (sample(image=4), "image 4 of 4"),
    "no points": (sample(point_coords=np.zeros((0, 2, 2), np.float32)), "no prompt"),
    "unknown label": (sample(point_labels=np.array([[9, -1]], np.float32)), "unknown labels"),
    "point outside": (sample(point_coords=np.full((1, 2, 2), 129, np.float32)), "points outside the frame"),
    "point nowhere": (sample(point_coords=np.full((1, 2, 2), np.nan, np.float32)), "points outside the frame"),
    "mask of NaN": (sample(mask_input=np.full((1, 1, 32, 32), np.nan, np.float32)), "not finite"),
    "mask half used": (sample(has_mask_input=np.full(1, 0.5, np.float32)), "mask flags other than 0 and 1"),
    "judges with what calibrates": ({"held_out": (click(7, 4),)}, "both calibrates and judges"),
}


@pytest.mark.parametrize("fault", DEGENERATE)
def test_a_set_that_means_nothing_is_refused(fault: str) -> None:
    changes, words = DEGENERATE[fault]
    with pytest.raises(InputError, match=words) as caught:
        toy_set(**changes)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


def test_sam2_features_are_checked_too() -> None:
    spec = sam2_spec(image_size=128)
    made = [dict(features(spec, i)) for i in range(4)]
    made[2]["high_res_features_1"][...] = 1
    with pytest.raises(InputError, match="'high_res_features_1' of image 2 of the calibration set is constant"):
        toy_set(spec=spec, images=tuple(made))


# --- Damage ---------------------------------------------------------------------------------------------------------


DAMAGES: dict[str, Callable[[Arrays], object]] = {
    "no header": lambda arrays: arrays.pop("header"),
    "header no JSON": put("header", lambda found: found[:-1]),
    "other format": header(lambda found: found.update(format="samx-parity-suite")),
    "other schema": header(lambda found: found.update(schema_version=2)),
    "unknown field": header(lambda found: found.update(more=1)),
    "field missing": header(lambda found: found.pop("seed")),
    "seed text": header(lambda found: found.update(seed="0")),
    "no source": header(lambda found: found.update(source=" ")),
    "checkpoint no text": header(lambda found: found.update(checkpoint_sha256=1)),
    "scene negative": header(lambda found: found.update(scenes=[-1])),
    "an image too many": header(lambda found: found.update(images=10**12)),
    "an image too few": header(lambda found: found.update(images=3)),
    "a sample too many": header(lambda found: found["samples"].append(found["samples"][0])),
    "a sample too few": header(lambda found: found["samples"].pop()),
    "image of a sample negative": header(lambda found: found["samples"][0].update(image=-1)),
    "mask denied": header(lambda found: found["samples"][0].update(mask=False)),
    "mask claimed": header(lambda found: found["samples"][1].update(mask=True)),
    "mask no flag": header(lambda found: found["samples"][0].update(mask=1)),
    "spec of another size": header(lambda found: found["spec"].update(image_size=256)),
    "array unknown": lambda arrays: arrays.update(more=np.zeros(3)),
    "array missing": lambda arrays: arrays.pop("held_out2.point_labels"),
    "embedding float32": put("image1.image_embeddings", lambda value: value.astype(np.float32)),
    "embedding NaN": put("image1.image_embeddings", lambda value: value * np.float16(np.nan)),
    "prompts disagree": put("samples1.point_labels", lambda value: value.repeat(2, 0)),
    "objects": put("samples1.point_labels", lambda value: value.astype(object)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(data: bytes, tmp_path: Path, damage: str) -> None:
    with pytest.raises(ArtifactError, match=r"set\.npz") as caught:
        CalibrationSet.load(stored(damaged(data, DAMAGES[damage]), tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_that_means_nothing_is_refused(data: bytes, tmp_path: Path) -> None:
    constant = damaged(data, put("image1.image_embeddings", np.zeros_like))
    with pytest.raises(InputError, match="constant"):
        CalibrationSet.load(stored(constant, tmp_path))


def test_an_undamaged_copy_is_accepted(data: bytes, tmp_path: Path) -> None:
    assert len(CalibrationSet.load(stored(damaged(data, lambda arrays: None), tmp_path)).samples) == 28


@pytest.mark.parametrize("length", [0, 1, 100, -1, -1000])
def test_a_truncated_file_is_refused(data: bytes, tmp_path: Path, length: int) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        CalibrationSet.load(stored(data[:length], tmp_path))


def test_an_altered_byte_is_refused(data: bytes, tmp_path: Path) -> None:
    middle = len(data) // 2
    with pytest.raises(ArtifactError):
        CalibrationSet.load(stored(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :], tmp_path))


def test_a_file_that_is_too_large_is_not_read(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "UNPACKED_CAP_BYTES", 1000)
    with pytest.raises(ArtifactError, match="is too large: found"):
        CalibrationSet.load(stored(data, tmp_path))


@pytest.mark.parametrize("name", ["nothing.npz", "."])
def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be read|does not exist") as caught:
        CalibrationSet.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_set_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(WriteError):
        toy_set().save(tmp_path / "missing" / "set.npz")
    assert list(tmp_path.iterdir()) == []
