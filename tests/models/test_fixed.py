"""The Neural Engine form against the reference: the same function, in another layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from toys import image_tensors, prompt_tensors, toy_decoder

from samx.models.fixed.decoder import AppleMaskDecoder, ApplePromptEncoder, NeuralEngineDecoder, to_half
from samx.models.fixed.layers import ChannelNorm, PointPosition
from samx.models.reference import ReferenceDecoder
from samx.models.spec import PADDED_POINT, DecoderSpec, family_spec, sam1_spec, sam2_spec

EXACT = 1e-12  # of logits up to about 20, in float64
SMALL = 256  # px: the same operations on a grid of 16 x 16
SPECS = {
    "sam1": sam1_spec(image_size=SMALL),
    "sam1_single_mask": sam1_spec(image_size=SMALL, masks="single", mask_input=True),
    "sam1_all": sam1_spec(image_size=SMALL, masks="all"),
    "sam2": sam2_spec(image_size=SMALL),
    "sam2_single": sam2_spec(image_size=SMALL, masks="single"),
    "sam2_all_mask": sam2_spec(image_size=SMALL, masks="all", mask_input=True),
    "sam_hq": family_spec("sam_hq", image_size=SMALL, interm_width=24),
    "sam_hq_single_mask": family_spec("sam_hq", image_size=SMALL, interm_width=24, masks="single", mask_input=True),
    "sam_hq2": family_spec("sam_hq2", image_size=SMALL),
    "sam_hq2_single_mask": family_spec("sam_hq2", image_size=SMALL, masks="single", mask_input=True),
    "sam_hq2_all": family_spec("sam_hq2", image_size=SMALL, masks="all"),
    "efficientsam": family_spec("efficientsam", image_size=SMALL),
    "efficientsam_all": family_spec("efficientsam", image_size=SMALL, masks="all"),
    "sam_hq_all": family_spec("sam_hq", image_size=SMALL, interm_width=24, masks="all"),
}
LABELS = {"click": [1, -1], "box": [2, 3], "clicks": [1, 0, 1, -1], "none": [-1]}


def ask(module: torch.nn.Module, spec: DecoderSpec, feed: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs: tuple[Tensor, ...] = module(*[feed[tensor.name] for tensor in spec.inputs])
    return outputs


def with_padded_points(feed: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Fill up with padded points at coordinates that must not matter."""
    coords, labels = feed["point_coords"], feed["point_labels"]
    more = coords.shape[1] + count
    filled = {
        "point_coords": torch.full((len(coords), more, 2), 777.0, dtype=coords.dtype),
        "point_labels": torch.full((len(coords), more), float(PADDED_POINT), dtype=coords.dtype),
    }
    filled["point_coords"][:, : coords.shape[1]], filled["point_labels"][:, : coords.shape[1]] = coords, labels
    return {**feed, **filled}


@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_computes_what_the_reference_computes(spec: DecoderSpec, labels: list[int]) -> None:
    reference = toy_decoder(spec).double()
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 2, labels, torch.float64)}
    with torch.no_grad():
        expected = reference(**feed)
    outputs = ask(NeuralEngineDecoder(reference), spec, feed)
    for tensor, value in zip(spec.outputs, outputs, strict=True):
        assert value.shape == expected[tensor.name].shape
        assert (value - expected[tensor.name]).abs().max() < EXACT


@pytest.mark.parametrize("spec", [SPECS["sam1"], SPECS["sam2_single"]], ids=["sam1", "sam2"])
def test_a_padded_point_changes_no_bit(spec: DecoderSpec) -> None:
    decoder = NeuralEngineDecoder(toy_decoder(spec))
    feed = {**image_tensors(spec), **prompt_tensors(spec, 1, [1, -1])}
    filled = with_padded_points(feed, 14)
    moved = {**filled, "point_coords": filled["point_coords"].clone()}
    moved["point_coords"][:, 2:] = 3.0
    for plain, other in zip(ask(decoder, spec, filled), ask(decoder, spec, moved), strict=True):
        assert torch.equal(plain, other)
    for plain, other in zip(ask(decoder, spec, feed), ask(decoder, spec, filled), strict=True):
        assert (plain - other).abs().max() < 1e-4  # other shapes may be summed in another order


