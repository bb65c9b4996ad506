"""SAM 3's tracker and SAM 3.1's interactive head: recognised in every layout, and computed as upstream does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import sam3_models as models
import torch
from checkpoint_files import meta_sam2
from exports import export_job, job_for
from sam3_models import State, under
from test_reference_upstream import CASES, PROMPTS, Pair, assert_agree, feed, images, run_upstream
from torch import Tensor

from samx.errors import CheckpointError
from samx.models.checkpoint import build_reference, load_checkpoint
from samx.models.spec import DecoderSpec, family_spec

transformers = pytest.importorskip("transformers")
LOGITS, IOU, PEAK = 5e-5, 0.9998, 50.0  # of the largest logit; of all masks; what the largest logit reaches
GAIN = 3.0  # of what makes masks
SIZE = {"image_size": models.SIZE_PX}
Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def loud_tracker(**decoder: Any) -> Any:
    model = models.tracker(**decoder)
    for mlp in model.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.mul_(GAIN)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tracker")
    loud_tracker().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    """Pair the models; "sam2" says how upstream is called, and that prompts are padded as SAM 2's."""
    return Pair("sam2", loud_tracker(), load_checkpoint(folder))


def exported(pair: Pair, where: Path, mask_input: bool) -> Run:
    """Export the decoder, and return what runs the file in plain ONNX Runtime."""
    spec = replace(pair.spec, mask_input=mask_input)
    export_job(job_for("onnx", pair.loaded, spec), where)
    session = onnxruntime.InferenceSession(str(where / "decoder.onnx"), providers=["CPUExecutionProvider"])
    names, taken = [o.name for o in session.get_outputs()], {i.name for i in session.get_inputs()}
    assert names == [tensor.name for tensor in spec.outputs]
    mask = torch.zeros(PROMPTS, 1, spec.mask_size, spec.mask_size)

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        has = torch.full((PROMPTS,), float("mask_input" in given))
        whole = {"mask_input": mask, "has_mask_input": has, **given}
        ran = session.run(None, {name: whole[name].numpy() for name in taken})
        return dict(zip(names, map(torch.from_numpy, ran), strict=True))

    return run


