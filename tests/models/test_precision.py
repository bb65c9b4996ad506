"""Half precision: every group in the type that it was given, float32 at the border, and errors where they are put."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import image_tensors, prompt_tensors, toy_decoder

from samx.errors import UsageError
from samx.models.fast.decoder import FastDecoder
from samx.models.fast.precision import GROUPS, KEEP_FP32, STREAM, groups_of, set_precision
from samx.models.spec import PADDED_POINT, DecoderSpec, sam1_spec, sam2_spec

SMALL = 128
SPECS = {
    "sam1": sam1_spec(image_size=SMALL),
    "sam1_mask": sam1_spec(image_size=SMALL, mask_input=True),
    "sam2": sam2_spec(image_size=SMALL, masks="single", object_pointer=True),
}
HALF_CLOSE = 0.02  # of the largest logit: eleven bits, through forty operations


def decoders(spec: DecoderSpec) -> tuple[FastDecoder, FastDecoder]:
    reference = toy_decoder(spec)
    return FastDecoder(reference), FastDecoder(reference)


def feed(spec: DecoderSpec) -> dict[str, Tensor]:
    return {**image_tensors(spec), **prompt_tensors(spec, 3, [1, 0, -1])}


def error(exact: FastDecoder, other: FastDecoder) -> float:
    given = feed(exact.spec)
    want, found = exact(**given)["low_res_masks"], other(**given)["low_res_masks"]
    return float((want - found).abs().max() / want.abs().max())


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_everything_but_the_kept_groups_is_half(spec: DecoderSpec) -> None:
    exact, half = decoders(spec)
    set_precision(half)
    tensors = dict((*half.named_parameters(), *half.named_buffers()))
    kept = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert kept == {"points.position.matrix"}
    assert {tensor.dtype for tensor in half(**feed(spec)).values()} == {torch.float32}
    if spec.masks != "single":  # where the fallback chooses, one flipped decision moves a whole mask
        assert 0 < error(exact, half) < HALF_CLOSE


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_the_groups_hold_every_weight_but_the_learned_tokens(spec: DecoderSpec) -> None:
    _, decoder = decoders(spec)
    set_precision(decoder, set(GROUPS))  # the stream alone is half now
    tensors = dict((*decoder.named_parameters(), *decoder.named_buffers()))
    stream = {name for name, tensor in tensors.items() if tensor.dtype == torch.float16}
    assert stream == {
        "learned_tokens", "points.table", "points.codes", "transformer.no_mask", "transformer.position", "head.bias",
    }  # fmt: skip


@pytest.mark.parametrize("group", groups_of(FastDecoder(toy_decoder(SPECS["sam1"]))))
def test_each_group_alone_adds_a_small_error(group: str) -> None:
    exact, half = decoders(SPECS["sam1"])
    others = {*GROUPS, STREAM} - {group}
    found = error(exact, set_precision(half, others))
    assert found < HALF_CLOSE
    assert found > 0 or group == "IoU head"  # which makes no mask


@pytest.mark.parametrize("group", [*GROUPS, STREAM])
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_any_group_can_be_alone_or_spared(spec: DecoderSpec, group: str) -> None:
    """In every family: a tensor that crosses a border without its cast stops the decoder."""
    for keep_fp32 in ({*GROUPS, STREAM} - {group}, {*KEEP_FP32, group}):
        _, half = decoders(spec)
        outputs = set_precision(half, keep_fp32)(**feed(spec))
        assert all(bool(torch.isfinite(value).all()) for value in outputs.values())


def test_all_groups_kept_are_the_exact_decoder() -> None:
    exact, half = decoders(SPECS["sam1"])
    assert error(exact, set_precision(half, {*GROUPS, STREAM})) == 0


def test_pixel_coordinates_need_float32() -> None:
    """The group is kept for a reason: in half precision a point's encoding is off by whole percents."""
    spec = sam1_spec(image_size=1024)
    exact, half = decoders(spec)
    coords = torch.tensor([[[1001.5, 777.25]]])
    labels = torch.ones(1, 1)
    want = exact.points(coords, labels)
    kept = (set_precision(half, KEEP_FP32).points(coords, labels) - want).abs().max()
    _, spoiled = decoders(spec)
    lost = (set_precision(spoiled, ()).points(coords, labels) - want).abs().max()
    assert lost > 5 * kept


def test_an_unknown_group_is_refused() -> None:
    _, half = decoders(SPECS["sam1"])
    with pytest.raises(UsageError, match="found atlantis"):
        set_precision(half, {"atlantis"})


@pytest.mark.parametrize("form", ["low_rank", "absorbed", "direct"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_padded_points_change_nothing(family: str, dtype: torch.dtype, bound: float, form: str) -> None:
    spec = SPECS[family]
    decoder = FastDecoder(toy_decoder(spec).to(dtype), form, padded_points=True)  # type: ignore[arg-type]
    given = {**image_tensors(spec, dtype), **prompt_tensors(spec, 3, [1, 0, -1], dtype)}
    padded = {
        **given,
        "point_coords": torch.nn.functional.pad(given["point_coords"], (0, 0, 0, 5), value=77.0),
        "point_labels": torch.nn.functional.pad(given["point_labels"], (0, 5), value=PADDED_POINT),
    }
    want, found = decoder(**given)["low_res_masks"], decoder(**padded)["low_res_masks"]
    assert float((want - found).abs().max() / want.abs().max()) < bound


def test_without_padded_points_an_empty_label_would_be_seen() -> None:
    spec = SPECS["sam1"]
    decoder = FastDecoder(toy_decoder(spec), padded_points=False)
    given = feed(spec)
    padded = {
        **given,
        "point_coords": torch.nn.functional.pad(given["point_coords"], (0, 0, 0, 1)),
        "point_labels": torch.nn.functional.pad(given["point_labels"], (0, 1), value=PADDED_POINT),
    }
    assert (decoder(**given)["low_res_masks"] - decoder(**padded)["low_res_masks"]).abs().max() > 1e-3


def test_padded_points_change_nothing_in_half_either() -> None:
    spec = SPECS["sam1"]
    decoder = set_precision(FastDecoder(toy_decoder(spec), padded_points=True))
    given = feed(spec)
    padded = {
        **given,
        "point_coords": torch.nn.functional.pad(given["point_coords"], (0, 0, 0, 5)),
        "point_labels": torch.nn.functional.pad(given["point_labels"], (0, 5), value=PADDED_POINT),
    }
    want, found = decoder(**given)["low_res_masks"], decoder(**padded)["low_res_masks"]
    assert float((want - found).abs().max() / want.abs().max()) < 2e-3  # sums in another order, in eleven bits
