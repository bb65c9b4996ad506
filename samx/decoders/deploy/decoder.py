"""The deploy decoder: the image's part once, the prompts' part per click."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from samx.decoders.deploy.attention import (
    AbsorbedImageToToken,
    AbsorbedTokenToImage,
    CachedImageToToken,
    CachedTokenToImage,
    DirectImageToToken,
    DirectTokenToImage,
    SelfAttention,
)
from samx.decoders.deploy.prompts import MaskEmbedding, PointEmbedding
from samx.decoders.deploy.select import TokenChoice, token_choice
from samx.decoders.deploy.upscale import HyperNetworks, MaskHead, to_rows
from samx.decoders.reference import ReferenceDecoder, TwoWayAttentionBlock
from samx.decoders.spec import DecoderSpec

Form = Literal["absorbed", "direct"]

TOKEN_TO_IMAGE: dict[Form, type[AbsorbedTokenToImage] | type[DirectTokenToImage]] = {
    "absorbed": AbsorbedTokenToImage,
    "direct": DirectTokenToImage,
}
IMAGE_TO_TOKEN: dict[Form, type[AbsorbedImageToToken] | type[DirectImageToToken]] = {
    "absorbed": AbsorbedImageToToken,
    "direct": DirectImageToToken,
}


# From this many prompts a call, projecting the image for layer 0 costs less than absorbing the projections: 134 million
# multiply-adds an image against 54 a prompt, for each of three projections, at a box's 7 tokens.
CACHE_FROM_PROMPTS = 3


def choose_form(spec: DecoderSpec, points: int) -> Form:
    """Pick the form with fewer operations for this many points per prompt, padding counted.

    Absorbed products cost 8 columns a token, direct ones the width of the cross-attention.
    """
    tokens = spec.output_tokens + points
    return "absorbed" if spec.heads * tokens <= spec.cross_attention_width else "direct"


class ImageState(NamedTuple):
    """Hold what depends on the image alone; names and order of the image graph's outputs.

    Shapes: image_tokens (1, 1, L, C); image_keys, image_values and image_queries (1, h, d, L), all three only
        where layer 0 is cached; skips (1, 2, 2, 4*L, C/8) and (1, 2, 2*L, C/4), absent in SAM 1.
    """

    image_tokens: Tensor
    image_keys: Tensor | None = None
    image_values: Tensor | None = None
    image_queries: Tensor | None = None
    image_skips_0: Tensor | None = None
    image_skips_1: Tensor | None = None

    @staticmethod
    def names(spec: DecoderSpec, cached: bool) -> tuple[str, ...]:
        """Give the names of the tensors that are present."""
        projections = ("image_keys", "image_values", "image_queries") if cached else ()
        skips = ("image_skips_0", "image_skips_1") if spec.high_res_features else ()
        return ("image_tokens", *projections, *skips)

    def tensors(self) -> tuple[Tensor, ...]:
        """Give the tensors that are present, in order."""
        return tuple(tensor for tensor in self if tensor is not None)


class Layer(nn.Module):
    """One two-way layer around its two cross-attentions."""

    def __init__(self, source: TwoWayAttentionBlock, token_to_image: nn.Module, image_to_token: nn.Module, fused: bool):
        super().__init__()
        self.first = source.first
        self.cached = isinstance(token_to_image, CachedTokenToImage)
        self.self_attention = SelfAttention(source.self_attn, fused)
        self.token_to_image = token_to_image
        self.image_to_token = image_to_token
        self.mlp = source.mlp
        self.norm1, self.norm2, self.norm3, self.norm4 = source.norm1, source.norm2, source.norm3, source.norm4

    def forward(
        self, tokens: Tensor, token_pe: Tensor, image: Tensor, sides: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Run the layer. Shapes: (N, T, C) x 2, (N, 1, L, C) -> tokens (N, T, C), image (N, 1, L, C).

        `sides` holds the cached keys, values and queries, or the image with its positional term.
        """
        if self.first:
            tokens = self.self_attention(tokens, tokens)
        else:
            tokens = tokens + self.self_attention(tokens + token_pe, tokens)
        tokens = self.norm1(tokens)
        to_image = sides[:2] if self.cached else (image, sides[0])
        tokens = self.norm2(tokens + self.token_to_image(tokens + token_pe, *to_image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.image_to_token(sides[-1], tokens + token_pe, tokens)
        return tokens, self.norm4(image + update)


class DeployDecoder(nn.Module):
    """Compute exactly what the reference computes, rearranged for inference.

    With `cached`, layer 0's projections of the image are computed once for all prompts. A mask prompt changes the
    image's tokens prompt by prompt, so a decoder that takes masks cannot cache them.
    """

    no_mask: Tensor
    position: Tensor
    learned_tokens: Tensor

    def __init__(
        self, reference: ReferenceDecoder, form: Form = "absorbed", *, fused: bool = False, cached: bool = True
    ) -> None:
        super().__init__()
        reference = copy.deepcopy(reference)  # the two forms share no weight: one may change precision or device
        spec, source = reference.spec, reference.mask_decoder
        self.spec, self.form = spec, form
        self.cached = cached and not spec.mask_input
        self.points = PointEmbedding(reference.prompt_encoder)
        self.masks = MaskEmbedding(reference.prompt_encoder) if spec.mask_input else None
        self.register_buffer("no_mask", reference.prompt_encoder.no_mask_embed.weight.detach().clone())
        position = reference.prompt_encoder.pe_layer.grid(spec.grid).detach()
        self.register_buffer("position", position.flatten(0, 1).unsqueeze(0).unsqueeze(0))  # (1, 1, L, C)
        self.register_buffer("learned_tokens", source.learned_tokens().detach().clone())
        layers = [self._layer(block, fused) for block in source.transformer.layers]
        self.layers = nn.ModuleList(layers)
        self.final_attention = TOKEN_TO_IMAGE[form](source.transformer.final_attn_token_to_image, fused)
        self.final_norm = source.transformer.norm_final_attn
        self.choice: TokenChoice = token_choice(spec)
        self.hypernetworks = HyperNetworks(source, self.choice.masks)
        self.iou_head = source.iou_prediction_head
        self.object_score_head = source.pred_obj_score_head if spec.object_score else None
        self.head = MaskHead(source)
        self.requires_grad_(False)
        self.eval()

    def _layer(self, source: nn.Module, fused: bool) -> Layer:
        assert isinstance(source, TwoWayAttentionBlock)
        to_image, to_token = source.cross_attn_token_to_image, source.cross_attn_image_to_token
        if source.first and self.cached:
            constants = (self.no_mask, self.position.flatten(0, 2))
            cached = (CachedTokenToImage(to_image, *constants), CachedImageToToken(to_token, *constants))
            return Layer(source, *cached, fused)
        # All prompts share the image until layer 0 has changed it, and ONNX's Attention takes no shared keys.
        shared = source.first and not self.spec.mask_input
        to_image_form = TOKEN_TO_IMAGE[self.form](to_image, fused and not shared)
        per_prompt = (to_image_form, IMAGE_TO_TOKEN[self.form](to_token))
        return Layer(source, *per_prompt, fused)

    def image_state(
        self,
        image_embeddings: Tensor,
        high_res_features_0: Tensor | None = None,
        high_res_features_1: Tensor | None = None,
    ) -> ImageState:
        """Do the image's work. Shapes: DecoderSpec.image_inputs -> ImageState."""
        cells = image_embeddings.flatten(2)  # (1, C, L)
        tokens = cells.transpose(1, 2).unsqueeze(1)  # (1, 1, L, C)
        skips = self._skips(high_res_features_0, high_res_features_1)
        if self.masks is None:
            tokens = tokens + self.no_mask
        first = cast(Layer, self.layers[0])
        to_image, to_token = first.token_to_image, first.image_to_token
        if not isinstance(to_image, CachedTokenToImage) or not isinstance(to_token, CachedImageToToken):
            return ImageState(tokens, None, None, None, *skips)
        return ImageState(tokens, to_image.keys(cells), to_image.values(cells), to_token.queries(cells), *skips)

    def _skips(self, fine: Tensor | None, coarse: Tensor | None) -> tuple[Tensor, ...]:
        if fine is None or coarse is None:
            return ()
        return to_rows(fine, levels=2), to_rows(coarse, levels=1)

    def decode(
        self,
        state: ImageState,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Do the prompts' work. Shapes: ImageState, DecoderSpec.prompt_inputs -> DecoderSpec.outputs in order."""
        prompt = self.points(point_coords, point_labels)
        learned = self.learned_tokens.expand(prompt.shape[0], -1, -1)
        image = state.image_tokens
        if self.masks is not None:
            image = image + self.masks(mask_input, has_mask_input)
        tokens, image = self._transform(torch.cat([learned, prompt], dim=1), image, state)
        return self._heads(tokens, image, state)

    def _transform(self, token_pe: Tensor, image: Tensor, state: ImageState) -> tuple[Tensor, Tensor]:
        """Shapes: (N, T, C), (1|N, 1, L, C) -> output tokens (N, K, C), image (N, 1, L, C)."""
        tokens, position = token_pe, self.position
        for layer in self.layers:
            cached = (state.image_keys, state.image_values, state.image_queries)
            sides = cached if layer.cached else (image + position,)
            tokens, image = layer(tokens, token_pe, image, sides)
        # Only the tokens that something is read from need the last attention.
        first, last = self.choice.first, self.choice.last
        tokens, token_pe = tokens[:, first:last], token_pe[:, first:last]
        tokens = tokens + self.final_attention(tokens + token_pe, image, image + position)
        return self.final_norm(tokens), image

    def _heads(self, tokens: Tensor, image: Tensor, state: ImageState) -> tuple[Tensor, ...]:
        """Shapes: (N, K, C), (N, 1, L, C) -> masks, IoU [, object score]."""
        position = self.choice
        iou = self.iou_head(tokens[:, position.iou])  # (N, 4)
        weights = self.hypernetworks(tokens[:, position.iou + 1 + position.masks.start :])
        skips = None
        if state.image_skips_0 is not None and state.image_skips_1 is not None:
            skips = (state.image_skips_0, state.image_skips_1)
        masks, iou = position.select(self.spec, weights, iou, lambda rows: self.head(image, rows, skips))
        if self.object_score_head is None:
            return masks, iou
        return masks, iou, self.object_score_head(tokens[:, 0])

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
        high_res_features_0: Tensor | None = None,
        high_res_features_1: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Decode in one go, with the reference's signature. Shapes: DecoderSpec.inputs -> DecoderSpec.outputs."""
        state = self.image_state(image_embeddings, high_res_features_0, high_res_features_1)
        outputs = self.decode(state, point_coords, point_labels, mask_input, has_mask_input)
        return dict(zip([t.name for t in self.spec.outputs], outputs, strict=True))
