"""A checkpoint's keys tell its image encoder, whoever saved it; half of one is refused, and a foreign one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream_encoders as upstream
from checkpoint_files import meta_sam1, meta_sam2, randomize
from torch import Tensor

from samx.errors import CheckpointError
from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.models.encoders import hiera
from samx.models.encoders.load import Found, find_encoder
from samx.models.weight_files import open_weights

TOLERANCE = 2e-6  # float32 sums in another order
SIZE_PX = 128
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _small_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small encoder be one of the released."""
    monkeypatch.setattr(hiera, "LAYOUTS", {**hiera.LAYOUTS, upstream.SMALL_HIERA: upstream.SMALL_LAYOUT})


def load(path: Path, **options: Any) -> tuple[LoadedDecoder, Found]:
    """Load a checkpoint's decoder, and its encoder for the decoder's frame."""
    decoder = load_checkpoint(path, **options)
    return decoder, find_encoder(open_weights(path), decoder.spec)


def saved(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "model.pth")
    return folder / "model.pth"


def outputs(found: Found, image_size: int = SIZE_PX) -> tuple[Tensor, ...]:
    assert found.encoder is not None
    return found.encoder.module(upstream.pictures(image_size))


def error(found: Found, theirs: tuple[Tensor, ...], image_size: int = SIZE_PX) -> float:
    pairs = zip(outputs(found, image_size), theirs, strict=True)
    return max(upstream.relative_error(mine, other) for mine, other in pairs)


def vit_state() -> State:
    return upstream.meta_vit_state(upstream.meta_vit(SIZE_PX))


def hiera_state() -> State:
    return upstream.meta_hiera_state(upstream.meta_hiera())


