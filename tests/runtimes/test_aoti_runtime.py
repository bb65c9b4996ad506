"""Compiled packages: loaded only where trusted and at home, and run as one image and many prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_toys import CHECKPOINT
from engine_toys import home as home
from toys import arrays, image_tensors, prompt_tensors, toy_decoder
from toys import one_thread as one_thread

from samx.artifacts import trust
from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import EncoderEntry, Manifest
from samx.artifacts.store import Artifact
from samx.commands.build import build
from samx.commands.build import trust as name_trusted
from samx.errors import ArtifactError, SamxError, UnavailableError, UsageError
from samx.formats.aoti import DECODER, ENCODER, PACKAGE_ROLE, STAMP_FILE, STAMP_ROLE, Host, HostStamp
from samx.models.fast.decoder import FastDecoder
from samx.models.fast.graphs import cut
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec
from samx.registry import backend
from samx.runtimes import aoti
from samx.runtimes.aoti import AotiRuntime, open_artifact

pytestmark = pytest.mark.usefixtures("home", "one_thread")
SPEC = sam1_spec(image_size=128)
PACKAGE, OTHER = b"no package", b"no package of an encoder"
SHA256 = hashlib.sha256(PACKAGE).hexdigest()
HERE = Host.here(version("torch"))


def artifact(path: Path, stamp: HostStamp | None = None) -> Artifact:
    """Seal a package that is none, stamped for this machine unless told otherwise."""
    with staging(path, overwrite=False) as directory:
        (directory / "decoder.pt2").write_bytes(PACKAGE)
        (directory / STAMP_FILE).write_bytes((stamp or HostStamp(HERE, SHA256)).to_bytes())
        manifest = Manifest("aoti", "fp32", SPEC, CHECKPOINT)
        seal(directory, manifest, {"decoder.pt2": PACKAGE_ROLE, STAMP_FILE: STAMP_ROLE})
    return Artifact.open(path)


def runtime(form: str = "low_rank") -> tuple[FastDecoder, AotiRuntime]:
    """Run the graphs that are compiled as they are, uncompiled."""
    decoder = FastDecoder(toy_decoder(SPEC), form)  # type: ignore[arg-type]
    return decoder, AotiRuntime(SPEC, {graph.role: graph.module for graph in cut(decoder, split=True)})


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(package: bytes, where: str) -> None:
        raise AssertionError("code was loaded")

    monkeypatch.setattr(aoti, "load_models", load)


def with_encoder(path: Path) -> Artifact:
    """Seal a package beside an encoder's, which are none."""
    options = {"encoder": EncoderEntry("toy", 128, "fp32", ShapeRange(1, 2, 3)).to_json()}
    with staging(path, overwrite=False) as directory:
        for names, package in ((DECODER, PACKAGE), (ENCODER, OTHER)):
            (directory / names.file).write_bytes(package)
            stamp = HostStamp(HERE, hashlib.sha256(package).hexdigest())
            (directory / names.stamp_file).write_bytes(stamp.to_bytes())
        roles = {file: role for names in (DECODER, ENCODER) for file, role in (names[:2], names[2:])}
        seal(directory, Manifest("aoti", "fp32", SPEC, CHECKPOINT, options), roles)
    return Artifact.open(path)


@pytest.mark.usefixtures("never_loaded")
def test_an_encoder_of_somebody_else_is_not_loaded(tmp_path: Path) -> None:
    trust.remember(SHA256, "the decoder alone")
    words = r"the package of .*toy was neither built nor named"
    with pytest.raises(ArtifactError, match=words):
        aoti.open_encoder(with_encoder(tmp_path / "toy"))
    with pytest.raises(UnavailableError, match="found 'cuda', expected cpu"):
        aoti.open_encoder(Artifact.open(tmp_path / "toy"), device="cuda")


