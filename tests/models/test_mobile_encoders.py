"""The encoders of mobile relatives compute what other projects' modules compute, and refuse what they do not know."""

from __future__ import annotations

import pytest
import torch
from mobile_encoders import CASES, Case
from torch import Tensor

from samx.models.encoders.base import Encoder

BOUND = 2e-6  # of the norm


def built(case: Case, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Build our encoder of a small case."""
    monkeypatch.setattr(case.ours, "DEPTHS", (case.depths,))
    return case.ours.ENCODER.build(case.weights, case.spec)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_an_independent_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    encoder = built(case, monkeypatch)
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, encoder.picture_px, encoder.picture_px)
    ours, theirs = encoder(pixels), case.reference(pixels)
    assert len(ours) == len(case.spec.image_inputs)
    errors = [error(*pair) for pair in zip(ours, theirs, strict=True)]
    print(name, errors, [float(x.norm()) for x in theirs], pixels.shape, [t.shape for t in ours])
    assert max(errors) <= BOUND
