"""How many multiply-adds a decoder needs and what it keeps of an image, counted from its spec without any library.

Counted are the products, which is where the operations are. Letters: P points and T tokens of a prompt, R = heads * T,
L image tokens, C channels, D channels of the cross-attentions, K tokens that are read at the end, M masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from samx.models.spec import DecoderSpec

FLOAT_BYTES = 4  # of what is kept of an image, and of masks
LABELS = 5  # rows of the table that a label chooses from
EXTRA = 2  # channels that the low-rank form appends to make upscaling free of scales
REFERENCE = "reference"  # the released decoder's structure: everything for every prompt

Part = tuple[str, int, int]  # what for, multiply-adds an image, multiply-adds a prompt


class _Sizes:
    """The numbers that counts are made of."""

    def __init__(self, spec: DecoderSpec, form: str, points: int, cached: bool, independent: bool) -> None:
        self.spec, self.form, self.cached = spec, form, cached
        self.p, self.t = points, spec.output_tokens + points
        self.c, self.d, self.l, self.h = spec.width, spec.cross_attention_width, spec.grid**2, spec.heads
        self.r = self.h * self.t
        self.free = self.r - (self.h - 1) * independent  # factors a layer
        self.both = 2 * self.free + (1 if independent else self.h)
        self.k, self.m, self.painted = self._selected()
        self.extra = EXTRA if form == "low_rank" and not spec.high_res_features else 0

    def _selected(self) -> tuple[int, int, int]:
        """Count tokens read at the end, mask weights made, masks painted. The reference computes all of them."""
        spec, all_masks = self.spec, self.spec.mask_tokens
        upto = spec.output_tokens - all_masks - spec.hq_token  # tokens before the masks'
        last = upto + all_masks + spec.hq_token
        if self.form == REFERENCE:
            return self.t, all_masks, all_masks
        if spec.masks == "single" and not spec.stability_fallback:
            return last if spec.hq_token else upto + 1, 1, 1
        if spec.settles_single:  # mask 0, what it may fall back to, and of all masks the others
            return last, all_masks, 2 if spec.masks == "single" else all_masks + 1
        masks = all_masks - (spec.masks == "multimask")
        return last, masks, 1 if spec.masks == "multimask" and spec.rules.best_alone else masks


def count(spec: DecoderSpec, form: str, points: int, *, cached: bool, independent: bool = True) -> tuple[int, int, int]:
    """Count a form's multiply-adds an image and a prompt, and the bytes kept of the image, at a number of points.

    Padding is counted. Where nothing is kept, the image's part is done once a call.

    With `cached`, layer 0 works once for all prompts on an image; with `independent`, the low-rank form drops the
    factors that follow from others.
    """
    s = _Sizes(spec, form, points, cached, independent)
    parts = [*_tokens(s), *FORMS[form](s), *_upscaling(s), *_heads(s), *_high_quality(s)]
    return sum(once for _, once, _ in parts), sum(each for _, _, each in parts), FLOAT_BYTES * _kept(s)


def _tokens(s: _Sizes) -> Iterator[Part]:
    yield "prompt encoding", 0, (s.p + s.l) * s.c if s.form == REFERENCE else LABELS * s.p * s.c
    yield "self-attention", 0, s.spec.depth * (4 * s.t * s.c * s.c + 2 * s.t * s.t * s.c)
    yield "token MLPs", 0, s.spec.depth * 2 * s.t * s.c * s.spec.mlp_width
    if s.spec.mask_input:
        inner = s.spec.mask_prompt_channels
        yield "mask prompt", 0, s.l * (4 * 4 * inner // 4 + 4 * (inner // 4) * inner + inner * s.c)


def _sides(s: _Sizes, tokens: int) -> int:
    """Count query and output of an attention to the image, or key and value of one from it."""
    return 2 * tokens * s.c * s.d


def _direct_layers(s: _Sizes, layers: int) -> Iterator[Part]:
    yield "token to image", 0, layers * (_sides(s, s.t) + 2 * s.l * s.c * s.d + 2 * s.t * s.l * s.d)
    yield "image to token", 0, layers * (_sides(s, s.t) + 2 * s.l * s.c * s.d + 2 * s.t * s.l * s.d)
    yield "last attention", 0, _sides(s, s.k) + 2 * s.l * s.c * s.d + 2 * s.k * s.l * s.d


def _absorbed_layers(s: _Sizes, layers: int) -> Iterator[Part]:
    small = 2 * s.t * s.c * s.d  # the projections that moved to the token side
    yield "token to image", 0, layers * (_sides(s, s.t) + small + 2 * s.r * s.c * s.l)
    yield "image to token", 0, layers * (_sides(s, s.t) + small + s.t * s.d + 2 * s.r * s.c * s.l)
    yield "last attention", 0, _sides(s, s.k) + 2 * s.k * s.c * s.d + 2 * s.h * s.k * s.c * s.l + s.k * s.d * s.l


def _first_layer(s: _Sizes, layers: Callable[[_Sizes, int], Iterator[Part]]) -> Iterator[Part]:
    """Count layers whose first one may work on what all prompts share."""
    table, product = s.c * s.d * s.l, s.t * s.d * s.l
    yield from layers(s, s.spec.depth - s.cached)
    if s.form == "direct" and not s.cached and not s.spec.mask_input:  # projected once a call, all the same
        yield "token to image", 2 * table, -2 * table
        yield "image to token", table, -table
    if s.cached:
        yield "token to image", 2 * table, _sides(s, s.t) + 2 * product
        yield "image to token", table, _sides(s, s.t) + product + s.t * s.d * s.c + s.r * s.c * s.l


def _low_rank(s: _Sizes) -> Iterator[Part]:
    table, product, mean = s.c * s.d * s.l, s.t * s.d * s.l, s.c * s.l
    free, ones, both = s.free, s.d + s.h, s.both  # `ones`: what the factors' rows are spread over
    rows, gram, square, sums = free * ones * s.d, free * ones * (ones + s.t), s.r * free * s.l, s.h * s.l
    scores = rows + s.t * s.d * free + square + 2 * product
    sides = _sides(s, s.t) + s.t * s.c * s.h  # the values' ones are made like values
    yield "token to image", 2 * table, _sides(s, s.t) + 2 * product
    yield "image to token", table, sides + product
    yield "image norms", table + 2 * mean, product + gram + square + sums
    yield "token to image", 2 * table, _sides(s, s.t) + scores + rows + square + product + s.t * s.d * free
    yield "image to token", table, sides + scores
    yield "image norms", 2 * table + 4 * mean, 2 * product + 3 * (gram + square + sums)
    last = _sides(s, s.k) + 4 * rows + 2 * s.k * s.d * both + 2 * s.h * s.k * both * s.l + 3 * s.k * s.d * s.l
    yield "last attention", 2 * table, last
    pixels = 4 * (s.c // 4 + s.extra)
    yield "first upscaling", s.c * s.l * pixels, 2 * free * ones * pixels + s.l * both * pixels


FORMS: Mapping[str, Callable[[_Sizes], Iterator[Part]]] = {
    REFERENCE: lambda s: _direct_layers(s, s.spec.depth), "direct": lambda s: _first_layer(s, _direct_layers),
    "absorbed": lambda s: _first_layer(s, _absorbed_layers), "low_rank": _low_rank,
}  # fmt: skip


def _upscaling(s: _Sizes) -> Iterator[Part]:
    if s.form != "low_rank":
        yield "first upscaling", 0, s.l * s.c * s.c
    yield "second upscaling", 0, 4 * s.l * (s.c // 4 + s.extra) * s.c // 2
    yield "mask product", 0, 16 * s.l * s.painted * s.c // 8


def _heads(s: _Sizes) -> Iterator[Part]:
    wide = s.spec.iou_head_width
    iou = s.c * wide + (s.spec.iou_head_depth - 2) * wide * wide + wide * s.spec.mask_tokens
    score = s.spec.object_score * ((s.spec.object_score_head_depth - 1) * s.c * s.c + s.c)
    picks = s.painted != s.m and s.form != REFERENCE  # one of the other masks' weights
    fallback = (s.spec.mask_tokens - 1) * s.c // 8 if picks else 0
    pointers = s.spec.object_pointer * 3 * s.spec.masks_out * s.c * s.c
    yield "heads", 0, s.m * (2 * s.c * s.c + s.c * s.c // 8) + iou + score + fallback + pointers


def _high_quality(s: _Sizes) -> Iterator[Part]:
    """Count HQ-SAM's parts; its last convolution and its mask product are one, but in the reference."""
    if not s.spec.hq_token:
        return
    pixels, fine, wide = 16 * s.l, s.c // 8, s.c // 4
    mlp = 2 * s.c * s.c + s.c * fine
    refined = 9 * pixels * fine * wide
    if s.form == REFERENCE:
        yield "high-quality mask", 0, mlp + 2 * refined + pixels * fine
    else:
        added = fine * (pixels if s.spec.interm_width else 1)
        yield "high-quality mask", 0, mlp + refined + 9 * fine * wide + 9 * pixels * wide + 81 * pixels + added
    if s.spec.interm_width:
        grown = s.c * wide + 4 * wide * fine + s.spec.interm_width * s.c + 4 * s.c * fine
        yield "high-quality features", 4 * s.l * grown, 0


def _kept(s: _Sizes) -> int:
    """Count the numbers that are kept between prompts."""
    tables = {"low_rank": 11, "absorbed": 3, "direct": 3}.get(s.form, 0) if s.cached else 0
    cells = 0 if s.form == "low_rank" else s.c
    grown = 4 * (s.c // 4 + s.extra) + 3 if s.form == "low_rank" else 0
    skips = 16 * s.c // 8 + 4 * s.c // 4 if s.spec.high_res_features else 0
    features = 16 * s.c // 8 if s.spec.interm_width else 0
    return s.l * (tables * s.d + cells + grown + skips + features)
