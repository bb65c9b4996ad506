"""EfficientSAM: all prompts and choices of masks, and its encoder, agree with what its publisher's facts give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from efficientsam_upstream import EfficientSam, efficient_sam, state
from test_reference_upstream import TOLERANCE, assert_agree
from torch import Tensor
from upstream_encoders import relative_error

from samx.errors import CheckpointError, PromptError, UsageError
from samx.models.checkpoint import LoadedDecoder, build_reference, load_checkpoint
from samx.models.encoders.load import find_encoder
from samx.models.fast.decoder import FastDecoder
from samx.models.fixed.decoder import NeuralEngineDecoder
from samx.models.load import load
from samx.models.reference import ReferenceDecoder
from samx.models.spec import DecoderSpec, MaskChoice
from samx.models.weight_files import open_weights
from samx.processing.frames import Frame
from samx.processing.prompts import Prompt, PromptBatch
from samx.quantization.calibration import calibration_spec

SIZE_PX, PICTURE_PX = 128, (90, 150)  # (H, W)
LOUD = 50  # logits of the largest, at least
KINDS = {
    "point": ([[30.0, 40.0]], [1], None),
    "background": ([[30.0, 40.0], [0.0, 0.0]], [0, 0], None),
    "box": ([], [], (10.0, 12.0, 100.0, 70.0)),
    "box and points": ([[50.0, 50.0], [3.0, 4.0]], [1, 0], (10.0, 12.0, 100.0, 70.0)),
    "six points": ([[9.0 * i + 1, 7.0 * i] for i in range(6)], [1, 0, 1, 0, 1, 1], None),
}
KEPT: dict[MaskChoice, slice] = {"multimask": slice(1, 4), "single": slice(0, 1), "all": slice(0, 4)}

FORMS: dict[str, Callable[[ReferenceDecoder, dict[str, Tensor]], Iterable[Tensor]]] = {
    "low_rank": lambda reference, given: FastDecoder(reference, "low_rank")(**given).values(),
    "absorbed": lambda reference, given: FastDecoder(reference, "absorbed")(**given).values(),
    "absorbed, nothing kept": lambda reference, given: FastDecoder(reference, cached=False)(**given).values(),
    "direct": lambda reference, given: FastDecoder(reference, "direct")(**given).values(),
    "fixed": lambda reference, given: NeuralEngineDecoder(reference)(*given.values()),
}


@pytest.fixture(scope="module")
def upstream() -> EfficientSam:
    return efficient_sam(SIZE_PX)


@pytest.fixture(scope="module")
def path(upstream: EfficientSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("efficientsam") / "efficient_sam_vitt.pt"
    torch.save(state(upstream), file)
    return file


@pytest.fixture(scope="module")
def loaded(path: Path) -> LoadedDecoder:
    return load_checkpoint(path, image_size=SIZE_PX)


def image(spec: DecoderSpec) -> Tensor:
    return torch.randn(spec.image_inputs[0].shape, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]


def asked(spec: DecoderSpec, kind: str) -> dict[str, Tensor]:
    points, labels, box = KINDS[kind]
    batch = PromptBatch.of([Prompt(points, labels, box)])  # type: ignore[arg-type]
    fed = batch.feed(spec, Frame.of(spec, PICTURE_PX[1], PICTURE_PX[0]))
    return {name: torch.from_numpy(value) for name, value in fed.items()}


def expected(upstream: EfficientSam, spec: DecoderSpec, kind: str) -> dict[str, Tensor]:
    points, labels, box = KINDS[kind]
    corners = [] if box is None else [list(box[:2]), list(box[2:])]
    scaled = torch.tensor([[*points, *corners]]) * SIZE_PX / torch.tensor(PICTURE_PX[::-1])
    codes = torch.tensor([[*labels, *[2, 3][: len(corners)]]]).float()
    masks, iou = upstream.decode(image(spec), scaled, codes)
    assert masks.abs().max() > LOUD
    kept = KEPT[spec.masks]
    return {"low_res_masks": masks[:, kept], "iou_predictions": iou[:, kept]}


def test_its_layout_is_recognised(loaded: LoadedDecoder) -> None:
    spec = loaded.spec
    assert (spec.family, loaded.kind) == ("efficientsam", "Meta EfficientSAM checkpoint")
    assert (spec.frame, spec.pixels, spec.iou_sigmoid, spec.mask_tokens) == ("stretch", "imagenet", False, 4)
    assert (spec.mlp_width, spec.iou_head_width, spec.iou_head_depth, spec.depth) == (64, 64, 3, 2)


@pytest.mark.parametrize("masks", KEPT)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_agrees(upstream: EfficientSam, loaded: LoadedDecoder, kind: str, masks: MaskChoice) -> None:
    spec = replace(loaded.spec, masks=masks)
    decoder = build_reference(replace(loaded, spec=spec))
    assert asked(spec, kind)["point_labels"].shape == (1, 6)
    assert_agree(decoder(image(spec), **asked(spec, kind)), expected(upstream, spec, kind))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_agrees(upstream: EfficientSam, loaded: LoadedDecoder, kind: str, form: str) -> None:
    spec, reference = loaded.spec, build_reference(loaded)
    given = {"image_embeddings": image(spec), **asked(spec, kind)}
    found = FORMS[form](reference, given)
    names = (tensor.name for tensor in spec.outputs)
    assert_agree(dict(zip(names, found, strict=True)), expected(upstream, spec, kind))


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6)])
@pytest.mark.parametrize("size_px", [128, 224])
def test_its_encoder_agrees(tmp_path: Path, width: int, heads: int, size_px: int) -> None:
    model = efficient_sam(size_px, width=width, heads=heads)
    torch.save(state(model), tmp_path / "model.pt")
    spec = load_checkpoint(tmp_path / "model.pt", image_size=size_px).spec
    found = find_encoder(open_weights(tmp_path / "model.pt"), spec)
    assert found.encoder is not None
    assert found.encoder.architecture.name == "efficientsam"
    pixels = torch.randn(2, 3, size_px, size_px)
    (ours,) = found.encoder.module(pixels)
    assert relative_error(ours, model.image_encoder(pixels)) < TOLERANCE


def test_what_a_changed_part_does_shows(upstream: EfficientSam, loaded: LoadedDecoder) -> None:
    decoder, spec = build_reference(loaded), loaded.spec
    norm = decoder.mask_decoder.get_submodule("output_upscaling.1")
    norm.eps = 1.0  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="low_res_masks: "):
        assert_agree(decoder(image(spec), **asked(spec, "box")), expected(upstream, spec, "box"))


class TestRefused:
    """What differs from the released is refused by name."""

    @pytest.fixture
    def weights(self, upstream: EfficientSam) -> dict[str, Tensor]:
        return dict(upstream.state_dict())

    def refusal(self, folder: Path, weights: dict[str, Tensor]) -> str:
        torch.save({"model": weights}, folder / "model.pt")
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(folder / "model.pt", image_size=SIZE_PX)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("part", "other"),
        [
            ("prompt_encoder.invalid_points.", "prompt_encoder.not_points."),
            ("prompt_encoder.bbox_top_left_embeddings.", "prompt_encoder.bbox_embeddings."),
            ("mask_decoder.iou_token.", "mask_decoder.score_token."),
            ("mlp.fc.", "mlp.last."),
            ("final_output_upscaling_layers.1.0.", "final_output_upscaling_layers.1.1."),
        ],
    )
    def test_a_renamed_module(self, tmp_path: Path, weights: dict[str, Tensor], part: str, other: str) -> None:
        assert "the decoder in" in self.refusal(tmp_path, {k.replace(part, other): v for k, v in weights.items()})

    @pytest.mark.parametrize(
        "key",
        [
            "mask_decoder.transformer.layers.0.mlp.layers.1.0.weight", "prompt_encoder.no_mask_embed.weight",
            "prompt_encoder.mask_downscaling.0.weight", "mask_decoder.final_output_upscaling_layers.2.0.weight",
            "mask_decoder.final_output_upscaling_layers.1.1.weight", "prompt_encoder.point_embeddings.3.weight",
            "mask_decoder.text_token.weight", "mask_decoder.output_hypernetworks_mlps.4.fc.weight",
        ],
    )  # fmt: skip
    def test_one_weight_more(self, tmp_path: Path, weights: dict[str, Tensor], key: str) -> None:
        assert "the decoder in" in self.refusal(tmp_path, {**weights, key: torch.ones(1, 32)})

    @pytest.mark.parametrize("head", ["iou_prediction_head", "output_hypernetworks_mlps.1"])
    def test_one_layer_more(self, tmp_path: Path, weights: dict[str, Tensor], head: str) -> None:
        stem = f"mask_decoder.{head}.layers"
        more = {f"{stem}.2.0.{leaf}": weights[f"{stem}.1.0.{leaf}"] for leaf in ("weight", "bias")}
        assert "two different values" in self.refusal(tmp_path, {**weights, **more})

    def test_one_token_more(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        key = "mask_decoder.mask_tokens.weight"
        changed = {**weights, key: torch.cat([weights[key], weights[key][:1]])}
        assert "output_hypernetworks_mlps.4" in self.refusal(tmp_path, changed)

    @pytest.mark.parametrize(
        "key",
        ["prompt_encoder.invalid_points.weight", "mask_decoder.final_output_upscaling_layers.0.1.weight"],
    )
    def test_another_shape(self, tmp_path: Path, weights: dict[str, Tensor], key: str) -> None:
        assert "wrong shape" in self.refusal(tmp_path, {**weights, key: torch.cat([weights[key]] * 2)})

    def test_every_weight_is_needed(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        ours = [key for key in weights if not key.startswith("image_encoder.")]
        for key in ours[:: len(ours) // 8]:
            assert "the decoder in" in self.refusal(tmp_path, {k: v for k, v in weights.items() if k != key}), key

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda w: {**w, "pos_embed": w["pos_embed"][:, :-1]}, "positions of no square"),
            (lambda w: {k: v for k, v in w.items() if k != "blocks.1.norm2.bias"}, "lacks weights"),
            (lambda w: {**w, "blocks.1.attn.rel_pos_h": torch.ones(3, 64)}, "should not have"),
            (lambda w: {**w, "blocks.2.norm1.weight": torch.ones(192)}, "lacks weights"),
            (lambda w: {**w, "patch_embed.proj.weight": torch.ones(192, 3, 8, 8)}, "patches of another size"),
            (lambda w: {**w, "patch_embed.proj.weight": torch.ones(256, 3, 16, 16)}, "heads are not known"),
        ],
    )
    def test_another_encoder(
        self, tmp_path: Path, weights: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        said: str,
    ) -> None:  # fmt: skip
        stem = "image_encoder."
        own = change({k.removeprefix(stem): v for k, v in weights.items() if k.startswith(stem)})
        decoder = {k: v for k, v in weights.items() if not k.startswith(stem)}
        torch.save({**decoder, **{stem + k: v for k, v in own.items()}}, tmp_path / "model.pt")
        spec = load_checkpoint(tmp_path / "model.pt", image_size=SIZE_PX).spec
        with pytest.raises(CheckpointError, match=said):
            find_encoder(open_weights(tmp_path / "model.pt"), spec)

    def test_a_previous_mask(self, path: Path, loaded: LoadedDecoder) -> None:
        with pytest.raises(UsageError, match="EfficientSAM takes no mask prompts"):
            load(path, mask_input=True, image_size=SIZE_PX)
        with pytest.raises(UsageError, match="EfficientSAM takes no mask prompts"):
            replace(loaded.spec, mask_input=True)

    def test_eight_bits(self, loaded: LoadedDecoder) -> None:
        with pytest.raises(UsageError, match="the decoder of EfficientSAM is not calibrated"):
            calibration_spec(loaded.spec)

    @pytest.mark.parametrize(("points", "box"), [(7, None), (5, (1.0, 2.0, 30.0, 40.0))])
    def test_more_points_than_it_sees(
        self, loaded: LoadedDecoder, points: int, box: tuple[float, float, float, float] | None
    ) -> None:
        batch = PromptBatch.of([Prompt([(5.0, 6.0)] * points, [1] * points, box)])
        with pytest.raises(PromptError, match="EfficientSAM takes no prompt of so many points: found 7, a box"):
            batch.feed(loaded.spec, Frame.of(loaded.spec, 50, 60))
