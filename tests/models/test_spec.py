"""DecoderSpec: read back as written, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from samx.errors import ArtifactError
from samx.models import spec as spec_module
from samx.models.families import find, known
from samx.models.spec import DecoderSpec, family_spec, sam1_spec, sam2_spec


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec(masks="single", mask_input=True, image_size=512)])
def test_a_spec_survives_json(spec: DecoderSpec) -> None:
    assert DecoderSpec.from_json(spec.to_json(), "spec") == spec


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("masks", "foo"),
        ("family", "sam9"),
        ("family", 1),
        ("image_size", -16),
        ("image_size", 1000),
        ("image_size", 10**9),
        ("image_size", 1024.0),
        ("heads", 0),
        ("heads", True),
        ("mask_input", 1),
        ("mask_threshold", float("nan")),
        ("schema_version", 2),
        ("surprise", 1),
    ],
)
def test_forged_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ArtifactError, match=name.replace("_version", "|other").replace("surprise", "other fields")):
        DecoderSpec.from_json({**sam1_spec().to_json(), name: value}, "spec")


def test_a_missing_field_is_refused() -> None:
    data = sam1_spec().to_json()
    del data["heads"]
    with pytest.raises(ArtifactError, match="heads"):
        DecoderSpec.from_json(data, "spec")


def test_sam2_has_what_sam1_lacks() -> None:
    names = [tensor.name for tensor in sam2_spec().inputs]
    assert names == ["image_embeddings", "high_res_features_0", "high_res_features_1", "point_coords", "point_labels"]
    assert [tensor.name for tensor in sam2_spec().outputs][-1] == "object_score_logits"
    assert (sam1_spec().output_tokens, sam2_spec().output_tokens) == (5, 6)
    assert {masks: sam1_spec(masks=masks).masks_out for masks in ("multimask", "single", "all")} == {
        "multimask": 3, "single": 1, "all": 4,
    }  # fmt: skip


# No decoder has HQ-SAM's features of the image and high-resolution ones too.
WITH_FEATURES = [
    (name, has) for name in known() for has in (False, True) if not (has and family_spec(name).interm_width)
]


@pytest.mark.parametrize(("family", "high_res"), WITH_FEATURES)
def test_no_image_input_is_dropped_and_each_has_its_meaning(family: str, high_res: bool) -> None:
    spec = family_spec(family, high_res_features=high_res)
    inputs = spec.image_inputs
    assert len(inputs) == (3 if high_res else 2 if spec.interm_width else 1)
    assert all(tensor.meaning in find(family).features for tensor in inputs)


def test_a_family_that_tells_too_little_is_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    told = replace(find("sam2"), features=("one",))
    monkeypatch.setattr(spec_module, "find", lambda name: told)
    with pytest.raises(ValueError, match="shorter"):
        _ = sam2_spec().image_inputs
