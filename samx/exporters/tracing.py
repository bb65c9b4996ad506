"""torch.export to ONNX, without the exporter's internal chatter."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx


def to_onnx(
    module: nn.Module, examples: tuple[Tensor, ...], *, opset: int, inputs: Sequence[str], outputs: Sequence[str],
    dynamic_shapes: Any = None,
) -> onnx.ModelProto:  # fmt: skip
    """Trace a module and convert it."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), examples, dynamo=True, verbose=False, opset_version=opset, dynamic_shapes=dynamic_shapes,
            input_names=list(inputs), output_names=list(outputs),
        )  # fmt: skip
    assert program is not None  # None is only returned when a file is written
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's internal notices away from the user; its errors still come."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