class TestLayouts:
    @pytest.mark.parametrize("prefix", ["", "model.", "module.sam."])
    def test_metas_sam_1(self, tmp_path: Path, prefix: str) -> None:
        path = saved(tmp_path, {prefix + key: tensor for key, tensor in vit_state().items()})
        decoder, found = load(path)
        assert found.encoder is not None
        assert (found.encoder.architecture.name, decoder.spec.image_size, found.notes) == ("vit", SIZE_PX, ())
        assert error(found, (upstream.meta_vit(SIZE_PX)(upstream.pictures(SIZE_PX)),)) <= TOLERANCE

    def test_metas_sam_2(self, tmp_path: Path) -> None:
        theirs = upstream.meta_hiera()
        decoder, found = load(saved(tmp_path, {"model": upstream.meta_hiera_state(theirs)}), image_size=SIZE_PX)
        assert found.encoder is not None
        assert (found.encoder.architecture.name, decoder.notes[1:], found.notes) == ("hiera", (), ())
        assert error(found, theirs(upstream.pictures(SIZE_PX))) <= TOLERANCE

    def test_half_precision_becomes_float32(self, tmp_path: Path) -> None:
        _, found = load(saved(tmp_path, {key: tensor.half() for key, tensor in vit_state().items()}))
        assert [output.dtype for output in outputs(found)] == [torch.float32]

    def test_hugging_faces_sam(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        vision = {
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_dim": 96, "image_size": SIZE_PX,
            "global_attn_indexes": [1], "window_size": 14,
        }  # fmt: skip
        prompts = {"image_size": SIZE_PX, "image_embedding_size": SIZE_PX // 16}
        config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts)
        theirs = transformers.SamModel(config).eval()
        randomize(theirs)
        theirs.save_pretrained(tmp_path)
        with torch.no_grad():
            expected = theirs.get_image_embeddings(upstream.pictures(SIZE_PX))
        assert error(load(tmp_path)[1], (expected.detach(),)) <= TOLERANCE

    @pytest.mark.parametrize("kind", ["Sam2", "Sam2Video"])
    @pytest.mark.parametrize("image_size", [None, 192], ids=["its own size", "another size"])
    def test_hugging_faces_sam_2(self, tmp_path: Path, kind: str, image_size: int | None) -> None:
        theirs = hugging_face_sam_2(kind)
        theirs.save_pretrained(tmp_path)
        decoder, found = load(tmp_path, image_size=image_size)
        assert decoder.spec.image_size == (image_size or SIZE_PX)
        assert any("states 128 px; built for 192 px" in note for note in decoder.notes) is (image_size is not None)
        with torch.no_grad():
            features = theirs.vision_encoder(upstream.pictures(decoder.spec.image_size)).fpn_hidden_states
            embedding, coarse, fine = sorted(features, key=lambda feature: feature.shape[-1])
            skips = theirs.mask_decoder.conv_s0(fine), theirs.mask_decoder.conv_s1(coarse)
            expected = embedding + theirs.no_memory_embedding.reshape(1, -1, 1, 1), *skips
        assert error(found, tuple(expected), decoder.spec.image_size) <= TOLERANCE


def hugging_face_sam_2(kind: str) -> Any:
    """Build Hugging Face's model with a small encoder and random weights."""
    transformers = pytest.importorskip("transformers")
    (width, blocks), layout = upstream.SMALL_HIERA, upstream.SMALL_LAYOUT
    widths = [width << stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": width, "embed_dim_per_stage": widths,
        "blocks_per_stage": list(blocks), "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": list(layout.windows), "global_attention_blocks": list(layout.everywhere),
        "image_size": [SIZE_PX, SIZE_PX],
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vision_config={"backbone_config": backbone, "backbone_channel_list": widths[::-1]},
        prompt_encoder_config={"image_size": SIZE_PX},
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    randomize(model)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)
    return model.requires_grad_(False)


class TestNone:
    @pytest.mark.parametrize("state", [meta_sam1, meta_sam2])
    def test_a_decoder_alone(self, tmp_path: Path, state: Any) -> None:
        kept = {key: tensor for key, tensor in state().items() if not key.startswith("image_encoder.")}
        assert load(saved(tmp_path, kept))[1] == Found(None)

    @pytest.mark.parametrize("key", ["image_encoder.stem.weight", "vision_encoder.trunk.body.stages_0.weight"])
    def test_one_that_is_not_known_is_named(self, tmp_path: Path, key: str) -> None:
        decoder = {name: tensor for name, tensor in meta_sam1().items() if not name.startswith("image_encoder.")}
        _, found = load(saved(tmp_path, {**decoder, key: torch.ones(2)}))
        assert found.encoder is None
        assert f"is none that samx knows ({key}): it is left out" in found.notes[0]


class TestRefused:
    @pytest.mark.parametrize(
        ("state", "change", "said"),
        [
            (
                vit_state,
                {"image_encoder.blocks.0.attn.rel_pos_w": None},
                "lacks weights: found blocks.0.attn.rel_pos_w",
            ),
            (vit_state, {"image_encoder.pos_embed": None}, "lacks weights: found pos_embed"),
            (vit_state, {"image_encoder.blocks.0.mlp.lin1.bias": torch.tensor([float("nan")] * 192)}, "is not finite"),
            (vit_state, {"image_encoder.neck.1.weight": torch.ones(32, dtype=torch.int8)}, "is not an array of floats"),
            (vit_state, {"copy.image_encoder.neck.1.weight": torch.ones(32)}, "more than one image encoder"),
            (hiera_state, {"no_mem_embed": None}, "lacks weights: found no_mem_embed"),
            (hiera_state, {"no_memory_embedding": torch.ones(1, 1, 256)}, "has weights twice: found no_mem_embed, no_"),
            (
                hiera_state,
                {"image_encoder.trunk.pos_embed_window": None},
                "lacks weights: found trunk.pos_embed_window",
            ),
            (
                hiera_state,
                {"image_encoder.trunk.blocks.6.proj.weight": None},
                "found 16 wide, [1, 2, 5] blocks a stage",
            ),
        ],
    )
    def test_in_one_line(self, tmp_path: Path, state: Any, change: dict[str, Any], said: str) -> None:
        changed = {key: tensor for key, tensor in {**state(), **change}.items() if tensor is not None}
        with pytest.raises(CheckpointError) as caught:
            load(saved(tmp_path, changed))
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


class TestSizes:
    """An image size other than the file's needs an encoder that can be built for it."""

    def test_sam_1s_is_resampled_and_called_an_approximation(self, tmp_path: Path) -> None:
        decoder, found = load(saved(tmp_path, vit_state()), image_size=256)
        assert decoder.spec.image_size == 256
        assert any("states 128 px; built for 256 px, as asked" in note for note in decoder.notes)
        assert "approximation" in found.notes[0]
        assert [output.shape[-1] for output in outputs(found, 256)] == [16]

    def test_without_an_encoder_the_file_is_right(self, tmp_path: Path) -> None:
        state = {**meta_sam1(), "image_encoder.pos_embed": torch.zeros(1, 8, 8, 48)}
        with pytest.raises(CheckpointError, match="states another image size: found 128 px, expected 256 px"):
            load_checkpoint(saved(tmp_path, state), image_size=256)

    def test_a_size_that_the_encoder_cannot_have_is_refused(self, tmp_path: Path) -> None:
        hugging_face_sam_2("Sam2").save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="states another image size: found 128 px, expected 144 px"):
            load_checkpoint(tmp_path, image_size=144)

    def test_the_configuration_is_still_compared_with_its_own_size(self, tmp_path: Path) -> None:
        hugging_face_sam_2("Sam2").save_pretrained(tmp_path)
        rewritten(tmp_path, mask_token_count=1)
        with pytest.raises(CheckpointError, match="does not know"):
            load(tmp_path, image_size=192)

    def test_features_of_another_shape_than_the_decoders_are_refused(self, tmp_path: Path) -> None:
        hugging_face_sam_2("Sam2").save_pretrained(tmp_path)
        rewritten(tmp_path, patch_size=8)
        with pytest.raises(
            CheckpointError, match=r"does not fit the decoder.*found \[\(1, 256, 8, 8\), .*256, 16, 16\)"
        ):
            load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_act", "relu", "hidden_act = 'relu' in config.json, expected 'gelu'"),
        ("layer_norm_eps", 1e-5, "layer_norm_eps = 1e-05 in config.json, expected 1e-06"),
        ("global_attention_blocks", [3], "global_attention_blocks = [3] in config.json, expected [4]"),
        ("num_attention_heads_per_stage", [2, 4, 8, 16], "expected [1, 2, 4, 8]"),
        ("patch_stride", [2, 2], "patch_stride = [2, 2] in config.json, expected 4"),
    ],
)
def test_a_configuration_of_another_encoder_is_refused(tmp_path: Path, field: str, value: object, said: str) -> None:
    hugging_face_sam_2("Sam2").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["vision_config"]["backbone_config"][field] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="differs from the released") as caught:
        load(tmp_path)
    assert f"vision_config.backbone_config.{field}" in str(caught.value)
    assert said in str(caught.value)


def rewritten(folder: Path, **fields: Any) -> None:
    """Change fields of the prompt encoder in config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["prompt_encoder_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("mark", ["qweight", "SCB", "zero_point"])
def test_a_quantised_encoder_is_refused_by_what_shows_it(tmp_path: Path, mark: str) -> None:
    key = f"image_encoder.blocks.0.attn.qkv.{mark}"
    path = saved(tmp_path, {**vit_state(), key: torch.ones(4)})
    decoder = load_checkpoint(path)
    with pytest.raises(CheckpointError, match=f"holds quantised weights: found key '{key}'"):
        find_encoder(open_weights(path), decoder.spec)
