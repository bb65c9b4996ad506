"""One operation each: built of inputs to be evaluated, or of constants for coremltools to fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from mil_packages import Array, mb, program

from samx.runtimes.mil.evaluate import Evaluator

RANDOM = np.random.default_rng(5)
HALF, FULL, INT = np.float16, np.float32, np.int32
WORDS = {"float16": "fp16", "float32": "fp32", "int32": "int32", "int8": "int8", "uint8": "uint8", "bool": "bool"}


def normal(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(FULL)


def positive(*shape: int) -> Array:
    return RANDOM.uniform(0.1, 3, shape).astype(FULL)


def integers(*shape: int, low: int = -9, high: int = 10) -> Array:
    return RANDOM.integers(low, high, shape).astype(INT)


def full(*values: float) -> Array:
    return np.array(values, FULL)


def half(*values: float) -> Array:
    return np.array(values, HALF)


def bytes_of(*values: int) -> Array:
    return np.array(values, np.int8)


def truths(*shape: int) -> Array:
    return RANDOM.random(shape) < 0.5


@dataclass(frozen=True)
class Case:
    """Name an operation, its tensors and its parameters."""

    kind: str
    tensors: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    ios: int = 18

    def build(self, **given: Any) -> Any:
        """Build it, of whatever stands for the tensors."""
        inputs = {name: given[name] if name in given else self._several(name, given) for name in self.tensors}
        return getattr(mb, self.kind)(**inputs, **self.values)

    def flat(self) -> dict[str, Array]:
        """Give the tensors one by one."""
        return {name: array for key, value in self.tensors.items() for name, array in self._named(key, value)}

    def evaluated(self, dtype: type[np.generic] | None = None) -> list[Array]:
        """Evaluate it, its floats in another type if one is given."""
        feed = {
            name: array.astype(dtype) if dtype and array.dtype == FULL else array for name, array in self.flat().items()
        }
        inputs = {name: (array.shape, WORDS[array.dtype.name]) for name, array in feed.items()}
        return list(Evaluator(program(self.build, inputs, self.ios), "main")(feed).values())

    def folded(self) -> list[Array]:
        """Let coremltools compute it, of constants."""
        results: list[Any] = []

        def build(unused: Any) -> Any:
            found = self.build(**self.flat())
            results.extend(found if isinstance(found, (list, tuple)) else [found])
            return mb.relu(x=unused)

        program(build, {"unused": ((1,), "fp32")}, self.ios)
        return [np.asarray(result.val) for result in results]

    @staticmethod
    def _named(key: str, value: Any) -> list[tuple[str, Array]]:
        return [(f"{key}_{i}", x) for i, x in enumerate(value)] if isinstance(value, list) else [(key, value)]

    def _several(self, key: str, given: Mapping[str, Any]) -> list[Any]:
        return [given[name] for name, _ in self._named(key, self.tensors[key])]


def one(kind: str, x: Any, **values: Any) -> Case:
    return Case(kind, {"x": x}, values)


def two(kind: str, x: Any, y: Any, **values: Any) -> Case:
    return Case(kind, {"x": x, "y": y}, values)


def same(found: list[Array], wanted: list[Array], tolerance: float) -> None:
    """Compare shapes, and values: integers and truths exactly."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(one, other)


def names(cases: list[Case]) -> list[str]:
    """Give each case an id."""
    return [f"{case.kind}-{i}" for i, case in enumerate(cases)]


def through_half(case: Case) -> Case:
    """Round the tensors to what float16 holds."""

    def rounded(value: Any) -> Any:
        return value.astype(HALF).astype(FULL) if value.dtype == FULL else value

    tensors = {key: list(map(rounded, x)) if isinstance(x, list) else rounded(x) for key, x in case.tensors.items()}
    return replace(case, tensors=tensors)


def goes_in_half(case: Case) -> bool:
    """Tell cases that stay right when only their tensors become float16."""
    typed = [value for value in case.values.values() if isinstance(value, (np.ndarray, np.generic))]
    return any(x.dtype == FULL for x in case.flat().values()) and not any(value.dtype == FULL for value in typed)
