"""Ways to decode in PyTorch: as it is, compiled, as an AOTInductor package, as a CUDA graph."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samx.benchmarks.contenders.meta import FAMILY, build_sam
from samx.benchmarks.interleave import Clock, now_ns
from samx.benchmarks.operations import REFERENCE
from samx.exporters.aoti import PACKAGE_FILE, write_package
from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.fast.decoder import FastDecoder
from samx.models.fast.graphs import cut
from samx.runtimes.aoti import load_models

Prompts = tuple[Tensor, ...]  # coordinates and labels of boxes
Outputs = tuple[Tensor, ...]  # masks and predicted IoU first
Call = Callable[[Prompts], Outputs]

PEER = "segment-anything"
EAGER, COMPILED = "eager", "compiled"
WARM_UPS = 3  # before a graph is recorded: libraries choose kernels and reserve memory. Source: torch.cuda.graphs


@dataclass(frozen=True)
class Setting:
    """Say what is decoded, and in which half precision."""

    loaded: LoadedDecoder
    image: Mapping[str, Tensor]  # on the device
    half: torch.dtype | None = None  # None: float32

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return next(iter(self.image.values())).device


@dataclass(frozen=True)
class Work:
    """Say what a call computes."""

    form: str  # of operations.FORMS
    keeps_image: bool  # the prompts' work only


@dataclass(frozen=True)
class Way:
    """Name a way of decoding."""

    name: str
    call: Call
    work: Work


def has_peer(loaded: LoadedDecoder) -> bool:
    """Tell whether Meta's own package is here and has the family."""
    return loaded.spec.family == FAMILY and importlib.util.find_spec("segment_anything") is not None


def baseline(setting: Setting) -> Way:
    """Decode as Meta does, everything in every call: with Meta's own package where it is here and has the family.

    Half precision is left to autocast, as in Meta's examples.
    """
    is_peers = has_peer(setting.loaded)
    exact = (segment_anything if is_peers else reference_form)(setting)

    def call(prompts: Prompts) -> Outputs:
        half = setting.half
        with torch.autocast(setting.device.type, dtype=half, enabled=half is not None, cache_enabled=False):
            return exact(prompts)

    return Way(f"{PEER if is_peers else REFERENCE} {EAGER}", call, Work(REFERENCE, keeps_image=False))


def reference_form(setting: Setting) -> Call:
    """Decode with samx's reference form, which has Meta's structure."""
    module = build_reference(setting.loaded).to(setting.device)
    names = [tensor.name for tensor in module.spec.prompt_inputs]
    return lambda prompts: tuple(module(**setting.image, **dict(zip(names, prompts, strict=True))).values())


def segment_anything(setting: Setting) -> Call:
    """Decode with Meta's own modules, as Meta's predictor calls them for boxes."""
    sam: Any = build_sam(setting.loaded).to(setting.device)
    (image,) = setting.image.values()

    def call(prompts: Prompts) -> Outputs:
        corners, _ = prompts
        sparse, dense = sam.prompt_encoder(points=None, boxes=corners.flatten(1), masks=None)
        position = sam.prompt_encoder.get_dense_pe()
        outputs: Outputs = sam.mask_decoder(image, position, sparse, dense, multimask_output=True)
        return outputs

    return call


def kept(decoder: FastDecoder, setting: Setting, name: str = f"samx {EAGER}") -> Way:
    """Decode with the fast form; the image's work is done beforehand."""
    state = decoder.image_state(*setting.image.values())
    return Way(name, lambda prompts: decoder.decode(state, *prompts), Work(decoder.form, keeps_image=True))


def whole(decoder: FastDecoder, setting: Setting) -> Way:
    """Decode with the fast form; the image's work is done in every call."""
    image = tuple(setting.image.values())
    call: Call = lambda prompts: decoder.decode(decoder.image_state(*image), *prompts)  # noqa: E731
    return Way(f"samx {EAGER}, image in every call", call, Work(decoder.form, keeps_image=False))


def packaged(decoder: FastDecoder, setting: Setting) -> Way:
    """Compile the fast form ahead of time; the image's work is done beforehand."""
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as folder:
        path = Path(folder, PACKAGE_FILE)
        write_package(cut(decoder, split=True), path)
        models = load_models(path.read_bytes(), PACKAGE_FILE)
    state = tuple(models["image"](*setting.image.values()))
    call: Call = lambda prompts: tuple(models["prompt"](*state, *prompts))  # noqa: E731
    return Way("samx aoti", call, Work(decoder.form, keeps_image=True))


def compiled(way: Way) -> Way:
    """Compile a way as one graph for any number of prompts; a break in it is an error."""
    call = torch.compile(way.call, fullgraph=True, dynamic=True)
    return replace(way, name=way.name.replace(EAGER, COMPILED), call=call)


def graphed(way: Way, pool: Any) -> Way:
    """Record a way as a CUDA graph. Graphs share the pool's memory, so that the largest number of prompts fits once."""
    return replace(way, name=f"{way.name}, CUDA graph", call=Graphed(way.call, pool))


class Graphed:
    """A call as a CUDA graph, recorded when prompts come in a new shape.

    Outputs are the graph's own tensors: the next call of any graph with the same pool overwrites them.
    """

    def __init__(self, call: Call, pool: Any) -> None:
        self._call, self._pool = call, pool
        self._given: Prompts = ()
        self._outputs: Outputs = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, prompts: Prompts) -> Outputs:
        """Copy the prompts in, and replay."""
        if self._graph is None or [x.shape for x in self._given] != [x.shape for x in prompts]:
            self._graph = self._record(prompts)
        for kept, tensor in zip(self._given, prompts, strict=True):
            kept.copy_(tensor)
        self._graph.replay()
        return self._outputs

    def _record(self, prompts: Prompts) -> torch.cuda.CUDAGraph:
        self._graph, self._outputs = None, ()  # their memory goes to the next
        self._given = tuple(tensor.clone() for tensor in prompts)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._call(self._given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._outputs = self._call(self._given)
        return graph


def clock_for(device: torch.device) -> Clock:
    """Choose a clock that a device's work is done at when it is read."""
    if device.type == "cpu":
        return now_ns

    def synchronised_ns() -> int:
        torch.cuda.synchronize(device)
        return now_ns()

    return synchronised_ns
