"""Keras Hub SAM presets: weights under the names of Meta, or a refusal. As keras-hub 0.32 saves them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from checkpoint_files import meta_sam1
from torch import Tensor

from samx.errors import CheckpointError, MissingExtraError
from samx.models import keras_files
from samx.models.checkpoint import load_checkpoint

h5py = pytest.importorskip("h5py")

PROMPTS = "layers/sam_prompt_encoder"
CORNERS = ("background_point", "foreground_point", "top_left_corner", "bottom_right_corner")
UPSCALING = ("conv2d_transpose", "layer_normalization", "", "conv2d_transpose_1")
DOWNSCALING = ("conv2d", "layer_normalization", "", "conv2d_1", "layer_normalization_1", "", "conv2d_2")
WORDS = (
    ("norm_final_attn", "final_layer_norm"),
    ("self_attn", "self_attention"),
    ("final_attn", "final_attention"),
    ("cross_attn", "cross_attention"),
    ("q_proj", "query_proj"),
    ("k_proj", "key_proj"),
    ("v_proj", "value_proj"),
    ("mlp/lin1", "mlp_block/mlp_block/layers/dense"),
    ("mlp/lin2", "mlp_block/mlp_block/layers/dense_1"),
)


def numbered(stem: str, index: str) -> str:
    """Name a layer as Keras does: the first of a kind has no number."""
    return stem if index == "0" else f"{stem}_{index}"


def keras_key(name: str) -> str:
    """Return the key under which Keras Hub saves what Meta names so."""
    stem, _, leaf = name.rpartition(".")
    end = "/vars/1" if leaf == "bias" else "/vars/0"
    if leaf == "positional_encoding_gaussian_matrix":
        return f"{PROMPTS}/positional_embedding_layer{end}"
    if match := re.match(r"prompt_encoder\.point_embeddings\.(\d)$", stem):
        return f"{PROMPTS}/{CORNERS[int(match[1])]}_embed{end}"
    if match := re.match(r"prompt_encoder\.mask_downscaling\.(\d)$", stem):
        return f"{PROMPTS}/mask_downscaler/layers/{DOWNSCALING[int(match[1])]}{end}"
    if match := re.match(r"mask_decoder\.output_upscaling\.(\d)$", stem):
        return f"mask_decoder/output_upscaling/layers/{UPSCALING[int(match[1])]}{end}"
    if match := re.match(r"mask_decoder\.output_hypernetworks_mlps\.(\d)\.layers\.(\d)$", stem):
        head = f"mask_decoder/output_hypernetworks_mlps/{numbered('mlp', match[1])}"
        return f"{head}/mlp_block/layers/{numbered('dense', match[2])}{end}"
    if match := re.match(r"mask_decoder\.iou_prediction_head\.layers\.(\d)$", stem):
        return f"mask_decoder/iou_prediction_head/mlp_block/layers/{numbered('dense', match[1])}{end}"
    path = stem.replace(".", "/").replace("prompt_encoder/", f"{PROMPTS}/")
    path = re.sub(r"layers/(\d)/", lambda match: f"layers/{numbered('two_way_multi_head_attention', match[1])}/", path)
    for ours, theirs in WORDS:
        path = path.replace(ours, theirs)
    return re.sub(r"/norm(\d)$", r"/layer_norm\1", path) + end


def keras_array(name: str, tensor: Tensor) -> Tensor:
    """Turn the axes: HWIO for a convolution, HWOI for a transposed one, (in, out) for a dense layer."""
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)
    is_table = re.search(r"(?:iou|mask)_tokens?\.|embed|gaussian", name)
    return tensor.t() if tensor.ndim == 2 and not is_table else tensor


@pytest.fixture(scope="module")
def decoder() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in meta_sam1().items() if not name.startswith("image_encoder.")}


@pytest.fixture(scope="module")
def arrays(decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {keras_key(name): keras_array(name, tensor) for name, tensor in decoder.items()}


def write(path: Path, arrays: Mapping[str, Tensor]) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value.numpy()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, image_size=1024)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "layers/sam_backbone/"])
def test_every_weight_of_a_preset_is_metas(
    tmp_path: Path, decoder: Mapping[str, Tensor], arrays: Mapping[str, Tensor], prefix: str
) -> None:
    saved = {prefix + key: value for key, value in arrays.items()} | {"optimizer/vars/0": torch.zeros(1)}
    loaded = load_checkpoint(write(tmp_path / "sam.weights.h5", saved), image_size=1024)
    assert (loaded.name, loaded.kind) == ("sam", "Keras Hub SAM preset")
    assert loaded.weights.keys() == decoder.keys()
    for name, tensor in decoder.items():
        assert torch.equal(loaded.weights[name], tensor), name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("add_positional_embedding/vars/0", "pos_embed"),
        ("vi_t_det_patching_and_embedding/projection/vars/1", "patch_embed.proj.bias"),
        ("windowed_transformer_encoder/attention/add_decomposed_relative_pe/vars/1", "blocks.0.attn.rel_pos_w"),
        ("windowed_transformer_encoder_11/attention/qkv/vars/0", "blocks.11.attn.qkv.weight"),
        ("windowed_transformer_encoder_3/attention/projection/vars/0", "blocks.3.attn.proj.weight"),
        ("windowed_transformer_encoder_3/layer_norm2/vars/1", "blocks.3.norm2.bias"),
        ("windowed_transformer_encoder_3/mlp_block/dense_net/layers/dense_1/vars/0", "blocks.3.mlp.lin2.weight"),
        ("sequential/layers/conv2d_1/vars/0", "neck.2.weight"),
        ("sequential/layers/layer_normalization/vars/0", "neck.1.weight"),
    ],
)
def test_the_image_encoders_names(key: str, name: str) -> None:
    assert keras_files.renamed(f"layers/{key}") == f"image_encoder.{name}"
    assert keras_files.renamed(f"layers/sam_backbone/layers/{key}") == f"image_encoder.{name}"


class TestRefused:
    def test_another_model(self, tmp_path: Path) -> None:
        path = write(tmp_path / "bert.weights.h5", {"layers/token_embedding/vars/0": torch.zeros(4, 4)})
        assert "none of SAM" in refusal(path)
        assert "token_embedding" in refusal(path)

    def test_one_more_layer(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        path = write(tmp_path / "more.weights.h5", {**arrays, "layers/dense/vars/0": torch.zeros(4, 4)})
        assert "that Keras Hub's SAM does not have" in refusal(path)

    def test_a_renamed_module(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        saved = {key.replace("final_layer_norm", "last_layer_norm"): value for key, value in arrays.items()}
        assert "norm_final_attn" in refusal(write(tmp_path / "renamed.weights.h5", saved))

    def test_one_more_token(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        saved = {**arrays, "mask_decoder/mask_tokens/vars/0": torch.zeros(5, 32)}
        assert "the decoder in" in refusal(write(tmp_path / "token.weights.h5", saved))

    def test_another_shape(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        key = keras_key("mask_decoder.transformer.norm_final_attn.weight")
        saved = {**arrays, key: torch.zeros(31)}
        assert "wrong shape" in refusal(write(tmp_path / "shape.weights.h5", saved))

    def test_a_backbone_twice(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        both = {**arrays, **{f"layers/sam_backbone/{key}": value for key, value in arrays.items()}}
        assert "twice" in refusal(write(tmp_path / "both.weights.h5", both))

    def test_integers(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        saved = {**arrays, "mask_decoder/iou_token/vars/0": torch.zeros(1, 32, dtype=torch.int8)}
        assert "not an array of floats" in refusal(write(tmp_path / "int8.weights.h5", saved))

    def test_what_is_not_in_the_file(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        key = "mask_decoder/iou_token/vars/0"
        path = write(tmp_path / "away.weights.h5", {name: value for name, value in arrays.items() if name != key})
        (tmp_path / "other.bin").write_bytes(bytes(4 * 32))
        with h5py.File(path, "a") as file:
            file.create_dataset(key, (1, 32), "f4", external=[(str(tmp_path / "other.bin"), 0, 4 * 32)])
        assert "does not lie in the file" in refusal(path)

    def test_compressed(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        key = "mask_decoder/mask_tokens/vars/0"
        path = write(tmp_path / "small.weights.h5", {name: value for name, value in arrays.items() if name != key})
        with h5py.File(path, "a") as file:
            file.create_dataset(key, (4, 1 << 28), "f4", chunks=(1, 1 << 20), compression="gzip")
        assert "does not lie in the file" in refusal(path)

    def test_a_truncated_file(self, tmp_path: Path, arrays: Mapping[str, Tensor]) -> None:
        path = write(tmp_path / "cut.weights.h5", arrays)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "damaged" in refusal(path)

    def test_more_arrays_than_a_sam_has(
        self, tmp_path: Path, arrays: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keras_files, "MOST_ARRAYS", 10)
        assert "too many arrays" in refusal(write(tmp_path / "many.weights.h5", arrays))


def test_without_h5py(tmp_path: Path, arrays: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "sam.weights.h5", arrays)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match="HDF5 file, as Keras saves") as caught:
        load_checkpoint(path)
    assert caught.value.extra == "keras"
