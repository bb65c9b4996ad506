"""Meta's own SAM 1 decoder, from 'segment-anything' with our weights: as modules, and as its ONNX export."""

from __future__ import annotations

import importlib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samx.benchmarks.contenders import Opened, Setting, encoders
from samx.errors import CheckpointError, PromptError, UnavailableError, UsageError
from samx.extras import require
from samx.models.checkpoint import LoadedDecoder
from samx.models.encoders.base import Architecture, Weights
from samx.models.families.base import TABLES
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import LABELS, DecoderSpec
from samx.runtimes.onnxruntime import open_models

EXTRA, FAMILY = "bench", "sam1"
OPSET = 17  # the default of Meta's export script
EXAMPLE_POINTS = 5  # of the trace; any number, it is a dynamic axis
EXAMPLE_PICTURE = (1500, 2250)  # height and width, of Meta's script
INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
OUTPUTS = ("masks", "iou_predictions", "low_res_masks")
DECODER_INPUTS, DECODER_OUTPUTS = INPUTS[:-1], ("low_res_masks", "iou_predictions")
MASKS = {"all": slice(0, None), "multimask": slice(1, None), "single": slice(0, 1)}  # of the four that Meta's graph has
POINT_ROWS = [f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]  # one table in Hugging Face's SAM 2

# The package imports these names when it is imported; its decoder uses none of them.
STUBS: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
    "torchvision.ops": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
}


def open_meta(setting: Setting, pooled: bool = False) -> Opened:
    """Open Meta's ONNX export, cut before its resizing; with `pooled`, prompts of a call have a thread each."""
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as folder:
        model = export_meta(setting.loaded, Path(folder))[1].read_bytes()
    encoder = partial(encoders.opened, setting, encoders.onnx_of(build_encoder))
    return replace(open_graph(setting, model, "all", pooled=pooled), encoder=encoder)


def build_encoder(architecture: Architecture, weights: Weights, picture_px: int) -> encoders.Peer:
    """Put the weights into Meta's image encoder of SAM 1.

    Raises: UnavailableError for another.
    """
    if architecture.name != "vit":
        raise UnavailableError("Meta's package has the ViT alone", found=architecture.title)
    (modeling,) = import_segment_anything("modeling")
    sizes = encoders.vit_sizes(weights, picture_px)
    norm = partial(nn.LayerNorm, eps=1e-6)
    model = modeling.ImageEncoderViT(**sizes, qkv_bias=True, use_rel_pos=True, norm_layer=norm)
    encoders.fill(model, weights, {key: key for key in model.state_dict()})
    return encoders.Peer(model, lambda pixels: (model(pixels),), picture_px)


def open_graph(setting: Setting, model: bytes, masks: Any, *, pads: bool = False, pooled: bool = False) -> Opened:
    """Open somebody's ONNX decoder of one prompt a call, with samx's own session options.

    Raises: UnavailableError where it has not the masks that are asked for.
    """
    spec = setting.loaded.spec
    if masks not in ("all", spec.masks):
        raise UnavailableError("it has other masks", found=masks, expected=spec.masks)
    theirs = replace(spec, masks=masks, mask_input=True, object_score=spec.object_score and masks == "all")
    inner = open_models({"decoder": model}, theirs, {"split": pooled}, threads=setting.threads, chunk=1)
    return Opened(OnePrompt(replace(spec, object_score=theirs.object_score), inner, pads), len(model))


class OnePrompt:
    """Decode with a graph that takes one prompt a call, and always a mask prompt; its runtime cuts larger calls."""

    def __init__(self, spec: DecoderSpec, inner: Any, pads: bool) -> None:
        self.spec, self._inner, self._pads = spec, inner, pads
        self._cut = MASKS[spec.masks] if inner.spec.masks == "all" else slice(None)

    def set_image(self, image: Feed) -> None:
        """Take one image's features."""
        self._inner.set_image(image)

    def decode(self, prompts: Feed) -> Outputs:
        """Decode prompts; the masks that were not asked for are cut off."""
        given = unpadded(prompts) if self._pads else prompts
        outputs = self._inner.decode({**_no_masks(self.spec, len(prompts["point_labels"])), **given})
        return {name: value[:, self._cut] for name, value in outputs.items()}

    def placement(self) -> Placement:
        """Count the graph nodes that each execution provider took."""
        found: Placement = self._inner.placement()
        return found


def _no_masks(spec: DecoderSpec, prompts: int) -> Feed:
    size = (prompts, 1, spec.mask_size, spec.mask_size)
    return {"mask_input": np.zeros(size, np.float32), "has_mask_input": np.zeros(prompts, np.float32)}


def unpadded(prompts: Feed) -> Feed:
    """Take the padding token off prompts, for code that adds its own.

    Raises: PromptError for prompts of nothing else, of different kinds, or of points that have none.
    """
    coords, labels = prompts["point_coords"], prompts["point_labels"]
    kept = labels[0] != LABELS["padding"]
    if not kept.any() or (labels != labels[:1]).any():
        raise PromptError("it takes prompts of one kind, with a point or a box each")
    if kept.all() and (labels[0] < LABELS["box_top_left"]).all():
        raise PromptError("it adds padding to every point")
    return {**prompts, "point_coords": coords[:, kept], "point_labels": labels[:, kept]}


