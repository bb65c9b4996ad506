"""Counted operations: what PyTorch counts while the modules run, to the last multiply-add."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from samx.benchmarks.operations import REFERENCE, count
from samx.models.fast.decoder import FastDecoder, Form
from samx.models.reference import ReferenceDecoder
from samx.models.spec import DecoderSpec, MaskChoice, TensorSpec, family_spec, sam1_spec, sam2_spec

POINTS, SMALL = 3, 64
FORMS: tuple[tuple[Form, bool], ...] = (
    ("direct", False), ("direct", True), ("absorbed", False), ("absorbed", True), ("low_rank", True),
)  # fmt: skip


CHOICES: tuple[tuple[MaskChoice, bool], ...] = (
    ("all", False), ("multimask", False), ("single", False), ("all", True),
)  # fmt: skip
SPECS = [
    make(image_size=SMALL, masks=masks, mask_input=mask_input)
    for make in (sam1_spec, sam2_spec, partial(family_spec, "sam_hq"), partial(family_spec, "sam_hq2"))
    for masks, mask_input in CHOICES
]  # fmt: skip


def name(value: object) -> str:
    return f"{value.family}-{value.masks}-{value.mask_input}" if isinstance(value, DecoderSpec) else str(value)


def tensors(wanted: tuple[TensorSpec, ...], prompts: int) -> list[Tensor]:
    sizes = {"prompts": prompts, "points": POINTS}
    return [torch.ones([sizes[d] if isinstance(d, str) else d for d in spec.shape]) for spec in wanted]


def built(spec: DecoderSpec) -> ReferenceDecoder:
    decoder: ReferenceDecoder = spec.rules.reference_class()(spec)
    return decoder.requires_grad_(False)


def counted(decoder: ReferenceDecoder | FastDecoder, prompts: int) -> int:
    spec = decoder.spec
    feed = dict(zip([t.name for t in spec.inputs], tensors(spec.inputs, prompts), strict=True))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(**feed)
    flops: int = counter.get_total_flops()
    return flops // 2


def expected(work: tuple[int, int, int], prompts: int) -> int:
    image, prompt, _ = work
    return image + prompts * prompt


# A mask prompt changes the image, so nothing is kept of it.
@pytest.mark.parametrize(
    ("spec", "form", "cached"),
    [(spec, *form) for spec in SPECS for form in FORMS if not (spec.mask_input and form[1])], ids=name,
)  # fmt: skip
def test_every_form_needs_what_is_counted(spec: DecoderSpec, form: Form, cached: bool) -> None:
    decoder = FastDecoder(built(spec), form, cached=cached)
    work = count(spec, form, POINTS, cached=cached)
    assert [counted(decoder, n) for n in (1, 3)] == [expected(work, n) for n in (1, 3)]
    state = decoder.image_state(*tensors(spec.image_inputs, 1))
    assert work[2] == 4 * sum(kept.numel() for kept in state.values())


def test_every_factor_is_counted_where_all_are_kept() -> None:
    spec = SPECS[0]
    decoder = FastDecoder(ReferenceDecoder(spec).requires_grad_(False), "low_rank", independent=False)
    work = count(spec, "low_rank", POINTS, cached=True, independent=False)
    assert counted(decoder, 2) == expected(work, 2)
    assert work[1] > count(spec, "low_rank", POINTS, cached=True)[1]


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_reference_needs_what_is_counted(spec: DecoderSpec) -> None:
    work = count(spec, REFERENCE, POINTS, cached=False)
    assert (work[0] > 0) == (spec.interm_width > 0)
    assert counted(built(spec), 1) == work[0] + work[1]


def test_keeping_the_image_saves_most_of_a_prompt() -> None:
    _, prompt, _ = count(sam1_spec(), "low_rank", 2, cached=True)
    assert prompt < 0.3 * count(sam1_spec(), REFERENCE, 2, cached=False)[1]
