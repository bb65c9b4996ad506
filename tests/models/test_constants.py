"""What the fast form computes with can be traced from the checkpoint's weights, for every family and form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import toy_checkpoint, toy_decoder

from samx.models.fast.constants import TransformerConstants
from samx.models.fast.decoder import FastDecoder, Form
from samx.models.spec import DecoderSpec, family_spec

SPECS = {
    family: family_spec(family, image_size=112 if family == "sam3" else 128)
    for family in ("sam1", "sam2", "sam3", "sam_hq", "efficientsam")
}
FORMS: tuple[Form, ...] = ("low_rank", "absorbed", "direct")


def constants(spec: DecoderSpec, form: Form, seed: int = 7) -> TransformerConstants:
    return TransformerConstants(FastDecoder(toy_decoder(spec), form), toy_checkpoint(spec, seed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", SPECS)
def test_traced_constants_are_equal(family: str, form: Form) -> None:
    module = constants(SPECS[family], form)
    program = torch.export.export(module, ())
    made = FastDecoder(toy_decoder(SPECS[family]), form).transformer
    assert module.names
    for name, found in zip(module.names, program.module()(), strict=True):
        assert torch.equal(found, made.get_buffer(name)), name


def test_they_follow_from_the_weights() -> None:
    spec = replace(SPECS["sam1"], masks="all")
    one, other = (constants(spec, "low_rank", seed)() for seed in (7, 8))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