def export_meta(loaded: LoadedDecoder, directory: Path) -> tuple[Path, Path]:
    """Write Meta's ONNX decoder the way Meta's script does: as exported, and cut before the resizing.

    Raises: MissingExtraError without segment-anything; UsageError for a decoder that is not SAM 1.
    """
    onnx = require("onnx", "export", "Meta's ONNX export")
    whole, decoder = directory / "meta.onnx", directory / "meta_decoder.onnx"
    trace_meta(build_meta(loaded), loaded.spec, whole)
    onnx.utils.extract_model(str(whole), str(decoder), list(DECODER_INPUTS), list(DECODER_OUTPUTS))
    return whole, decoder


def trace_meta(model: nn.Module, spec: DecoderSpec, path: Path, picture: tuple[int, int] = EXAMPLE_PICTURE) -> None:
    """Trace Meta's decoder. Its crop is frozen as a picture's of this height and width in px has it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about Meta's code, and of torch, about its old exporter
        torch.onnx.export(
            model, _examples(spec, picture), str(path), dynamo=False, opset_version=OPSET,
            input_names=list(INPUTS), output_names=list(OUTPUTS),
            dynamic_axes={name: {1: "num_points"} for name in ("point_coords", "point_labels")},
        )  # fmt: skip


def build_meta(loaded: LoadedDecoder, single: bool = False) -> nn.Module:
    """Wrap Meta's modules as Meta's export script does; with `single`, as it does for one mask."""
    (onnx_model,) = import_segment_anything("utils.onnx")
    model: nn.Module = onnx_model.SamOnnxModel(build_sam(loaded), return_single_mask=single)
    return model


def build_sam(loaded: LoadedDecoder) -> nn.Module:
    """Put the weights into Meta's modules; every weight must find its place."""
    if loaded.spec.family != FAMILY:
        raise UsageError("Meta's ONNX decoder is a SAM 1 decoder", found=loaded.spec.family, expected=FAMILY)
    (modeling,) = import_segment_anything("modeling")
    encoder = SimpleNamespace(img_size=loaded.spec.image_size)  # of which the export reads the frame's size only
    sam: nn.Module = modeling.Sam(encoder, *decoder_parts(modeling, loaded.spec)).eval()
    sam.load_state_dict(loaded.weights, strict=True)
    return sam


def import_segment_anything(*modules: str) -> list[ModuleType]:
    """Import parts of Meta's package, with torchvision or with empty modules in its place.

    Raises: MissingExtraError when the package is not installed.
    """
    with torchvision_stubs():
        require("segment_anything", EXTRA, "comparing with Meta's decoder")
        return [importlib.import_module(f"segment_anything.{name}") for name in modules]


def torchvision_stubs() -> AbstractContextManager[None]:
    """Let Meta's package be imported where torchvision is not."""
    return nullcontext() if _has_torchvision() else stub_modules(STUBS)


@contextmanager
def stub_modules(stubs: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
    """Put modules that hold some names into the place of real ones; leave no trace in sys.modules."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name in stubs}
    for name, attributes in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(attributes))
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]
        sys.modules.update(before)


def _has_torchvision() -> bool:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):  # a build for another torch fails in its own ways
        return False
    return True


def decoder_parts(classes: Any, spec: DecoderSpec, **more: Any) -> tuple[nn.Module, nn.Module]:
    """Build Meta's prompt encoder and mask decoder in our spec's sizes."""
    prompt_encoder = classes.PromptEncoder(
        embed_dim=spec.width, image_embedding_size=(spec.grid, spec.grid),
        input_image_size=(spec.image_size, spec.image_size), mask_in_chans=spec.mask_prompt_channels,
    )  # fmt: skip
    transformer = classes.TwoWayTransformer(
        depth=spec.depth, embedding_dim=spec.width, mlp_dim=spec.mlp_width, num_heads=spec.heads
    )
    mask_decoder = classes.MaskDecoder(
        transformer_dim=spec.width, transformer=transformer, num_multimask_outputs=spec.mask_tokens - 1,
        iou_head_depth=spec.iou_head_depth, iou_head_hidden_dim=spec.iou_head_width, **more,
    )  # fmt: skip
    return prompt_encoder, mask_decoder


def _examples(spec: DecoderSpec, picture: tuple[int, int]) -> tuple[Tensor, ...]:
    named: dict[str, Any] = {
        "image_embeddings": torch.randn(1, spec.width, spec.grid, spec.grid),
        "point_coords": torch.randint(0, spec.image_size, (1, EXAMPLE_POINTS, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, EXAMPLE_POINTS)).float(),
        "mask_input": torch.randn(1, 1, spec.mask_size, spec.mask_size),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor(picture, dtype=torch.float32),
    }
    return tuple(named[name] for name in INPUTS)


def fill(model: nn.Module, loaded: LoadedDecoder) -> None:
    """Copy every decoder weight into somebody else's modules, whatever they call it.

    Raises: CheckpointError when the model has one that the checkpoint has not, or leaves one over.
    """
    state = model.state_dict()
    family = loaded.spec.rules
    found = family.decoder_names(state, "").items()
    names = {key: name for key, name in found if not name.startswith(family.left_out)}
    rows = {key: POINT_ROWS if name in TABLES else [name] for key, name in names.items()}
    missing = [key for key, parts in rows.items() if not set(parts) <= set(loaded.weights)]
    left = set(loaded.weights) - {part for parts in rows.values() for part in parts}
    if missing or left:
        raise CheckpointError("the peer's decoder has other weights", found=", ".join([*missing, *sorted(left)][:4]))
    with torch.no_grad():
        for key, parts in rows.items():
            weights = [loaded.weights[part] for part in parts]
            state[key].copy_(torch.cat(weights) if len(weights) > 1 else weights[0])
