"""The decoders that `make compare` measures side by side: other people's, and ours. One line each in DECODERS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from samx.artifacts.store import Artifact
from samx.benchmarks.agreement import Parts
from samx.benchmarks.contenders import huggingface, samexporter
from samx.benchmarks.contenders.meta import DECODER_INPUTS, DECODER_OUTPUTS, export_meta, no_mask_feed, open_session
from samx.commands.export import ExportRequest, export
from samx.exporters import onnx as exporter
from samx.exporters.base import ExportJob, export_decoder
from samx.exporters.onnx import OnnxOptions
from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.fast.decoder import FastDecoder
from samx.models.session import Feed, FloatArray
from samx.models.shape_range import ShapeRange
from samx.models.spec import LABELS
from samx.registry import BACKENDS, Backend, load
from samx.runtimes.base import DEFAULT_CHUNK, Runtime
from samx.runtimes.onnxruntime import open_models

MASKS = slice(1, 4)  # of the four that Meta's SAM 1 graphs return: the three that everybody else does
EAGER_CHUNK = 2  # prompts a call: in larger ones PyTorch spends half of its time on fresh memory pages
Boxes = FloatArray  # (N, 2, 2), corners in px of the frame
Call = Callable[[Boxes], Parts]
WORDS = {"fp32": "", "bf16": " bfloat16", "int8": " INT8"}  # precisions that processors compute in, as names tell them


@dataclass(frozen=True)
class Setting:
    """What is decoded, with how many threads, and where exports are kept between openings."""

    loaded: LoadedDecoder
    image: Feed
    threads: int
    folder: Path

    def file(self, name: str, write: Callable[[LoadedDecoder, Path], Any]) -> bytes:
        """Export once."""
        path = self.folder / name
        if not path.exists():
            write(self.loaded, path)
        return path.read_bytes()


@dataclass(frozen=True)
class Decoder:
    """A decoder, the distributions whose versions matter, and how it is opened."""

    name: str
    open: Callable[[Setting], Call]
    libraries: tuple[str, ...]
    families: tuple[str, ...] = ("sam1", "sam2")
    compiled: bool = False  # minutes before the first call
    rounded: bool = False  # to fewer bits: its masks are compared, and not its logits


def points_of(boxes: Boxes, padded: bool) -> Feed:
    """Write boxes as labelled points, with SAM 2's padding point or without."""
    corners = np.array([LABELS["box_top_left"], LABELS["box_bottom_right"]], np.float32)
    labels = np.tile(corners, (len(boxes), 1))
    if not padded:
        return {"point_coords": boxes, "point_labels": labels}
    coords = np.pad(boxes, ((0, 0), (0, 1), (0, 0)))
    labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=LABELS["padding"])
    return {"point_coords": coords, "point_labels": labels}


def _one_by_one(run: Callable[[Feed], Sequence[FloatArray]], masks: slice) -> Call:
    """Call a graph that takes one prompt."""

    def call(boxes: Boxes) -> Parts:
        rows = (run(points_of(boxes[i : i + 1], padded=False)) for i in range(len(boxes)))
        return [[found[:, masks], scores[:, masks]] for found, scores in rows]

    return call


def _graph(model: bytes, fixed: Feed, outputs: Sequence[str], threads: int) -> Callable[[Feed], Sequence[FloatArray]]:
    session = open_session(model, threads)
    return lambda prompts: session.run(outputs, {**fixed, **prompts})


def meta_sam1(setting: Setting) -> Call:
    """Open Meta's ONNX export, cut before its resizing."""
    return _sam1(setting, setting.file("meta_decoder.onnx", lambda loaded, path: export_meta(loaded, path.parent)))


def samexporter_sam1(setting: Setting) -> Call:
    """Open samexporter's SAM 1 decoder, cut before its resizing."""

    def write(loaded: LoadedDecoder, path: Path) -> None:
        whole = path.with_name("samexporter_sam1_whole.onnx")
        samexporter.export_sam1(loaded, whole)
        onnx.utils.extract_model(str(whole), str(path), list(DECODER_INPUTS), list(DECODER_OUTPUTS))

    return _sam1(setting, setting.file("samexporter_sam1.onnx", write))


def _sam1(setting: Setting, model: bytes) -> Call:
    fixed = {**setting.image, **no_mask_feed(setting.loaded.spec)}
    return _one_by_one(_graph(model, fixed, DECODER_OUTPUTS, setting.threads), MASKS)


def samexporter_sam2(setting: Setting) -> Call:
    """Open samexporter's SAM 2 decoder; its graph fails for more than one prompt."""
    model = setting.file("samexporter_sam2.onnx", samexporter.export_sam2)
    named = dict(zip(samexporter.SAM2_INPUTS, setting.image.values(), strict=False))
    fixed = {**named, **no_mask_feed(setting.loaded.spec)}
    return _one_by_one(_graph(model, fixed, samexporter.SAM2_OUTPUTS, setting.threads), slice(None))


