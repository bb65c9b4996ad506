"""What a checkpoint states of its decoder is obeyed, what it does not is said, and a contradiction is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import meta_sam1, meta_sam2, small_spec
from safetensors.torch import save_file
from torch import Tensor

from samx.demo import demo_checkpoint
from samx.errors import ArtifactError, CheckpointError
from samx.models.checkpoint import load_checkpoint
from samx.models.spec import ADDED, DecoderSpec, sam1_spec, sam2_spec

State = dict[str, Tensor]
POSITIONS, PATCHES = "image_encoder.pos_embed", "image_encoder.patch_embed.proj.weight"
TINY_VIT = "image_encoder.patch_embed.seq.0.c.weight"


def load(folder: Path, state: State, **options: Any) -> DecoderSpec:
    torch.save(state, folder / "model.pth")
    return load_checkpoint(folder / "model.pth", **options).spec


def notes(folder: Path, state: State, **options: Any) -> str:
    torch.save(state, folder / "model.pth")
    return " ".join(load_checkpoint(folder / "model.pth", **options).notes)


class TestSizes:
    @pytest.mark.parametrize(("grid", "size_px"), [(16, 256), (32, 512), (64, 1024)])
    def test_the_encoders_positions_state_the_frame(self, tmp_path: Path, grid: int, size_px: int) -> None:
        spec = load(tmp_path, {**meta_sam1(), POSITIONS: torch.zeros(1, grid, grid, 4)})
        assert (spec.image_size, spec.patch_px, spec.grid, spec.mask_size) == (size_px, 16, grid, 4 * grid)

    @pytest.mark.parametrize("prefix", ["", "model.", "module.sam."])
    def test_so_do_they_under_a_prefix(self, tmp_path: Path, prefix: str) -> None:
        state = {prefix + key: tensor for key, tensor in meta_sam1().items()}
        assert load(tmp_path, {**state, prefix + POSITIONS: torch.zeros(1, 16, 16, 4)}).image_size == 256

    @pytest.mark.parametrize(("patch_px", "grid", "size_px"), [(8, 64, 512), (4, 64, 256), (14, 72, 1008), (14, 2, 28)])
    def test_its_kernel_states_the_patch(self, tmp_path: Path, patch_px: int, grid: int, size_px: int) -> None:
        encoder = {PATCHES: torch.zeros(4, 3, patch_px, patch_px), POSITIONS: torch.zeros(1, grid, grid, 4)}
        spec = load(tmp_path, {**meta_sam1(), **encoder})
        assert (spec.image_size, spec.patch_px, spec.grid, spec.mask_size) == (size_px, patch_px, grid, 4 * grid)

    def test_a_kernel_without_positions_states_nothing(self, tmp_path: Path) -> None:
        assert load(tmp_path, {**meta_sam1(), PATCHES: torch.zeros(4, 3, 7, 7)}).patch_px == 16

    def test_hieras_positions_state_nothing(self, tmp_path: Path) -> None:
        state = {**meta_sam2(), "image_encoder.trunk.pos_embed": torch.zeros(1, 8, 7, 7)}
        assert load(tmp_path, state).image_size == 1024
        assert load(tmp_path, state, image_size=512).image_size == 512

    @pytest.mark.parametrize(
        ("encoder", "said"),
        [
            ({POSITIONS: torch.zeros(1, 16, 32, 4)}, "[256, 512] px"),
            ({POSITIONS: torch.zeros(1, 1, 1, 4)}, "16 px"),
            ({POSITIONS: torch.zeros(1, 300, 300, 4)}, "4800 px"),
            ({PATCHES: torch.zeros(4, 3, 16, 8), POSITIONS: torch.zeros(1, 16, 16, 4)}, "[16, 8] px"),
        ],
    )
    def test_sizes_that_no_decoder_has(self, tmp_path: Path, encoder: State, said: str) -> None:
        with pytest.raises(CheckpointError, match="cannot be used") as caught:
            load(tmp_path, {**meta_sam1(), **encoder})
        assert said in str(caught.value)

    @pytest.mark.parametrize("given", [512, 1024])
    def test_an_option_that_contradicts_the_file_is_refused(self, tmp_path: Path, given: int) -> None:
        state = {**meta_sam1(), POSITIONS: torch.zeros(1, 16, 16, 4)}
        assert load(tmp_path, state, image_size=256).image_size == 256
        with pytest.raises(CheckpointError, match=f"states another image size: found 256 px, expected {given} px"):
            load(tmp_path, state, image_size=given)

    @pytest.mark.parametrize("section", ["prompt_encoder_config", "vision_config"])
    def test_a_configuration_that_contradicts_the_weights_is_refused(self, tmp_path: Path, section: str) -> None:
        save_file({**meta_sam1(), POSITIONS: torch.zeros(1, 16, 16, 4)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam", section: {"image_size": 1024}}))
        with pytest.raises(CheckpointError, match=f"contradicts itself.*256.*pos_embed.*1024.*{section}.image_size"):
            load_checkpoint(tmp_path)

    def test_metadata_that_contradicts_the_weights_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "sam.safetensors"
        save_file({**meta_sam1(), POSITIONS: torch.zeros(1, 16, 16, 4)}, path, metadata={"image_size": "512"})
        with pytest.raises(CheckpointError, match="contradicts itself"):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        "config",
        [
            {"prompt_encoder_config": {"image_size": [512, 512], "patch_size": 8}},
            {"prompt_encoder_config": {"image_size": 512, "patch_size": [8, 8], "image_embedding_size": 64}},
            {"vision_config": {"image_size": 512, "patch_size": 8}},
        ],
    )
    def test_a_configuration_states_frame_and_patch(self, tmp_path: Path, config: dict[str, Any]) -> None:
        save_file(meta_sam1(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam", **config}))
        spec = load_checkpoint(tmp_path).spec
        assert (spec.image_size, spec.patch_px, spec.grid) == (512, 8, 64)


class TestModels:
    def test_litemedsam_has_64_tokens_at_256_px(self, tmp_path: Path) -> None:
        spec = load(tmp_path, {**meta_sam1(), TINY_VIT: torch.zeros(8, 3, 1, 1)})
        assert (spec.image_size, spec.patch_px, spec.grid, spec.mask_size) == (256, 4, 64, 256)
        assert (spec.frame, spec.pixels) == ("pad", "minmax")

    def test_a_fine_tune_of_it_may_have_another_frame(self, tmp_path: Path) -> None:
        spec = load(tmp_path, {**meta_sam1(), TINY_VIT: torch.zeros(8, 3, 1, 1)}, image_size=512, pixels="imagenet")
        assert (spec.image_size, spec.patch_px, spec.grid, spec.pixels) == (512, 4, 128, "imagenet")

    def test_mobilesams_tinyvit_is_another(self, tmp_path: Path) -> None:
        assert load(tmp_path, {**meta_sam1(), TINY_VIT: torch.zeros(8, 3, 3, 3)}) == small_spec()

    def test_sam_med2d_stretches(self, tmp_path: Path) -> None:
        adapters = {"image_encoder.blocks.0.Adapter.channel.0.weight": torch.zeros(1)}
        spec = load(tmp_path, {**meta_sam1(), **adapters, POSITIONS: torch.zeros(1, 16, 16, 4)})
        assert (spec.image_size, spec.frame, spec.pixels) == (256, "stretch", "imagenet")

    def test_efficientvit_sam_has_its_own_epsilon(self, tmp_path: Path) -> None:
        key = "image_encoder.backbone.stages.0.op_list.0.conv.weight"
        spec = load(tmp_path, {**meta_sam1(), key: torch.zeros(1)})
        assert (spec.norm_eps, spec.final_norm_eps) == (1e-6, 1e-6)

    def test_the_caller_states_what_a_fine_tune_changed(self, tmp_path: Path) -> None:
        spec = load(tmp_path, meta_sam1(), image_size=512, frame="stretch", pixels="half")
        assert spec == small_spec(image_size=512, frame="stretch", pixels="half")


class TestNotes:
    def test_all_that_was_assumed_is_said_with_its_option(self, tmp_path: Path) -> None:
        said = notes(tmp_path, meta_sam2())
        for part in ("image size 1024 (--image-size)", "frame stretch (--frame)", "pixels imagenet (--pixels)"):
            assert part in said
        assert "SAM 2" in said

    def test_what_the_file_states_is_not_assumed(self, tmp_path: Path) -> None:
        said = notes(tmp_path, {**meta_sam1(), POSITIONS: torch.zeros(1, 64, 64, 4)})
        assert "frame pad (--frame)" in said
        assert "image size" not in said
        assert notes(tmp_path, {**meta_sam1(), TINY_VIT: torch.zeros(8, 3, 1, 1)}) == ""

    def test_what_the_caller_states_is_not_assumed(self, tmp_path: Path) -> None:
        assert notes(tmp_path, meta_sam2(), image_size=1024, frame="stretch", pixels="imagenet") == ""
        assert "--frame" not in notes(tmp_path, meta_sam2(), frame="pad")

    @pytest.mark.parametrize("family", ["sam1", "sam2"])
    def test_the_demo_model_leaves_nothing_to_assume(self, family: str) -> None:
        loaded = load_checkpoint(demo_checkpoint(family))
        assert loaded.notes == ()
        assert loaded.spec.pixels == "unit"


class TestSpecsOfBefore:
    @pytest.mark.parametrize("spec", [sam1_spec(masks="single"), sam2_spec(image_size=512)])
    def test_a_spec_without_the_later_fields_says_what_0_1_0_did(self, spec: DecoderSpec) -> None:
        data = {name: value for name, value in spec.to_json().items() if name not in ADDED}
        assert len(data) < len(fields(spec))
        found = DecoderSpec.from_json(data, "spec")
        assert found.pixels is None
        assert found == DecoderSpec(**{**{f.name: getattr(spec, f.name) for f in fields(spec)}, "pixels": None})

    @pytest.mark.parametrize("name", ADDED)
    def test_one_of_the_later_fields_alone_may_not_lack(self, name: str) -> None:
        data = {key: value for key, value in sam1_spec().to_json().items() if key != name}
        with pytest.raises(ArtifactError, match=f"no {name}"):
            DecoderSpec.from_json(data, "spec")

    @pytest.mark.parametrize("name", ["wrong", 3, None, ["sam1"]])
    def test_nothing_is_filled_in_for_no_family(self, name: object) -> None:
        data = {key: value for key, value in sam1_spec().to_json().items() if key not in ADDED}
        with pytest.raises(ArtifactError, match="family"):
            DecoderSpec.from_json({**data, "family": name}, "spec")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("patch_px", 0), ("patch_px", 15), ("patch_px", 16.0), ("frame", "crop"), ("pixels", "grey"),
            ("norm_eps", 0.0), ("norm_eps", 1.0), ("final_norm_eps", -1e-5),
        ],
    )  # fmt: skip
    def test_forged_values_are_refused(self, name: str, value: Any) -> None:
        with pytest.raises(ArtifactError, match=name):
            DecoderSpec.from_json({**sam1_spec().to_json(), name: value}, "spec")

    def test_sam3s_frame_fits(self) -> None:
        spec = sam2_spec(image_size=1008, patch_px=14, pixels="half")
        assert [tensor.shape[-1] for tensor in spec.image_inputs] == [72, 288, 144]
        assert (spec.mask_size, spec.mask_px) == (288, 3.5)
        assert DecoderSpec.from_json(spec.to_json(), "spec") == spec
