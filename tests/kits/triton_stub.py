"""A stand-in for what Triton's Python backend offers a model, the server's other models with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

TRITONSERVER_MEMORY_CPU = "cpu"

Arrays = Mapping[str, NDArray[Any]]
OTHERS: dict[str, Callable[[Arrays], Arrays]] = {}  # the models that are loaded; what they raise is their error
LOG: list[str] = []


class TritonError:
    """An error with a code."""

    NOT_FOUND, INVALID_ARG, INTERNAL = "not found", "invalid", "internal"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.words, self.code = message, code

    def message(self) -> str:
        """Return its words."""
        return self.words


class Tensor:
    """An array with a name."""

    def __init__(self, name: str, value: Any) -> None:
        self._name, self.value = name, value

    def name(self) -> str:
        """Return its name."""
        return self._name

    def shape(self) -> list[int]:
        """Return its sizes."""
        return list(self.value.shape)

    def as_numpy(self) -> Any:
        """Return the array."""
        return self.value


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = tensors, error

    @property
    def tensors(self) -> dict[str, Any]:
        """What a client gets."""
        return {one.name(): one.value for one in self._tensors}

    def has_error(self) -> bool:
        """Tell whether there is one."""
        return self._error is not None

    def error(self) -> Any:
        """Return it."""
        return self._error

    def output_tensors(self) -> list[Tensor]:
        """Return what another model answers."""
        return self._tensors


class PreferredMemory:
    """Where outputs shall lie."""

    def __init__(self, kind: str, device: int = 0) -> None:
        self.kind, self.device = kind, device


class InferenceRequest:
    """What a model asks of another."""

    def __init__(
        self, model_name: str, requested_output_names: list[str], inputs: list[Tensor],
        preferred_memory: PreferredMemory | None = None,
    ) -> None:  # fmt: skip
        self._name, self._wanted, self._inputs = model_name, requested_output_names, inputs

    def exec(self) -> InferenceResponse:
        """Wait for the answer."""
        try:
            found = OTHERS[self._name]({one.name(): one.as_numpy() for one in self._inputs})
        except Exception as cause:
            return InferenceResponse([], TritonError(str(cause)))
        return InferenceResponse([Tensor(name, value) for name, value in found.items()])


class Logger:
    """The server's log."""

    log_info = log_warn = staticmethod(LOG.append)


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


def is_model_ready(model_name: str) -> bool:
    """Tell whether another model is loaded."""
    return model_name in OTHERS
