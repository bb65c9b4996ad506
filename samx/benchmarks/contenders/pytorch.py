"""Decoders in PyTorch as sessions: our fast form, our reference form, Meta's modules; compiled, as CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samx.benchmarks.contenders import PLAIN_PRECISION, Opened, Setting, encoders
from samx.benchmarks.contenders.meta import build_encoder, build_sam, unpadded
from samx.benchmarks.interleave import Clock, now_ns
from samx.benchmarks.roofline import Peaks, best_s
from samx.benchmarks.scenarios import OnDevice
from samx.devices.cpu import usable_cpus
from samx.errors import PromptError, UnavailableError
from samx.models.checkpoint import build_reference
from samx.models.load import load, torch_device
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import LABELS, DecoderSpec
from samx.runtimes.base import DEFAULT_CHUNK, Runtime
from samx.runtimes.torch import TORCH_CHUNK

Tensors = tuple[Tensor, ...]
Call = Callable[..., Tensors]  # of what is kept of the image, and the prompts' tensors
Bind = Callable[[Tensors], Callable[..., Tensors]]  # an image's tensors -> what decodes prompts' tensors on it
Ask = Callable[[Feed], tuple[FloatArray, ...]]  # a feed as the decoder takes it

TYPES = {PLAIN_PRECISION: torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
USUAL_POINTS = 2  # that the fast form is chosen for: a click and its padding, or a box
ALL_AT_ONCE = 1 << 30  # prompts
MOST_COMPILED = 64
PRODUCT_SIDE, COPIED_BYTES = {"cpu": 1536, "cuda": 8192}, {"cpu": 128 << 20, "cuda": 1 << 30}  # more than caches hold
TINY = 64, 1 << 16  # the same two, where the program is proven and nothing is measured
PEAK_S = 0.5
WARM_UPS = 3  # before a graph is recorded: libraries choose kernels and reserve memory. Source: torch.cuda.graphs


class TorchSession(Runtime, OnDevice):
    """Decode with whatever an image is bound to. Outputs may be overwritten by the next call of run()."""

    def __init__(
        self, spec: DecoderSpec, device: torch.device, bind: Bind, operations: Mapping[str, int],
        ask: Ask, chunk: int = ALL_AT_ONCE,
    ) -> None:  # fmt: skip
        super().__init__(spec, chunk)
        self._device, self._bind, self._operations, self._ask = device, bind, operations, ask
        self._run: Callable[..., Tensors] | None = None

    def placement(self) -> Placement:
        """Report where what computes lies."""
        return Placement("torch", self._device.type, self._operations, {"torch": torch.__version__})

    def prepare(self, prompts: Feed) -> Tensors:
        """Bring prompts to the device."""
        return tuple(torch.tensor(value, device=self._device) for value in self._ask(prompts))

    @torch.no_grad()
    def run(self, prepared: Tensors) -> Tensors:
        """Decode prompts that are on the device; what comes out stays there."""
        assert self._run is not None  # an image is set first
        return self._run(*prepared)

    @torch.no_grad()
    def _set_image(self, image: Feed) -> None:
        self._run = None  # its memory goes to the next
        self._run = self._bind(tuple(torch.tensor(value, device=self._device) for value in image.values()))

    def _decode(self, prompts: Feed) -> Outputs:
        found = self.run(self.prepare(prompts))[: len(self.spec.outputs)]
        return self._named(tensor.float().cpu().numpy() for tensor in found)


def in_order(spec: DecoderSpec) -> Ask:
    """Take a feed as the exported graph does."""
    return lambda prompts: tuple(prompts[tensor.name] for tensor in spec.prompt_inputs)


def split_prompts(prompts: Feed) -> tuple[FloatArray, ...]:
    """Take clicks and boxes apart, without padding, as other people's models are asked.

    Shapes: -> (N, P, 2), (N, P), (N, 4 or 0).
    Raises: PromptError for what they do not take, or are not measured with.
    """
    if prompts.get("has_mask_input", np.zeros(1)).any():
        raise PromptError("it is measured without mask prompts")
    feed = unpadded(prompts)
    coords, labels = feed["point_coords"], feed["point_labels"]
    boxed = labels[0] >= LABELS["box_top_left"]
    return coords[:, ~boxed], labels[:, ~boxed], coords[:, boxed].reshape(len(coords), -1)


def open_fast(setting: Setting, whole: bool = False, **way: Any) -> Opened:
    """Open the fast form, the image's work kept; with `whole`, done in every call."""
    spec, on_cpu = setting.loaded.spec, setting.device == "cpu"
    decoder = load(
        setting.checkpoint, masks=spec.masks, mask_input=spec.mask_input, image_size=spec.image_size,
        points=USUAL_POINTS, dtype=TYPES[setting.precision], device=setting.device,
    )  # fmt: skip
    chunk = (DEFAULT_CHUNK if way.get("compiled") else TORCH_CHUNK) if on_cpu else ALL_AT_ONCE

    def in_one(image: Tensors, *prompts: Tensor) -> Tensors:
        return decoder.decode(decoder.image_state(*image), *prompts)

    call, keep = (in_one, tuple) if whole else (decoder.decode, lambda image: decoder.image_state(*image))
    return open_module(setting, decoder, call, keep=keep, chunk=chunk, form=decoder.form, keeps_image=not whole, **way)


def open_reference(setting: Setting, **way: Any) -> Opened:
    """Open samx's reference form, which has Meta's structure."""
    module = build_reference(setting.loaded)
    spec = setting.loaded.spec

    def call(image: Tensors, *prompts: Tensor) -> Tensors:
        given = {tensor.name: value for tensor, value in zip(spec.inputs, (*image, *prompts), strict=True)}
        return tuple(module(**given).values())

    return open_module(setting, module, _autocast(setting, call), **way)


