"""The reference form of EfficientSAM's decoder: SAM's with other sums, activations and norm, and no mask prompt.

Source: EfficientSAM's PromptEncoder, MaskDecoder, TwoWayTransformer and predict_masks: names, shapes, order of
operations. Letters as in reference.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.reference import (
    MLP,
    MaskDecoder,
    MLPBlock,
    PromptEncoder,
    ReferenceDecoder,
    TwoWayAttentionBlock,
    TwoWayTransformer,
)
from samx.models.spec import DecoderSpec

PADDING_PX = -1.0  # where upstream puts what fills up a prompt


class GeluMLP(MLP):
    """Stack linear layers with GELU between them."""

    activation = staticmethod(F.gelu)


class GeluMLPBlock(MLPBlock):
    """Two linear layers with GELU between."""

    activation = staticmethod(F.gelu)


class PointEncoder(PromptEncoder):
    """Turn points and box corners into tokens; a background point is its position alone, and padding has one too."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__(spec)
        self.point_embeddings = self.point_embeddings[1:]
        del self.no_mask_embed, self.mask_downscaling

    def point_weights(self) -> list[Tensor]:
        """List the embeddings of POINT_LABELS, zeros for the background's. Shapes: 4 x (1, C)."""
        learned = super().point_weights()
        return [torch.zeros_like(learned[0]), *learned]

    def padding_token(self) -> Tensor:
        """Return the position of padding and its embedding. Shapes: -> (1, C)."""
        learned = self.not_a_point_embed.weight
        place = torch.full((1, 2), (PADDING_PX + self.offset) / self.image_size, dtype=learned.dtype)
        position: Tensor = self.pe_layer(place.to(learned.device))
        return position + learned

    def no_mask(self) -> Tensor:
        """Return zeros: nothing is added to the image. Shapes: -> (1, C)."""
        return torch.zeros_like(self.not_a_point_embed.weight)


class AllResidualBlock(TwoWayAttentionBlock):
    """Keep a residual in every layer; after the first, positions are part of it and of the values."""

    mlp_class = GeluMLPBlock

    @staticmethod
    def among_tokens(
        first: bool, attend: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, token_pe: Tensor
    ) -> Tensor:
        """Let tokens attend to themselves."""
        tokens = tokens if first else tokens + token_pe
        return tokens + attend(tokens, tokens)


class AllResidualTransformer(TwoWayTransformer):
    """Run the two-way layers and a last token-to-image attention."""

    layer_class = AllResidualBlock


class EfficientMaskDecoder(MaskDecoder):
    """Predict mask logits and their IoU; the first upscaling is normalised over its whole map."""

    transformer_class = AllResidualTransformer
    mlp_class = GeluMLP

    @staticmethod
    def norm_class(channels: int) -> nn.Module:
        """Normalise all channels and pixels together."""
        return nn.GroupNorm(1, channels)


class EfficientDecoder(ReferenceDecoder):
    """Decode as EfficientSAM does: prompts have as many tokens as Family.prompt_tokens, the rest of them padding."""

    prompt_encoder_class = PointEncoder
    decoder_class = EfficientMaskDecoder
