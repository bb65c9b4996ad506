"""An engine is asked the least, the usual and the most prompts that it was built for, in every run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from stub_session import StubSession

from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec
from samx.validators.child import sizes_built_for
from samx.validators.draw import draw
from samx.validators.suite import ParitySuite


@pytest.mark.parametrize("seed", range(3))
def test_every_run_asks_the_sizes_that_it_is_told(seed: int) -> None:
    sizes = (1, 5, 33, 90)
    asked = draw(ParitySuite.build(StubSession(sam1_spec(image_size=64))), np.random.default_rng(seed), sizes)
    assert {len(question.case.prompts["point_labels"]) for question in asked} >= set(sizes)


def test_the_sizes_are_those_of_the_engines_profile_and_a_graphs_has_none() -> None:
    session = SimpleNamespace(profile_prompts=ShapeRange(1, 8, 64))
    assert sizes_built_for(session, "device") == (1, 8, 64)
    assert sizes_built_for(session, "graph") == ()
    assert sizes_built_for(SimpleNamespace(), "device") == ()
