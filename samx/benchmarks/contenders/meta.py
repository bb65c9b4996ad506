"""Meta's own SAM 1 ONNX decoder, from 'segment-anything' with our weights, and the decoders measured beside it."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samx.artifacts.commit import seal
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.benchmarks.agreement import Parts, one_by_one
from samx.benchmarks.interleave import Candidate, Effort
from samx.benchmarks.scenarios import GRID, box_feed
from samx.errors import UsageError
from samx.exporters import onnx as onnx_exporter
from samx.exporters.base import ExportJob, export_decoder
from samx.exporters.onnx import OnnxOptions
from samx.extras import require
from samx.models.checkpoint import LoadedDecoder
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.processing.frames import Frame
from samx.processing.prompts import point_grid
from samx.runtimes.base import Runtime
from samx.runtimes.onnxruntime import open_artifact

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

MANY, MORE = 16, 64

META_WHOLE = "Meta, as exported"  # resizes the masks to the picture inside the graph
META = "Meta, decoder only"  # the same graph, cut before the resizing: what ours computes
ONE_GRAPH = "samx, one graph"
IMAGE_KEPT = "samx, image part kept"
MASK_INPUT = "samx, with mask input"  # as Meta's graph, which always has one
META_MANY = f"Meta, {MANY} calls, N=1"
META_POOL = f"Meta, {MANY} calls, a thread each"  # a user's own way to what samx's runtime does with a batch
ONE_GRAPH_MANY = f"samx, one graph, N={MANY}"
RUNTIME_MANY = f"samx, image part kept, N={MANY}"
RUNTIME_MORE = f"samx, image part kept, N={MORE}"
META_GRID = f"Meta, {GRID**2} calls"
RUNTIME_GRID = f"samx, image part kept, N={GRID**2}"

# How many times faster than Meta's decoder (same weights, same machine, same threads) samx claims to be.
CLAIMS = {ONE_GRAPH: 1.8, IMAGE_KEPT: 2.5, ONE_GRAPH_MANY: 2.1, RUNTIME_MANY: 2.8, RUNTIME_MORE: 2.8}
Call = Callable[[Feed], Parts]
GRID_EFFORT = Effort(0, least=3, wanted=3, warm_up_s=0, warm_up_calls=1)  # a call takes up to a minute


def export_meta(loaded: LoadedDecoder, directory: Path) -> tuple[Path, Path]:
    """Write Meta's ONNX decoder the way Meta's script does: as exported, and cut before the resizing.

    Raises: MissingExtraError without segment-anything; UsageError for a decoder that is not SAM 1.
    """
    onnx = require("onnx", "export", "Meta's ONNX export")
    whole, decoder = directory / "meta.onnx", directory / "meta_decoder.onnx"
    model = build_meta(loaded)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about Meta's code, and of torch, about its old exporter
        torch.onnx.export(
            model, _examples(loaded.spec), str(whole), dynamo=False, opset_version=OPSET,
            input_names=list(INPUTS), output_names=list(OUTPUTS),
            dynamic_axes={name: {1: "num_points"} for name in ("point_coords", "point_labels")},
        )  # fmt: skip
    onnx.utils.extract_model(str(whole), str(decoder), list(DECODER_INPUTS), list(DECODER_OUTPUTS))
    return whole, decoder


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


@dataclass(frozen=True)
class Group:
    """Candidates that take turns, and the one that the others are compared with."""

    title: str
    baseline: str
    candidates: tuple[Candidate, ...]
    effort: Effort | None = None  # None: as long as was asked for


@dataclass(frozen=True)
class Sessions:
    """Every decoder, opened with the same session options: graphs by name, and samx's runtime."""

    spec: DecoderSpec
    threads: int
    graphs: Mapping[str, Any]
    runtime: Runtime


def export_samx(loaded: LoadedDecoder, opset: int, directory: Path) -> dict[str, Artifact]:
    """Export a graph for clicks, one for batches, one in two parts, one with mask prompts; all with four masks."""
    many = ShapeRange.parse(str(MANY), "prompts")
    ways: dict[str, dict[str, Any]] = {"whole": {}, "batch": {"prompts": many}, "split": {"split": True}}
    found = {name: _artifact(loaded, directory / name, opset=opset, **options) for name, options in ways.items()}
    return {**found, "mask_input": _artifact(loaded, directory / "mask_input", mask_input=True, opset=opset)}


def _artifact(loaded: LoadedDecoder, directory: Path, *, mask_input: bool = False, **options: Any) -> Artifact:
    directory.mkdir(parents=True)
    spec = replace(loaded.spec, masks="all", mask_input=mask_input)
    exported = export_decoder(onnx_exporter, ExportJob(loaded, spec, OnnxOptions(**options)), directory)
    checkpoint = CheckpointEntry(loaded.name, loaded.kind, loaded.sha256, loaded.bytes)
    manifest = Manifest("onnx", "fp32", spec, checkpoint, exported.options, exported.tools)
    seal(directory, manifest, exported.files)
    return Artifact.open(directory)


