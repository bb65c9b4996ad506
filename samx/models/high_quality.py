"""The reference form of HQ-SAM's decoders: one more token, whose mask, read off refined pixels, is added to the others.

HQ-SAM's pixels also have what the image encoder knew early on; HQ-SAM 2's have not.
Source: SysCV's sam-hq: MaskDecoderHQ of both, names, shapes, order of operations. Letters as in reference.py.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from samx.models.reference import MLP, LayerNorm2d, MaskDecoder, ReferenceDecoder
from samx.models.spec import DecoderSpec


class HighQualityMaskDecoder(MaskDecoder):
    """Predict what MaskDecoder does, and the mask of the last output token."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__(spec)
        width, fine = spec.width, spec.width // 8
        self.hf_token = nn.Embedding(1, width)
        self.hf_mlp = MLP(width, width, fine, 3)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(fine, 2 * fine, 3, padding=1), LayerNorm2d(2 * fine), nn.GELU(),
            nn.Conv2d(2 * fine, fine, 3, padding=1),
        )  # fmt: skip
        if spec.interm_width:
            self.embedding_encoder = _grown(width, width // 4, fine)
            self.compress_vit_feat = _grown(spec.interm_width, width, fine)

    def learned_tokens(self) -> Tensor:
        """Append the token. Shapes: -> (6 or 7, C)."""
        return torch.cat([super().learned_tokens(), self.hf_token.weight])

    def image_side(self, image: Tensor, interm: Tensor) -> Tensor:
        """Grow both levels of an image's features. Shapes: (1|N, C, G, G), (1|N, G, G, C') -> (1|N, C/8, 4G, 4G)."""
        grown: Tensor = self.embedding_encoder(image) + self.compress_vit_feat(interm.permute(0, 3, 1, 2))
        return grown

    def hq_mask(self, tokens: Tensor, upscaled: Tensor, image_side: Tensor | None) -> Tensor:
        """Read the last output token's mask. Shapes: as attended() returns them [, image_side()] -> (N, 1, 4G, 4G)."""
        pixels = self.embedding_maskfeature(upscaled)
        pixels = pixels if image_side is None else pixels + image_side
        weights = self.hf_mlp(tokens[:, self.spec.output_tokens - 1]).unsqueeze(1)  # (N, 1, C/8)
        return (weights @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])


class HighQualityDecoder(ReferenceDecoder):
    """Decode as HQ-SAM does: its mask is added to each that the spec keeps."""

    decoder_class = HighQualityMaskDecoder

    def forward(self, *inputs: Tensor, interm_embeddings: Tensor | None = None, **named: Tensor) -> dict[str, Tensor]:
        """Decode, and keep the masks of the spec. Shapes: DecoderSpec.inputs -> DecoderSpec.outputs."""
        decoder = cast(HighQualityMaskDecoder, self.mask_decoder)
        tokens, upscaled = self.attended(*inputs, **named)
        image = inputs[0] if inputs else named["image_embeddings"]
        side = None if interm_embeddings is None else decoder.image_side(image, interm_embeddings)
        outputs = self.chosen(tokens, upscaled)
        return {**outputs, "low_res_masks": outputs["low_res_masks"] + decoder.hq_mask(tokens, upscaled, side)}


def _grown(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(width_in, hidden, 2, stride=2), LayerNorm2d(hidden), nn.GELU(),
        nn.ConvTranspose2d(hidden, width_out, 2, stride=2),
    )  # fmt: skip
