"""The decoders that are measured beside Meta's: exported once per opset, opened once per thread count."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samx.artifacts.commit import seal
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.benchmarks.agreement import OUTPUTS, Parts, one_by_one
from samx.benchmarks.boxes import box_feed
from samx.benchmarks.contenders.meta import MetaFiles
from samx.benchmarks.interleave import Candidate, Effort
from samx.benchmarks.scenarios import GRID
from samx.exporters import onnx
from samx.exporters.base import ExportJob, export_decoder
from samx.extras import require
from samx.models.checkpoint import LoadedDecoder
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.processing.frames import Frame
from samx.processing.prompts import point_grid
from samx.runtimes.base import Runtime
from samx.runtimes.onnxruntime import open_artifact

MANY, MORE = 16, 64

META_WHOLE = "Meta, as exported"  # resizes the masks to the picture inside the graph
META = "Meta, decoder only"  # the same graph, cut before the resizing: what ours computes
ONE_GRAPH = "samx, one graph"
IMAGE_KEPT = "samx, image part kept"
MASK_INPUT = "samx, with mask input"  # as Meta's graph, which always has one
META_MANY = f"Meta, {MANY} calls, N=1"
META_CREW = f"Meta, {MANY} calls, a thread each"  # a user's own way to what samx's runtime does with a batch
ONE_GRAPH_MANY = f"samx, one graph, N={MANY}"
RUNTIME_MANY = f"samx, image part kept, N={MANY}"
RUNTIME_MORE = f"samx, image part kept, N={MORE}"
META_GRID = f"Meta, {GRID**2} calls"
RUNTIME_GRID = f"samx, image part kept, N={GRID**2}"

# How many times faster than Meta's decoder (same weights, same machine, same threads) samx claims to be.
CLAIMS = {ONE_GRAPH: 1.8, IMAGE_KEPT: 2.5, ONE_GRAPH_MANY: 2.1, RUNTIME_MANY: 2.8, RUNTIME_MORE: 2.8}
GRID_EFFORT = Effort(0, least=3, wanted=3, warm_up_s=0, warm_up_calls=1)  # a call takes up to a minute


@dataclass(frozen=True)
class Group:
    """Say which candidates take turns, and which of them the others are compared with."""

    title: str
    baseline: str
    candidates: tuple[Candidate, ...]
    effort: Effort | None = None  # None: as long as was asked for


@dataclass(frozen=True)
class Exports:
    """Hold samx's exports of one opset, all of them with the four masks that Meta's graph returns."""

    whole: Artifact
    batch: Artifact
    split: Artifact
    mask_input: Artifact


@dataclass(frozen=True)
class Sessions:
    """Hold every decoder, opened with the same session options."""

    spec: DecoderSpec
    threads: int
    meta_whole: Any
    meta: Any
    meta_alone: Any  # with a single thread
    whole: Any
    batch: Any
    image: Any
    prompt: Any
    mask_input: Any
    runtime: Runtime


def export_samx(loaded: LoadedDecoder, opset: int, directory: Path) -> Exports:
    """Export what is measured: a graph for clicks, one for batches, the image's part apart, one with mask prompts."""
    return Exports(
        _artifact(loaded, opset, directory / "whole"),
        _artifact(loaded, opset, directory / "batch", prompts=ShapeRange.parse(str(MANY), "prompts")),
        _artifact(loaded, opset, directory / "split", split=True),
        _artifact(loaded, opset, directory / "mask_input", mask_input=True),
    )


def _artifact(
    loaded: LoadedDecoder,
    opset: int,
    directory: Path,
    *,
    split: bool = False,
    mask_input: bool = False,
    prompts: ShapeRange | None = None,
) -> Artifact:
    directory.mkdir(parents=True)
    spec = replace(loaded.spec, masks="all", mask_input=mask_input)
    options = onnx.OnnxOptions(opset=opset, split=split, prompts=prompts)
    exported = export_decoder(onnx, ExportJob(loaded, spec, options), directory)
    checkpoint = CheckpointEntry(loaded.name, loaded.kind, loaded.sha256, loaded.bytes)
    manifest = Manifest("onnx", "fp32", spec, checkpoint, exported.options, exported.tools)
    seal(directory, manifest, exported.files)
    return Artifact.open(directory)


