"""Everything of samx that reads what somebody else made, with inputs that are right, and how they are damaged."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from calibration_toys import toy_set
from checkpoint_files import meta_sam1
from engine_toys import toy_onnx, toy_plan
from hypothesis import strategies as st
from mutations import archives, damaged, documents, pictures, repacked, tensors
from report_toys import bench_report
from stub_session import StubSession, pooled

from samx.artifacts.manifest import Manifest
from samx.benchmarks.results import BenchReport
from samx.contracts.lint import describe as describe_onnx
from samx.formats.coreml.package import package_from_directory
from samx.formats.tensorrt.plan import BuildPlan
from samx.formats.tensorrt.stamp import Machine, Stamp
from samx.models.checkpoint import load_checkpoint
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec
from samx.processing.embeddings import read_embedding
from samx.processing.images import check_upright, parse_levels, read_image
from samx.processing.prompts import Prompt, parse_box, parse_point
from samx.processing.rasters import png_bytes, read_raster
from samx.quantization.calibration import CalibrationSet
from samx.validators.encoder_suite import EncoderSuite
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

ARCHIVE = Path(__file__).parents[1] / "data" / "artifact-0.1.0.tar.xz"
SPEC = sam1_spec(image_size=32, width=8)
PACKAGE = {
    "fileFormatVersion": "1.0.0",
    "itemInfoEntries": {
        "A": {"path": "com.apple.CoreML/model.mlmodel", "author": "a", "name": "model.mlmodel", "description": "d"},
        "B": {"path": "com.apple.CoreML/weights", "author": "a", "name": "weights", "description": "d"},
    },
    "rootModelIdentifier": "A",
}


class Reader(NamedTuple):
    """Pair damaged inputs with what reads them; `inputs` are costly to make, and made when they are asked for."""

    inputs: Callable[[], st.SearchStrategy[Any]]
    read: Callable[[Any], object]


@cache
def kept(name: str) -> bytes:
    """Return a file of an artifact that 0.1.0 made."""
    with tarfile.open(ARCHIVE) as archive:
        file = archive.extractfile(f"sam2-toy/{name}")
        assert file is not None
        return file.read()


FOLDER = tempfile.TemporaryDirectory(prefix="samx-attack-", ignore_cleanup_errors=True)


def on_disk(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Read from a file of this name."""

    def written(data: bytes) -> object:
        path = Path(FOLDER.name, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return written


def bench_bytes() -> bytes:
    """Return a report of few samples."""
    whole = json.loads(bench_report().to_bytes())
    return json.dumps({**whole, "results": whole["results"][:3]}).encode()


def stamp() -> bytes:
    """Return an engine's stamp."""
    return Stamp(
        "trt", "this_gpu", Machine("10.3.0", "Linux x86_64", "Orin", "8.7", "540.4"), "0" * 64, "1" * 64, "now"
    ).to_bytes()


def embedding(save: Callable[..., None], **named: Any) -> bytes:
    """Return an image encoder's output in a file."""
    buffer, value = io.BytesIO(), np.ones([int(size) for size in SPEC.image_inputs[0].shape], np.float32)
    save(buffer, value) if not named else save(buffer, **{SPEC.image_inputs[0].name: value})
    return buffer.getvalue()


def encoder_suite() -> bytes:
    """Return two small pictures with what an encoder and a decoder make of them."""
    photos = [(f"{width} wide", np.full((3, width, 3), width, np.uint8)) for width in (4, 5)]
    return EncoderSuite.build(pooled(SPEC), StubSession(SPEC), SPEC.image_size, photos).to_bytes()


def picture() -> bytes:
    """Return a small PNG."""
    return png_bytes(np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3))


def safetensors() -> bytes:
    """Return a small checkpoint."""
    from safetensors.torch import save

    return bytes(save({key: value.contiguous() for key, value in meta_sam1().items()}))


def pickled() -> bytes:
    """Return the same as torch saves it."""
    buffer = io.BytesIO()
    torch.save(meta_sam1(), buffer)
    return buffer.getvalue()


def training_file() -> bytes:
    """Return a checkpoint with a whole module and objects of many kinds beside the weights."""
    buffer = io.BytesIO()
    torch.save({
        "state_dict": meta_sam1(), "model": torch.nn.Sequential(torch.nn.Linear(2, 2)), "epoch": np.int64(3),
        "arguments": Namespace(path=Path("a"), names={"b"}, dtype=torch.float16), "loss": np.ones(2),
    }, buffer)  # fmt: skip
    return buffer.getvalue()


def configuration() -> bytes:
    """Return a model's configuration, as Hugging Face writes it."""
    return json.dumps({
        "model_type": "sam", "architectures": ["SamModel"], "torch_dtype": "float32",
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 1024, "patch_size": 16, "mask_input_channels": 8},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 48, "num_hidden_layers": 2, "layer_norm_eps": 1e-5},
        "vision_config": {"image_size": 1024, "patch_size": [16, 16], "output_channels": 32},
    }).encode()  # fmt: skip


