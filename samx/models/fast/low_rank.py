"""The transformer on factors: after layer 0 the image tokens are never formed again.

With T tokens and h heads, an image-to-token attention adds a product of its weights, (L, R = h*T), and R rows of
channels, of which R' = R - h + 1 are independent (factors.py). Between layer norms the image tokens are then

    x = s * (table + F^T rows) + constant

where the table depends on the image alone, s is one number per image token (the norms' scales) and F holds the
attention weights, the factors. Every later projection acts on the table once per image and on the rows once per prompt,
so that nothing 4096 x 256 is computed for a prompt but the first upscaling.

A layer norm needs the mean and the variance over channels. The mean is taken out beforehand, from tables and rows; the
variance is a quadratic form in s and F whose coefficients are small matrices.

Letters: N prompts, T tokens, L image tokens, C channels, h heads of width d. Factors are (N, R', L).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from samx.models.fast.attention import (
    CachedTokenToImage,
    Linear,
    join_heads,
    linear,
    projection,
    query_scale,
    softmax_over_tokens,
    split_heads,
)
from samx.models.fast.factors import (
    AfterOne,
    CentredImage,
    Gram,
    Image,
    Scores,
    TokenSide,
    Values,
    centre,
    channel_mean,
    dot,
    independent_rows,
    mix_values,
    products,
    select,
    table,
    with_ones,
)
from samx.models.fast.image_tokens import TokenPart
from samx.models.fast.upscale import EXTRA, SUBROWS, Grow, GrowRows, centred_outputs, epsilon_bias, scale_free
from samx.models.reference import Attention, LayerNorm2d, MaskDecoder, ReferenceDecoder, TwoWayAttentionBlock


class LowRankTransformer(nn.Module):
    """Run the two-way transformer and the first upscaling on an image's tables and a prompt's factors."""

    def __init__(self, reference: ReferenceDecoder, read: slice, *, fused: bool, independent: bool) -> None:
        """Take the decoder, and which tokens are read after the last attention.

        With `independent`, factors that follow from others are dropped, and the others turned over for the upscaling;
        without, all sizes are multiples of the heads.
        """
        super().__init__()
        source = reference.mask_decoder
        zero, one = (cast(TwoWayAttentionBlock, block) for block in source.transformer.layers)
        no_mask = reference.prompt_encoder.no_mask().detach()  # (1, C)
        position = reference.prompt_encoder.pe_layer.grid(reference.spec.grid).detach().flatten(0, 1)  # (L, C)
        after = AfterOne(zero, one, no_mask, constants=1 if independent else source.spec.heads)
        self.read, self.independent = read, independent
        self.tokens = nn.ModuleList([TokenPart(zero, fused), TokenPart(one, fused)])
        self.zero = LayerZero(zero, no_mask, position)
        self.one = LayerOne(one, after, position)
        self.last = FinalAttention(after, source.transformer.final_attn_token_to_image, position)
        self.final_norm = source.transformer.norm_final_attn
        self.grow = GrowFactors(after, source, turned=independent)

    def image_state(self, image_tokens: Tensor) -> dict[str, Tensor]:
        """Do the image's work. Shapes: (1, C, L) -> tables (1, h, d, L) and (1, L, C/2), sums (1, 1, L)."""
        parts = (self.zero, self.one, self.last, self.grow)
        return {name: tensor for part in parts for name, tensor in part.tables(image_tokens).items()}

    def forward(
        self, token_pe: Tensor, empty: Tensor | None, dense: None, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Grow]:
        """Shapes: (N, T, C) [, (N, T)] -> the tokens that are read (N, K, C), the first upscaling.

        A dense embedding, which a mask prompt makes, would need tables of its own for every prompt.
        """
        tokens = self.tokens[0](token_pe, token_pe, empty, lambda q: self.zero.to_image(q, state))
        kept = independent_rows(self.zero.heads, tokens) if self.independent else None
        values0, image = self.zero(tokens + token_pe, tokens, empty, state, kept)
        tokens = self.tokens[1](tokens, token_pe, empty, lambda q: self.one.to_image(q, state, values0, image))
        values1, image = self.one(tokens + token_pe, tokens, empty, state, values0, image, kept)
        tokens, token_pe = tokens[:, self.read], token_pe[:, self.read]
        spread = (values0.spread, values1.spread)
        tokens = tokens + self.last(tokens + token_pe, state, spread, image)
        return self.final_norm(tokens), lambda dy: self.grow(dy, state, spread, image)


