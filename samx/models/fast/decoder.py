"""The fast decoder: the image's part once, the prompts' part per click."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from samx.errors import UsageError
from samx.models.fast.image_tokens import ImageTokenTransformer
from samx.models.fast.low_rank import LowRankTransformer
from samx.models.fast.prompts import MaskEmbedding, PointEmbedding, TokenChoice, token_choice
from samx.models.fast.upscale import HQ_FEATURES, Grow, HqFeatures, HqMask, HyperNetworks, MaskHead, scale_free
from samx.models.high_quality import HighQualityMaskDecoder
from samx.models.object_pointer import PointingDecoder
from samx.models.reference import ReferenceDecoder
from samx.models.spec import DecoderSpec

Form = Literal["low_rank", "absorbed", "direct"]
# From this many prompts a call, the image's tables cost less than they save: 1.7 billion multiply-adds an image against
# 0.4 a prompt, at a box's 7 tokens.
CACHE_FROM_PROMPTS = 4


def choose_form(spec: DecoderSpec, points: int, low_rank: bool) -> Form:
    """Pick the form with the fewest operations for this many points per prompt, padding counted.

    Low-rank products cost 16 columns a token, on top of tables that are only worth it when they are kept; absorbed ones
    cost 8 columns, direct ones the width of the cross-attention.
    """
    columns = spec.heads * (spec.output_tokens + points)
    if low_rank and not spec.mask_input and 2 * columns < spec.width:
        return "low_rank"
    return "absorbed" if columns <= spec.cross_attention_width else "direct"


class FastDecoder(nn.Module):
    """Compute exactly what the reference computes, rearranged for inference.

    With `cached`, what depends on the image alone is computed once for all prompts. A mask prompt changes the image's
    tokens prompt by prompt, so a decoder that takes masks cannot cache them. With `padded_points`, points labelled
    PADDED_POINT are as good as absent.
    """

    learned_tokens: Tensor

    def __init__(
        self, reference: ReferenceDecoder, form: Form = "absorbed", *,
        fused: bool = False, cached: bool = True, padded_points: bool = False, independent: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        reference = copy.deepcopy(reference)  # the two forms share no weight: one may change precision or device
        spec, source = reference.spec, reference.mask_decoder
        self.spec, self.form, self.padded_points = spec, form, padded_points
        self.fused, self.independent = fused, independent
        self.stream: torch.dtype | None = None  # of what flows between the operations; None: as it comes
        self.cached = cached and not spec.mask_input
        self.points = PointEmbedding(reference.prompt_encoder)
        self.masks = MaskEmbedding(reference.prompt_encoder) if spec.mask_input else None
        self.register_buffer("learned_tokens", source.learned_tokens().detach().clone())
        self.choice: TokenChoice = token_choice(spec)
        self.transformer = self.transformer_of(reference)
        self.hypernetworks = HyperNetworks(source, self.choice.masks)
        self.iou_head = source.iou_prediction_head
        self.object_score_head = source.pred_obj_score_head if spec.object_score else None
        hq = source if isinstance(source, HighQualityMaskDecoder) else None
        self.hq_features = HqFeatures(hq) if hq is not None and spec.interm_width else None
        self.hq_mask = None if hq is None else HqMask(hq)
        self.object_pointer = reference.object_pointer if isinstance(reference, PointingDecoder) else None
        self.head = MaskHead(source, scale_free=form == "low_rank" and scale_free(spec))
        self.requires_grad_(False)
        self.eval()

    def transformer_of(self, reference: ReferenceDecoder) -> ImageTokenTransformer | LowRankTransformer:
        """Make the transformer of a reference's weights, in this decoder's form.

        Raises: UsageError for a form that does not know mask prompts.
        """
        read = slice(0, self.choice.last)
        if self.form == "low_rank":
            if reference.spec.mask_input:
                raise UsageError("the low_rank form takes no mask prompts", fix="Choose 'absorbed' or 'direct'.")
            return LowRankTransformer(reference, read, fused=self.fused, independent=self.independent)
        return ImageTokenTransformer(
            reference, self.form, read, fused=self.fused, cached=self.cached, tabled=not self.padded_points
        )

    def image_state(self, *features: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Do the image's work; features in the spec's order, or by name.

        Shapes: DecoderSpec.image_inputs -> what every prompt on it shares, by name: see the transformers, HqFeatures,
        MaskHead.skips().
        """
        names = [tensor.name for tensor in self.spec.image_inputs]
        feed = {**dict(zip(names, features, strict=False)), **named}
        given = {name: self._inward(feed[name]) for name in names}
        state = self.transformer.image_state(given["image_embeddings"].flatten(2))  # (1, C, L)
        if self.hq_features is not None:
            state[HQ_FEATURES] = self.hq_features(given["image_embeddings"], given["interm_embeddings"])
        if not self.spec.high_res_features:
            return state
        return {**state, **self.head.skips(given["high_res_features_0"], given["high_res_features_1"])}

    def decode(
        self,
        state: Mapping[str, Tensor],
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Do the prompts' work. Shapes: image_state(), DecoderSpec.prompt_inputs -> DecoderSpec.outputs in order."""
        prompt = self.points(point_coords, point_labels)
        learned = self.learned_tokens.expand(prompt.shape[0], -1, -1)
        empty = self._inward(self.points.empty(point_labels, learned.shape[1])) if self.padded_points else None
        dense = None if self.masks is None else self.masks(mask_input, has_mask_input)
        tokens, grow = self.transformer(torch.cat([learned, prompt], dim=1), empty, dense, state)
        outputs = self._heads(tokens, grow, state)
        return outputs if self.stream is None else tuple(output.to(torch.float32) for output in outputs)

    def _inward(self, tensor: Tensor) -> Tensor:
        return tensor if self.stream is None else tensor.to(self.stream)

    def _heads(self, tokens: Tensor, grow: Grow, state: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Shapes: (N, K, C) -> masks, IoU [, object score [, object pointers]]."""
        position = self.choice
        iou = self.iou_head(tokens[:, position.iou])  # (N, 4)
        first = position.iou + 1
        weights = self.hypernetworks(tokens[:, first + position.masks.start : first + position.masks.stop])
        if self.hq_mask is None:
            masks, iou = position.select(
                self.spec, weights, iou, lambda rows: self.head(self.head.pixels(grow, state), rows)
            )
        else:
            pixels = tuple(self.head.pixels(grow, state))
            masks, iou = position.select(self.spec, weights, iou, lambda rows: self.head(pixels, rows))
            masks = masks + self.hq_mask(tokens[:, position.hq], pixels, state.get(HQ_FEATURES))
        return masks, iou, *self._scores(tokens)

    def _scores(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Shapes: (N, K, C) -> nothing [, object score (N, 1) [, object pointers (N, M, C)]]."""
        if self.object_score_head is None:
            return ()
        score = self.object_score_head(tokens[:, 0])
        if self.object_pointer is None:
            return (score,)
        return score, self.object_pointer(tokens[:, self.choice.pointers], score)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Decode in one go. Shapes: DecoderSpec.inputs -> DecoderSpec.outputs, by name."""
        state = self.image_state(*(inputs.pop(tensor.name) for tensor in self.spec.image_inputs))
        outputs = self.decode(state, **inputs)
        return dict(zip([tensor.name for tensor in self.spec.outputs], outputs, strict=True))
