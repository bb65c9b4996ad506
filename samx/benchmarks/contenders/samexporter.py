"""The package 'samexporter': its ONNX decoders of SAM 1 and SAM 2, with the weights of our checkpoint."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from samx.benchmarks.contenders import Opened, Setting, encoders
from samx.benchmarks.contenders.meta import (
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    build_sam,
    decoder_parts,
    fill,
    open_graph,
    stub_modules,
    torchvision_stubs,
)
from samx.benchmarks.contenders.meta import build_encoder as meta_encoder
from samx.extras import require
from samx.models.checkpoint import LoadedDecoder
from samx.models.encoders import hiera
from samx.models.encoders.base import Architecture, Weights
from samx.models.spec import DecoderSpec

LIMIT = 32.0  # that its SAM 2 graph clamps mask logits to
OPSET = 18  # the default of its scripts
SAM2_INPUTS = (
    "image_embed", "high_res_feats_0", "high_res_feats_1", "point_coords", "point_labels", "mask_input",
    "has_mask_input",
)  # fmt: skip
SAM2_OUTPUTS = ("masks", "iou_predictions")
SAM2_MANY: dict[str, dict[int, str]] = {
    "point_coords": {0: "num_labels", 1: "num_points"}, "point_labels": {0: "num_labels", 1: "num_points"},
    "mask_input": {0: "num_labels"}, "has_mask_input": {0: "num_labels"},
}  # fmt: skip
EXAMPLE_POINTS = 5
# Imported by its SAM 1 script for MobileSAM's encoder, which is not measured.
NOT_NEEDED = {"samexporter.mobile_encoder.setup_mobile_sam": ("setup_model",)}
SAM21 = dict.fromkeys(  # as its configurations have it
    ("use_high_res_features", "iou_prediction_use_sigmoid", "pred_obj_scores", "pred_obj_scores_mlp",
     "use_multimask_token_for_obj_ptr"), True,
)  # fmt: skip


def open_samexporter(setting: Setting) -> Opened:
    """Open its decoder: of SAM 1 cut before its resizing, of SAM 2 as it is; that fails for more than one prompt."""
    onnx = require("onnx", "export", "reading samexporter's files")
    loaded, encoder = setting.loaded, partial(encoders.opened, setting, encoders.onnx_of(build_encoder))
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as folder:
        path, cut = Path(folder, "whole.onnx"), Path(folder, "cut.onnx")
        if loaded.spec.family == "sam2":
            export_sam2(loaded, path)
            model = onnx.load(path)
            _rename(model.graph, _names(loaded.spec))
            found = open_graph(setting, model.SerializeToString(), "multimask", pads=True)
            return replace(found, limit=LIMIT, encoder=encoder)
        export_sam1(loaded, path)
        onnx.utils.extract_model(str(path), str(cut), list(DECODER_INPUTS), list(DECODER_OUTPUTS))
        return replace(open_graph(setting, cut.read_bytes(), "all"), encoder=encoder)


def build_encoder(architecture: Architecture, weights: Weights, picture_px: int) -> encoders.Peer:
    """Put the weights into the encoder that it exports."""
    if architecture.name == "vit":
        meta = meta_encoder(architecture, weights, picture_px)
        whole = SimpleNamespace(image_encoder=meta.model)
        module = _script("onnx_utils").ImageEncoderOnnxModel(whole, use_preprocess=False)
        return encoders.Peer(module, lambda pixels: (module(pixels),), picture_px)
    model = sam2_encoder(hiera.Sizes.of(weights))
    names = {key: re.sub(r"^(?:image_encoder|sam_mask_decoder)\.", "", key) for key in model.state_dict()}
    encoders.fill(model, weights, names)
    model.num_feature_levels = hiera.STAGES - 1
    module = _script("export_sam2").SAM2ImageEncoder(model)

    def call(pixels: Tensor) -> tuple[Tensor, ...]:
        fine, coarse, embedding = module(pixels)
        return embedding, fine, coarse

    return encoders.Peer(module, call, picture_px)


def sam2_encoder(sizes: hiera.Sizes) -> Any:
    """Build the image encoder of Meta's package 'sam2', and what its predictor does to the features."""
    with torchvision_stubs():
        backbones, position = (
            importlib.import_module(f"sam2.modeling.{name}") for name in ("backbones", "position_encoding")
        )
        encoder, trunks = (
            importlib.import_module(f"{backbones.__name__}.{name}") for name in ("image_encoder", "hieradet")
        )
    layout, width = sizes.layout, sizes.width
    trunk = trunks.Hiera(
        embed_dim=width, num_heads=layout.heads, stages=sizes.blocks, global_att_blocks=layout.everywhere,
        window_spec=layout.windows, window_pos_embed_bkg_spatial_size=(sizes.positions, sizes.positions),
    )  # fmt: skip
    widths = [width << stage for stage in reversed(range(hiera.STAGES))]
    neck = encoder.FpnNeck(
        position.PositionEmbeddingSine(sizes.out_width), sizes.out_width, widths, fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )  # fmt: skip
    model = nn.Module()
    model.image_encoder = encoder.ImageEncoder(trunk, neck, scalp=1)
    model.no_mem_embed = nn.Parameter(torch.zeros(1, 1, sizes.out_width))
    laterals = {f"conv_s{level}": nn.Conv2d(sizes.out_width, sizes.out_width // (8 >> level), 1) for level in (0, 1)}
    model.sam_mask_decoder = nn.ModuleDict(laterals)
    return model


def _names(spec: DecoderSpec) -> dict[str, str]:
    """Return our names of the SAM 2 graph's inputs and outputs."""
    ours = [*(tensor.name for tensor in spec.image_inputs), *DECODER_INPUTS[1:]]
    return dict(zip((*SAM2_INPUTS, *SAM2_OUTPUTS), (*ours, *DECODER_OUTPUTS), strict=True))


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename what goes in and out of an ONNX graph."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def export_sam1(loaded: LoadedDecoder, path: Path) -> None:
    """Let its own function write the SAM 1 decoder.

    Raises: ImportError without the package.
    """
    script = _script("export_decoder")
    script.sam_model_registry = {"sam1": lambda checkpoint: build_sam(loaded)}
    with _quietly():
        script.run_export("sam1", "", str(path), OPSET, return_single_mask=False)


def export_sam2(loaded: LoadedDecoder, path: Path) -> None:
    """Export its SAM 2 decoder module as its script does; the script itself wants an image encoder too.

    Raises: as export_sam1().
    """
    script = _script("export_sam2")
    module = script.SAM2ImageDecoder(build_sam2(loaded), multimask_output=True).eval()
    with _quietly(), torch.no_grad():
        torch.onnx.export(
            module, _examples(loaded.spec), str(path), dynamo=False, opset_version=OPSET,
            input_names=list(SAM2_INPUTS), output_names=list(SAM2_OUTPUTS), dynamic_axes=SAM2_MANY,
        )  # fmt: skip


def build_sam2(loaded: LoadedDecoder) -> Any:
    """Put the weights into the decoder of Meta's package 'sam2'; return what its exporters read of a whole model.

    Raises: ImportError without the package.
    """
    with torchvision_stubs():
        modules = [importlib.import_module(f"sam2.modeling.sam.{name}") for name in ("prompt_encoder", "mask_decoder")]
        modules.append(importlib.import_module("sam2.modeling.sam.transformer"))
    classes = SimpleNamespace(**{name: found for module in modules for name, found in vars(module).items()})
    model = nn.Module()
    model.sam_prompt_encoder, model.sam_mask_decoder = decoder_parts(classes, loaded.spec, **SAM21)
    fill(model, loaded)
    model.eval()
    return SimpleNamespace(
        sam_prompt_encoder=model.sam_prompt_encoder, sam_mask_decoder=model.sam_mask_decoder,
        image_size=loaded.spec.image_size,
    )  # fmt: skip


def _examples(spec: DecoderSpec) -> tuple[Tensor, ...]:
    skips = {tensor.name: torch.randn(*map(int, tensor.shape)) for tensor in spec.image_inputs}
    embedding, *high = skips.values()
    coords = torch.randint(0, spec.image_size, (1, EXAMPLE_POINTS, 2)).float()
    mask = torch.randn(1, 1, spec.mask_size, spec.mask_size)
    return (embedding, *high, coords, torch.zeros(1, EXAMPLE_POINTS), mask, torch.ones(1))


def _script(name: str) -> Any:
    with torchvision_stubs(), stub_modules(NOT_NEEDED):
        return importlib.import_module(f"samexporter.{name}")


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the tracer, about Meta's code, and of torch, about its old exporter
        yield
