"""The decoders that the programs are made for, written by the exporters that they name, with the weights of ours."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.benchmarks.contenders import huggingface, samexporter
from samx.benchmarks.contenders.meta import INPUTS, OUTPUTS, build_meta, trace_meta
from samx.models.checkpoint import LoadedDecoder
from tools.programs.ask import untyped

OPSET = 18
POINTS = 5  # of the trace
FLAG = "has_mask_input"
SAM2_LIMIT = 32.0  # that low-resolution logits are clamped to
RECTLABEL = (
    "image_embeddings", "high_res_features1", "high_res_features2", "point_coords", "point_labels", "mask_input",
    "has_mask_input", "orig_im_size",
)  # fmt: skip
PROMPT_AXES = {name: {0: "prompts", 1: "points"} for name in ("point_coords", "point_labels")}
OBJECT_AXES = {
    "input_points": {1: "objects", 2: "points"}, "input_labels": {1: "objects", 2: "points"},
}  # fmt: skip
Picture = tuple[int, int]  # height and width in px that the program names when it asks


def samexporter_sam1(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Write samexporter's decoder of SAM."""
    samexporter.export_sam1(loaded, path)


def samexporter_sam2(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Write samexporter's decoder of SAM 2."""
    samexporter.export_sam2(loaded, path)


def meta(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Write Meta's decoder with all masks."""
    trace_meta(build_meta(loaded), loaded.spec, path, picture)


def meta_single(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Write Meta's decoder with one mask."""
    trace_meta(build_meta(loaded, single=True), loaded.spec, path, picture)


class FlagFromZero(nn.Module):
    """Cut has_mask_input off at 0: osam sends -1, which Meta's graph would take for a weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*(x.clamp(min=0) if name == FLAG else x for name, x in zip(INPUTS, inputs, strict=True)))


def meta_single_flag(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Write Meta's decoder with one mask, which takes any flag below 0 for 0: osam's own files are in no package."""
    trace_meta(FlagFromZero(build_meta(loaded, single=True)), loaded.spec, path, picture)


class AtPictureSize(nn.Module):
    """Decode with Meta's modules of SAM 2, all masks, and enlarge them: what RectLabel's exports do."""

    def __init__(self, parts: Any) -> None:
        """Take samexporter's decoder, whose ways to embed prompts are the same."""
        super().__init__()
        self.parts = parts

    def forward(
        self, embedding: Tensor, fine: Tensor, coarse: Tensor, coords: Tensor, labels: Tensor, mask: Tensor,
        flag: Tensor, size: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        parts = self.parts
        masks, iou, *_ = parts.mask_decoder.predict_masks(
            image_embeddings=embedding, image_pe=parts.prompt_encoder.get_dense_pe(), repeat_image=False,
            sparse_prompt_embeddings=parts._embed_points(coords, labels), high_res_features=[fine, coarse],
            dense_prompt_embeddings=parts._embed_masks(mask, flag),
        )  # fmt: skip
        large = F.interpolate(masks, size=(size[0], size[1]), mode="bilinear", align_corners=False)  # type: ignore[arg-type]
        return large, iou, masks.clamp(-SAM2_LIMIT, SAM2_LIMIT)


def rectlabel(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Write Meta's decoder of SAM 2 behind RectLabel's names: its own script is in no package."""
    script = importlib.import_module("samexporter.export_sam2")
    module = AtPictureSize(script.SAM2ImageDecoder(samexporter.build_sam2(loaded), multimask_output=True))
    spec = loaded.spec
    features = [torch.randn(*map(int, tensor.shape)) for tensor in spec.image_inputs]
    given = (
        *features, torch.rand(1, POINTS, 2), torch.ones(1, POINTS),
        torch.randn(1, 1, spec.mask_size, spec.mask_size), torch.ones(1), torch.tensor(picture),
    )  # fmt: skip
    _trace(module, given, path, RECTLABEL, OUTPUTS, {**PROMPT_AXES, "masks": {2: "height", 3: "width"}})


def sam2_onnx(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Let sam2-onnx's own function trace Meta's modules of SAM 2."""
    untyped("sam2_onnx.types")
    script, model = importlib.import_module("sam2_onnx.export_onnx"), samexporter.build_sam2(loaded)
    model.backbone_stride, model.hidden_dim = loaded.spec.patch_px, loaded.spec.width
    with _quietly():
        script.export_decoder(model, path, loaded.spec.image_size)


class Objects(nn.Module):
    """Call Hugging Face's model with embeddings and points, as transformers.js calls its exports."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor, labels: Tensor, *embeddings: Tensor) -> tuple[Tensor, ...]:
        given = list(embeddings) if len(embeddings) > 1 else embeddings[0]
        found = self.model(
            image_embeddings=given, input_points=points, input_labels=labels.int(), multimask_output=True
        )
        scores = () if len(embeddings) == 1 else (found.object_score_logits,)
        return found.iou_scores, found.pred_masks, *scores


def hugging_face(loaded: LoadedDecoder, path: Path, picture: Picture) -> None:
    """Trace Hugging Face's model, points alone, behind the names of the files that transformers.js loads."""
    spec = loaded.spec
    shapes = [tuple(map(int, tensor.shape)) for tensor in spec.image_inputs]
    shapes = [*shapes[1:], shapes[0]]  # finest first
    names = [f"image_embeddings.{i}" for i in range(len(shapes))] if len(shapes) > 1 else ["image_embeddings"]
    given = (torch.rand(1, 1, POINTS, 2), torch.ones(1, 1, POINTS, dtype=torch.int64), *map(torch.randn, shapes))
    outputs = ["iou_scores", "pred_masks", *(["object_score_logits"] if len(shapes) > 1 else [])]
    _trace(Objects(huggingface.build(loaded)), given, path, [*OBJECT_AXES, *names], outputs, OBJECT_AXES)


def _trace(
    module: nn.Module, given: tuple[Tensor, ...], path: Path, inputs: Sequence[str], outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> None:  # fmt: skip
    with _quietly():
        torch.onnx.export(
            module.eval(), given, str(path), dynamo=False, opset_version=OPSET, input_names=list(inputs),
            output_names=list(outputs), dynamic_axes=axes,
        )  # fmt: skip


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
