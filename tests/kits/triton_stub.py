"""A stand-in for what Triton's Python backend offers a model."""

from __future__ import annotations

from typing import Any


class TritonError:
    """An error with a code."""

    NOT_FOUND, INVALID_ARG, INTERNAL = "not found", "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        self.words, self.code = message, code


class Tensor:
    """An array with a name."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def as_numpy(self) -> Any:
        """Return the array."""
        return self.value


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors, self.error = {one.name: one.value for one in tensors}, error


class Request:
    """What a client sends."""

    def __init__(self, given: dict[str, Any], wanted: tuple[str, ...] = ("scores", "masks", "logits")) -> None:
        self.given, self.wanted = given, wanted

    def requested_output_names(self) -> tuple[str, ...]:
        """Return what the client wants."""
        return self.wanted


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    """Return an input; None where it was not sent."""
    return Tensor(name, request.given[name]) if name in request.given else None