def open_meta(setting: Setting, peer: bool = True, **way: Any) -> Opened:
    """Open Meta's own modules, as Meta's predictor calls them.

    Raises: UnavailableError where it has not the masks that are asked for.
    """
    spec = setting.loaded.spec
    sam: Any = build_sam(setting.loaded)
    if spec.masks == "all":
        raise UnavailableError("it has other masks", found="multimask or single", expected=spec.masks)

    def call(image: Tensors, coords: Tensor, labels: Tensor, boxes: Tensor) -> Tensors:
        points = (coords, labels) if coords.shape[1] else None
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes if boxes.shape[1] else None, masks=None)
        found: Tensors = sam.mask_decoder(
            image[0], sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=spec.masks == "multimask"
        )
        return found

    found = open_module(setting, sam, _autocast(setting, call), ask=split_prompts, **way)
    has_encoder = setting.precision == PLAIN_PRECISION and setting.device == "cpu" and not way
    return replace(found, encoder=partial(encoders.opened, setting, build_encoder)) if has_encoder else found


def _autocast(setting: Setting, call: Call) -> Call:
    """Leave half precision to autocast, as in Meta's examples."""
    if setting.precision == PLAIN_PRECISION:
        return call

    def cast(image: Tensors, *prompts: Tensor) -> Tensors:
        with torch.autocast(setting.device, dtype=TYPES[setting.precision], cache_enabled=False):
            return call(image, *prompts)

    return cast


def open_module(
    setting: Setting, module: nn.Module, call: Call, *, keep: Callable[[Tensors], Any] = tuple, ask: Ask | None = None,
    chunk: int = ALL_AT_ONCE, form: str = "reference", keeps_image: bool = False, compiled: bool = False,
    whole_graph: bool = True, graph: bool = False,
) -> Opened:  # fmt: skip
    """Open a module as a session; compiled as one graph for any number of prompts, where a break in it is an error."""
    device = exact_arithmetic(setting)
    module.to(device)
    if compiled:
        torch._dynamo.config.recompile_limit = MOST_COMPILED  # PyTorch gives up after eight versions of a function
        call = torch.compile(call, fullgraph=whole_graph, dynamic=True)
    pool = torch.cuda.graph_pool_handle() if graph else None

    def bind(image: Tensors) -> Callable[..., Tensors]:
        bound = partial(call, keep(image))
        return Graphed(bound, pool) if graph else bound

    tensors = [*module.parameters(), *module.buffers()]
    size = sum(tensor.nbytes for tensor in tensors)
    operations = Counter(tensor.device.type for tensor in tensors)
    spec = setting.loaded.spec
    session = TorchSession(spec, device, bind, dict(operations), ask or in_order(spec), chunk)
    return Opened(session, size, form, keeps_image)


def exact_arithmetic(setting: Setting) -> torch.device:
    """Choose the device and the threads, and let float32 be float32: without TF32, and without bfloat16 in its place.

    Raises: UnavailableError without the device.
    """
    torch.set_num_threads(setting.threads or usable_cpus())
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch_device(setting.device)


class Fed:
    """A call on tensors that stay, prepared when prompts come in a new shape. The next call overwrites the outputs."""

    def __init__(self) -> None:
        self._given: Tensors = ()
        self._outputs: Tensors = ()
        self._work: Callable[[], object] = lambda: None

    def __call__(self, *prompts: Tensor) -> Tensors:
        """Copy the prompts in, and work."""
        if [x.shape for x in self._given] != [x.shape for x in prompts]:
            self._given, self._outputs, self._work = (), (), lambda: None  # their memory goes to the next
            self._given = tuple(tensor.clone() for tensor in prompts)
            self._work = self._prepare()
        for kept, tensor in zip(self._given, prompts, strict=True):
            kept.copy_(tensor)
        self._work()
        return self._outputs

    def _prepare(self) -> Callable[[], object]:
        """Return what fills the outputs from what is given."""
        raise NotImplementedError


class Graphed(Fed):
    """A call as a CUDA graph. Graphs share a pool's memory, so that the largest number of prompts fits once."""

    def __init__(self, call: Callable[..., Tensors], pool: Any) -> None:
        super().__init__()
        self._call, self._pool = call, pool

    def _prepare(self) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._call(*self._given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._outputs = self._call(*self._given)
        return graph.replay


def clock_for(device: str) -> Clock:
    """Choose a clock that a device's work is done at when it is read."""
    if device == "cpu":
        return now_ns

    def synchronised_ns() -> int:
        torch.cuda.synchronize(device)
        return now_ns()

    return synchronised_ns


def peaks(setting: Setting, tiny: bool = False, threads: int | None = None, clock: Clock | None = None) -> Peaks:
    """Multiply two matrices in a precision, and copy a tensor, again and again, on the device."""
    device, dtype = torch_device(setting.device), TYPES[setting.precision]
    side, size = TINY if tiny else (PRODUCT_SIDE[device.type], COPIED_BYTES[device.type])
    a, b = (torch.full((side, side), value, dtype=dtype, device=device) for value in (0.5, 0.25))
    product, source = torch.empty_like(a), torch.ones(size, dtype=torch.uint8, device=device)
    target, read = torch.zeros_like(source), clock or clock_for(setting.device)
    seconds = 0.0 if tiny else PEAK_S
    product_s = best_s(lambda: torch.mm(a, b, out=product), read, seconds)
    copy_s = best_s(lambda: target.copy_(source), read, seconds)
    return {"threads": threads, "multiply_adds_per_s": side**3 / product_s, "bytes_per_s": 2 * size / copy_s}
