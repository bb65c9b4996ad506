"""Paths that are no files of their kind are refused at once, with one line: pipes, devices, endless and empty ones."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from readers import SPEC, configuration, index, safetensors

from samx.artifacts.store import Artifact, read_manifest
from samx.benchmarks.results import BenchReport
from samx.commands.inspect import inspect
from samx.contracts.lint import describe
from samx.errors import ArtifactError, CheckpointError, SamxError
from samx.files import read_file
from samx.models.checkpoint import load_checkpoint
from samx.processing.embeddings import read_embedding
from samx.processing.images import read_image
from samx.quantization.calibration import CalibrationSet
from samx.validators import child
from samx.validators.arrays import pack
from samx.validators.suite import HEADER, IMAGE_CAP, ParitySuite

pytestmark = pytest.mark.timeout(60)
READERS: Mapping[str, Callable[[Path], object]] = {
    "checkpoint": load_checkpoint,
    "picture": read_image,
    "embedding": lambda path: read_embedding(path, SPEC),
    "calibration set": CalibrationSet.load,
    "report": BenchReport.load,
    "suite": lambda path: child._suite(Artifact(path, read_manifest(path)) if os.path.isdir(path) else None, path),  # type: ignore[arg-type]
    "graph": describe,
    "artifact": Artifact.open,
    "anything": inspect,
}


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.onnx")
    return folder / "pipe.onnx"


def unreadable(folder: Path) -> Path:
    """Name a file whose first byte the system refuses with EIO."""
    return Path("/proc/self/mem")


PLACES: Mapping[str, Callable[[Path], Path]] = {
    "pipe": pipe,
    "endless device": lambda _: Path("/dev/zero"),
    "terminal": lambda _: Path("/dev/tty"),
    "directory": lambda folder: folder,
    "failing disk": unreadable,
    "NUL": lambda folder: folder / "a\0b",
    "half a surrogate": lambda folder: folder / "\ud800",
    "no text": lambda folder: folder / os.fsdecode(b"\xff\xfe"),
    "long name": lambda folder: folder / ("x" * 5000),
    "loop": lambda folder: _loop(folder / "loop"),
}


def _loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(reader: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(SamxError):
        READERS[reader](PLACES[place](tmp_path))


def test_a_file_is_read_up_to_its_cap(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"four")
    assert read_file(path, 4, "it") == b"four"
    with pytest.raises(SamxError, match="it is too large: found 4 bytes, expected at most 3 bytes"):
        read_file(path, 3, "it")


def model(folder: Path, name: str, data: bytes) -> Path:
    """Write a model directory with one file of these bytes."""
    folder.mkdir(exist_ok=True)
    if name == "config.json":
        (folder / "model.safetensors").write_bytes(safetensors())
    (folder / name).write_bytes(data)
    return folder


INDEX = "model.safetensors.index.json"
UNHASHABLE = {"weight_map": {"a": ["shard"], "b": {"shard": 1}}}
BROKEN = {
    "lists": b"[" * 10**6,
    "objects": b'{"a":' * 10**5,
    "unhashable": json.dumps(UNHASHABLE).encode(),
    "no text": b"\xff",
    "number": b"1" * 10**5,
}


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_models_json_gives_one_line(name: str, data: bytes, tmp_path: Path) -> None:
    if name == "config.json" and data.startswith(b'{"weight'):
        data = json.dumps({**json.loads(configuration()), "mask_decoder_config": {"hidden_size": [{}]}}).encode()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model(tmp_path / "model", name, data))
    assert "\n" not in str(caught.value)


def test_a_long_value_of_a_configuration_makes_no_long_line(tmp_path: Path) -> None:
    data = json.dumps({**json.loads(configuration()), "model_type": ["x" * 100_000]}).encode()
    with pytest.raises(CheckpointError, match="model_type") as caught:
        load_checkpoint(model(tmp_path / "model", "config.json", data))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_sparse_file_of_gigabytes_is_not_read(name: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", name, index())
    os.truncate(folder / name, 4 << 30)
    with pytest.raises(CheckpointError, match="too large: found 4294967296 bytes"):
        load_checkpoint(folder)


def test_a_configuration_that_is_no_file_is_not_passed_over(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "config.json", b"{}")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json' cannot be read: found a pipe"):
        load_checkpoint(folder)


@pytest.mark.parametrize("seed", [0, None])
def test_a_small_suite_makes_no_gigabytes(seed: int | None) -> None:
    spec = {**SPEC.to_json(), "image_size": 8192, "width": 1024}
    header: dict[str, Any] = {
        **HEADER, "spec": spec, "image_source": "s", "reference": "r", "seed": seed, "drawn": None,
        "far": False, "generator": 1,
        "images": ["0" * 64] * IMAGE_CAP, "cases": [],
    }  # fmt: skip
    data = pack(header, {"unknown": np.zeros(1)})
    assert len(data) < 2000
    with pytest.raises(ArtifactError, match="too large images"):
        ParitySuite.load(data)


def test_an_artifact_on_a_failing_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_artifact import build

    path = build(tmp_path / "artifact")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("samx.artifacts.store.digest", fail)
    with pytest.raises(ArtifactError, match=r"decoder\.onnx cannot be read: found Input/output error"):
        Artifact.open(path)


def test_an_onnx_file_whose_names_are_no_text_is_described(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("prompts", "masks")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["prompts"], ["masks"])], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"samx.version": "1"})
    damaged = model.SerializeToString().replace(b"prompts", b"prompt\xff").replace(b"samx.version", b"samx.versio\xff")
    (tmp_path / "decoder.onnx").write_bytes(damaged)
    described = describe(tmp_path / "decoder.onnx")
    assert described["inputs"] == ["prompt\ufffd"]
    assert list(described["samx"]) == ["versio\ufffd"]