def test_both_packages_are_named_at_once_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_encoder(tmp_path / "toy")
    assert name_trusted(made.path)["file"] == DECODER.file
    loaded: list[bytes] = []

    def encode(picture: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert picture.is_contiguous()
        return (picture.float().mean((1, 2, 3)) + valid.sum(1),)

    def load(package: bytes, where: str) -> Mapping[str, Any]:
        loaded.append(package)
        return {"encoder": encode}

    monkeypatch.setattr(aoti, "load_models", load)
    run = aoti.open_encoder(made)
    assert loaded == [OTHER]
    valid, picture = np.array([[2, 3], [4, 5]], np.int32), np.full((2, 8, 8, 3), 7, np.uint8)
    found = run({"valid": valid, "picture": np.asfortranarray(picture)})  # by name, in whatever order
    assert found.keys() == {"image_embeddings"}
    assert found["image_embeddings"].tolist() == [12, 16]


@pytest.mark.usefixtures("never_loaded")
def test_a_package_of_somebody_else_is_not_loaded(tmp_path: Path) -> None:
    words = rf"the package of .*toy was neither built nor named.*{SHA256}.*samx export --target aoti.*samx trust .*toy"
    with pytest.raises(ArtifactError, match=words):
        open_artifact(artifact(tmp_path / "toy"))


STAMPS: dict[str, tuple[HostStamp, str]] = {
    "instructions": (
        HostStamp(replace(HERE, instructions=("zmm9",)), SHA256), "this processor has no zmm9",
    ),
    "torch": (HostStamp(replace(HERE, torch="1.0"), SHA256), r"compiled with PyTorch 1\.0, here is"),
    "system": (HostStamp(replace(HERE, os="Plan9 mips"), SHA256), "compiled for Plan9 mips, here is"),
    "package": (HostStamp(HERE, "b" * 64), "stamped for another package"),
}  # fmt: skip


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("what", STAMPS)
def test_a_package_of_another_machine_is_not_loaded(what: str, tmp_path: Path) -> None:
    stamp, words = STAMPS[what]
    trust.remember(SHA256, "built here")
    with pytest.raises(ArtifactError, match=rf"does not belong to this machine: found {words}"):
        open_artifact(artifact(tmp_path / "toy", stamp))


@pytest.mark.usefixtures("never_loaded")
def test_a_package_that_was_exchanged_is_not_loaded(tmp_path: Path) -> None:
    """Trusted is a hash, and the bytes that are loaded have it."""
    trust.remember(SHA256, "built here")
    opened = artifact(tmp_path / "toy")
    (tmp_path / "toy" / "decoder.pt2").write_bytes(b"no packagE")
    with pytest.raises(ArtifactError, match="was altered"):
        open_artifact(opened)


def test_a_trusted_package_is_loaded_and_damage_is_told(tmp_path: Path) -> None:
    trust.remember(SHA256, "built here")
    with pytest.raises(ArtifactError, match=r"PyTorch cannot load .*decoder\.pt2") as caught:
        open_artifact(artifact(tmp_path / "toy"))
    assert "\n" not in str(caught.value)


def test_samx_trust_names_a_package(tmp_path: Path) -> None:
    artifact(tmp_path / "toy")
    found = name_trusted(tmp_path / "toy")
    assert (found["file"], found["sha256"]) == ("decoder.pt2", SHA256)
    assert trust.is_trusted(SHA256)


def test_samx_build_has_nothing_to_build(tmp_path: Path) -> None:
    artifact(tmp_path / "toy")
    with pytest.raises(UsageError, match="no engine to build"):
        build(tmp_path / "toy")


@pytest.mark.usefixtures("never_loaded")
def test_another_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="found 'cuda', expected cpu"):
        open_artifact(artifact(tmp_path / "toy"), device="cuda")
    with pytest.raises(UnavailableError, match="cannot run on 'cuda' here: found cpu"):
        backend("aoti").require_device("cuda")


@pytest.mark.parametrize(("prompts", "points"), [(1, 0), (1, 1), (5, 3)])
def test_the_two_models_decode_as_the_module_does(prompts: int, points: int) -> None:
    decoder, session = runtime()
    image, feed = image_tensors(SPEC), prompt_tensors(SPEC, prompts, [1] * points)
    session.set_image(arrays(image))
    outputs = session.decode(arrays(feed))
    for name, wanted in decoder(**image, **feed).items():
        np.testing.assert_allclose(outputs[name], wanted.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["low_rank", "absorbed", "direct"])
def test_what_is_kept_lies_as_it_was_compiled_for(form: str) -> None:
    """Compiled code does not look at strides: a transposed view in place of a tensor would be read wrong."""
    decoder, session = runtime(form)
    kept = decoder.image_state(*image_tensors(SPEC).values())
    assert all(tensor.is_contiguous() for tensor in kept.values()) is (form == "low_rank")
    session.set_image(arrays(image_tensors(SPEC)))
    assert all(tensor.is_contiguous() for tensor in session._state)


def test_placement_counts_the_models() -> None:
    _, session = runtime()
    placement = session.placement()
    assert placement.honoured
    assert placement.operations == {"cpu": 2}
    assert placement.details["threads"] == torch.get_num_threads()


def test_threads_are_set_for_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    models: Callable[[bytes, str], dict[str, object]] = lambda package, where: {}  # noqa: E731
    monkeypatch.setattr(aoti, "load_models", models)
    trust.remember(SHA256, "built here")
    open_artifact(artifact(tmp_path / "toy"), threads=3)
    assert asked == [3]


def test_int8_is_refused() -> None:

    with pytest.raises(SamxError, match="found int8, expected fp32 or fp16"):
        backend("aoti").check_precision("int8")
