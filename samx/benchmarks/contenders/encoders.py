"""Other people's image encoders, with our checkpoint's weights: in PyTorch, and as the ONNX files that they export.

Pictures are resized, normalised and padded by samx for all of them, so that a figure compares encoders alone.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samx.benchmarks.contenders import Setting
from samx.errors import CheckpointError, UnavailableError
from samx.extras import require
from samx.models.encoders import hiera, vit
from samx.models.encoders.base import Architecture, Encoder, Weights
from samx.models.encoders.load import PREFIX, architecture_of, encoder_names, read_weights
from samx.models.encoders.picture import picture_graph
from samx.models.lora import weight_readers
from samx.models.session import Feed
from samx.models.weight_files import open_weights
from samx.picture_encoder import RunLevels

OPSET = 18
Build = Callable[[Architecture, Weights, int], "Peer"]  # of upstream's names; for a frame of so many px


class Peer(Encoder):
    """An encoder of somebody else's, which returns what our decoder takes."""

    def __init__(self, model: Any, call: Callable[[Tensor], tuple[Tensor, ...]], picture_px: int) -> None:
        super().__init__()
        self.model, self.call, self.picture_px = model, call, picture_px

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: as Encoder."""
        return self.call(pixels)


def opened(setting: Setting, build: Build) -> RunLevels:
    """Build a peer's encoder of levels.

    Raises: UnavailableError where the checkpoint has no encoder that the peer has.
    """
    spec = setting.loaded.spec
    graph = picture_graph(build(*read(setting), spec.image_size), spec)
    graph.module.requires_grad_(False).eval()

    @torch.inference_mode()
    def run(taken: Mapping[str, Any]) -> Feed:
        found = graph.module(*(torch.from_numpy(taken[tensor.name]) for tensor in graph.inputs))
        return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, found, strict=True)}

    return run


def read(setting: Setting) -> tuple[Architecture, Weights]:
    """Read a checkpoint's image encoder under upstream's names.

    Raises: UnavailableError without one of SAM's ViT or SAM 2's Hiera.
    """
    rules, source = setting.loaded.spec.rules, open_weights(setting.checkpoint)
    readers = weight_readers(source)
    found, places = architecture_of(rules, readers), {key: rules.place(key) for key in readers}
    prefix = next((match["prefix"] for place in places.values() if (match := PREFIX.match(place))), None)
    if found not in (vit.ENCODER, hiera.ENCODER) or prefix is None:
        name = "none that is known" if found is None else found.title
        raise UnavailableError("others' encoders are compared with SAM's ViT and SAM 2's Hiera", found=name)
    return found, read_weights(source.path, readers, found, encoder_names(found, prefix, places))


def fill(module: nn.Module, weights: Weights, names: Mapping[str, str]) -> None:
    """Copy weights into somebody else's modules, by their keys' names upstream; each has to find a place.

    Raises: CheckpointError.
    """
    state = module.state_dict()
    missing, left = [name for name in names.values() if name not in weights], set(weights) - set(names.values())
    if missing or left:
        raise CheckpointError("the peer's encoder has other weights", found=", ".join([*missing, *sorted(left)][:4]))
    with torch.no_grad():
        for key, name in names.items():
            state[key].copy_(weights[name])


def vit_sizes(weights: Weights, picture_px: int) -> dict[str, Any]:
    """Return the sizes of SAM's ViT by Meta's names.

    Raises: UnavailableError for another size than its positions have.
    """
    sizes = vit.Sizes.of(weights)
    if picture_px != (own := sizes.grid * sizes.patch_px):
        raise UnavailableError("others' encoders take the checkpoint's own size", found=picture_px, expected=f"{own}")
    windows = [side for side in sizes.sides if side != sizes.grid]
    return {
        "img_size": sizes.grid * sizes.patch_px, "patch_size": sizes.patch_px, "embed_dim": sizes.width,
        "depth": len(sizes.sides), "num_heads": sizes.width // sizes.head_width, "out_chans": sizes.out_width,
        "mlp_ratio": sizes.mlp_width / sizes.width, "window_size": windows[0] if windows else sizes.grid,
        "global_attn_indexes": [i for i, side in enumerate(sizes.sides) if side == sizes.grid],
    }  # fmt: skip


def as_onnx(peer: Peer, export: Callable[[Path], None]) -> Peer:
    """Run a peer as the ONNX file that somebody exports, in ONNX Runtime on the CPU."""
    ort = require("onnxruntime", "onnxruntime", "running ONNX files")
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as folder:
        path = Path(folder, "encoder.onnx")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer, about others' code
            export(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()

    def call(pixels: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {taken.name: np.ascontiguousarray(pixels.numpy())})
        return tuple(map(torch.from_numpy, found))

    return Peer(None, call, peer.picture_px)


def traced(peer: Peer, path: Path) -> None:
    """Export a peer as most scripts do."""
    pixels = torch.randn(1, 3, peer.picture_px, peer.picture_px)
    torch.onnx.export(peer, (pixels,), str(path), dynamo=False, opset_version=OPSET, input_names=["pixels"])


def onnx_of(build: Build) -> Build:
    """Return what builds the ONNX export of a peer."""

    def built(architecture: Architecture, weights: Weights, picture_px: int) -> Peer:
        peer = build(architecture, weights, picture_px).requires_grad_(False).eval()
        return as_onnx(peer, partial(traced, peer))

    return built
