"""Meta's own SAM 1 ONNX decoder, from the package 'segment-anything', with the weights of our checkpoint."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from samx.errors import UsageError
from samx.extras import require
from samx.models.checkpoint import LoadedDecoder
from samx.models.spec import DecoderSpec

EXTRA, FAMILY = "bench", "sam1"
OPSET = 17  # the default of Meta's export script
EXAMPLE_POINTS = 5  # of the trace; any number, it is a dynamic axis
INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
OUTPUTS = ("masks", "iou_predictions", "low_res_masks")
DECODER_INPUTS, DECODER_OUTPUTS = INPUTS[:-1], ("low_res_masks", "iou_predictions")

# The package imports these names when it is imported; its decoder uses none of them.
STUBS: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
    "torchvision.ops": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
}


@dataclass(frozen=True)
class MetaFiles:
    """Name Meta's graph as exported, and the same graph cut before the resizing."""

    whole: Path
    decoder: Path


def export_meta(loaded: LoadedDecoder, directory: Path) -> MetaFiles:
    """Write Meta's ONNX decoder the way Meta's script does.

    Raises: MissingExtraError without segment-anything; UsageError for a decoder that is not SAM 1.
    """
    onnx = require("onnx", "export", "Meta's ONNX export")
    files = MetaFiles(directory / "meta.onnx", directory / "meta_decoder.onnx")
    model = build_meta(loaded)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about Meta's code, and of torch, about its old exporter
        torch.onnx.export(
            model, _examples(loaded.spec), str(files.whole), dynamo=False, opset_version=OPSET,
            input_names=list(INPUTS), output_names=list(OUTPUTS),
            dynamic_axes={name: {1: "num_points"} for name in ("point_coords", "point_labels")},
        )  # fmt: skip
    onnx.utils.extract_model(str(files.whole), str(files.decoder), list(DECODER_INPUTS), list(DECODER_OUTPUTS))
    return files


def build_meta(loaded: LoadedDecoder) -> nn.Module:
    """Wrap Meta's modules as Meta's export script does."""
    (onnx_model,) = import_segment_anything("utils.onnx")
    model: nn.Module = onnx_model.SamOnnxModel(build_sam(loaded), return_single_mask=False)
    return model


def build_sam(loaded: LoadedDecoder) -> nn.Module:
    """Put the weights into Meta's modules; every weight must find its place."""
    if loaded.spec.family != FAMILY:
        raise UsageError("Meta's ONNX decoder is a SAM 1 decoder", found=loaded.spec.family, expected=FAMILY)
    (modeling,) = import_segment_anything("modeling")
    sam: nn.Module = modeling.Sam(_NoEncoder(loaded.spec.image_size), *_parts(modeling, loaded.spec)).eval()
    sam.load_state_dict(loaded.weights, strict=True)
    return sam


def import_segment_anything(*modules: str) -> list[ModuleType]:
    """Import parts of Meta's package, with torchvision or with empty modules in its place.

    Raises: MissingExtraError when the package is not installed.
    """
    with torchvision_stubs():
        require("segment_anything", EXTRA, "comparing with Meta's decoder")
        return [importlib.import_module(f"segment_anything.{name}") for name in modules]


@contextmanager
def torchvision_stubs() -> Iterator[None]:
    """Let Meta's package be imported where torchvision is not; leave no trace in sys.modules."""
    if _has_torchvision():
        yield
        return
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    sys.modules.update({name: _stub(name, names) for name, names in STUBS.items()})
    try:
        yield
    finally:
        for name in STUBS:
            del sys.modules[name]
        sys.modules.update(before)


def _has_torchvision() -> bool:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):  # a build for another torch fails in its own ways
        return False
    return True


def _stub(name: str, names: tuple[str, ...]) -> ModuleType:
    module = ModuleType(name)
    for attribute in names:
        setattr(module, attribute, None)
    return module


class _NoEncoder(nn.Module):
    """Stand in for the image encoder, of which the export reads the frame's size only."""

    def __init__(self, image_size_px: int) -> None:
        super().__init__()
        self.img_size = image_size_px


def _parts(modeling: ModuleType, spec: DecoderSpec) -> tuple[nn.Module, nn.Module]:
    """Build Meta's prompt encoder and mask decoder in our spec's sizes."""
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=spec.width, image_embedding_size=(spec.grid, spec.grid),
        input_image_size=(spec.image_size, spec.image_size), mask_in_chans=spec.mask_prompt_channels,
    )  # fmt: skip
    transformer = modeling.TwoWayTransformer(
        depth=spec.depth, embedding_dim=spec.width, mlp_dim=spec.mlp_width, num_heads=spec.heads
    )
    mask_decoder = modeling.MaskDecoder(
        transformer_dim=spec.width, transformer=transformer, num_multimask_outputs=spec.mask_tokens - 1,
        iou_head_depth=spec.iou_head_depth, iou_head_hidden_dim=spec.iou_head_width,
    )  # fmt: skip
    return prompt_encoder, mask_decoder


def _examples(spec: DecoderSpec) -> tuple[Tensor, ...]:
    named: dict[str, Any] = {
        "image_embeddings": torch.randn(1, spec.width, spec.grid, spec.grid),
        "point_coords": torch.randint(0, spec.image_size, (1, EXAMPLE_POINTS, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, EXAMPLE_POINTS)).float(),
        "mask_input": torch.randn(1, 1, spec.mask_size, spec.mask_size),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([1500.0, 2250.0]),
    }
    return tuple(named[name] for name in INPUTS)
