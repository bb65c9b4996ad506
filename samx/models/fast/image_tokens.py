"""The transformer on image tokens as they are: every prompt has its own 4096 x 256 image tokens after layer 0.

Letters as in attention.py. Without a mask prompt all prompts share the image tokens until layer 0 has changed them, so
its projections of the image can be computed once (`cached`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, cast

from torch import Tensor, nn

from samx.models.fast.attention import (
    AbsorbedImageToToken,
    AbsorbedTokenToImage,
    CachedImageToToken,
    CachedTokenToImage,
    DirectImageToToken,
    DirectTokenToImage,
    LastTokenToImage,
    SelfAttention,
)
from samx.models.fast.upscale import Grow, GrowRows
from samx.models.reference import Attention, ReferenceDecoder, TwoWayAttentionBlock
from samx.models.spec import DecoderSpec

TokenForm = Literal["absorbed", "direct"]

IMAGE_TO_TOKEN: dict[TokenForm, type[AbsorbedImageToToken] | type[DirectImageToToken]] = {
    "absorbed": AbsorbedImageToToken,
    "direct": DirectImageToToken,
}


def token_to_image(
    form: TokenForm, source: Attention, fused: bool, offset: Tensor | None = None
) -> AbsorbedTokenToImage | DirectTokenToImage:
    """Make the attention from tokens to image tokens in one form."""
    return AbsorbedTokenToImage(source, offset) if form == "absorbed" else DirectTokenToImage(source, fused, offset)


class Layer(nn.Module):
    """One two-way layer around its two cross-attentions."""

    def __init__(self, source: TwoWayAttentionBlock, token_to_image: nn.Module, image_to_token: nn.Module, fused: bool):
        super().__init__()
        self.cached = isinstance(token_to_image, CachedTokenToImage)
        self.tokens = TokenPart(source, fused)
        self.token_to_image = token_to_image
        self.image_to_token = image_to_token
        self.norm = source.norm4

    def forward(
        self, tokens: Tensor, token_pe: Tensor, empty: Tensor | None, image: Tensor, sides: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Run the layer. Shapes: (N, T, C) x 2, (N, 1, L, C) -> tokens (N, T, C), image (N, 1, L, C).

        `sides` holds the cached keys, values and queries, or the image with its positional term; `empty` (N, T) is
        added to the scores of tokens.
        """
        to_image = sides[:2] if self.cached else (image, sides[0])
        tokens = self.tokens(tokens, token_pe, empty, lambda positioned: self.token_to_image(positioned, *to_image))
        return tokens, self.norm(image + self.image_to_token(sides[-1], tokens + token_pe, tokens, empty))


