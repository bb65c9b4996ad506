"""Faults of image encoders, planted into a small one with real parts: each must be caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toy_encoders import WIDTH, ToyEncoder, ToyGraph, black_first, reference, scaled, std_first
from toy_sessions import IMAGE_SIZE, SPECS, ToySession

from samx.models.session import Feed, Outputs
from samx.models.spec import family_spec
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, to_levels
from samx.validators.encoder_gate import judge_encoder
from samx.validators.encoder_suite import Encode, EncoderSuite
from samx.validators.metrics import encoder_bounds
from samx.validators.pictures import framed
from samx.validators.report import EncoderReport

FAMILIES = {family: replace(spec, mask_input=False) for family, spec in SPECS.items()}
HQ = family_spec("sam_hq", image_size=IMAGE_SIZE, interm_width=WIDTH)
FAMILIES["sam_hq"] = HQ
FAMILIES["minmax"] = replace(FAMILIES["sam1"], pixels="minmax")
BATCHES = (1, 3)  # pictures a call


@cache
def toys(family: str, gain: float = 1.0) -> tuple[ToySession, EncoderSuite]:
    """Return a decoder that remembers, and what an encoder is judged by: as it is read back from an artifact."""
    spec = FAMILIES[family]
    session = ToySession(spec)
    suite = EncoderSuite.build(reference(ToyEncoder(spec, gain=gain)), session, spec.image_size)
    return session, EncoderSuite.load(suite.to_bytes())


def judge(encode: Encode, family: str, precision: str = "fp32", gain: float = 1.0, **more: Any) -> EncoderReport:
    session, suite = toys(family, gain)
    fresh = ToySession(session.spec, session.memory)
    return judge_encoder(encode, fresh, suite, encoder_bounds(precision, "fp32"), **more)


def honest(family: str, **changes: Any) -> ToyGraph:
    return ToyGraph(ToyEncoder(FAMILIES[family]), **changes)


@dataclass
class Planted:
    """Pass everything on to an honest encoder, spoiled by a hook before or after."""

    encode: Encode
    before: Callable[[Planted, dict[str, Any]], Feed] = lambda planted, feed: feed
    after: Callable[[Planted, Outputs], Outputs] = lambda planted, outputs: outputs
    calls: int = 0
    memory: dict[str, Any] = field(default_factory=dict)

    def __call__(self, feed: Feed) -> Outputs:
        self.calls += 1
        return self.after(self, dict(self.encode(self.before(self, dict(feed)))))


Kind = Callable[[str], Encode]


def _before(change: Callable[[dict[str, Any]], Feed]) -> Kind:
    return lambda family: Planted(honest(family), before=lambda planted, feed: change(feed))


def _after(change: Callable[[Planted, Outputs], Outputs]) -> Kind:
    return lambda family: Planted(honest(family), after=change)


def _built(**changes: Any) -> Kind:
    return lambda family: ToyGraph(ToyEncoder(FAMILIES[family], **changes))


def _changed(change: Callable[[ToyEncoder], object]) -> Kind:
    """Change a built encoder's weights, before it becomes a graph."""

    def build(family: str) -> Encode:
        encoder = ToyEncoder(FAMILIES[family])
        change(encoder)
        return ToyGraph(encoder)

    return build


def _pixels(change: Callable[[Tensor, Tensor, str], Tensor]) -> Kind:
    return lambda family: honest(family, pixels=change)


def _one(planted: Planted, outputs: Outputs, change: Callable[[np.float32], Any]) -> Outputs:
    """Change one value of the last output, in the second call alone."""
    value = list(outputs.values())[-1]
    if planted.calls == 2:
        place = (0, 5, 3, 2)
        value[place] = change(value[place])
    return outputs


def _stale(planted: Planted, outputs: Outputs) -> Outputs:
    """Answer as for the picture before."""
    before = planted.memory.get("outputs", outputs)
    planted.memory["outputs"] = outputs
    fits = all(before[name].shape == value.shape for name, value in outputs.items())
    return before if fits else outputs


def _reused(planted: Planted, outputs: Outputs) -> Outputs:
    """Hand the same memory out in each call."""
    for name, value in outputs.items():
        buffer = planted.memory.setdefault(f"{name} {value.shape}", value)
        buffer[...] = value
        outputs[name] = buffer
    return outputs


def _mixed(planted: Planted, outputs: Outputs) -> Outputs:
    """Move values of a call's pictures towards each other."""
    return {name: value + np.float32(1e-3) * (value.mean(0, keepdims=True) - value) for name, value in outputs.items()}


def _unsteady(planted: Planted, outputs: Outputs) -> Outputs:
    return {name: value * np.float32(1 + 1e-7 * planted.calls) for name, value in outputs.items()}


