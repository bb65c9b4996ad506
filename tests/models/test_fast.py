"""The fast form computes what the reference computes, to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toys import image_tensors, prompt_tensors, toy_decoder

from samx.errors import UsageError
from samx.models.fast.decoder import FastDecoder, Form, choose_form
from samx.models.reference import ReferenceDecoder
from samx.models.selection import stability_scores
from samx.models.spec import DecoderSpec, MaskChoice, family_spec, sam1_spec, sam2_spec

EXACT = 1e-10  # float64: the rewriting is algebra, what is left is rounding
CLOSE = 1e-5  # float32, relative to the largest output
SMALL = 128  # px: the same graph on an 8x8 grid
SPECS = {
    "sam1": sam1_spec(image_size=SMALL),
    "sam2": sam2_spec(image_size=SMALL),
    "sam3": family_spec("sam3", image_size=112),
    "sam_hq": family_spec("sam_hq", image_size=SMALL, interm_width=24),
    "sam_hq2": family_spec("sam_hq2", image_size=SMALL),
}
PROMPTS = {
    "none": [],
    "padding": [-1],
    "point": [1],
    "point_padded": [1, -1],
    "negative": [0, -1],
    "box": [2, 3],
    "box_and_points": [2, 3, 1, 0, -1],
    "many": [1, 0] * 8,
}


def error(spec: DecoderSpec, reference: ReferenceDecoder, fast: FastDecoder, feed: dict[str, Tensor]) -> float:
    """Give the largest difference, relative to the largest value, over all outputs."""
    expected, found = reference(**feed), fast(**feed)
    assert list(found) == [tensor.name for tensor in spec.outputs]
    differences = []
    for name, want in expected.items():
        assert found[name].shape == want.shape
        differences.append(float((found[name] - want).abs().max() / want.abs().max()))
    return max(differences)


def pair(
    spec: DecoderSpec, dtype: torch.dtype, form: Form, fused: bool, cached: bool = True, **how: bool
) -> tuple[ReferenceDecoder, FastDecoder]:
    reference = toy_decoder(spec).to(dtype)
    return reference, FastDecoder(reference, form, fused=fused, cached=cached, **how)


FORMS = [("low_rank", False), *((form, mask) for form in ("absorbed", "direct") for mask in (False, True))]


@pytest.mark.parametrize("labels", PROMPTS.values(), ids=list(PROMPTS))
@pytest.mark.parametrize(("form", "mask_input"), FORMS, ids=[f"{f}-mask" if m else f for f, m in FORMS])
@pytest.mark.parametrize("family", SPECS)
def test_every_prompt_kind_is_exact_in_float64(family: str, form: Form, mask_input: bool, labels: list[int]) -> None:
    spec = replace(SPECS[family], masks="all", mask_input=mask_input)
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 2, labels, torch.float64)}
    assert error(spec, *pair(spec, torch.float64, form, fused=False), feed) < EXACT


@pytest.mark.parametrize("labels", PROMPTS.values(), ids=list(PROMPTS))
@pytest.mark.parametrize("family", SPECS)
def test_all_factors_are_as_exact_as_the_independent_ones(family: str, labels: list[int]) -> None:
    spec = replace(SPECS[family], masks="all")
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 2, labels, torch.float64)}
    assert error(spec, *pair(spec, torch.float64, "low_rank", fused=False, independent=False), feed) < EXACT


@pytest.mark.parametrize("form", ["low_rank", "absorbed", "direct"])
@pytest.mark.parametrize("family", SPECS)
def test_another_patch_and_other_epsilons_are_exact(family: str, form: Form) -> None:
    spec = replace(SPECS[family], image_size=112, patch_px=14, norm_eps=0.1, final_norm_eps=0.3)
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 2, [1, -1], torch.float64)}
    reference, fast = pair(spec, torch.float64, form, fused=False)
    assert error(spec, reference, fast, feed) < EXACT
    usual: ReferenceDecoder = spec.rules.reference_class()(replace(spec, norm_eps=1e-5)).to(torch.float64)
    usual.load_state_dict(reference.state_dict())
    assert error(spec, usual, fast, feed) > CLOSE  # the comparison sees the epsilon


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("form", ["absorbed", "direct"])
@pytest.mark.parametrize("family", SPECS)
def test_an_image_that_is_not_cached_is_exact(family: str, form: Form, prompts: int) -> None:
    spec = SPECS[family]
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, prompts, [1, -1], torch.float64)}
    assert error(spec, *pair(spec, torch.float64, form, fused=False, cached=False), feed) < EXACT


@pytest.mark.parametrize("masks", ["multimask", "single", "all"])
@pytest.mark.parametrize("fused", [False, True], ids=["products", "attention"])
@pytest.mark.parametrize("form", ["low_rank", "absorbed"])
@pytest.mark.parametrize("family", SPECS)
def test_every_choice_of_masks_is_exact(family: str, form: Form, fused: bool, masks: MaskChoice) -> None:
    spec = replace(SPECS[family], masks=masks)
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 5, [1, -1], torch.float64)}
    assert error(spec, *pair(spec, torch.float64, form, fused), feed) < EXACT


@pytest.mark.parametrize("points", [1, 2, 5, 16])
@pytest.mark.parametrize("prompts", [1, 7, 64])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, EXACT), (torch.float32, CLOSE)], ids=["f64", "f32"])
@pytest.mark.parametrize("cached", [False, True], ids=["anew", "kept"])
@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_any_number_of_prompts_and_points(
    family: str, cached: bool, dtype: torch.dtype, bound: float, prompts: int, points: int
) -> None:
    spec = SPECS[family]
    labels = [1, 0] * (points // 2) + [1] * (points % 2)
    feed = {**image_tensors(spec, dtype), **prompt_tensors(spec, prompts, labels, dtype)}
    form = choose_form(spec, points, cached)
    assert error(spec, *pair(spec, dtype, form, fused=False, cached=cached), feed) < bound


@pytest.mark.parametrize("form", ["low_rank", "absorbed"])
@pytest.mark.parametrize("family", SPECS)
def test_the_full_grid_is_close_in_float32(family: str, form: Form) -> None:
    spec = replace(SPECS[family], image_size=1024)
    feed = {**image_tensors(spec), **prompt_tensors(spec, 2, [2, 3, -1])}
    assert error(spec, *pair(spec, torch.float32, form, fused=False), feed) < CLOSE


@pytest.mark.parametrize("gain", [1e-3, 30.0])
def test_factored_norms_survive_images_of_any_size(gain: float) -> None:
    """The low-rank variance is a sum of terms that cancel; it must not go bad where the image dwarfs the update."""
    spec = replace(SPECS["sam1"], image_size=1024)
    image = {name: gain * tensor for name, tensor in image_tensors(spec).items()}
    feed = {**image, **prompt_tensors(spec, 2, [2, 3])}
    assert error(spec, *pair(spec, torch.float32, "low_rank", fused=False), feed) < CLOSE


@pytest.mark.parametrize(("family", "masks"), [("sam2", "single"), ("sam_hq2", "single"), ("sam_hq2", "all")])
def test_both_branches_of_the_stability_fallback_are_taken(family: str, masks: MaskChoice) -> None:
    spec = replace(SPECS[family], masks=masks, stability_delta=2.0)
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 16, [1, -1], torch.float64)}
    logits, iou, _ = toy_decoder(spec).double().all_masks(**feed)
    # The bound is moved until the toy's masks fall on both sides.
    scores = stability_scores(logits[:, 0], 0.0, spec.stability_delta).sort().values
    spec = replace(spec, stability_threshold=float(scores[7:9].mean()))
    reference, fast = pair(spec, torch.float64, "absorbed", fused=False)
    is_first = reference(**feed)["iou_predictions"][:, 0] == iou[:, 0]
    assert is_first.any()
    assert not is_first.all()
    assert error(spec, reference, fast, feed) < EXACT


def test_an_unused_mask_changes_nothing() -> None:
    spec = replace(SPECS["sam1"], mask_input=True)
    _, fast = pair(spec, torch.float64, "absorbed", fused=False)
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 3, [1, -1], torch.float64)}
    feed["has_mask_input"] = torch.zeros(3, dtype=torch.float64)
    other = {**feed, "mask_input": feed["mask_input"] * -7 + 1}
    assert torch.equal(fast(**feed)["low_res_masks"], fast(**other)["low_res_masks"])


@pytest.mark.parametrize(
    ("form", "weight"),
    [
        ("absorbed", "transformer.layers.1.image_to_token.tokens.out_bias"), ("low_rank", "transformer.one.constant"),
        ("low_rank", "hq_mask.taps"), ("absorbed", "hq_mask.bias"),
    ],
)  # fmt: skip
def test_a_wrong_weight_is_seen(form: Form, weight: str) -> None:
    """The comparison above can fail: one weight of the fast form is spoiled."""
    spec = SPECS["sam_hq"]
    reference, fast = pair(spec, torch.float64, form, fused=False)
    fast.get_buffer(weight)[3] += 1e-4  # all channels alike would vanish in the normalisation
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 2, [1, -1], torch.float64)}
    assert error(spec, reference, fast, feed) > EXACT


def test_the_forms_share_no_weights() -> None:
    reference, fast = pair(SPECS["sam1"], torch.float32, "absorbed", fused=False)
    before = reference.mask_decoder.transformer.norm_final_attn.weight.clone()
    fast.double()
    assert reference.mask_decoder.transformer.norm_final_attn.weight.dtype == torch.float32
    assert torch.equal(reference.mask_decoder.transformer.norm_final_attn.weight, before)


def test_the_form_follows_the_number_of_tokens() -> None:
    spec = sam1_spec()
    assert choose_form(spec, 11, low_rank=False) == "absorbed"  # 8 x 16 = 128 columns, as wide as projections
    assert choose_form(spec, 12, low_rank=False) == "direct"
    assert choose_form(spec, 10, low_rank=True) == "low_rank"  # 2 x 8 x 15 = 240 columns, under 256 channels
    assert choose_form(spec, 11, low_rank=True) == "absorbed"
    assert choose_form(replace(spec, mask_input=True), 2, low_rank=True) == "absorbed"


@pytest.mark.parametrize(("form", "kept"), [("low_rank", 16), ("absorbed", 4), ("direct", 4)])
def test_the_image_is_worked_on_once_where_it_is_kept(form: Form, kept: int) -> None:
    spec = sam1_spec(image_size=SMALL)
    _, fast = pair(spec, torch.float32, form, fused=False)
    assert len(fast.image_state(**image_tensors(spec))) == kept


def test_a_mask_prompt_keeps_nothing_but_the_image() -> None:
    spec = replace(SPECS["sam1"], mask_input=True)
    _, fast = pair(spec, torch.float32, "absorbed", fused=False)
    assert not fast.cached
    assert list(fast.image_state(**image_tensors(spec))) == ["image_tokens"]


def test_low_rank_and_mask_prompts_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="low_rank"):
        pair(replace(SPECS["sam1"], mask_input=True), torch.float32, "low_rank", fused=False)
