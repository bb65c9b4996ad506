"""Run an artifact's image encoder with its engine; what it computes stays on the GPU until somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.store import Artifact
from samx.errors import ImageError
from samx.formats.tensorrt.plan import ENCODER, EncoderPlan, read_plan_of
from samx.runtimes.cuda_arrays import DeviceArray
from samx.runtimes.tensorrt.execution import Execution
from samx.runtimes.tensorrt.runtime import DEVICE, check_limit, open_engine

Encoded = dict[str, DeviceArray]


def open_encoder(
    artifact: Artifact, device: str = DEVICE, threads: int | None = None
) -> Callable[[Mapping[str, NDArray[Any]]], Encoded]:
    """Open the engine of an artifact's image encoder: a function from its inputs by name to its outputs on the GPU.

    Raises: as the decoder's open_artifact().
    """
    plan = read_plan_of(artifact, ENCODER)
    assert isinstance(plan, EncoderPlan)
    return EngineEncoder(plan, open_engine(artifact, ENCODER, device, threads))


class EngineEncoder:
    """Encode pictures; a call waits for nothing, and its outputs are the caller's."""

    def __init__(self, plan: EncoderPlan, execution: Execution) -> None:
        self._plan, self._execution = plan, execution

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Encoded:
        """Encode pictures.

        Raises: ImageError for a number of them that the engine was not built for, or other tensors.
        """
        expected = {port.name: port.dtype for port in self._plan.inputs}
        if (found := {name: str(value.dtype) for name, value in inputs.items()}) != expected:
            raise ImageError("the encoder takes other tensors", found=found, expected=expected)
        count = len(next(iter(inputs.values())))
        check_limit("pictures", count, self._plan.pictures, ImageError)
        for name, value in inputs.items():
            self._execution.put(name, np.ascontiguousarray(value))
        outputs = {
            port.name: self._execution.new_output(port.name, (count, *_sizes(port.shape)), f"{count} pictures")
            for port in self._plan.outputs
        }
        self._execution.run()
        self._execution.keep_kernels()
        return outputs


def _sizes(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape[1:])
