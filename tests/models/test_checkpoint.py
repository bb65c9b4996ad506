"""Every supported kind of checkpoint gives back exactly the decoder that was saved."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import meta_sam1, meta_sam2, random_decoder, small_spec
from safetensors.torch import save_file
from torch import Tensor

from samx.models.checkpoint import LoadedDecoder, build_reference, load_checkpoint
from samx.models.spec import sam2_spec

State = dict[str, Tensor]
ENCODER_MIB = 200  # of the memory test: a stand-in for ViT-H's 2400
ALLOWED_GROWTH_MIB = 100  # of the resident peak while loading a 16 MiB decoder; the file is twice that


def prefixed(prefix: str) -> Callable[[State], object]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "nested": lambda state: {"state": {"model": prefixed("module.sam.")(state)}},
    "module.": prefixed("module."),
    "model.": prefixed("model."),
    "sam.": prefixed("sam."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "anything.else.": prefixed("anything.else."),
}


def assert_same_weights(loaded: LoadedDecoder, expected: State) -> None:
    assert set(loaded.weights) == set(expected)
    for name, tensor in expected.items():
        assert loaded.weights[name].dtype == torch.float32
        assert torch.equal(loaded.weights[name], tensor.float()), name


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_sam1_loads_however_it_is_wrapped(tmp_path: Path, wrapping: str) -> None:
    path = tmp_path / "sam_small.pth"
    torch.save(WRAPPINGS[wrapping](meta_sam1()), path)
    loaded = load_checkpoint(path)
    assert loaded.spec == small_spec()
    assert_same_weights(loaded, random_decoder(small_spec()).state_dict())
    assert (loaded.kind, loaded.name, loaded.dtype) == ("Meta SAM checkpoint", "sam_small", "float32")


def test_a_part_wrapped_on_its_own_loads(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save({k.replace("mask_decoder.", "mask_decoder.module."): v for k, v in meta_sam1().items()}, path)
    assert_same_weights(load_checkpoint(path), random_decoder(small_spec()).state_dict())


def test_hash_and_size_are_the_files(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(meta_sam1(), path)
    content = path.read_bytes()
    loaded = load_checkpoint(path)
    assert (loaded.sha256, loaded.bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_the_format_before_zip_loads(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(meta_sam1(), path, _use_new_zipfile_serialization=False)
    assert not path.read_bytes().startswith(b"PK")
    assert_same_weights(load_checkpoint(path), random_decoder(small_spec()).state_dict())


@pytest.mark.parametrize("object_score_head_depth", [1, 3])
def test_sam2_loads(tmp_path: Path, object_score_head_depth: int) -> None:
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": meta_sam2(object_score_head_depth=object_score_head_depth)}, path)
    loaded = load_checkpoint(path)
    spec = sam2_spec(object_score_head_depth=object_score_head_depth)
    assert loaded.spec == spec
    assert_same_weights(loaded, random_decoder(spec).state_dict())
    assert (loaded.kind, loaded.name) == ("Meta SAM 2 checkpoint", "sam2.1_hiera_tiny")


def test_sam2_without_skips_or_object_score(tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    state = meta_sam2(object_score=False, high_res_features=False)
    torch.save({k: v for k, v in state.items() if "conv_s" not in k}, path)
    spec = load_checkpoint(path).spec
    assert spec == sam2_spec(object_score=False, high_res_features=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"iou_head_depth": 2, "iou_head_width": 64},
        {"iou_head_depth": 5, "iou_head_width": 8},
        {"depth": 3},
        {"depth": 1},
        {"mask_tokens": 6},
        {"mlp_width": 8, "cross_attention_width": 32, "mask_prompt_channels": 4},
    ],
)
def test_sizes_come_from_the_weights(tmp_path: Path, changes: dict[str, int]) -> None:
    path = tmp_path / "odd.pth"
    torch.save(meta_sam1(**changes), path)
    loaded = load_checkpoint(path)
    assert loaded.spec == small_spec(**changes)
    assert_same_weights(loaded, random_decoder(small_spec(**changes)).state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    path = tmp_path / f"sam{suffix}"
    state = {name: tensor.to(dtype) for name, tensor in meta_sam1().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_checkpoint(path)
    assert_same_weights(loaded, {k: v for k, v in state.items() if not k.startswith("image_encoder")})
    assert loaded.dtype == str(dtype).removeprefix("torch.")


def test_demo_files_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "sam2.safetensors"
    state = {name: tensor.half() for name, tensor in meta_sam2().items()}
    save_file(state, path, metadata={"format": "samx_demo", "family": "sam2"})
    loaded = load_checkpoint(path)
    assert (loaded.kind, loaded.dtype, loaded.spec) == ("samx SAM 2 demo model", "float16", sam2_spec(pixels="unit"))


def test_image_size_is_taken_from_metadata_or_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "sam.safetensors"
    save_file(meta_sam1(), path, metadata={"image_size": "512"})
    assert load_checkpoint(path).spec.image_size == 512
    save_file(meta_sam1(), path)
    assert load_checkpoint(path, image_size=256).spec.image_size == 256


def test_a_config_beside_a_bare_file_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    torch.save(meta_sam1(), tmp_path / "sam.pth")
    assert load_checkpoint(tmp_path / "sam.pth").spec == small_spec()


def write_folder(folder: Path, layout: str, state: State) -> None:
    """Write a model directory in one of the layouts of Hugging Face."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "sam", "vision_config": {"image_size": 512}}))
    if layout in ("model.safetensors", "pytorch_model.bin"):
        save: Callable[[State, Path], Any] = save_file if layout.endswith("safetensors") else torch.save
        save(state, folder / layout)
        return
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / layout).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_directories_load(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "my-sam"
    write_folder(folder, layout, meta_sam1())
    for path in (folder, folder / layout):
        loaded = load_checkpoint(path)
        assert loaded.spec == small_spec(image_size=512)
        assert_same_weights(loaded, random_decoder(small_spec()).state_dict())
        assert loaded.name == "my-sam"
    stored = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin")]
    assert loaded.sha256 == hashlib.sha256(b"".join(file.read_bytes() for file in stored)).hexdigest()
    assert loaded.bytes == sum(file.stat().st_size for file in stored)


def test_the_reference_computes_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(meta_sam1(image_size=128), path)
    decoder = build_reference(load_checkpoint(path, image_size=128))
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    feed = (torch.randn(1, 32, 8, 8), torch.tensor([[[30.0, 70.0]]]), torch.ones(1, 1))
    expected = random_decoder(small_spec(image_size=128))(*feed)
    for name, output in decoder(*feed).items():
        assert torch.equal(output, expected[name])


MEASURE = """
import sys, torch
from pathlib import Path
from samx.models.checkpoint import load_checkpoint
def peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
load_checkpoint(Path(sys.argv[2]))  # pays for imports and thread pools
before = peak_mib()
if sys.argv[3] == "ours":
    load_checkpoint(Path(sys.argv[1]))
else:
    Path(sys.argv[1]).read_bytes()
print(peak_mib() - before)
"""


def growth_mib(big: Path, small: Path, loader: str) -> float:
    command = [sys.executable, "-c", MEASURE, str(big), str(small), loader]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident memory from /proc")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_large_encoder_stays_on_disk(tmp_path: Path, suffix: str) -> None:
    zeros = tmp_path / "zeros"
    zeros.touch()
    encoder = torch.from_file(str(zeros), shared=True, size=ENCODER_MIB << 18)  # four bytes a number
    big, small = tmp_path / f"big{suffix}", tmp_path / "small.pth"
    torch.save(meta_sam1(), small)
    state = {**meta_sam2(), "image_encoder.large": encoder}
    save_file(state, big) if suffix == ".safetensors" else torch.save(state, big)
    assert growth_mib(big, small, "ours") < ALLOWED_GROWTH_MIB
    assert growth_mib(big, small, "everything") > ENCODER_MIB  # the measurement sees what it should