@pytest.fixture(scope="module")
def low_rank(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return exported(pair, tmp_path_factory.mktemp("onnx"), mask_input=False)


@pytest.fixture(scope="module")
def with_masks(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return exported(pair, tmp_path_factory.mktemp("onnx"), mask_input=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if "mask" not in case])
def test_the_exported_file_agrees_with_hugging_face(pair: Pair, low_rank: Run, case: str) -> None:
    agrees(pair, low_rank, case)


@pytest.mark.parametrize("case", CASES)
def test_so_does_the_one_that_takes_masks(pair: Pair, with_masks: Run, case: str) -> None:
    agrees(pair, with_masks, case)


def agrees(pair: Pair, run: Run, case: str) -> None:
    torch.manual_seed(0)
    image, prompt = images(pair.spec, 1), CASES[case]()
    expected = run_upstream(pair, image, prompt, multimask=True)
    found = run({**image, **feed("sam2", prompt)})
    assert expected["low_res_masks"].abs().max() >= PEAK
    assert_agree(found, expected, LOGITS)
    ours, theirs = found["low_res_masks"] > 0, expected["low_res_masks"] > 0
    assert float((ours & theirs).sum() / (ours | theirs).sum()) >= IOU
    assert 0 < theirs.float().mean() < 1


def test_one_mask_falls_back_as_upstreams_does(pair: Pair) -> None:
    torch.manual_seed(2)
    image, prompt = images(pair.spec, 1), CASES["box and points"]()
    expected = run_upstream(pair, image, prompt, multimask=False)
    assert_agree(pair.ours(masks="single")(**image, **feed("sam2", prompt)), expected)


def test_at_full_size(tmp_path: Path) -> None:
    model = models.tracker(1008)
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    shapes = [tensor.shape for tensor in loaded.spec.image_inputs]
    assert shapes == [(1, 256, 72, 72), (1, 32, 288, 288), (1, 64, 144, 144)]
    assert (loaded.spec, loaded.spec.mask_px) == (family_spec("sam3"), 3.5)
    torch.manual_seed(7)
    image, prompt = images(loaded.spec, 1), CASES["box and points"]()
    pair = Pair("sam2", model, loaded)
    assert_agree(pair.ours()(**image, **feed("sam2", prompt)), run_upstream(pair, image, prompt, multimask=True))


DECODER = {key: tensor for key, tensor in meta_sam2().items() if key.startswith("sam_")}
TRACKER = {"transformer.encoder.layers.0.cross_attn_image.q_proj.weight": torch.ones(1)}
VISION = {"backbone.vision_backbone.trunk.patch_embed.proj.weight": torch.ones(1)}
LATER = under("interactive_", DECODER)
OF_16 = {key: 2 * tensor for key, tensor in DECODER.items() if "mask_decoder" in key}
# Keys of released layouts; source: facebookresearch/sam3 (model_builder, sam3_tracker_base, vitdet).
META: Mapping[str, State] = {
    "sam3.pt": {**under("tracker.", {**DECODER, **TRACKER}), "detector.dot_prod_scoring.weight": torch.ones(1)},
    "tracker": {**DECODER, **TRACKER},
    "tracker, prefixed": under("model.", {**DECODER, **TRACKER}),
    "tracker with its backbone": {**DECODER, **VISION},
    "image model": {**under("inst_interactive_predictor.model.", DECODER), **VISION},
    "sam3.1": under("tracker.model.", {**LATER, **OF_16, "interactivity_no_mem_embed": torch.ones(1, 1, 256)}),
    "sam3.1's head alone": LATER,
}


def loaded_from(folder: Path, state: Mapping[str, Tensor], **options: Any) -> tuple[DecoderSpec, Mapping[str, Tensor]]:
    torch.save(state, folder / "model.pth")
    loaded = load_checkpoint(folder / "model.pth", **options)
    assert loaded.spec.family == "sam3"
    assert build_reference(loaded) is not None
    return loaded.spec, loaded.weights


@pytest.mark.parametrize("layout", META)
def test_metas_layouts(tmp_path: Path, layout: str) -> None:
    spec, weights = loaded_from(tmp_path, META[layout])
    assert spec == family_spec("sam3", iou_sigmoid=not layout.startswith("sam3.1"))
    key = "mask_decoder.transformer.layers.1.mlp.lin2.weight"
    assert torch.equal(weights[key], DECODER["sam_mask_decoder.transformer.layers.1.mlp.layers.1.weight"])


@pytest.mark.parametrize("layout", ["module", "whole repository"])
def test_hugging_faces_layouts(tmp_path: Path, pair: Pair, layout: str) -> None:
    _, weights = loaded_from(tmp_path, models.hugging_face_files(pair.upstream)[layout], **SIZE)
    assert weights.keys() == pair.loaded.weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in pair.loaded.weights.items())