def open_sessions(meta: MetaFiles, exports: Exports, threads: int) -> Sessions:
    """Load every graph in ONNX Runtime on the CPU."""

    def ours(artifact: Artifact, role: str) -> Any:
        return open_session(artifact.read(artifact.file_with_role(role)), threads)

    return Sessions(
        spec=exports.whole.manifest.spec,
        threads=threads,
        meta_whole=open_session(meta.whole.read_bytes(), threads),
        meta=open_session(meta.decoder.read_bytes(), threads),
        meta_alone=open_session(meta.decoder.read_bytes(), 1),
        whole=ours(exports.whole, "decoder"),
        batch=ours(exports.batch, "decoder"),
        image=ours(exports.split, "image"),
        prompt=ours(exports.split, "prompt"),
        mask_input=ours(exports.mask_input, "decoder"),
        runtime=open_artifact(exports.split, threads=threads),
    )


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
    sessions.runtime.set_image(image)
    usual = [
        Group("one prompt", META, tuple(_one_prompt(sessions, image))),
        Group("many prompts", META_MANY, tuple(_many_prompts(sessions, image))),
    ]
    everything = Group("everything mode's grid", META_GRID, tuple(_grid(sessions, image)), GRID_EFFORT)
    return [*usual, everything] if grid else usual


def _one_prompt(sessions: Sessions, image: Feed) -> list[Candidate]:
    kept = dict(zip(_names(sessions.image.get_outputs()), sessions.image.run(None, dict(image)), strict=True))
    original_size = {"orig_im_size": np.full(2, sessions.spec.image_size, np.float32)}
    no_mask = no_mask_feed(sessions.spec)
    calls = {
        META_WHOLE: _call(sessions.meta_whole, {**image, **no_mask, **original_size}),
        META: meta_call(sessions, image),
        ONE_GRAPH: _call(sessions.whole, image),
        IMAGE_KEPT: _call(sessions.prompt, kept),
        MASK_INPUT: _call(sessions.mask_input, {**image, **no_mask}),
    }
    return [_candidate(sessions.spec, name, 1, call) for name, call in calls.items()]


def _many_prompts(sessions: Sessions, image: Feed) -> list[Candidate]:
    alone = _call(sessions.meta_alone, {**image, **no_mask_feed(sessions.spec)})
    return [
        _candidate(sessions.spec, META_MANY, MANY, _one_at_a_time(meta_call(sessions, image))),
        _candidate(sessions.spec, META_CREW, MANY, _side_by_side(alone, sessions.threads)),
        _candidate(sessions.spec, ONE_GRAPH_MANY, MANY, _call(sessions.batch, image)),
        _candidate(sessions.spec, RUNTIME_MANY, MANY, _through(sessions.runtime)),
        _candidate(sessions.spec, RUNTIME_MORE, MORE, _through(sessions.runtime)),
    ]


def _grid(sessions: Sessions, image: Feed) -> list[Candidate]:
    frame = Frame.of(sessions.spec, sessions.spec.image_size, sessions.spec.image_size)
    points = point_grid(GRID, frame).feed(sessions.spec, frame)
    calls = {META_GRID: _one_at_a_time(meta_call(sessions, image)), RUNTIME_GRID: _through(sessions.runtime)}
    return [Candidate(name, GRID**2, call, lambda _: points) for name, call in calls.items()]


def _one_at_a_time(call: Callable[[Feed], Parts]) -> Callable[[Feed], Parts]:
    return lambda prompts: [part for row in one_by_one(prompts) for part in call(row)]


def _side_by_side(call: Callable[[Feed], Parts], threads: int) -> Callable[[Feed], Parts]:
    def crew(prompts: Feed) -> Parts:
        with ThreadPoolExecutor(threads) as pool:
            return [part for parts in pool.map(call, one_by_one(prompts)) for part in parts]

    return crew


def _through(runtime: Runtime) -> Callable[[Feed], Parts]:
    def call(prompts: Feed) -> Parts:
        outputs = runtime.decode(prompts)
        return [[outputs[name] for name in OUTPUTS]]

    return call


def meta_call(sessions: Sessions, image: Feed) -> Callable[[Feed], Parts]:
    """Give Meta's decoder on one image: what everything is compared with."""
    return _call(sessions.meta, {**image, **no_mask_feed(sessions.spec)})


def no_mask_feed(spec: DecoderSpec) -> Feed:
    """Say in the graph's own inputs that there is no mask prompt."""
    size = spec.mask_size
    return {"mask_input": np.zeros((1, 1, size, size), np.float32), "has_mask_input": np.zeros(1, np.float32)}


def _call(session: Any, fixed: Feed) -> Callable[[Feed], Parts]:
    """Run one graph with what stays and what changes; every output is computed, as its users get it."""
    names = _names(session.get_outputs())
    places = [names.index(name) for name in OUTPUTS]

    def call(prompts: Feed) -> Parts:
        outputs = session.run(None, {**fixed, **prompts})
        return [[outputs[place] for place in places]]

    return call


def _names(tensors: Any) -> list[str]:
    return [tensor.name for tensor in tensors]


def _candidate(spec: DecoderSpec, name: str, prompts: int, call: Callable[[Feed], Parts]) -> Candidate:
    return Candidate(name, prompts, call, lambda number: box_feed(spec, number, prompts))