class TokenPart(nn.Module):
    """Do what a two-way layer does to the tokens, around their attention to the image."""

    def __init__(self, source: TwoWayAttentionBlock, fused: bool) -> None:
        super().__init__()
        self.first, self.among_tokens = source.first, source.among_tokens
        self.self_attention = SelfAttention(source.self_attn, fused)
        self.mlp = source.mlp
        self.norm1, self.norm2, self.norm3 = source.norm1, source.norm2, source.norm3

    def forward(
        self, tokens: Tensor, token_pe: Tensor, empty: Tensor | None, to_image: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Shapes: (N, T, C) x 2 [, (N, T)] -> (N, T, C)."""
        tokens = self.among_tokens(self.first, lambda q, v: self.self_attention(q, v, empty), tokens, token_pe)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + to_image(tokens + token_pe))
        return self.norm3(tokens + self.mlp(tokens))


class ImageTokenTransformer(nn.Module):
    """Run the two-way transformer and the first upscaling on every prompt's image tokens."""

    no_mask: Tensor
    position: Tensor

    def __init__(
        self, reference: ReferenceDecoder, form: TokenForm, read: slice, *, fused: bool, cached: bool, tabled: bool
    ) -> None:
        """Take the decoder, and which tokens are read after the last attention.

        With `tabled`, positions are kept as scores for the last attention too: faster, for 2 MiB (float32).
        """
        super().__init__()
        spec, source = reference.spec, reference.mask_decoder
        self.read, self.cached = read, cached
        self.register_buffer("no_mask", reference.prompt_encoder.no_mask().detach().clone())
        position = reference.prompt_encoder.pe_layer.grid(spec.grid).detach()
        self.register_buffer("position", position.flatten(0, 1).unsqueeze(0).unsqueeze(0))  # (1, 1, L, C)
        layers = [self._layer(spec, block, form, fused) for block in source.transformer.layers]
        self.layers = nn.ModuleList(layers)
        final = source.transformer.final_attn_token_to_image
        self.tabled = form == "absorbed" and tabled
        self.final_attention = (
            LastTokenToImage(final, position.flatten(0, 1)) if self.tabled else token_to_image(form, final, fused)
        )
        self.final_norm = source.transformer.norm_final_attn
        self.grow = GrowRows(cast(nn.ConvTranspose2d, source.output_upscaling[0]), biased=True)

    def _layer(self, spec: DecoderSpec, source: nn.Module, form: TokenForm, fused: bool) -> Layer:
        assert isinstance(source, TwoWayAttentionBlock)
        to_image, to_token = source.cross_attn_token_to_image, source.cross_attn_image_to_token
        if source.first and self.cached:
            token_side = CachedTokenToImage(to_image, self.no_mask, self.no_mask)
            return Layer(source, token_side, CachedImageToToken(to_token, self.no_mask), fused)
        # All prompts share the image until layer 0 has changed it, and ONNX's Attention takes no shared keys.
        shared = source.first and not spec.mask_input
        offset = self.no_mask if shared else None
        to_image_form = token_to_image(form, to_image, fused and not shared, offset)
        return Layer(source, to_image_form, IMAGE_TO_TOKEN[form](to_token, offset), fused)

    def image_state(self, image_tokens: Tensor) -> dict[str, Tensor]:
        """Do the image's work. Shapes: (1, C, L) -> image_tokens (1, 1, L, C) [, image_* (1, h, d, L) x 3]."""
        state = {"image_tokens": image_tokens.transpose(1, 2).unsqueeze(1)}
        first = cast(Layer, self.layers[0])
        to_image, to_token = first.token_to_image, first.image_to_token
        if not isinstance(to_image, CachedTokenToImage) or not isinstance(to_token, CachedImageToToken):
            return state
        positioned = (state["image_tokens"] + self.position).squeeze(1).transpose(1, 2)  # (1, C, L)
        projected = (to_image.keys(positioned), to_image.values(image_tokens), to_token.queries(positioned))
        return {**state, **dict(zip(("image_keys", "image_values", "image_queries"), projected, strict=True))}

    def forward(
        self, token_pe: Tensor, empty: Tensor | None, dense: Tensor | None, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Grow]:
        """Shapes: (N, T, C) [, (N, T), (N, 1, L, C)] -> the tokens that are read (N, K, C), the first upscaling."""
        image, tokens = state["image_tokens"], token_pe
        image = image if dense is None else image + dense
        for layer in self.layers:
            sides = _kept(state) if layer.cached else (image + self.position,)
            tokens, image = layer(tokens, token_pe, empty, image, sides)
        # Only the tokens that something is read from need the last attention.
        tokens, token_pe = tokens[:, self.read], token_pe[:, self.read]
        positioned = None if self.tabled else image + self.position
        tokens = tokens + self.final_attention(tokens + token_pe, image, positioned)
        image_tokens, rows, channels = image.flatten(0, 2), 2 * image.shape[2], self.grow.channels
        return self.final_norm(tokens), lambda dy: self.grow(image_tokens, dy).reshape(-1, rows, channels)


def _kept(state: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return state["image_keys"], state["image_values"], state["image_queries"]
