"""Independent factors: what h*T weights say, whose rows sum to one, h*(T-1) + 1 of them say too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samx.models.fast.factors import Gram, Rows, TokenSide, independent_rows, with_ones
from samx.models.reference import Attention

HEADS, WIDTH, CHANNELS, CELLS = 4, 8, 12, 5


@pytest.fixture(params=[2, 3, 7])
def made(request: pytest.FixtureRequest) -> tuple[TokenSide, Tensor, Tensor]:
    """Give a side of an attention, tokens (2, T, C) and weights that sum to one over them (2, h, T, L)."""
    generator = torch.Generator().manual_seed(request.param)
    torch.manual_seed(request.param)
    side = TokenSide(Attention(CHANNELS, WIDTH, HEADS).double())
    tokens = torch.randn(2, request.param, CHANNELS, generator=generator, dtype=torch.float64)
    scores = torch.randn(2, HEADS, request.param, CELLS, generator=generator, dtype=torch.float64)
    return side, tokens, scores.softmax(2)


def test_kept_factors_carry_the_same_sum(made: tuple[TokenSide, Tensor, Tensor]) -> None:
    side, tokens, weights = made
    kept = independent_rows(HEADS, tokens)
    _, values = side(tokens, tokens, kept)
    assert len(kept) == HEADS * (tokens.shape[1] - 1) + 1 == len(set(kept.tolist()))

    factors = weights.flatten(1, 2).index_select(1, kept)
    by_head = weights.transpose(2, 3) @ values.by_head  # (N, h, L, d+1)
    wanted = by_head.transpose(1, 2).flatten(2)
    assert torch.allclose(factors.transpose(1, 2) @ values.spread, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(by_head[..., -1], torch.ones(()).double(), rtol=0, atol=1e-12)

    wrong = factors.roll(1, dims=1).transpose(1, 2) @ values.spread  # a factor too far
    assert not torch.allclose(wrong, wanted, rtol=0, atol=1e-3)


def test_rows_bring_a_constant_once(made: tuple[TokenSide, Tensor, Tensor]) -> None:
    side, tokens, weights = made
    kept = independent_rows(HEADS, tokens)
    _, values = side(tokens, tokens, kept)
    weight, constant = torch.randn(3, WIDTH).double(), torch.randn(3).double()
    rows = Rows(weight, HEADS, constant)(values.spread)
    joined = (weights.transpose(2, 3) @ values.by_head[..., :-1]).transpose(1, 2).flatten(2)
    got = weights.flatten(1, 2).index_select(1, kept).transpose(1, 2) @ rows
    assert torch.allclose(got, joined @ weight.t() + constant, rtol=0, atol=1e-12)


def test_gram_is_the_product_of_rows(made: tuple[TokenSide, Tensor, Tensor]) -> None:
    side, tokens, _ = made
    _, values = side(tokens, tokens, independent_rows(HEADS, tokens))
    left, right = (torch.randn(CHANNELS, WIDTH).double() for _ in range(2))
    constant = torch.randn(CHANNELS).double()
    gram = Gram(with_ones(left, HEADS, constant), with_ones(right, HEADS), HEADS, share=0.5)
    head_rows = values.by_head[..., :-1] @ left.t().unflatten(0, (HEADS, -1))  # (N, h, T, C)
    all_rows = (head_rows + constant / HEADS).flatten(1, 2)
    wanted = 0.5 * all_rows @ Rows(right, HEADS)(values.spread).transpose(1, 2)
    assert torch.allclose(gram(values.by_head, values.spread), wanted, rtol=0, atol=1e-12)
