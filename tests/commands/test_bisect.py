"""The bisection puts the error where it belongs."""

from __future__ import annotations

from functools import partial

import pytest

from samx.commands import bisect as module
from samx.commands.bisect import bisect
from samx.models import checkpoint


def test_the_points_cost_most_and_the_iou_head_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PROMPTS", 1)
    monkeypatch.setattr(checkpoint, "load_checkpoint", partial(checkpoint.load_checkpoint, image_size=512))
    steps: list[str] = []
    result = bisect(progress=lambda text, *_: steps.append(text), only=["point encoding", "IoU head", "sums"])
    rows = {row["group"]: row for row in result["rows"]}
    assert steps[1:] == ["point encoding (1 of 3)", "IoU head (2 of 3)", "sums (3 of 3)"]
    assert rows["point encoding"]["alone"]["logit_error"] > 2 * result["exported"]["logit_error"]
    assert rows["IoU head"]["alone"]["logit_error"] < 1e-3 < rows["sums"]["alone"]["logit_error"]
    assert rows["IoU head"]["alone"]["iou_prediction_error"] > 0
    lost, lost_everywhere = (1 - result[which]["mask_iou_mean"] for which in ("exported", "everything"))
    assert lost_everywhere > 2 * lost  # the islands matter; which side of the bound it ends on differs by processor
    assert result["exported"]["mask_iou_mean"] > 0.996
    assert result["exported"]["passed"]
    assert result["islands"] == ["point encoding"]


def test_the_gate_sees_what_the_islands_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PROMPTS", 4)
    monkeypatch.setattr(checkpoint, "load_checkpoint", partial(checkpoint.load_checkpoint, image_size=256))
    result = bisect(only=["IoU head"])
    assert result["exported"]["passed"]
    assert not result["everything"]["passed"]
