"""Every unusable checkpoint is refused in one line that says what was found and what to do."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import meta_sam1, meta_sam2
from safetensors.torch import save_file
from torch import Tensor, nn

from samx.errors import CheckpointError
from samx.models.checkpoint import load_checkpoint

State = dict[str, Tensor]
IOU_TOKEN = "mask_decoder.iou_token.weight"


def refusal(path: Path, **options: Any) -> str:
    """Load what cannot be loaded and return the message, its form checked."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 6
    assert caught.value.fix
    assert "\n" not in message
    assert str(path) in message or path.name in message
    assert "weights_only" not in message
    return message


def refused_state(tmp_path: Path, state: object) -> str:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    return refusal(path)


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.pth")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    assert "is empty" in refusal(tmp_path / "empty.pth")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"sam{suffix}"
    save_file(meta_sam1(), path) if suffix == ".safetensors" else torch.save(meta_sam1(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refusal(path)


def test_truncated_file_of_the_format_before_zip(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(meta_sam1(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("name", ["notes.pth", "notes.pt", "notes.txt", "notes.safetensors"])
@pytest.mark.parametrize(
    "content", [b"Not Found", b"<html><body>please log in</body></html>\n" * 40, bytes(range(256))]
)
def test_other_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "expected a SAM or SAM 2 checkpoint" in refusal(tmp_path / name)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>" * 90, "text, not weights: found '<!DOCTYPE html>"),
        (b'{"error":"Access to model facebook/sam3 is restricted."}', 'found \'{"error":"Access to model'),
        (b"Invalid username or password.", "found 'Invalid username or password.'"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "AccessDenied"),
        ("Zugriff verweigert: \u00fc".encode() * 40, "text, not weights"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
        (b"\x1f\x8b\x08\0", "is a gzip archive"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["sam.pt", "model.safetensors"])
def test_what_was_downloaded_instead_of_weights_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)
    if name == "model.safetensors":
        assert said in refusal(tmp_path)


class Payload:
    """Create a directory when unpickled by a loader that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


def write_zip(payload: object, path: Path) -> None:
    torch.save({"model": meta_sam1(), "extra": payload}, path)


def write_legacy(payload: object, path: Path) -> None:
    torch.save({"model": meta_sam1(), "extra": payload}, path, _use_new_zipfile_serialization=False)


def write_pickle(payload: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload))


def run(payload: Payload) -> None:
    function, arguments = payload.__reduce__()
    function(*arguments)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, write: Callable[[object, Path], None]) -> None:
    target = tmp_path / "created_by_payload"
    write(Payload(target), tmp_path / "evil.pth")
    assert load_checkpoint(tmp_path / "evil.pth").spec.family == "sam1"  # its weights are weights
    assert not target.exists()
    run(Payload(target))
    assert target.exists()  # the payload was live


def test_a_pickle_of_another_program_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "created_by_payload"
    write_pickle(Payload(target), tmp_path / "evil.pth")
    assert "a pickle that torch.save did not write" in refusal(tmp_path / "evil.pth")
    assert not target.exists()


def test_a_whole_pickled_module_of_another_model(tmp_path: Path) -> None:
    assert "found keys weight, bias" in refused_state(tmp_path, nn.Linear(2, 2))


def test_a_torchscript_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        archive.writestr("model/data.pkl", b"")
    assert "TorchScript" in refusal(tmp_path / "model.pt")


def test_a_zip_file_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("photo.jpg", b"")
    assert "damaged or no PyTorch file" in refusal(tmp_path / "photos.pt")


def test_image_classifier(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.ones(8, 3, 7, 7), "fc.weight": torch.ones(10, 8), "fc.bias": torch.ones(10)}
    message = refused_state(tmp_path, state)
    assert "not a Segment Anything checkpoint" in message
    assert "conv1.weight" in message


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {}, {"epoch": 3}], ids=["tensor", "list", "empty", "none"])
def test_a_checkpoint_without_named_weights(tmp_path: Path, content: object) -> None:
    assert "found keys none" in refused_state(tmp_path, content)


@pytest.mark.parametrize("key", ["image_encoder.pos_embed", "model.vision_encoder.neck.conv1.weight"])
def test_encoder_alone(tmp_path: Path, key: str) -> None:
    assert "image encoder without a decoder" in refused_state(tmp_path, {key: torch.ones(1)})


def test_decoder_without_prompt_encoder(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in meta_sam1().items() if not name.startswith("prompt_encoder")}
    assert "prompt_encoder.mask_downscaling.3.weight" in refused_state(tmp_path, state)


# One weight of each kind: of the numbered ones, the last.
ONE_OF_EACH = {re.sub(r"\d+", "#", key): key for key in sorted(meta_sam1()) if not key.startswith("image_encoder")}


@pytest.mark.parametrize("key", ONE_OF_EACH.values())
def test_every_missing_weight_is_noticed(tmp_path: Path, key: str) -> None:
    state = meta_sam1()
    del state[key]
    assert "decoder in" in refused_state(tmp_path, state)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    state = meta_sam1()
    del state[IOU_TOKEN]
    assert f"lacks weights: found {IOU_TOKEN}" in refused_state(tmp_path, state)


@pytest.mark.parametrize("shape", [(2, 32), (1, 31), (32,), ()])
def test_wrong_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    message = refused_state(tmp_path, {**meta_sam1(), IOU_TOKEN: torch.ones(shape)})
    assert f"{IOU_TOKEN} {shape} instead of (1, 32)" in message


@pytest.mark.parametrize("key", ["mask_decoder.mask_tokens.weight", "mask_decoder.iou_prediction_head.layers.0.weight"])
@pytest.mark.parametrize("shape", [(), (7,), (0, 0), (7, 7)])
def test_wrong_shape_where_sizes_are_read(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    assert "the decoder in" in refused_state(tmp_path, {**meta_sam1(), key: torch.ones(shape)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weight_that_is_not_finite(tmp_path: Path, value: float) -> None:
    state = meta_sam1()
    state[IOU_TOKEN][0, 5] = value
    assert f"'{IOU_TOKEN}'" in (message := refused_state(tmp_path, state))
    assert "1 of 32" in message


def test_infinity_in_an_ignored_encoder_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save({**meta_sam1(), "image_encoder.neck.0.weight": torch.full((2,), float("inf"))}, path)
    assert load_checkpoint(path).spec.family == "sam1"


def test_integer_weights(tmp_path: Path) -> None:
    state = {**meta_sam1(), IOU_TOKEN: torch.ones(1, 32, dtype=torch.int8)}
    assert "torch.int8" in refused_state(tmp_path, state)


def test_unexpected_weight(tmp_path: Path) -> None:
    message = refused_state(tmp_path, {**meta_sam1(), "mask_decoder.text_head.weight": torch.ones(1)})
    assert "mask_decoder.text_head.weight" in message


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("detector_model.text_projection.weight", "SAM 3's detector without its tracker"),
        ("vision_backbone.convs.0.conv_1x1.weight", "SAM 3's detector without its tracker"),
        ("mask_decoder.transformer.layers.0.self_attn.q_proj.lora_A.weight", "LoRA"),
    ],
)
@pytest.mark.parametrize(
    "state", [meta_sam1(), {f"model.{k}": v for k, v in meta_sam1().items()}], ids=["bare", "model."]
)
def test_relatives_are_recognised(tmp_path: Path, state: State, key: str, name: str) -> None:
    prefix = "model." if "model.image_encoder.neck.0.weight" in state else ""
    message = refused_state(tmp_path, {**state, prefix + key: torch.ones(1)})
    assert f"holds {name}" in message or (name == "LoRA" and "unmerged LoRA" in message)


@pytest.mark.parametrize("others", [("student.", "teacher."), ("", "ema."), ("module.", ""), ("", "sam_")])
def test_two_decoders(tmp_path: Path, others: tuple[str, str]) -> None:
    state = {prefix + name: tensor + i for i, prefix in enumerate(others) for name, tensor in meta_sam1().items()}
    message = refused_state(tmp_path, state)
    assert "more than one decoder" in message or "twice" in message or "two different values" in message


def test_sam2_of_another_width(tmp_path: Path) -> None:
    assert "width" in refused_state(tmp_path, meta_sam2(width=128, iou_head_width=128, cross_attention_width=64))


@pytest.mark.parametrize("image_size", [0, -1024, 1000, 16, 1 << 20])
def test_silly_image_size(tmp_path: Path, image_size: int) -> None:
    torch.save(meta_sam1(), tmp_path / "sam.pth")
    assert f"{image_size} px" in refusal(tmp_path / "sam.pth", image_size=image_size)


def test_silly_image_size_in_metadata(tmp_path: Path) -> None:
    path = tmp_path / "sam.safetensors"
    save_file(meta_sam1(), path, metadata={"image_size": "large"})
    assert "large px" in refusal(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model directory that would load."""
    save_file(meta_sam1(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "sam3_tracker"}, "sam3_tracker"),
        ({"model_type": "sam3"}, "sam3"),
        ({"model_type": "sam_hq"}, "sam_hq"),
        ({"vision_config": {"image_size": [1024, 768]}}, "[1024, 768] px"),
        ({"prompt_encoder_config": {"image_size": "big"}}, "big px"),
        ({"mask_decoder_config": {"num_attention_heads": "eight"}}, "num_attention_heads"),
        ({"mask_decoder_config": {"num_attention_heads": 0}}, "0 heads"),
        ({"mask_decoder_config": {"num_attention_heads": 5}}, "5 heads"),
    ],
)
def test_config_that_does_not_fit(folder: Path, config: dict[str, Any], said: str) -> None:
    assert load_checkpoint(folder).spec.heads == 8
    (folder / "config.json").write_text(json.dumps(config))
    assert said in refusal(folder)


def test_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in refusal(folder)


def test_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "readme.md").touch()
    assert "found readme.md" in refusal(tmp_path)


@pytest.mark.parametrize("weight_map", [{}, {"a": "../secret.bin"}, {"a": 3}, None])
def test_index_that_lists_no_shards(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "does not list shards" in refusal(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert "no model-1.safetensors" in refusal(tmp_path)


def sharded(folder: Path) -> Path:
    """Write a model directory of two shards and their index, which would load."""
    folder.mkdir()
    state = meta_sam1()
    names = {f"model-{i + 1}.safetensors": sorted(state)[i::2] for i in range(2)}
    for file, held in names.items():
        save_file({name: state[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in names.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [(POINTER, "git lfs pull"), (b"", "is empty"), (b"Entry not found", "is text, not weights"), (None, "are missing")],
)
def test_a_partial_repository_names_the_shard(tmp_path: Path, content: bytes | None, said: str) -> None:
    folder = sharded(tmp_path / "sam")
    assert load_checkpoint(folder).spec.family == "sam1"
    shard = folder / "model-2.safetensors"
    shard.unlink()
    if content is not None:
        shard.write_bytes(content)
    message = refusal(folder)
    assert said in message
    assert "model-2.safetensors" in message


def test_shards_of_another_release_are_noticed(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "sam")
    save_file({"another": torch.ones(1)}, folder / "model-2.safetensors")
    assert "lack weights that it lists: found no '" in refusal(folder)


def test_a_link_to_weights_that_were_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../blobs/abc")
    (tmp_path / "config.json").write_text("{}")
    assert "found 'model.safetensors', a link to a file that is not there" in refusal(tmp_path)


class TwoLayers(nn.Module):
    """Layers that torch quantises, where a decoder has some."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(32, 48), nn.Linear(48, 32)


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_that_torch_quantised_dynamically(tmp_path: Path) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(TwoLayers(), {nn.Linear}, torch.qint8).state_dict()
    mlp = "mask_decoder.transformer.layers.0.mlp."
    state = {key: value for key, value in meta_sam1().items() if not key.startswith(mlp)}
    message = refused_state(tmp_path, state | {mlp + key: value for key, value in quantised.items()})
    assert "holds quantised weights: found key" in message


@pytest.mark.parametrize("mark", ["SCB", "qweight", "absmax", "quant_state.bitsandbytes__nf4", "weight_scale"])
def test_a_decoder_that_others_quantised(tmp_path: Path, mark: str) -> None:
    key = f"mask_decoder.transformer.layers.0.mlp.lin1.{mark}"
    message = refused_state(tmp_path, {**meta_sam1(), key: torch.ones(4)})
    assert f"holds quantised weights: found key '{key}'" in message
