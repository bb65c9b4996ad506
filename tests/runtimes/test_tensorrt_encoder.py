"""An image encoder's engine on a fake device: what it computes reaches the decoder without leaving the GPU."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_toys import home as home
from engine_toys import toy_artifact, toy_features, toy_masks, toy_plan, with_encoder
from fake_gpu import FakeDevice, fake_encoder, fake_runtime, image, prompts
from numpy.typing import NDArray

from samx.artifacts import trust
from samx.artifacts.commit import seal
from samx.artifacts.manifest import Manifest
from samx.artifacts.store import Artifact
from samx.commands.build import build
from samx.errors import ArtifactError, ImageError, SamxError
from samx.formats.tensorrt.stamp import Gpu
from samx.runtimes.tensorrt import runtime as tensorrt
from samx.runtimes.tensorrt.encoder import open_encoder

pytestmark = pytest.mark.usefixtures("home")


def pictures(count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    levels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return {"picture": levels, "valid": np.full((count, 2), 16, np.int32)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_number_of_pictures_of_the_profile_is_encoded(count: int) -> None:
    encode, _ = fake_encoder(FakeDevice())
    feed = pictures(count)
    (found,) = encode(feed).values()
    np.testing.assert_array_equal(np.asarray(found), toy_features(feed["picture"])["image_embeddings"])


def test_other_pictures_are_refused() -> None:
    encode, context = fake_encoder(FakeDevice())
    with pytest.raises(ImageError, match=r"not built for that many pictures.*: found 4, expected 1 to 3"):
        encode(pictures(4))
    with pytest.raises(ImageError, match=r"takes other tensors: found .*float32"):
        encode({**pictures(1), "picture": np.zeros((1, 16, 16, 3), np.float32)})
    context.wrong_output = True
    with pytest.raises(SamxError, match=r"gives image_embeddings the shape .* for 1 pictures"):
        encode(pictures(1))


def test_from_picture_to_mask_nothing_leaves_the_gpu_and_the_host_waits_once() -> None:
    device = FakeDevice()
    encode, _ = fake_encoder(device)
    runtime, _ = fake_runtime(toy_plan(), device)
    feed, asked = pictures(1), prompts(2)
    for _ in range(2):
        device.log.clear()
        runtime.set_image(encode(feed))
        masks = runtime.decode(asked)
        assert {what: device.counted(what) for what in ("upload", "copy", "compute", "download", "synchronise")} == {
            "upload": 4,  # picture, its used part, coordinates, labels
            "copy": 1,  # the embedding, on the GPU
            "compute": 2,
            "download": 2,  # masks and scores: nothing of the encoder's
            "synchronise": 1,
        }
    embedding = toy_features(feed["picture"])["image_embeddings"]
    right = toy_masks(embedding, asked["point_coords"], asked["point_labels"])
    for name, value in right.items():
        np.testing.assert_allclose(masks[name], value, rtol=1e-5)


def test_features_are_the_callers_until_nobody_needs_them() -> None:
    device = FakeDevice()
    encode, _ = fake_encoder(device)
    first, second = encode(pictures(3, 1)), encode(pictures(3, 2))
    for found, seed in ((first, 1), (second, 2)):
        right = toy_features(pictures(3, seed)["picture"])["image_embeddings"]
        np.testing.assert_array_equal(np.asarray(found["image_embeddings"]), right)
        np.testing.assert_array_equal(np.asarray(found["image_embeddings"][1:2]), right[1:2])
    row = first["image_embeddings"][2:3]
    held = len(device.memory)
    del first, found
    gc.collect()
    assert len(device.memory) == held, "a row keeps its memory"
    del row, second
    gc.collect()
    assert len(device.memory) == held - 2


class Foreign:
    """An array of another library's, on the fake GPU."""

    def __init__(self, device: FakeDevice, value: NDArray[Any], **facts: object) -> None:
        address = device.allocate(value.nbytes)
        device.memory[address][:] = value.tobytes()
        usual = {"shape": value.shape, "typestr": value.dtype.str, "data": (address, False), "version": 3}
        self.facts = {**usual, **facts}

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return self.facts