def directory(path: Path) -> object:
    """Read a model directory with this configuration or index."""
    weights = path.parent / "model.safetensors"
    if not weights.exists():
        weights.write_bytes(safetensors())
    return load_checkpoint(path.parent)


def index() -> bytes:
    """Return the list of a model's shards."""
    return json.dumps({"metadata": {}, "weight_map": {"a": "shard-1.safetensors", "b": "shard-2.safetensors"}}).encode()


def package(path: Path) -> object:
    """Read a Core ML package with this manifest."""
    model = path.parent / "Data" / "com.apple.CoreML" / "model.mlmodel"
    if not model.exists():
        (model.parent / "weights").mkdir(parents=True)
        model.write_bytes(b"program")
        (model.parent / "weights" / "weight.bin").write_bytes(b"weights")
    return package_from_directory(path.parent)


def quietly(read: Callable[[Any], object]) -> Callable[[Any], object]:
    """Let doubts pass."""

    def called(value: Any) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(value)

    return called


def look(path: Path) -> object:
    """Read a picture, and whether it is turned."""
    check_upright(path)
    return read_image(path)


def ask(text: str) -> object:
    """Make a prompt of words."""
    return Prompt.of_clicks([parse_point(text)])


def numbers() -> st.SearchStrategy[str]:
    """Draw what people and fuzzers write for numbers."""
    words = st.sampled_from(
        ("1", "0", "-1", "1e999", "nan", "inf", "1_0", "٣", "1.5", "", " ", ",", ":", "\0", "9" * 400)
    )
    return st.one_of(st.text(max_size=20), st.lists(words, max_size=9).map("".join))


def no_size(_: tuple[int, int]) -> None:
    """Refuse no size; pixels are counted before they are unpacked."""


def raster(data: bytes) -> object:
    """Decode a picture without Pillow."""
    from samx.processing.images import _check_size

    return read_raster(data, "picture", lambda size: _check_size(Path("picture"), None, size))


READERS: Mapping[str, Reader] = {
    "manifest": Reader(lambda: documents([kept("manifest.json")]), lambda data: Manifest.from_bytes(data, "it")),
    "parity report": Reader(
        lambda: documents([kept("parity_report.json")]), lambda data: ParityReport.from_bytes(data, "it").summary()
    ),
    "bench report": Reader(lambda: documents([bench_bytes()]), on_disk("bench.json", BenchReport.load)),
    "build plan": Reader(lambda: documents([toy_plan().to_bytes()]), lambda data: BuildPlan.from_bytes(data, "it")),
    "engine stamp": Reader(lambda: documents([stamp()]), lambda data: Stamp.from_bytes(data, "it")),
    "parity suite": Reader(lambda: archives(kept("parity_cases.npz"), "header"), ParitySuite.load),
    "encoder suite": Reader(lambda: archives(encoder_suite(), "header"), EncoderSuite.load),
    "calibration set": Reader(
        lambda: archives(toy_set().to_bytes(), "header"), on_disk("set.npz", CalibrationSet.load)
    ),
    "embedding npz": Reader(
        lambda: archives(embedding(np.savez, named=True), None),
        on_disk("e.npz", lambda path: read_embedding(path, SPEC)),
    ),
    "embedding npy": Reader(
        lambda: damaged([embedding(np.save)]), on_disk("e.npy", lambda path: read_embedding(path, SPEC))
    ),
    "picture with Pillow": Reader(lambda: pictures(picture()), on_disk("p.png", look)),
    "picture without Pillow": Reader(
        lambda: st.one_of(pictures(picture()), damaged([b"P6 2 2 255\n" + bytes(12), b"P5\n2 1\n65535\n" + bytes(4)])),
        raster,
    ),
    "safetensors": Reader(lambda: tensors(safetensors()), on_disk("w.safetensors", load_checkpoint)),
    "torch checkpoint": Reader(lambda: repacked(pickled()), on_disk("w.pth", load_checkpoint)),
    "training file": Reader(lambda: repacked(training_file()), on_disk("t.pth", load_checkpoint)),
    "configuration": Reader(lambda: documents([configuration()]), on_disk("hf/config.json", directory)),
    "index of shards": Reader(
        lambda: documents([index()]), on_disk("shards/model.safetensors.index.json", load_checkpoint)
    ),
    "ONNX": Reader(lambda: damaged([toy_onnx(), kept("image.onnx")]), on_disk("g.onnx", describe_onnx)),
    "Core ML manifest": Reader(
        lambda: documents([json.dumps(PACKAGE).encode()]), on_disk("p.mlpackage/Manifest.json", package)
    ),
    "point": Reader(numbers, ask),
    "box": Reader(numbers, lambda text: Prompt.of_clicks(box=parse_box(text))),
    "brightness": Reader(numbers, parse_levels),
    "range of shapes": Reader(numbers, lambda text: ShapeRange.parse(text, "points")),
}
