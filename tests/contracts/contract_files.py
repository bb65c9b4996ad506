"""Contracts' graphs around toy decoders, and what upstream's own code computes for the calls of their programs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from exports import export_job, job_for
from numpy.typing import NDArray
from torch.nn import functional as F
from toys import arrays, image_tensors, toy_checkpoint
from upstream_predictors import Features, Sam2

from samx.benchmarks.contenders import huggingface
from samx.benchmarks.contenders.meta import build_sam, import_segment_anything
from samx.contracts.adapt import adapted
from samx.contracts.gate import Opened
from samx.contracts.table import CONTRACTS, Contract
from samx.models.checkpoint import LoadedDecoder
from samx.models.session import Feed
from samx.models.spec import DecoderSpec, family_spec
from samx.runtimes.onnxruntime import OnnxRuntimeRuntime, open_models

SIZE_PX = 128  # of the toys' frame; their masks have a quarter of it
MASK_PX = SIZE_PX // 4
LANDSCAPE, PORTRAIT, SQUARE = (96, 150), (131, 70), (64, 64)
Array = NDArray[Any]


@lru_cache
def checkpoint(family: str) -> LoadedDecoder:
    """Make a toy of a family."""
    return toy_checkpoint(family_spec(family, image_size=SIZE_PX))


def native(contract: Contract) -> DecoderSpec:
    """Return the toy decoder that a contract's graph is written around."""
    spec = checkpoint(contract.families[0]).spec
    return replace(spec, masks=contract.masks, mask_input=contract.has("mask_input"))


@lru_cache
def decoder(spec: DecoderSpec) -> bytes:
    """Export a toy decoder; an export takes seconds, and several contracts share one."""
    with tempfile.TemporaryDirectory() as folder:
        export_job(job_for("onnx", checkpoint(spec.family), spec, simplify=False), Path(folder))
        return Path(folder, "decoder.onnx").read_bytes()


@lru_cache
def program(contract: Contract) -> Any:
    """Open a contract's graph as programs do."""
    spec = native(contract)
    model = adapted(onnx.load_from_string(decoder(spec)), contract, spec)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def opened(contract: Contract) -> Opened:
    """Open a contract's graph as the gate takes it."""
    session = program(contract)
    inputs = [one.name for one in session.get_inputs()]
    return Opened(
        inputs, [one.name for one in session.get_outputs()],
        lambda values: session.run(None, dict(zip(inputs, values, strict=True))),
    )  # fmt: skip


def decoder_session(contract: Contract) -> OnnxRuntimeRuntime:
    """Open the toy decoder itself."""
    spec = native(contract)
    return open_models({"decoder.onnx": decoder(spec)}, spec, {})


def image(family: str) -> Feed:
    """Return one picture's features."""
    return arrays(image_tensors(checkpoint(family).spec))


def by_name(name: str, **fed: Any) -> list[Array]:
    """Call a graph by its inputs' names."""
    found: list[Array] = program(CONTRACTS[name]).run(None, fed)
    return found


def by_position(name: str, *fed: Any) -> list[Array]:
    """Call a graph by its inputs' places."""
    session = program(CONTRACTS[name])
    names = [one.name for one in session.get_inputs()]
    found: list[Array] = session.run(None, dict(zip(names, fed, strict=True)))
    return found


@lru_cache
def metas_graph(single: bool) -> Any:
    """Build what Meta's script exports, not traced: so its crop follows the picture."""
    (module,) = import_segment_anything("utils.onnx")
    return module.SamOnnxModel(build_sam(checkpoint("sam1")), return_single_mask=single)


@torch.no_grad()
def metas_answer(single: bool, feed: dict[str, Array]) -> list[Array]:
    """Ask it. Shapes: as its graph's."""
    tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in feed.items()}
    return [value.numpy() for value in metas_graph(single)(**tensors)]


@lru_cache
def metas_sam2() -> Sam2:
    """Put the toy's weights into Meta's modules of SAM 2."""
    loaded = checkpoint("sam2")
    return Sam2(loaded, Features(loaded.spec, [])).eval()


@torch.no_grad()
def sam2_answer(coords: Array, labels: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Ask Meta's SAM 2 as its predictor does: all four masks. Shapes: (N, P, 2), (N, P) -> (N, 4, S, S), (N, 4)."""
    model, features = metas_sam2(), image_tensors(checkpoint("sam2").spec)
    points = (torch.from_numpy(coords), torch.from_numpy(labels).int())
    given = None if mask is None else torch.from_numpy(mask)
    sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=given)
    masks, iou, _, _ = model.sam_mask_decoder.predict_masks(
        image_embeddings=features["image_embeddings"], image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, repeat_image=True,
        high_res_features=[features["high_res_features_0"], features["high_res_features_1"]],
    )  # fmt: skip
    return masks.numpy(), iou.numpy()


@lru_cache
def hugging_face(family: str) -> Any:
    """Put the toy's weights into transformers' model."""
    return huggingface.build(checkpoint(family))


def interpolated(masks: Array, size: tuple[int, int]) -> Array:
    """Resize logits as upstream does. Shapes: (N, M, S, S) -> (N, M, H, W)."""
    found: Array = F.interpolate(torch.from_numpy(masks), size, mode="bilinear", align_corners=False).numpy()
    return found


def coords(count: int, points: int, size: tuple[int, int] = (SIZE_PX, SIZE_PX), seed: int = 0) -> Array:
    """Draw points in a part of the frame. Shapes: -> (N, P, 2)."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.1, 0.9, (count, points, 2)) * (size[1], size[0])).astype(np.float32)


def blob() -> Array:
    """Return a previous mask. Shapes: -> (1, 1, S, S)."""
    y, x = np.mgrid[:MASK_PX, :MASK_PX] / MASK_PX
    return np.asarray(8 * np.cos(4 * y) * np.sin(5 * x), np.float32)[None, None]


def assert_same(found: Array, wanted: Array, what: str = "") -> None:
    """Compare logits and the masks that they are."""
    assert found.shape == wanted.shape, what
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * float(np.abs(wanted).max()), err_msg=what)
    if found.ndim == 4:
        ours, theirs = found > 0, wanted > 0
        assert theirs.any(), "a mask without a pixel compares nothing"
        assert (ours & theirs).sum() / (ours | theirs).sum() >= 0.9999, what
