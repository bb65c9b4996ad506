"""DecoderSpec: read back as written, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from samx.errors import ArtifactError
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec


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