def hugging_face(setting: Setting, compiled: bool = False) -> Call:
    """Open Hugging Face's model in PyTorch."""
    torch.set_num_threads(setting.threads)
    module: Any = huggingface.build(setting.loaded, setting.image)
    run = torch.compile(module, dynamic=False) if compiled else module

    def call(boxes: Boxes) -> Parts:
        found = run(torch.from_numpy(boxes.reshape(-1, 4)))
        return [[part.numpy() for part in found]]

    return call


def samx_onnx(setting: Setting, name: str, split: bool = False, prompts: str | None = None) -> Call:
    """Open our graph as samx's runtime does."""
    folder = setting.folder / name
    options = OnnxOptions(split=split, prompts=ShapeRange.parse(prompts, "prompts") if prompts else None)
    spec = replace(setting.loaded.spec, masks="multimask")
    if not folder.exists():
        folder.mkdir()
        export_decoder(exporter, ExportJob(setting.loaded, spec, options), folder)
    files = ("image.onnx", "prompt.onnx") if split else ("decoder.onnx",)
    models = {file: (folder / file).read_bytes() for file in files}
    return _runtime(open_models(models, spec, options.to_json(), threads=setting.threads), setting.image)


def samx_split(setting: Setting, entry: Backend, precision: str) -> Call:
    """Open what 'samx export --split' leaves for another target, proven and in its precision."""
    path, family = setting.folder / f"{entry.target}-{precision}", setting.loaded.spec.family
    if not path.exists():
        export(ExportRequest(path, None, family, entry.target, precision, options={"split": True}))
    return _runtime(load(entry.runtime)(Artifact.open(path), threads=setting.threads), setting.image)


def split_elsewhere() -> Iterator[Decoder]:
    """Name the other backends that keep the image's part on a processor, in each precision that computes apart."""
    for entry in BACKENDS[1:]:
        if entry.graph is None and "split" in entry.option_fields():
            for precision in filter(entry.precisions.__contains__, WORDS):
                name = f"samx, {entry.title}{WORDS[precision]}"
                opened = partial(samx_split, entry=entry, precision=precision)
                yield Decoder(name, opened, (entry.library,), rounded=precision != "fp32")


def _runtime(runtime: Runtime, image: Feed) -> Call:
    padded = runtime.spec.rules.pads_boxes
    runtime.set_image(image)

    def call(boxes: Boxes) -> Parts:
        outputs = runtime.decode(points_of(boxes, padded))
        return [[outputs["low_res_masks"], outputs["iou_predictions"]]]

    return call


def samx_torch(setting: Setting, compiled: bool = False) -> Call:
    """Open our fast form in PyTorch, the image's part kept."""
    torch.set_num_threads(setting.threads)
    spec = replace(setting.loaded.spec, masks="multimask")
    decoder = FastDecoder(build_reference(replace(setting.loaded, spec=spec)))
    chunk = DEFAULT_CHUNK if compiled else EAGER_CHUNK
    run = torch.compile(decoder.decode, dynamic=False) if compiled else decoder.decode
    with torch.inference_mode():
        state = decoder.image_state(*(torch.from_numpy(value.copy()) for value in setting.image.values()))

    @torch.inference_mode()
    def call(boxes: Boxes) -> Parts:
        feed = points_of(boxes, padded=spec.rules.pads_boxes)
        coords, labels = (torch.from_numpy(feed[name]).split(chunk) for name in ("point_coords", "point_labels"))
        parts: list[tuple[Tensor, ...]] = [run(state, *rows) for rows in zip(coords, labels, strict=True)]
        return [[part[0].numpy(), part[1].numpy()] for part in parts]

    return call


ORT, TORCH = ("onnxruntime",), ("torch",)
HF = ("transformers", "torch")
# The first of a family is what the others are compared with: Meta's own export, and for SAM 2, for which Meta has none,
# the one that most people use.
DECODERS: tuple[Decoder, ...] = (
    Decoder("Meta's ONNX export", meta_sam1, ("segment-anything", *ORT), ("sam1",)),
    Decoder("samexporter", samexporter_sam1, ("samexporter", *ORT), ("sam1",)),
    Decoder("samexporter", samexporter_sam2, ("samexporter", "sam2", *ORT), ("sam2",)),
    Decoder("Hugging Face, eager", hugging_face, HF),
    Decoder("Hugging Face, compiled", partial(hugging_face, compiled=True), HF, compiled=True),
    Decoder("samx, one graph", partial(samx_onnx, name="one"), ORT),
    Decoder("samx, --prompts 16", partial(samx_onnx, name="many", prompts="16"), ORT),
    Decoder("samx, image part kept", partial(samx_onnx, name="split", split=True), ORT),
    *split_elsewhere(),
    Decoder("samx, PyTorch eager", samx_torch, TORCH),
    Decoder("samx, PyTorch compiled", partial(samx_torch, compiled=True), TORCH, compiled=True),
)
