"""The pieces of training: prompts that mean what they say, and losses that lead there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samx.demo import FAMILIES
from samx.demo.model import DemoModel, grow_to_sam2
from samx.demo.sampling import centre_pixel, error_click, find_regions, padded_prompt
from samx.demo.scenes import generate_scene
from tools.train_demo.batches import Sample, batch_loss, mask_iou, mask_losses


def test_a_grown_sam2_model_starts_with_sam1s_masks() -> None:
    torch.manual_seed(0)
    sam1 = DemoModel("sam1", grid=16)
    sam2 = grow_to_sam2(sam1, 16)
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = sam2.encoder.encode_picture(picture)
        assert torch.equal(features[0], sam1.encoder.encode_picture(picture)[0])
        assert float(features[1].abs().max()) == float(features[2].abs().max()) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_every_kind_of_prompt_has_a_finite_loss_and_gradient(family: str) -> None:
    torch.manual_seed(0)
    model = DemoModel(family, grid=16)
    ids = generate_scene(1, 64).ids
    sample = Sample(ids, find_regions(ids))
    features = model.encoder.encode_picture(torch.rand(2, 3, 64, 64))
    loss = batch_loss(model, features, [sample, sample], np.random.default_rng(0), (2, 2, 1, 1))
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert len(gradients) > 100


def test_padding_follows_each_familys_predictor() -> None:
    point, box = [(5.0, 6.0)], [(1.0, 2.0), (8.0, 9.0)]
    assert padded_prompt("sam1", point, [1], None)[1] == [1, -1]
    assert padded_prompt("sam1", point, [1], box)[1] == [1, 2, 3]
    assert padded_prompt("sam2", point, [1], None)[1] == [1, -1]
    assert padded_prompt("sam2", point, [1], box)[1] == [2, 3, 1, -1]


def test_a_click_for_a_region_lies_on_nothing_smaller() -> None:
    ids = generate_scene(4, 128).ids
    regions = find_regions(ids)
    assert {region.level for region in regions} == {0, 1, 2}
    for region in regions:
        x, y = centre_pixel(region.own)
        depth = int((ids[:, y, x] > 0).sum())
        assert region.mask[y, x]
        assert depth == region.level + 1


def test_a_corrective_click_goes_where_the_mask_is_wrong() -> None:
    target, predicted = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    target[8:16, 8:16] = True
    rng = np.random.default_rng(0)
    (x, y), label = error_click(rng, predicted, target)
    assert label == 1
    assert target[int(y / 4), int(x / 4)]
    predicted[0:28, 0:28] = True
    (x, y), label = error_click(rng, predicted, target)
    assert label == 0
    assert not target[int(y / 4), int(x / 4)]


def test_losses_prefer_the_right_mask() -> None:
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:9, 4:9] = 1
    right, wrong = 20 * target - 10, 10 - 20 * target
    assert float(mask_losses(right, target)) < 0.05 < float(mask_losses(wrong, target))
    assert float(mask_iou(right, target)) == 1.0
    assert float(mask_iou(wrong, target)) == 0.0
