"""A sketch shows every error: of one value, of all, and of values that changed places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from samx.validators.sketch import GROUP, MEAN_SQUARE, difference, groups, sketch

SHAPE = (1, 8, 30, 31)  # no whole number of groups
Array = np.ndarray[Any, Any]


@pytest.fixture
def values() -> Array:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def test_the_same_values_do_not_differ(values: Array) -> None:
    right = sketch(values)
    assert len(right.sums) == len(right.lattice) == groups(values.size) == -(-values.size // GROUP)
    assert difference(right, values.copy()).largest < 1e-6
    assert difference(right, values.copy()).error < 1e-6


@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.1])
def test_the_whole_error_is_estimated(share: float) -> None:
    values = np.random.default_rng(1).standard_normal((1, 64, 64, 64)).astype(np.float32)
    noise = np.random.default_rng(2).standard_normal(values.shape).astype(np.float32)
    found = difference(sketch(values), values + np.float32(share) * noise)
    assert found.error == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_one_wrong_value_shows_wherever_it_is(values: Array, seed: int) -> None:
    right, place = sketch(values), np.random.default_rng(seed).integers(values.size)
    values.ravel()[place] += np.float32(0.01) * abs(values).max()
    assert difference(right, values).largest >= 0.0049


CHANGES: Mapping[str, Callable[[Array], Array]] = {
    "neighbours swapped": lambda x: x[..., [1, 0, *range(2, x.shape[-1])]],
    "channels swapped": lambda x: x[:, [1, 0, *range(2, x.shape[1])]],
    "rows turned round": lambda x: x[:, :, ::-1],
    "shifted by one": lambda x: np.roll(x, 1, -1),
    "shifted by a group": lambda x: np.roll(x.ravel(), GROUP).reshape(x.shape),
    "another sign": lambda x: -x,
    "more by a thousandth": lambda x: x + np.float32(1e-3),
    "scaled": lambda x: x * np.float32(1.001),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_keep_sums_and_squares_show(values: Array, change: str) -> None:
    found = difference(sketch(values), np.ascontiguousarray(CHANGES[change](values)))
    assert found.error > 5e-4


def test_values_at_the_end_of_float32_are_measured() -> None:
    values = np.ones(SHAPE, np.float32)
    right = sketch(values)
    values[0, 0, 0, 0] = np.finfo(np.float32).max
    assert np.isfinite(difference(right, values)).all()
    assert difference(right, values).largest > 1e30


def test_weights_are_even_and_the_same_everywhere() -> None:
    """Stored sketches hang on them."""
    weights = np.array([sketch(np.eye(1, GROUP, i, np.float32)).sums[0] for i in range(GROUP)])
    assert (abs(weights) >= 0.5).all()
    assert (abs(weights) <= 1.5).all()
    assert np.mean(weights**2) == pytest.approx(MEAN_SQUARE, rel=0.2)
    assert weights[:3] == pytest.approx([-0.90834904, 1.3166981, 0.82791])
