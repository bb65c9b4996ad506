"""The fast form cut into what a backend writes: one graph, or an image graph and a prompt graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from samx.errors import UsageError
from samx.exporters.options import ExportJob, ExportOptions
from samx.models.checkpoint import build_reference
from samx.models.fast.decoder import CACHE_FROM_PROMPTS, FastDecoder, choose_form
from samx.models.fast.low_rank import LowRankTransformer
from samx.models.fast.precision import KEEP_FP32, set_precision
from samx.models.shape_range import ShapeRange
from samx.models.spec import TensorSpec

# Any number works; the form is chosen for the second.
USUAL_POINTS, USUAL_PROMPTS = ShapeRange(1, 8, 8), ShapeRange(1, 1, 64)
ATTENTION_OPSET = 23  # first opset with the Attention operator
# torch.export specialises on sizes 0 and 1, and takes equal sizes for related ones: examples avoid both, and every
# size that the decoder has of its own, so that a test sees an example's size if it is baked in.
EXAMPLE_SIZES = {"prompts": 13, "points": 9}


@dataclass(frozen=True)
class Graph:
    """Pair a module with the names and shapes at its border."""

    role: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


class WholeGraph(nn.Module):
    """Take image and prompts, give masks."""

    def __init__(self, decoder: FastDecoder) -> None:
        super().__init__()
        self.decoder, self.images = decoder, len(decoder.spec.image_inputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.decoder.decode(self.decoder.image_state(*inputs[: self.images]), *inputs[self.images :])


class ImageGraph(nn.Module):
    """Take an image, give what every prompt on it shares."""

    def __init__(self, decoder: FastDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        # Compiled code takes its inputs as they were when it was compiled, and does not look at strides.
        return tuple(tensor.contiguous() for tensor in self.decoder.image_state(*inputs).values())


class PromptGraph(nn.Module):
    """Take the image graph's outputs and prompts, give masks."""

    def __init__(self, decoder: FastDecoder, names: Sequence[str]) -> None:
        super().__init__()
        self.decoder, self.names = decoder, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, inputs, strict=False))
        return self.decoder.decode(state, *inputs[len(self.names) :])


def usual_sizes(options: ExportOptions) -> ExportOptions:
    """Fill in the numbers of points and prompts that were not asked for."""
    return replace(options, points=options.points or USUAL_POINTS, prompts=options.prompts or USUAL_PROMPTS)


def fast_decoder(
    job: ExportJob, *, low_rank: bool, padded_points: bool = False, independent: bool = True
) -> FastDecoder:
    """Make the form that suits the job's sizes, in its precision; with `low_rank` that form may be chosen.

    Raises: UsageError for groups that no decoder has.
    """
    options = job.options
    if options.islands and options.precision != "fp16":
        raise UsageError("everything is in float32 already", found=f"precision {options.precision}", expected="--fp16")
    assert options.points is not None and options.prompts is not None  # noqa: PT018 - every exporter fills them in
    cached = options.split or options.prompts.opt >= CACHE_FROM_PROMPTS
    form = choose_form(job.spec, options.points.opt, low_rank and cached)
    reference = build_reference(replace(job.loaded, spec=job.spec))
    fused = options.opset >= ATTENTION_OPSET
    decoder = FastDecoder(
        reference, form, fused=fused, cached=cached, padded_points=padded_points, independent=independent
    )
    return set_precision(decoder, KEEP_FP32 | set(options.islands)) if options.precision == "fp16" else decoder


def facts(decoder: FastDecoder, options: ExportOptions) -> dict[str, Any]:
    """Say which form was chosen and why, for the manifest."""
    spec = decoder.spec
    assert options.points is not None
    tokens = spec.output_tokens + options.points.opt
    columns = f"{spec.heads} heads x {tokens} tokens = {spec.heads * tokens} columns"
    kept = "kept between prompts" if decoder.cached else "computed anew in every call"
    widths = f"projections of {spec.cross_attention_width} and image tokens of {spec.width} channels"
    reason = f"{columns} against {widths}; the image's part is {kept}"
    form: dict[str, Any] = {
        "form": decoder.form,
        "form_reason": reason,
        "cached": decoder.cached,
        "slots": decoder.padded_points,
    }
    if isinstance(decoder.transformer, LowRankTransformer):
        form["independent"] = decoder.transformer.independent
    return form if decoder.stream is None else {**form, "islands": sorted(KEEP_FP32 | set(options.islands))}


def graphs(decoder: FastDecoder, split: bool) -> list[Graph]:
    """Cut a decoder: image and prompts apart, or all in one."""
    spec = decoder.spec
    outputs = tuple(tensor.name for tensor in spec.outputs)
    if not split:
        return [Graph("decoder", WholeGraph(decoder), spec.inputs, outputs)]
    state = _state_specs(decoder)
    names = tuple(tensor.name for tensor in state)
    return [
        Graph("image", ImageGraph(decoder), spec.image_inputs, names),
        Graph("prompt", PromptGraph(decoder, names), state + spec.prompt_inputs, outputs),
    ]


def examples(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Make inputs of the right shapes; their values leave no trace in the graph, which the gate proves."""
    sizes = [[EXAMPLE_SIZES[d] if isinstance(d, str) else d for d in spec.shape] for spec in specs]
    types = [getattr(torch, spec.dtype) for spec in specs]
    return tuple(torch.full(size, 0.5, dtype=dtype) for size, dtype in zip(sizes, types, strict=True))


def dynamic_shapes(specs: Sequence[TensorSpec]) -> tuple[dict[int, Any] | None, ...]:
    """Name the axes of each input that may have any size."""
    dims = {name: torch.export.Dim(name) for name in EXAMPLE_SIZES}
    return tuple({i: dims[d] for i, d in enumerate(spec.shape) if isinstance(d, str)} or None for spec in specs)


def _state_specs(decoder: FastDecoder) -> tuple[TensorSpec, ...]:
    with torch.no_grad():
        state = decoder.image_state(*examples(decoder.spec.image_inputs))
    return tuple(
        TensorSpec(name, tuple(kept.shape), "1", "kept between prompts", str(kept.dtype).removeprefix("torch."))
        for name, kept in state.items()
    )
