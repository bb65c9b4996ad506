"""A decoder that differs in one thing from those that samx computes is computed as it is, or refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import meta_sam1, meta_sam2, syscv_sam_hq, syscv_sam_hq2
from safetensors.torch import load_file, save_file
from test_reference_upstream import (
    SIZE_PX,
    assert_agree,
    build_upstream,
    feed,
    images,
    make_pair,
    masks,
    points,
    run_upstream,
)
from torch import Tensor

from samx.errors import CheckpointError, MissingExtraError
from samx.models.checkpoint import load_checkpoint

transformers = pytest.importorskip("transformers")

State = dict[str, Tensor]
META: Mapping[str, Callable[[], State]] = {
    "sam1": meta_sam1,
    "sam2": lambda: meta_sam2(mlp_width=8, iou_head_width=8, cross_attention_width=16),
    "sam_hq": syscv_sam_hq,
    "sam_hq2": lambda: syscv_sam_hq2(mlp_width=8, iou_head_width=8, cross_attention_width=16),
}
PREFIX = {"sam1": "", "sam2": "sam_", "sam_hq": "", "sam_hq2": "sam_"}
SHOWS = 1e-5  # of the largest logit: what a change must do to count


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(folder: Path, state: State, **options: Any) -> str:
    torch.save(state, folder / "model.pth")
    return refusal(folder / "model.pth", **options)


@pytest.fixture(params=["sam1", "sam2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestWeights:
    """Meta's layout: every key of the decoder is used or known."""

    @pytest.fixture(params=META)
    def family(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize(
        ("module", "other"),
        [("hf_token.", "hf_tokens."), ("hf_mlp.", "hq_mlp."), ("embedding_maskfeature.0.", "embedding_maskfeature.5.")],
    )
    @pytest.mark.parametrize("name", ["sam_hq", "sam_hq2"])
    def test_a_renamed_module_of_hq_sam(self, tmp_path: Path, name: str, module: str, other: str) -> None:
        renamed = {key.replace(module, other): value for key, value in META[name]().items()}
        assert "the decoder in" in refused(tmp_path, renamed)

    @pytest.mark.parametrize("name", ["sam_hq", "sam_hq2"])
    def test_two_tokens_of_hq_sam(self, tmp_path: Path, name: str) -> None:
        state, key = META[name](), f"{PREFIX[name]}mask_decoder.hf_token.weight"
        assert "hf_token.weight (2, " in refused(tmp_path, {**state, key: torch.cat([state[key]] * 2)})

    @pytest.mark.parametrize("part", ["compress_vit_feat.", "embedding_encoder."])
    def test_half_of_hq_sams_image_side(self, tmp_path: Path, part: str) -> None:
        state = {key: value for key, value in syscv_sam_hq().items() if part not in key}
        assert f"lacks weights: found mask_decoder.{part}" in refused(tmp_path, state)

    def test_one_more_output_token(self, tmp_path: Path, family: str) -> None:
        state, key = META[family](), f"{PREFIX[family]}mask_decoder.mask_tokens.weight"
        state[key] = torch.cat([state[key], state[key][:1]])
        assert "output_hypernetworks_mlps.4" in refused(tmp_path, state)

    def test_a_token_of_another_name(self, tmp_path: Path, family: str) -> None:
        key = f"{PREFIX[family]}mask_decoder.text_token.weight"
        assert "mask_decoder.text_token" in refused(tmp_path, {**META[family](), key: torch.ones(1, 32)})

    @pytest.mark.parametrize("module", ["mask_decoder.transformer.", "mask_decoder.iou_token.", "prompt_encoder.pe_"])
    def test_a_renamed_module(self, tmp_path: Path, family: str, module: str) -> None:
        part, _, rest = module.partition(".")
        renamed = {k.replace(module, f"{part}.new_{rest}"): v for k, v in META[family]().items()}
        assert "the decoder in" in refused(tmp_path, renamed)

    @pytest.mark.parametrize(
        "key",
        [
            "prompt_encoder.point_embeddings.4.weight", "prompt_encoder.text.weight", "mask_decoder.conv_s0.scale",
            "mask_decoder.transformer.layers.0.norm5.weight", "mask_decoder.transformer.layers.2.norm1.weight",
            "mask_decoder.iou_prediction_head.layers.3.weight", "mask_decoder.output_upscaling.2.weight",
        ],
    )  # fmt: skip
    def test_one_weight_more(self, tmp_path: Path, family: str, key: str) -> None:
        assert "the decoder in" in refused(tmp_path, {**META[family](), PREFIX[family] + key: torch.ones(1)})

    def test_one_weight_less(self, tmp_path: Path, family: str) -> None:
        ours = [key for key in META[family]() if key.startswith(("mask_", "prompt_", "sam_"))]
        for key in ours[:: max(1, len(ours) // 4)]:
            assert "the decoder in" in refused(tmp_path, {k: v for k, v in META[family]().items() if k != key}), key

    @pytest.mark.parametrize("part", ["conv_s0.weight", "conv_s0.bias", "conv_s1.weight", "conv_s1.bias"])
    def test_half_of_the_skip_convolutions(self, tmp_path: Path, part: str) -> None:
        state = {key: tensor for key, tensor in meta_sam2().items() if not key.endswith(part)}
        assert f"lacks weights: found mask_decoder.{part}" in refused(tmp_path, state)


CHANGES: Mapping[str, tuple[str, str, Any]] = {
    "activation of the prompt encoder": ("prompt_encoder_config", "hidden_act", "relu"),
    "epsilon of the prompt encoder": ("prompt_encoder_config", "layer_norm_eps", 1e-2),
}
SAM1_CHANGES = {
    "activation of the decoder": ("mask_decoder_config", "hidden_act", "gelu"),
}
REFUSED: Mapping[str, list[tuple[str, str, Any]]] = {
    "sam1": [*CHANGES.values(), *SAM1_CHANGES.values()],
    "sam_hq": [*CHANGES.values(), *SAM1_CHANGES.values(), ("mask_decoder_config", "vit_dim", 16)],
    "sam2": [
        *CHANGES.values(),
        ("mask_decoder_config", "hidden_act", "silu"),
        ("mask_decoder_config", "layer_norm_eps", 1e-3),
        ("prompt_encoder_config", "scale", 2),
    ],
}  # fmt: skip
FOR_BOTH: list[tuple[str, str, Any]] = [
    ("prompt_encoder_config", "num_point_embeddings", 5),
    ("prompt_encoder_config", "hidden_size", 128),
    ("prompt_encoder_config", "mask_input_channels", 32),
    ("prompt_encoder_config", "image_embedding_size", 32),
    ("prompt_encoder_config", "rotary", True),
    ("mask_decoder_config", "hidden_size", 512),
    ("mask_decoder_config", "mlp_dim", 1024),
    ("mask_decoder_config", "num_hidden_layers", 3),
    ("mask_decoder_config", "attention_downsample_rate", 1),
    ("mask_decoder_config", "num_multimask_outputs", 4),
    ("mask_decoder_config", "iou_head_depth", 2),
    ("mask_decoder_config", "iou_head_hidden_dim", 64),
    ("mask_decoder_config", "use_text", {"deep": [[]]}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in REFUSED}
    for name, folder in made.items():
        build_upstream(name, SIZE_PX).save_pretrained(folder)
    return made


class TestConfigurations:
    """Hugging Face's layout: every field of the decoder's and the prompt encoder's configuration is used or known."""

    @pytest.mark.parametrize(
        ("name", "change"), [(n, c) for n, changes in REFUSED.items() for c in [*changes, *FOR_BOTH]]
    )
    def test_a_changed_field_is_refused_by_name(
        self, folders: Mapping[str, Path], tmp_path: Path, name: str, change: tuple[str, str, Any]
    ) -> None:
        section, field, value = change
        assert load_checkpoint(copy(folders[name], tmp_path / "as_it_is", lambda config: None)).spec.family == name
        edited = copy(folders[name], tmp_path / "edited", lambda config: config[section].update({field: value}))
        assert f"{section}.{field} = {value!r}" in refusal(edited)

    def test_the_configuration_of_another_family(self, folders: Mapping[str, Path], tmp_path: Path) -> None:
        edited = copy(folders["sam2"], tmp_path / "edited", lambda config: config.update(model_type="sam"))
        assert "model_type 'sam'" in refusal(edited)

    @pytest.mark.parametrize("value", [[], "text", 3])
    def test_a_section_that_is_none(self, folders: Mapping[str, Path], tmp_path: Path, value: Any) -> None:
        edited = copy(folders["sam1"], tmp_path / "edited", lambda config: config.update(mask_decoder_config=value))
        assert "mask_decoder_config" in refusal(edited)

    def test_what_transformers_of_other_versions_write_is_known(
        self, folders: Mapping[str, Path], tmp_path: Path, family: str
    ) -> None:
        fields = {"torch_dtype": "float32", "chunk_size_feed_forward": 0, "pruned_heads": {}, "_name_or_path": ""}
        edited = copy(folders[family], tmp_path / "edited", lambda config: config["mask_decoder_config"].update(fields))
        assert load_checkpoint(edited).spec == load_checkpoint(folders[family]).spec

    @pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
    def test_each_change_of_the_prompt_encoder_shows_upstream(
        self, tmp_path: Path, family: str, change: tuple[str, str, Any]
    ) -> None:
        _, field, value = change
        assert shown(tmp_path, family, prompt_encoder={field: value}) > SHOWS

    @pytest.mark.parametrize("change", SAM1_CHANGES.values(), ids=list(SAM1_CHANGES))
    def test_each_change_of_the_decoder_shows_upstream(self, tmp_path: Path, change: tuple[str, str, Any]) -> None:
        _, field, value = change
        assert shown(tmp_path, "sam1", decoder={field: value}) > SHOWS


def copy(source: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a model directory, its weights as a link, its configuration edited."""
    target.mkdir()
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    edit(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def shown(
    folder: Path, name: str, decoder: Mapping[str, Any] | None = None, prompt_encoder: Mapping[str, Any] | None = None
) -> float:
    """Return what a change does to upstream's logits, of the largest."""
    pair = make_pair(folder, name, SIZE_PX)
    changed = build_upstream(name, SIZE_PX, **(decoder or {}))
    if prompt_encoder:
        config = changed.config
        for field, value in prompt_encoder.items():
            setattr(config.prompt_encoder_config, field, value)
        changed = type(changed)(config).eval()
        changed.load_state_dict(pair.upstream.state_dict())
        changed.requires_grad_(False)
    torch.manual_seed(0)
    image, prompt = images(pair.spec, 1), points(1, 0)
    prompt = type(prompt)(prompt.points, prompt.labels, None, masks())
    before = run_upstream(pair, image, prompt, multimask=True)["low_res_masks"]
    after = run_upstream(type(pair)(name, changed, pair.loaded), image, prompt, multimask=True)["low_res_masks"]
    return float((after - before).abs().max() / before.abs().max())


class TestNorms:
    @pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-2])
    def test_the_epsilon_of_a_configuration_is_used(self, tmp_path: Path, eps: float) -> None:
        pair = make_pair(tmp_path, "sam1", SIZE_PX, layer_norm_eps=eps)
        assert (pair.spec.norm_eps, pair.spec.final_norm_eps) == (eps, 1e-5)
        torch.manual_seed(0)
        image, prompt = images(pair.spec, 1), points(1, 0)
        expected = run_upstream(pair, image, prompt, multimask=True)
        given = feed("sam1", prompt)
        assert_agree(pair.ours()(**image, **given), expected)
        with pytest.raises(AssertionError, match="e-0"):
            assert_agree(pair.ours(norm_eps=10 * eps, final_norm_eps=1e-2)(**image, **given), expected)

    def test_without_a_configuration_sam_models_epsilon_is_used(self, tmp_path: Path) -> None:
        build_upstream("sam1", SIZE_PX).save_pretrained(tmp_path)
        save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "alone.safetensors")
        assert load_checkpoint(tmp_path / "alone.safetensors").spec.norm_eps == 1e-6

    @pytest.mark.parametrize("value", [0.0, 1.5, -1e-6, float("nan"), float("inf"), "1e-6", 1])
    def test_an_epsilon_that_is_none(self, tmp_path: Path, value: object) -> None:
        make_pair(tmp_path / "sam", "sam1", SIZE_PX)
        change = lambda config: config["mask_decoder_config"].update(layer_norm_eps=value)  # noqa: E731
        said = refusal(copy(tmp_path / "sam", tmp_path / "edited", change))
        is_json = not isinstance(value, float) or math.isfinite(value)
        assert ("layer_norm_eps" if is_json else f"is not valid JSON: found {value} is no number") in said


class TestToldFromSam3:
    @pytest.mark.parametrize("layout", ["Meta", "Hugging Face"])
    def test_a_sam2_decoder_alone_loads_where_its_frame_is_stated(self, tmp_path: Path, layout: str) -> None:
        if layout == "Meta":
            state = {k: v for k, v in meta_sam2().items() if k.startswith("sam_")}
        else:
            whole = build_upstream("sam2", SIZE_PX).state_dict()
            state = {k: v.clone() for k, v in whole.items() if "vision_encoder" not in k}
        path = tmp_path / "alone.safetensors"
        save_file(state, path)
        assert "--image-size 1024" in refusal(path)
        assert load_checkpoint(path, image_size=1024).spec.family == "sam2"

    @pytest.mark.parametrize(
        "keys",
        [
            ["image_encoder.trunk.patch_embed.proj.weight"],
            ["memory_attention.layers.0.norm1.weight", "memory_attention.layers.0.cross_attn_image.q_proj.weight"],
            ["image_encoder.trunk.pos_embed", "maskmem_backbone.fuser.layers.0.gamma", "maskmem_tpos_enc"],
            ["image_encoder.trunk.body.stages_0.weight", "spatial_perceiver.latents", "memory_encoder.out_proj.weight"],
            ["module.image_encoder.neck.convs.0.conv.weight", "loss.weight"],
        ],
        ids=["image", "memory", "maskmem_backbone", "EdgeTAM", "training"],
    )
    def test_sam2_and_its_kin_pass(self, tmp_path: Path, keys: list[str]) -> None:
        decoder = {k: v for k, v in meta_sam2().items() if k.startswith("sam_")}
        torch.save({"model": {**decoder, **{key: torch.ones(1) for key in keys}}}, tmp_path / "sam2.pt")
        assert load_checkpoint(tmp_path / "sam2.pt").spec.family == "sam2"


class TestOtherFiles:
    @pytest.mark.parametrize("name", ["sam.weights.h5", "sam.h5", "sam.pth"])
    def test_hdf5(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
        with pytest.raises((CheckpointError, MissingExtraError), match="HDF5 file, as Keras saves"):
            load_checkpoint(tmp_path / name)

    def test_a_keras_archive(self, tmp_path: Path) -> None:
        import zipfile

        with zipfile.ZipFile(tmp_path / "sam.keras", "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
        assert "Keras model" in refusal(tmp_path / "sam.keras")

    @pytest.mark.parametrize("kept", ["modules_to_save.default", "original_module"])
    def test_pefts_modules_to_save(self, tmp_path: Path, kept: str) -> None:
        state = {
            f"base_model.model.{k.replace('mask_decoder.', f'mask_decoder.{kept}.')}": v for k, v in meta_sam1().items()
        }
        message = refused(tmp_path, state)
        assert "peft" in message
        assert "merge_and_unload()" in message

    def test_a_peft_adapter_alone(self, tmp_path: Path) -> None:
        state = {f"base_model.model.{k}": v for k, v in meta_sam1().items() if k.startswith("mask_decoder.")}
        assert "merge_and_unload()" in refused(tmp_path, state)

    @pytest.mark.parametrize("part", ["prompt_encoder.mask_downscaling.0", "mask_decoder.iou_prediction_head.layers.0"])
    def test_unmerged_lora(self, tmp_path: Path, part: str) -> None:
        assert "unmerged LoRA" in refused(tmp_path, {**meta_sam1(), f"{part}.lora_B.weight": torch.ones(1)})