def test_a_point_that_is_not_padded_does_change_the_masks() -> None:
    spec = SPECS["sam1"]
    decoder = NeuralEngineDecoder(toy_decoder(spec))
    filled = with_padded_points({**image_tensors(spec), **prompt_tensors(spec, 1, [1, -1])}, 1)
    changed = {**filled, "point_labels": filled["point_labels"].clone()}
    changed["point_labels"][:, 2] = 0.0
    difference = ask(decoder, spec, filled)[0] - ask(decoder, spec, changed)[0]
    assert difference.abs().max() > 0.01


def test_half_keeps_positions_in_float32() -> None:
    module = to_half(NeuralEngineDecoder(toy_decoder(SPECS["sam1"])))
    types = {name: tensor.dtype for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    wide = {name for name, dtype in types.items() if dtype == torch.float32}
    assert wide == {"points.position.matrix"}
    assert len(types) > 100


def test_shares_no_weight_with_the_reference() -> None:
    reference = toy_decoder(SPECS["sam1"])
    before = copy.deepcopy(reference.state_dict())
    for tensor in to_half(NeuralEngineDecoder(reference)).state_dict().values():
        tensor.zero_()
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())


def test_norm_is_over_channels() -> None:
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    norm = ChannelNorm(torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64), 1e-6)
    expected = torch.nn.functional.layer_norm(
        x.permute(0, 2, 3, 1), (8,), norm.weight.flatten(), norm.bias.flatten(), 1e-6
    )
    assert torch.allclose(norm(x), expected.permute(0, 3, 1, 2), rtol=0, atol=1e-12)


def apple(reference: ReferenceDecoder, feed: dict[str, Tensor], empty: int) -> tuple[Tensor, Tensor]:
    """Ask the two packages' modules: the padding row is left to them."""
    coords, labels = feed["point_coords"][:, :-1], feed["point_labels"][:, :-1].to(torch.int32)
    coords = torch.cat([coords, torch.full((1, empty, 2), 5.0, dtype=coords.dtype)], dim=1)
    labels = torch.cat([labels, torch.full((1, empty), PADDED_POINT, dtype=torch.int32)], dim=1)
    with torch.no_grad():
        sparse, dense = ApplePromptEncoder(reference)(coords, labels)
        assert sparse.shape == (1, coords.shape[1] + 1, 256)
        features = feed["high_res_features_0"], feed["high_res_features_1"]
        masks, scores, _ = AppleMaskDecoder(reference)(feed["image_embeddings"], sparse, dense, *features)
    return masks, scores


@pytest.mark.parametrize("empty", [0, 5])
def test_apple_s_two_packages_compute_the_same(empty: int) -> None:
    spec = SPECS["sam2"]
    reference = toy_decoder(spec).double()
    feed = {**image_tensors(spec, torch.float64), **prompt_tensors(spec, 1, [2, 3, 1, -1], torch.float64)}
    with torch.no_grad():
        expected = reference(**feed)
    masks, scores = apple(reference, feed, empty)
    assert (masks - expected["low_res_masks"]).abs().max() < EXACT
    assert (scores - expected["iou_predictions"]).abs().max() < EXACT


def test_positions_are_the_only_part_that_stays_wide_in_apple_s_packages() -> None:
    reference = toy_decoder(SPECS["sam2"])
    encoder = to_half(ApplePromptEncoder(reference))
    parts = [name for name, part in encoder.named_modules() if isinstance(part, PointPosition)]
    assert parts == ["points.position"]
    assert {p.dtype for p in to_half(AppleMaskDecoder(reference)).parameters()} == {torch.float16}