def open_sessions(meta: tuple[Path, Path], exports: Mapping[str, Artifact], threads: int) -> Sessions:
    """Load every graph in ONNX Runtime on the CPU."""
    whole, decoder = (path.read_bytes() for path in meta)
    roles = {"whole": "decoder", "batch": "decoder", "mask_input": "decoder"}
    models = {name: _read(exports[name], role) for name, role in roles.items()}
    models |= {role: _read(exports["split"], role) for role in ("image", "prompt")}
    models |= {"meta_whole": whole, "meta": decoder}
    graphs = {name: open_session(model, threads) for name, model in models.items()}
    graphs["meta_alone"] = open_session(decoder, 1)  # with a single thread
    runtime = open_artifact(exports["split"], threads=threads)
    return Sessions(exports["whole"].manifest.spec, threads, graphs, runtime)


def _read(artifact: Artifact, role: str) -> bytes:
    return artifact.read(artifact.file_with_role(role))


def open_session(model: bytes, threads: int) -> Any:
    """Load a graph on the CPU, with threads that rest between calls."""
    ort = require("onnxruntime", "onnxruntime", "measuring ONNX files")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Else a session's idle threads spin on into the next candidate's time.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def groups(sessions: Sessions, image: Feed, grid: bool = False) -> list[Group]:
    """Bind the decoders to one image; with `grid`, to everything mode too. Shapes: image DecoderSpec.image_inputs."""
    spec, graphs, meta = sessions.spec, sessions.graphs, meta_call(sessions, image)
    sessions.runtime.set_image(image)
    unmasked = {**image, **no_mask_feed(spec)}
    original_size = {"orig_im_size": np.full(2, spec.image_size, np.float32)}
    kept = _named(graphs["image"])(image)
    one = {
        META_WHOLE: _call(graphs["meta_whole"], {**unmasked, **original_size}),
        META: meta,
        ONE_GRAPH: _call(graphs["whole"], image),
        IMAGE_KEPT: _call(graphs["prompt"], kept),
        MASK_INPUT: _call(graphs["mask_input"], unmasked),
    }
    through = _parts(sessions.runtime.decode)
    many = {
        META_MANY: _one_at_a_time(meta),
        META_POOL: _side_by_side(_call(graphs["meta_alone"], unmasked), sessions.threads),
        ONE_GRAPH_MANY: _call(graphs["batch"], image),
        RUNTIME_MANY: through,
    }
    more = _candidates(spec, MORE, {RUNTIME_MORE: through})
    found = [
        Group("one prompt", META, _candidates(spec, 1, one)),
        Group("many prompts", META_MANY, (*_candidates(spec, MANY, many), *more)),
    ]
    if grid:
        frame = Frame.of(spec, spec.image_size, spec.image_size)
        points = point_grid(GRID, frame).feed(spec, frame)
        calls = {META_GRID: _one_at_a_time(meta), RUNTIME_GRID: through}
        bound = tuple(Candidate(name, GRID**2, call, lambda _: points) for name, call in calls.items())
        found.append(Group("everything mode's grid", META_GRID, bound, GRID_EFFORT))
    return found


def _candidates(spec: DecoderSpec, prompts: int, calls: Mapping[str, Call]) -> tuple[Candidate, ...]:
    def boxes(number: int) -> Feed:
        return box_feed(spec, number, prompts)

    return tuple(Candidate(name, prompts, call, boxes) for name, call in calls.items())


def _one_at_a_time(call: Call) -> Call:
    return lambda prompts: [part for row in one_by_one(prompts) for part in call(row)]


def _side_by_side(call: Call, threads: int) -> Call:
    def pooled(prompts: Feed) -> Parts:
        with ThreadPoolExecutor(threads) as pool:
            return [part for parts in pool.map(call, one_by_one(prompts)) for part in parts]

    return pooled


def meta_call(sessions: Sessions, image: Feed) -> Call:
    """Return Meta's decoder on one image: what everything is compared with."""
    return _call(sessions.graphs["meta"], {**image, **no_mask_feed(sessions.spec)})


def no_mask_feed(spec: DecoderSpec) -> Feed:
    """Return the graph's own inputs that say that there is no mask prompt."""
    size = spec.mask_size
    return {"mask_input": np.zeros((1, 1, size, size), np.float32), "has_mask_input": np.zeros(1, np.float32)}


def _call(session: Any, fixed: Feed) -> Call:
    """Run one graph with what stays and what changes."""
    run = _named(session)
    return _parts(lambda prompts: run({**fixed, **prompts}))


def _named(session: Any) -> Callable[[Feed], Feed]:
    """Run one graph; every output is computed, as its users get it."""
    names = [tensor.name for tensor in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(None, feed), strict=True))


def _parts(run: Callable[[Feed], Feed]) -> Call:
    def call(prompts: Feed) -> Parts:
        outputs = run(prompts)
        return [[outputs[name] for name in DECODER_OUTPUTS]]

    return call
