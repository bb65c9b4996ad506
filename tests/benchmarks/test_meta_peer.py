"""Meta's package is imported without torchvision, and without a trace; a missing package is named."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from samx.benchmarks.contenders import meta
from samx.errors import MissingExtraError, UsageError
from samx.models.checkpoint import LoadedDecoder
from samx.models.reference import ReferenceDecoder
from samx.models.spec import sam1_spec, sam2_spec

INSTALLED = importlib.util.find_spec("segment_anything") is not None
needs_peer = pytest.mark.skipif(not INSTALLED, reason="segment-anything is not installed (extra 'bench')")


def loaded() -> LoadedDecoder:
    torch.manual_seed(0)
    spec = sam1_spec(image_size=256, masks="all", mask_input=True)  # a small grid: quick, and sizes are not baked in
    weights = ReferenceDecoder(spec).state_dict()
    return LoadedDecoder(spec, weights, "random", "0" * 64, 0, "random weights", "float32")


def torchvision_modules() -> set[str]:
    return {name for name in sys.modules if name.split(".")[0] == "torchvision"}


def test_stubs_are_there_inside_and_gone_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_has_torchvision", lambda: False)
    before = torchvision_modules()
    with meta.torchvision_stubs():
        from torchvision.ops.boxes import batched_nms

        assert batched_nms is None
        assert set(meta.STUBS) <= torchvision_modules()
    assert torchvision_modules() == before


def test_stubs_go_after_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_has_torchvision", lambda: False)
    before = torchvision_modules()
    with pytest.raises(RuntimeError, match="inside"), meta.torchvision_stubs():
        raise RuntimeError("inside")
    assert torchvision_modules() == before


def test_a_real_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_has_torchvision", lambda: True)
    before = torchvision_modules()
    with meta.torchvision_stubs():
        assert torchvision_modules() == before


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segment_anything", None)  # Python's way to say: cannot be imported
    meta._has_torchvision()  # imports it, where it is
    before = torchvision_modules()
    with pytest.raises(MissingExtraError, match=r"samx\[bench\]") as caught:
        meta.build_meta(loaded())
    assert (caught.value.extra, caught.value.exit_code) == ("bench", 5)
    assert torchvision_modules() == before


def test_a_sam2_decoder_is_refused() -> None:
    with pytest.raises(UsageError, match="SAM 1"):
        meta.build_meta(replace(loaded(), spec=sam2_spec()))


@needs_peer
def test_metas_modules_take_every_weight_and_compute_the_same() -> None:
    ours = loaded()
    reference = ReferenceDecoder(ours.spec).eval()
    reference.load_state_dict(ours.weights)
    box, labels = torch.tensor([[[20.0, 30.0], [200.0, 220.0]]]), torch.tensor([[2.0, 3.0]])
    embedding, mask, has_mask = torch.randn(1, 256, 16, 16), torch.randn(1, 1, 64, 64), torch.ones(1)
    with torch.no_grad():
        full, iou, low_res = meta.build_meta(ours)(
            embedding, box, labels, mask, has_mask, torch.tensor([256.0, 256.0])
        )  # fmt: skip
        expected = reference(embedding, box, labels, mask, has_mask)
    assert full.shape == (1, 4, 256, 256)
    torch.testing.assert_close(low_res, expected["low_res_masks"], atol=1e-4, rtol=0)
    torch.testing.assert_close(iou, expected["iou_predictions"], atol=1e-5, rtol=0)


@needs_peer
def test_a_weight_without_a_place_is_an_error() -> None:
    ours = loaded()
    extra = replace(ours, weights={**ours.weights, "mask_decoder.unknown.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="unknown"):
        meta.build_meta(extra)
    assert isinstance(meta.build_meta(ours), nn.Module)