def _fail(*_: Any) -> Any:
    raise RuntimeError("driver\nsays no")


def _renamed(outputs: Outputs) -> Outputs:
    """Swap the first two outputs' names; of a single one, its rows and columns."""
    names = list(outputs)
    if len(names) == 1:
        return {names[0]: np.ascontiguousarray(outputs[names[0]].swapaxes(2, 3))}
    return {**outputs, names[0]: outputs[names[1]], names[1]: outputs[names[0]]}


def _swap_channels(planted: Planted, outputs: Outputs) -> Outputs:
    """Swap two of an output's channels."""
    last = list(outputs)[-1]
    outputs[last][:, [3, 4]] = outputs[last][:, [4, 3]]
    return outputs


KINDS: Mapping[str, Kind] = {
    "BGR": _before(lambda feed: {**feed, "picture": np.ascontiguousarray(feed["picture"][..., ::-1])}),
    "mirrored": _before(lambda feed: {**feed, "picture": np.ascontiguousarray(feed["picture"][:, :, ::-1])}),
    "rows and columns swapped": _before(lambda feed: {**feed, "picture": feed["picture"].swapaxes(1, 2).copy()}),
    "one pixel to the right": _before(lambda feed: {**feed, "picture": np.roll(feed["picture"], 1, 2)}),
    "a level too bright": _before(lambda feed: {**feed, "picture": np.minimum(feed["picture"], 254) + np.uint8(1)}),
    "x - mean / std": _pixels(std_first),
    "of another family's pixels": _pixels(lambda picture, mask, kind: scaled(picture, mask, "half")),
    "not scaled": _pixels(lambda picture, mask, kind: scaled(picture * 255, mask, kind)),
    "stale bias table": _changed(lambda encoder: encoder.bias.mul_(0)),
    "bias table of another order": _changed(lambda encoder: encoder.bias.copy_(encoder.bias.mT.contiguous())),
    "stale positions": _changed(lambda encoder: encoder.position.copy_(encoder.position.roll(1, 2))),
    "epsilon 1e-5": _built(eps=1e-5),
    "a bias left out": _changed(lambda encoder: encoder.qkv.bias.mul_(0)),
    "one weight of a layer": _changed(lambda encoder: encoder.out.weight[3].mul_(1.01)),
    "NaN": _after(lambda planted, outputs: _one(planted, outputs, lambda value: np.nan)),
    "infinite": _after(lambda planted, outputs: _one(planted, outputs, lambda value: np.inf)),
    "huge": _after(lambda planted, outputs: _one(planted, outputs, lambda value: 3e38)),
    "one value": _after(lambda planted, outputs: _one(planted, outputs, lambda value: value + np.float32(0.01))),
    "one sign": _after(lambda planted, outputs: _one(planted, outputs, lambda value: -value)),
    "scaled by 1.0001": _after(lambda planted, outputs: {k: v * np.float32(1.0001) for k, v in outputs.items()}),
    "outputs swapped": _after(lambda planted, outputs: _renamed(outputs)),
    "channels swapped": _after(_swap_channels),
    "an output missing": _after(lambda planted, outputs: dict(list(outputs.items())[1:])),
    "another output": _after(lambda planted, outputs: {**outputs, "more": outputs["image_embeddings"]}),
    "float64": _after(lambda planted, outputs: {k: v.astype(np.float64) for k, v in outputs.items()}),
    "float16 inside": lambda family: honest(family, dtype=torch.float16),
    "a list": _after(lambda planted, outputs: list(outputs.values())),  # type: ignore[arg-type, return-value]
    "nothing": _after(lambda planted, outputs: {}),
    "zeros": _after(lambda planted, outputs: {k: np.zeros_like(v) for k, v in outputs.items()}),
    "picture of before": _after(_stale),
    "buffer reused": _after(_reused),
    "other bits each time": _after(_unsteady),
    "raises": _after(_fail),
    "raises later": _after(lambda planted, outputs: _fail() if planted.calls > 5 else outputs),
}
OF_BATCHES: Mapping[str, Kind] = {
    "batch mixed": _after(_mixed),
    "batch in another order": _after(lambda planted, outputs: {k: v[::-1].copy() for k, v in outputs.items()}),
    "batch of the first": _after(lambda planted, outputs: {k: v[:1].repeat(len(v), 0) for k, v in outputs.items()}),
    "batch cut off": _after(lambda planted, outputs: {k: v[:1] for k, v in outputs.items()}),
}
WORST = ("BGR", "mirrored", "x - mean / std", "not scaled", "stale bias table", "zeros", "NaN", "picture of before")
PADDED: Mapping[str, Kind] = {
    "black padding": _pixels(black_first),
    "valid ignored": _before(lambda feed: {**feed, "valid": np.full_like(feed["valid"], feed["picture"].shape[1])}),
    "valid as width, height": _before(lambda feed: {**feed, "valid": feed["valid"][:, ::-1].copy()}),
    "valid too small by one": _before(lambda feed: {**feed, "valid": feed["valid"] - 1}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_honest_encoder_passes(family: str) -> None:
    report = judge(honest(family), family, batches=BATCHES, resize=to_levels)
    assert report.passed, report.all_failures()
    assert len(report.cases) == 5 + 6
    assert {name for case in report.cases for name in case.metrics} == {
        "feature_error", "feature_error_largest", "iou_prediction_error", "mask_iou_case",
    }  # fmt: skip
    assert report.suite["resizer"] == "compared"
    assert report.metrics["mask_iou_p05"] == report.metrics["mask_iou_mean_all"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_planted_fault_is_caught(family: str, kind: str) -> None:
    report = judge(KINDS[kind](family), family)
    assert not report.passed
    assert report.all_failures()
    assert not any("\n" in line for line in report.all_failures())


@pytest.mark.parametrize("kind", OF_BATCHES)
@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_planted_fault_of_batches_is_caught(family: str, kind: str) -> None:
    report = judge(OF_BATCHES[kind](family), family, batches=BATCHES)
    assert not report.passed
    assert all(case.passed for case in report.cases[:5]), "one by one, the pictures are right"


def test_padding_of_a_batch_that_is_the_first_picture_s_is_caught() -> None:
    kind = _before(lambda feed: {**feed, "valid": feed["valid"][:1].repeat(len(feed["valid"]), 0)})
    assert not judge(kind("sam1"), "sam1", batches=BATCHES).passed


@pytest.mark.parametrize("kind", PADDED)
@pytest.mark.parametrize("family", ["sam1", "minmax"])
def test_planted_fault_of_padding_is_caught(family: str, kind: str) -> None:
    assert not judge(PADDED[kind](family), family).passed


def test_hq_sams_features_of_the_wrong_block_are_caught() -> None:
    assert judge(honest("sam_hq"), "sam_hq").passed
    report = judge(_built(interm_of_block=1)("sam_hq"), "sam_hq")
    assert not report.passed
    assert any("feature_error" in line for line in report.all_failures())


def test_forgotten_no_mem_embed_is_caught() -> None:
    assert not judge(_built(no_mem_embed=False)("sam2"), "sam2").passed


# --- Precision: float16 may cost what float16 costs, and no more ------------------------------------------------------


class WrittenOut(ToyEncoder):
    """Write the norm out in the type of its input, as converters do: its squares leave float16's range."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        apart = x - x.mean(-1, keepdim=True)
        return apart / ((apart * apart).mean(-1, keepdim=True) + self.eps).sqrt() * weight


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_float16_passes_at_its_bounds(family: str) -> None:
    report = judge(honest(family, dtype=torch.float16), family, "fp16")
    assert report.passed, report.all_failures()
    assert 1e-5 < max(case.metrics["feature_error"] for case in report.cases) < 5e-3


def test_float16_that_overflows_is_caught() -> None:
    gain = 4000.0
    kept = ToyGraph(ToyEncoder(FAMILIES["sam1"], gain=gain), dtype=torch.float16)
    assert judge(kept, "sam1", "fp16", gain).passed
    lost = ToyGraph(WrittenOut(FAMILIES["sam1"], gain=gain), dtype=torch.float16)
    report = judge(lost, "sam1", "fp16", gain)
    assert not report.passed
    exact = ToyGraph(WrittenOut(FAMILIES["sam1"], gain=gain))
    assert judge(exact, "sam1", "fp32", gain).passed, "the norm is right, where its squares fit"


def _noisy(share: float) -> Kind:
    def spoil(planted: Planted, outputs: Outputs) -> Outputs:
        rng = np.random.default_rng(1)  # the same noise each time: bits may not differ
        return {k: (v + share * v.std() * rng.standard_normal(v.shape)).astype(np.float32) for k, v in outputs.items()}

    return _after(spoil)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_masks_decide_where_features_have_eight_bits(precision: str) -> None:
    """Between the two, the features are within their bound and the masks are not."""
    good, bad = (judge(_noisy(share)("sam2"), "sam2", precision) for share in (0.01, 0.2))
    assert good.passed, good.all_failures()
    assert not bad.passed
    assert {line.split()[0] for line in bad.failures} <= {"mask_iou_mean", "mask_iou_p05"}
    assert not any(case.failures for case in bad.cases)


@pytest.mark.parametrize("kind", WORST)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_wrong_pixels_are_no_matter_of_precision(precision: str, kind: str) -> None:
    assert not judge(KINDS[kind]("sam1"), "sam1", precision).passed


# --- From the photo: the resizer, and the decoder ---------------------------------------------------------------------


def _resized(photo: RgbArray, frame: Frame, how: Image.Resampling, **more: Any) -> RgbArray:
    square = np.zeros((frame.size_px, frame.size_px, 3), np.uint8)
    size = (frame.valid_width_px, frame.valid_height_px)
    square[: size[1], : size[0]] = np.asarray(Image.fromarray(photo).resize(size, how, **more))
    return square


def _without_antialiasing(photo: RgbArray, frame: Frame) -> RgbArray:
    """Look at the two nearest pixels only, however many there are: what OpenCV's INTER_LINEAR does."""
    square = np.zeros((frame.size_px, frame.size_px, 3), np.uint8)
    sizes = ((frame.height_px, frame.valid_height_px), (frame.width_px, frame.valid_width_px))
    y, x = (np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1) for size, out in sizes)
    values = photo.astype(np.float64)
    rows = np.stack([values[np.floor(y).astype(int)], values[np.ceil(y).astype(int)]])
    rows = rows[0] + (rows[1] - rows[0]) * (y - np.floor(y))[:, None, None]
    left, right = rows[:, np.floor(x).astype(int)], rows[:, np.ceil(x).astype(int)]
    square[: len(y), : len(x)] = np.rint(left + (right - left) * (x - np.floor(x))[None, :, None])
    return square


def _white(square: RgbArray, frame: Frame) -> RgbArray:
    square[frame.valid_height_px :] = square[:, frame.valid_width_px :] = 255
    return square


RESIZERS: Mapping[str, Callable[[RgbArray, Frame], Any]] = {
    "nearest": partial(_resized, how=Image.Resampling.NEAREST),
    "bicubic": partial(_resized, how=Image.Resampling.BICUBIC),
    "without antialiasing": _without_antialiasing,
    "BGR": lambda photo, frame: framed(photo[..., ::-1], frame),
    "stretched": lambda photo, frame: framed(
        photo, replace(frame, valid_width_px=frame.size_px // 2, valid_height_px=frame.size_px // 2)
    ),
    "in the middle": lambda photo, frame: np.roll(framed(photo, frame), 1, 0),
    "white beside": lambda photo, frame: _white(framed(photo, frame), frame),
    "of floats": lambda photo, frame: framed(photo, frame).astype(np.float32),
    "too small": lambda photo, frame: framed(photo, frame)[1:],
    "raises": _fail,
}  # fmt: skip


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_right_resizer_passes(family: str) -> None:
    pillow, dtype = partial(_resized, how=Image.Resampling.BILINEAR), SPECS[family].picture_type
    assert judge(honest(family), family, resize=lambda photo, frame: pillow(photo, frame).astype(dtype)).passed


@pytest.mark.parametrize("kind", RESIZERS)
def test_wrong_resizer_is_caught(kind: str) -> None:
    report = judge(honest("sam1"), "sam1", resize=RESIZERS[kind])
    assert not report.passed
    assert any("resized" in line for line in report.failures)


@pytest.mark.parametrize("kind", ["nearest", "without antialiasing"])
def test_graph_that_is_fed_by_a_wrong_resizer_is_caught(kind: str) -> None:
    """From the photo on: the graph is right, and what it is given is not."""
    _, suite = toys("sam1")
    photos = {picture.square.tobytes(): picture for picture in suite.pictures}

    def refed(planted: Planted, feed: dict[str, Any]) -> Feed:
        pictures = [photos[square.tobytes()] for square in feed["picture"]]
        return {**feed, "picture": np.stack([RESIZERS[kind](one.photo, one.frame) for one in pictures])}

    report = judge(Planted(honest("sam1"), before=refed), "sam1")
    assert not report.passed
    assert max(case.metrics["feature_error"] for case in report.cases) > 0.01


class StaleDecoder(ToySession):
    """Keep the first picture's features."""

    def set_image(self, image: Feed) -> None:
        self.image = self.image or image


class RaisingDecoder(ToySession):
    """Refuse features."""

    def set_image(self, image: Feed) -> None:
        raise RuntimeError("no features")


@pytest.mark.parametrize(("decoder", "said"), [(StaleDecoder, "mask_iou_case"), (RaisingDecoder, "the decoder: ")])
def test_decoder_that_takes_no_features_is_caught(decoder: type[ToySession], said: str) -> None:
    session, suite = toys("sam1")
    wrong = decoder(session.spec, session.memory)
    report = judge_encoder(honest("sam1"), wrong, suite, encoder_bounds("fp32", "fp32"))
    assert not report.passed
    assert any(said in line for line in report.all_failures())