@pytest.mark.parametrize(("facts", "waits"), [({}, "wait for None"), ({"stream": 5}, "wait for 5")])
def test_an_array_of_another_library_is_copied_once_its_work_is_done(facts: dict[str, object], waits: str) -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    value, asked = image(3)["image_embeddings"], prompts(1)
    device.log.clear()
    runtime.set_image({"image_embeddings": Foreign(device, value, **facts)})
    order = [what for what in device.log if what != "allocate"]
    assert order == [waits, "copy", "synchronise"]  # it is the caller's again
    right = toy_masks(value, asked["point_coords"], asked["point_labels"])
    np.testing.assert_allclose(runtime.decode(asked)["low_res_masks"], right["low_res_masks"], rtol=1e-5)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"typestr": "<f2"}, "wrong type: found <f2, expected float32"),
        ({"shape": (1, 256, 2, 1)}, "wrong tensors on the GPU"),
        ({"strides": (1024, 8, 4, 4)}, "not contiguous"),
    ],
)
def test_an_array_of_another_kind_is_refused(facts: dict[str, object], words: str) -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    with pytest.raises(ImageError, match=words):
        runtime.set_image({"image_embeddings": Foreign(device, image()["image_embeddings"], **facts)})
    with pytest.raises(SamxError, match="no image is set"):
        runtime.decode(prompts(1))


class Capsuled:
    """An array that says where it lies in DLPack's way alone."""

    def __init__(self, device: FakeDevice, value: NDArray[Any], where: tuple[int, int] = (2, 0)) -> None:
        self.value, self.where, self.asked_for = value, where, list[object]()
        device.memory[value.ctypes.data] = bytearray(value.tobytes())

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where

    def __dlpack__(self, stream: object) -> object:
        self.asked_for.append(stream)
        return self.value.__dlpack__()


def test_a_dlpack_array_is_copied_and_its_maker_told_the_stream() -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    value, asked = image(4)["image_embeddings"], prompts(1)
    given = Capsuled(device, value)
    runtime.set_image({"image_embeddings": given})
    assert given.asked_for == [device.stream]
    right = toy_masks(value, asked["point_coords"], asked["point_labels"])
    np.testing.assert_allclose(runtime.decode(asked)["low_res_masks"], right["low_res_masks"], rtol=1e-5)
    with pytest.raises(ImageError, match="lies on another device"):
        runtime.set_image({"image_embeddings": Capsuled(device, value, (2, 1))})
    with pytest.raises(ImageError, match="wrong type"):
        runtime.set_image({"image_embeddings": Capsuled(device, value.astype(np.float64))})


@pytest.fixture
def built(tmp_path: Path) -> Path:
    path = toy_artifact(tmp_path / "toy", more=with_encoder)
    build(path)
    return path


def on_a_toy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    device.gpu = Gpu("Toy GPU", "8.9", "CUDA 13.0")
    monkeypatch.setattr(tensorrt, "shared_device", lambda: device)
    monkeypatch.setattr(tensorrt, "load_engine", lambda *arguments: pytest.fail("a foreign engine was loaded"))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"engine_sha256": "0" * 64}, "stamped for another engine or graph"),
        ({"onnx_sha256": "0" * 64}, "stamped for another engine or graph"),
        ({"machine": {"version": "1.6.0"}}, "built with TensorRT for RTX 1.6.0"),
    ],
)
def test_an_encoder_of_another_stamp_is_refused(
    edit: dict[str, Any], words: str, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_toy_gpu(monkeypatch)
    stamp = json.loads((built / "encoder_engine.json").read_bytes())
    stamp["machine"] |= edit.pop("machine", {})
    (built / "encoder_engine.json").write_text(json.dumps(stamp | edit))
    manifest = Manifest.from_bytes((built / "manifest.json").read_bytes(), "toy")
    seal(built, manifest, {name: entry.role for name, entry in manifest.files.items()})
    with pytest.raises(ArtifactError, match=words):
        open_encoder(Artifact.open(built))


def test_an_encoder_of_another_hash_or_user_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_toy_gpu(monkeypatch)
    artifact = Artifact.open(built)
    data = (built / "encoder.engine").read_bytes()
    (built / "encoder.engine").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="was altered"):
        open_encoder(artifact)
    (built / "encoder.engine").write_bytes(data)
    trust.trust_file().unlink()
    with pytest.raises(ArtifactError, match="neither built nor named by this user"):
        open_encoder(artifact)


def test_an_encoder_that_is_not_built_yet_says_how(tmp_path: Path) -> None:
    artifact = Artifact.open(toy_artifact(tmp_path / "toy", more=with_encoder))
    with pytest.raises(ArtifactError, match=r"has no engine of its image encoder yet\. Build it on the device"):
        open_encoder(artifact)
