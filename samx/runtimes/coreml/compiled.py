"""One operation of a compiled function: where its arguments lie, how it is computed, where its results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from samx.errors import ArtifactError
from samx.formats.coreml.storage import FLOATS, stored
from samx.formats.coreml.tensor_type import TensorType
from samx.runtimes.mil.operations.kinds import Operation, Result

Place = int | list[int]  # of one value, or of several that come as one argument
Values = list[Tensor | None]


@dataclass(frozen=True)
class Step:
    """Compute one operation."""

    words: str  # name it in errors
    operation: Operation
    arguments: Mapping[str, Place]
    parameters: Mapping[str, Any]
    results: tuple[tuple[int, TensorType], ...]
    done_with: list[int] = field(default_factory=list)  # what nobody needs afterwards

    @property
    def places(self) -> list[int]:
        """Where the arguments lie."""
        return [place for some in self.arguments.values() for place in (some if isinstance(some, list) else [some])]

    def run(self, values: Values) -> None:
        """Take the arguments from their places, put the results into theirs, clear what is done with.

        Raises: ArtifactError when there is no result, or not the declared one.
        """
        try:
            arguments = {name: _at(values, place) for name, place in self.arguments.items()}
            computed = self.operation.compute(**arguments, **self.parameters)
            self._put(values, computed)
        except (ValueError, TypeError, RuntimeError, IndexError) as cause:
            raise ArtifactError(f"cannot evaluate {self.words}", found=cause) from cause
        for place in self.done_with:
            values[place] = None

    def _put(self, values: Values, computed: Result) -> None:
        parts = [computed] if isinstance(computed, Tensor) else computed
        for part, (place, declared) in zip(parts, self.results, strict=True):
            if tuple(part.shape) != declared.shape:
                raise ValueError(f"it gives {tuple(part.shape)}, declared is {declared}")
            as_it_is = self.operation.moves and part.is_floating_point() and declared.dtype in FLOATS
            values[place] = part if as_it_is else stored(part, declared.dtype)


def _at(values: Values, place: Place) -> Tensor | list[Tensor]:
    return [_value(values, one) for one in place] if isinstance(place, list) else _value(values, place)


def _value(values: Values, place: int) -> Tensor:
    value = values[place]
    assert value is not None  # compiled in the function's own order
    return value
