"""The fast form cut into what a backend writes: one graph, or an image graph and a prompt graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.fast.decoder import CACHE_FROM_PROMPTS, FastDecoder, choose_form
from samx.models.fast.low_rank import LowRankTransformer
from samx.models.fast.precision import KEEP_FP32, set_precision
from samx.models.graph import Graph, Graphs, examples
from samx.models.shape_range import ShapeRange
from samx.models.spec import LABELS, DecoderSpec, TensorSpec

USUAL_POINTS, USUAL_PROMPTS = (
    ShapeRange(1, 8, 8),
    ShapeRange(1, 1, 64),
)  # any number works; the form is chosen for the second


@dataclass(frozen=True)
class Needs:
    """Describe what a target needs of the fast form, and the sizes that the form is chosen for."""

    points: ShapeRange = USUAL_POINTS  # a prompt's, padding counted
    prompts: ShapeRange = USUAL_PROMPTS  # a call's
    split: bool = False  # an image graph and a prompt graph
    low_rank: bool = True  # whether that form may be chosen: half precision and rounded factors do not survive it
    padded_points: bool = False  # whether the graph knows empty points
    independent: bool = True  # without the attention factors that follow from others
    fused: bool = False  # attention as one operator
    keep_fp32: Collection[str] | None = None  # groups of operations in float32, the others in float16; None: all


class WholeGraph(nn.Module):
    """Take image and prompts, return masks."""

    def __init__(self, decoder: FastDecoder) -> None:
        super().__init__()
        self.decoder, self.images = decoder, len(decoder.spec.image_inputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.decoder.decode(self.decoder.image_state(*inputs[: self.images]), *inputs[self.images :])


class ImageGraph(nn.Module):
    """Take an image, return what every prompt on it shares."""

    def __init__(self, decoder: FastDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        # Compiled code takes its inputs as they were when it was compiled, and does not look at strides.
        return tuple(tensor.contiguous() for tensor in self.decoder.image_state(*inputs).values())


class PromptGraph(nn.Module):
    """Take the image graph's outputs and prompts, return masks."""

    def __init__(self, decoder: FastDecoder, names: Sequence[str]) -> None:
        super().__init__()
        self.decoder, self.names = decoder, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, inputs, strict=False))
        return self.decoder.decode(state, *inputs[len(self.names) :])


def fast_graphs(loaded: LoadedDecoder, spec: DecoderSpec, needs: Needs) -> Graphs:
    """Build the form that suits the needs, and cut it.

    Raises: UsageError for groups of operations that there are not.
    """
    decoder = fast_decoder(loaded, spec, needs)
    return Graphs(tuple(cut(decoder, needs.split)), form_facts(decoder, needs))


def fast_decoder(loaded: LoadedDecoder, spec: DecoderSpec, needs: Needs) -> FastDecoder:
    """Build the form that suits the needs, in their precision."""
    cached = needs.split or needs.prompts.opt >= CACHE_FROM_PROMPTS
    form = choose_form(spec, needs.points.opt, needs.low_rank and cached)
    reference = build_reference(replace(loaded, spec=spec))
    decoder = FastDecoder(
        reference,
        form,
        fused=needs.fused,
        cached=cached,
        padded_points=needs.padded_points,
        independent=needs.independent,
    )
    return decoder if needs.keep_fp32 is None else set_precision(decoder, KEEP_FP32 | set(needs.keep_fp32))


def object_graph(loaded: LoadedDecoder, spec: DecoderSpec) -> Graph:
    """Build the decoder that takes an image embedding for each prompt: memory makes each object of a video its own.

    Nothing of an image is shared then but what stays as the encoder made it.
    """
    reference = build_reference(replace(loaded, spec=spec))
    decoder = FastDecoder(reference, choose_form(spec, USUAL_POINTS.opt, low_rank=False), cached=False)
    first, *shared = spec.inputs
    inputs = (replace(first, shape=("prompts", *first.shape[1:]), meaning="each object's, memory added"), *shared)
    return Graph("object_decoder", WholeGraph(decoder), inputs, spec.outputs, client_notes(spec, "object_decoder"))


def form_facts(decoder: FastDecoder, needs: Needs) -> dict[str, Any]:
    """Say which form was chosen and why, for the manifest."""
    spec = decoder.spec
    tokens = spec.output_tokens + needs.points.opt
    columns = f"{spec.heads} heads x {tokens} tokens = {spec.heads * tokens} columns"
    kept = "kept between prompts" if decoder.cached else "computed anew in every call"
    widths = f"projections of {spec.cross_attention_width} and image tokens of {spec.width} channels"
    facts: dict[str, Any] = {
        "form": decoder.form, "form_reason": f"{columns} against {widths}; the image's part is {kept}",
        "cached": decoder.cached, "slots": decoder.padded_points,
        "points": needs.points.to_json(), "prompts": needs.prompts.to_json(), "split": needs.split,
    }  # fmt: skip
    if isinstance(decoder.transformer, LowRankTransformer):
        facts["independent"] = decoder.transformer.independent
    return facts if needs.keep_fp32 is None else {**facts, "keep_float32": sorted(KEEP_FP32 | set(needs.keep_fp32))}


def cut(decoder: FastDecoder, split: bool) -> list[Graph]:
    """Cut a decoder: image and prompts apart, or all in one."""
    spec = decoder.spec
    if not split:
        return [Graph("decoder", WholeGraph(decoder), spec.inputs, spec.outputs, client_notes(spec, "decoder"))]
    state = _state_specs(decoder)
    prompt = PromptGraph(decoder, [tensor.name for tensor in state])
    return [
        Graph("image", ImageGraph(decoder), spec.image_inputs, state, client_notes(spec, "image")),
        Graph("prompt", prompt, state + spec.prompt_inputs, spec.outputs, client_notes(spec, "prompt")),
    ]


def _state_specs(decoder: FastDecoder) -> tuple[TensorSpec, ...]:
    with torch.no_grad():
        state = decoder.image_state(*examples(decoder.spec.image_inputs))
    return tuple(
        TensorSpec(name, tuple(kept.shape), "1", "kept between prompts", str(kept.dtype).removeprefix("torch."))
        for name, kept in state.items()
    )


def client_notes(spec: DecoderSpec, role: str) -> Mapping[str, Any]:
    """Say what a client needs to use a graph: spec, preprocessing, labels, thresholds."""
    rules = spec.rules
    return {
        "role": role,
        "spec": spec.to_json(),
        "inputs": [asdict(tensor) for tensor in spec.inputs],
        "outputs": [asdict(tensor) for tensor in spec.outputs],
        "labels": dict(LABELS),
        "preprocessing": {
            "image_size_px": spec.image_size,
            "resize": "longest side, then zeros right and below" if spec.keeps_aspect else "both sides",
            "pixels": spec.pixels,
            "point_offset_px": f"{rules.point_offset_px} is added inside the graph",
            "box": "two points with labels 2 and 3, "
            + ("before the points" if rules.box_first else "after the points"),
            "padding": rules.padding_words(),
        },
        "thresholds": {
            "mask": spec.mask_threshold,
            "stability": spec.stability_threshold,
            "stability_delta": spec.stability_delta,
        },
    }