class LayerZero(nn.Module):
    """Let all prompts attend to the same image, and keep what that adds to it as factors."""

    offset: Tensor

    def __init__(self, layer: TwoWayAttentionBlock, no_mask: Tensor, position: Tensor) -> None:
        super().__init__()
        attention = layer.cross_attn_image_to_token
        self.heads, self.eps = attention.heads, layer.norm4.eps
        self.to_image_attention = CachedTokenToImage(layer.cross_attn_token_to_image, no_mask + position, no_mask)
        self.queries = projection(attention.q_proj, position + no_mask, attention.heads)
        self.side = TokenSide(attention)
        offset = no_mask + attention.out_proj.bias.detach()
        self.register_buffer("offset", offset.t().contiguous())  # (C, 1)
        added = centre(attention.out_proj.weight.detach())  # (C, h*d)
        share = 1 / len(added)  # squares are averaged over channels
        rows = with_ones(added, attention.heads)
        self.gram = Gram(rows, rows, attention.heads, share)
        self.products = table(2 * share * added.t(), offset, attention.heads)

    def tables(self, image_tokens: Tensor) -> dict[str, Tensor]:
        """Project the image for layer 0, and sum its squares."""
        image = image_tokens + self.offset
        centred = image - channel_mean(image)
        return {
            "image_keys_0": self.to_image_attention.keys(image_tokens),
            "image_values_0": self.to_image_attention.values(image_tokens),
            "image_queries_0": self.queries(image_tokens),
            "image_products_0": self.products(image_tokens),
            "image_squares_0": channel_mean(centred * centred),
        }

    def to_image(self, positioned: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Attend from tokens to the image. Shapes: (N, T, C) -> (N, T, C)."""
        return self.to_image_attention(positioned, state["image_keys_0"], state["image_values_0"])

    def forward(
        self, positioned: Tensor, tokens: Tensor, empty: Tensor | None, state: Mapping[str, Tensor], kept: Tensor | None
    ) -> tuple[Values, Image]:
        """Shapes: (N, T, C) x 2 [, (N, T), (R',)] -> values, the image."""
        keys, values = self.side(positioned, tokens, kept)
        weights = softmax_over_tokens(keys @ state["image_queries_0"], empty).flatten(1, 2)
        factors = select(weights, kept)
        by = products(values, state["image_products_0"]) + self.gram(*values) @ factors
        variance = state["image_squares_0"] + dot(weights, by, self.heads)
        scale = (variance + self.eps).rsqrt()
        return values, Image(scale, factors, weights)


class LayerOne(nn.Module):
    """Attend between tokens and factors, and add the second set of factors."""

    constant: Tensor

    def __init__(self, layer: TwoWayAttentionBlock, after: AfterOne, position: Tensor) -> None:
        super().__init__()
        to_image, to_token, zero = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token, after.zero
        self.heads, self.eps, self.constants = to_image.heads, layer.norm4.eps, after.constants
        key, value, query = (p.weight.detach() for p in (to_image.k_proj, to_image.v_proj, to_token.q_proj))
        self.query = linear(to_image.q_proj, query_scale(to_image))
        weight, bias = to_image.out_proj.weight.detach(), to_image.out_proj.bias.detach()
        # The rows of the attention sum to one, so constants of the values pass through to the output.
        self.out = Linear(weight, bias + weight @ (value @ zero.bias + to_image.v_proj.bias.detach()))
        self.key_table, self.value_table, self.query_table = (zero.table(w) for w in (key, value, query))
        self.key_rows, self.value_rows, self.query_rows = (zero.rows(w) for w in (key, value, query))
        self.keys = Scores(key @ position.t(), self.heads)
        constants = query @ zero.bias + to_token.q_proj.bias.detach()
        self.queries = Scores(query @ position.t() + constants.unsqueeze(1), self.heads)
        self.side = TokenSide(to_token)
        self.register_buffer("constant", after.constant)
        rows0, rows1 = with_ones(zero.out_centred, self.heads), with_ones(after.out, self.heads, after.constant)
        share = 1 / len(after.out)  # squares are averaged over channels
        self.gram00, self.gram11 = (Gram(rows, rows, self.heads, share) for rows in (rows0, rows1))
        self.gram10 = Gram(rows1, rows0, self.heads, 2 * share)
        self.products0 = zero.table(2 * share * zero.out_centred.t(), centred=True)
        self.products1 = zero.table(2 * share * after.out.t(), centred=True)
        self.image = CentredImage(zero.offset, zero.gain)

    def tables(self, image_tokens: Tensor) -> dict[str, Tensor]:
        """Project the image for layer 1, and sum its squares and its products with the constant."""
        centred = self.image(image_tokens)
        constant = 2 * self.constant.unsqueeze(1)
        return {
            "image_keys_1": self.key_table(image_tokens),
            "image_values_1": self.value_table(image_tokens),
            "image_queries_1": self.query_table(image_tokens),
            "image_products_1": self.products0(image_tokens),
            "image_products_2": self.products1(image_tokens),
            "image_squares_1": channel_mean(centred * centred),
            "image_constants_1": channel_mean(constant * centred),
        }

    def to_image(self, positioned: Tensor, state: Mapping[str, Tensor], values: Values, image: Image) -> Tensor:
        """Attend from tokens to the factors. Shapes: (N, T, C) -> (N, T, C)."""
        q = split_heads(self.query(positioned), self.heads)
        weights = self.keys(q, state["image_keys_1"], self.key_rows(values.spread), image).softmax(-1)
        mixed = mix_values(weights, state["image_values_1"], self.value_rows(values.spread), image)
        return self.out(join_heads(mixed))

    def forward(
        self, positioned: Tensor, tokens: Tensor, empty: Tensor | None, state: Mapping[str, Tensor],
        values0: Values, image: Image, kept: Tensor | None,
    ) -> tuple[Values, Image]:  # fmt: skip
        """Shapes: (N, T, C) x 2 [, (N, T), (R',)] -> values, the image with a constant row."""
        keys, values = self.side(positioned, tokens, kept)
        scores = self.queries(keys, state["image_queries_1"], self.query_rows(values0.spread), image)
        weights = softmax_over_tokens(scores, empty).flatten(1, 2)
        added = Image(image.scale, select(weights, kept), weights)
        scale = image.scale * (self._variance(state, values0, values, image, added) + self.eps).rsqrt()
        constant = scale.reciprocal().expand(-1, self.constants, -1)
        factors = torch.cat([image.factors, added.factors * image.scale.reciprocal(), constant], dim=1)
        return values, Image(scale, factors, weights)

    def _variance(
        self, state: Mapping[str, Tensor], values0: Values, values1: Values, image: Image, added: Image
    ) -> Tensor:
        """Sum the squares of centred image tokens without forming them. Shapes: -> (N, 1, L)."""
        by00 = products(values0, state["image_products_1"]) + self.gram00(*values0) @ image.factors
        gram10 = self.gram10(values1.by_head, values0.spread)
        by10 = products(values1, state["image_products_2"]) + gram10 @ image.factors
        by11 = self.gram11(*values1) @ added.factors
        # By powers of the scale: 2, 1, 0.
        squares = state["image_squares_1"] + dot(image.weights, by00, self.heads)
        mixed = state["image_constants_1"] + dot(added.weights, by10, self.heads)
        return image.scale * (image.scale * squares + mixed) + dot(added.weights, by11, self.heads)


class FinalAttention(nn.Module):
    """Attend from the tokens that are read to the factors."""

    def __init__(self, after: AfterOne, attention: Attention, position: Tensor) -> None:
        super().__init__()
        self.heads = attention.heads
        key, value = attention.k_proj.weight.detach(), attention.v_proj.weight.detach()
        self.query, self.out = linear(attention.q_proj, query_scale(attention)), linear(attention.out_proj)
        self.key_table, self.value_table = (table(after.fold(w), after.zero.offset, self.heads) for w in (key, value))
        self.key_rows, self.value_rows = after.rows(key, None), after.rows(value, attention.v_proj.bias.detach())
        self.keys = Scores(key @ position.t(), self.heads)

    def tables(self, image_tokens: Tensor) -> dict[str, Tensor]:
        """Project the image for the final attention."""
        return {"image_keys_2": self.key_table(image_tokens), "image_values_2": self.value_table(image_tokens)}

    def forward(
        self, positioned: Tensor, state: Mapping[str, Tensor], spread: tuple[Tensor, Tensor], image: Image
    ) -> Tensor:
        """Shapes: (N, K, C), spread values of both layers -> (N, K, C)."""
        q = split_heads(self.query(positioned), self.heads)
        weights = self.keys(q, state["image_keys_2"], self.key_rows(*spread), image).softmax(-1)
        mixed = mix_values(weights, state["image_values_2"], self.value_rows(*spread), image)
        return self.out(join_heads(mixed))


class GrowFactors(nn.Module):
    """Grow an image's factors to pixels; where nothing is added to them before a pixel's norm, without the scale."""

    def __init__(self, after: AfterOne, source: MaskDecoder, *, turned: bool) -> None:
        """Take the decoder, and whether to copy the factors to image tokens outermost before they are multiplied."""
        super().__init__()
        self.turned = turned
        grow = GrowRows(cast(nn.ConvTranspose2d, source.output_upscaling[0]), biased=True)
        self.scaled = not scale_free(source.spec)
        self.channels = grow.channels if self.scaled else grow.channels + EXTRA
        weights, bias = [grow.get_buffer(f"weight{dy}").t() for dy in SUBROWS], grow.bias  # (dx * out, C), (dx * out,)
        if not self.scaled:
            weights = [centred_outputs(weight, grow.channels) for weight in weights]
            bias = epsilon_bias(bias, grow.channels, cast(LayerNorm2d, source.output_upscaling[1]).eps)
        self.rows = nn.ModuleList(after.rows(weight, bias) for weight in weights)
        folded = [after.fold(weight) for weight in weights]
        self.table = nn.ModuleList(Linear(weight, weight @ after.zero.offset[0]) for weight in folded)

    def tables(self, image_tokens: Tensor) -> dict[str, Tensor]:
        """Upscale the image's part. Shapes: (1, C, L) -> (1, L, dx * out) x 2."""
        last = image_tokens.transpose(1, 2)
        return {f"image_rows_{dy}": self.table[dy](last) for dy in SUBROWS}

    def forward(self, dy: int, state: Mapping[str, Tensor], spread: tuple[Tensor, Tensor], image: Image) -> Tensor:
        """Return one sub-row. Shapes: spread values of both layers -> (N, 2*L, C/4 [+ 2])."""
        factors, rows = image.factors.transpose(1, 2), self.rows[dy](*spread)
        # Four axes, or else ONNX Runtime takes the transposition into the product, and loses more than it saves.
        of_rows = (factors.unsqueeze(1) @ rows.unsqueeze(1)).squeeze(1) if self.turned else factors @ rows
        grown = of_rows + state[f"image_rows_{dy}"]
        grown = grown * image.scale.transpose(1, 2) if self.scaled else grown
        return grown.reshape(-1, 2 * grown.shape[1], self.channels)