def test_a_whole_repositorys_configuration_is_the_trackers(folder: Path, tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    tracker = json.loads((folder / "config.json").read_text())
    tracker["mask_decoder_config"]["dynamic_multimask_stability_delta"] = 0.25
    detector = {"mask_decoder_config": {"num_upsampling_stages": 3}}
    whole = {"model_type": "sam3_video", "tracker_config": tracker, "detector_config": detector}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert load_checkpoint(tmp_path).spec == replace(pair.spec, stability_delta=0.25)


class TestTwins:
    """A decoder alone has names and shapes of SAM 2's: its frame or its configuration tells."""

    @pytest.mark.parametrize("size", [1008, 560])
    def test_a_frame_of_sam_3s(self, tmp_path: Path, size: int) -> None:
        assert loaded_from(tmp_path, DECODER, image_size=size)[0] == family_spec("sam3", image_size=size)

    def test_no_frame_names_both(self, tmp_path: Path) -> None:
        said = refused(tmp_path, DECODER)
        assert "may be of SAM 2 or of SAM 3: found no image encoder" in said
        assert "--image-size 1024 for SAM 2 or --image-size 1008 for SAM 3" in said

    def test_a_frame_of_neither(self, tmp_path: Path) -> None:
        assert "an image size of 1000 px" in refused(tmp_path, DECODER, image_size=1000)

    @pytest.mark.parametrize(("model_type", "family"), [("sam3_tracker", "sam3"), ("sam2_video", "sam2")])
    def test_a_configuration(self, tmp_path: Path, pair: Pair, model_type: str, family: str) -> None:
        state = {k: v.clone() for k, v in pair.upstream.state_dict().items() if "vision_encoder" not in k}
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert load_checkpoint(tmp_path).spec.family == family


class TestTwoDecoders:
    STATE = {**under("tracker.", DECODER), **under("detector.inst_interactive_predictor.model.", LATER)}

    def test_a_choice_is_asked_for(self, tmp_path: Path) -> None:
        said = refused(tmp_path, self.STATE)
        assert "more than one decoder" in said
        assert "--decoder tracker" in said

    def test_and_obeyed(self, tmp_path: Path) -> None:
        spec, weights = loaded_from(tmp_path, self.STATE, decoder="tracker")
        assert torch.equal(weights["mask_decoder.iou_token.weight"], DECODER["sam_mask_decoder.iou_token.weight"])
        assert load_checkpoint(tmp_path / "model.pth", decoder="tracker").prefix == "tracker."
        assert spec.family == "sam3"

    @pytest.mark.parametrize("name", ["teacher", "t.", "DETECTOR"])
    def test_a_name_that_none_has(self, tmp_path: Path, name: str) -> None:
        assert f"not one decoder whose keys begin with '{name}'" in refused(tmp_path, self.STATE, decoder=name)


def refused(folder: Path, state: Mapping[str, Tensor], **options: Any) -> str:
    torch.save(dict(state), folder / "model.pth")
    return refusal(folder / "model.pth", **options)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    return str(caught.value)


CHANGES: Mapping[str, tuple[str, str, Any]] = {
    "activation of the decoder": ("mask_decoder_config", "hidden_act", "relu"),
    "activation of the prompt encoder": ("prompt_encoder_config", "hidden_act", "relu"),
    "epsilon of the prompt encoder": ("prompt_encoder_config", "layer_norm_eps", 1e-5),
    "epsilon of the decoder": ("mask_decoder_config", "layer_norm_eps", 1e-6),
    "one more mask": ("mask_decoder_config", "num_multimask_outputs", 4),
    "positions": ("prompt_encoder_config", "scale", 2),
    "unknown": ("mask_decoder_config", "rotary", True),
}


class TestNothingThatDiffers:
    @pytest.mark.parametrize("nested", [False, True], ids=["tracker", "whole repository"])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
    def test_a_configuration(self, folder: Path, tmp_path: Path, change: tuple[str, str, Any], nested: bool) -> None:
        section, field, value = change
        (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config[section][field] = value
        whole = {"model_type": "sam3_video", "tracker_config": config} if nested else config
        (tmp_path / "config.json").write_text(json.dumps(whole))
        assert f"{section}.{field} = {value!r}" in refusal(tmp_path)

    @pytest.mark.parametrize("layout", ["sam3.pt", "sam3.1"])
    @pytest.mark.parametrize(
        ("key", "said"),
        [
            ("sam_mask_decoder.text_token.weight", "mask_decoder.text_token"),
            ("sam_mask_decoder.transformer.layers.0.norm5.weight", "norm5"),
            ("sam_prompt_encoder.point_embeddings.4.weight", "point_embeddings.4"),
        ],
    )
    def test_a_weight_more(self, tmp_path: Path, layout: str, key: str, said: str) -> None:
        prefix = "tracker." if layout == "sam3.pt" else "tracker.model.interactive_"
        assert said in refused(tmp_path, {**META[layout], prefix + key: torch.ones(1)})

    def test_one_more_token(self, tmp_path: Path) -> None:
        key = "tracker.sam_mask_decoder.mask_tokens.weight"
        tokens = META["sam3.pt"][key]
        said = refused(tmp_path, {**META["sam3.pt"], key: torch.cat([tokens, tokens[:1]])})
        assert "output_hypernetworks_mlps.4" in said

    @pytest.mark.parametrize("module", ["sam_mask_decoder.transformer.", "sam_prompt_encoder.pe_"])
    def test_a_renamed_module(self, tmp_path: Path, module: str) -> None:
        part, _, rest = module.partition(".")
        assert "the decoder in" in refused(
            tmp_path, {k.replace(module, f"{part}.new_{rest}"): v for k, v in META["sam3.pt"].items()}
        )

    def test_the_video_decoder_of_16_objects(self, tmp_path: Path) -> None:
        """Without the interactive head there is no decoder of clicks in a SAM 3.1 file."""
        assert "the decoder in" in refused(tmp_path, under("tracker.model.", {**OF_16, **TRACKER}))

    @pytest.mark.parametrize(
        "keys",
        [
            ["detector.backbone.vision_backbone.convs.0.conv_1x1.weight", "detector.transformer.decoder.norm.weight"],
            ["detector_model.mask_decoder.mask_embedder.layers.0.weight", "detector_model.text_projection.weight"],
        ],
        ids=["Meta", "Hugging Face"],
    )
    def test_a_detector_without_its_tracker(self, tmp_path: Path, keys: list[str]) -> None:
        said = refused(tmp_path, {key: torch.ones(2, 2) for key in keys})
        assert "holds SAM 3's detector without its tracker" in said
