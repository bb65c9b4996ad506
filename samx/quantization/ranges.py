"""The ranges of what goes into a graph's products, over every calibration sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from samx.errors import InputError
from samx.extras import require
from samx.quantization.groups import LEFT_ALONE, products


@dataclass(frozen=True)
class Range:
    """Hold a tensor's largest magnitude, and how many values of it a call has on average."""

    largest: float
    elements: float


Ranges = Mapping[str, Range]


def collect_ranges(model: bytes, calibration: Iterable[Mapping[str, NDArray[Any]]]) -> Ranges:
    """Run every sample and keep the largest magnitude of each product's other factor.

    Not a percentile: it gains 0.001 of mean IoU on the demo model, and cuts off what a user's image may reach.
    Raises: InputError where nothing calibrates, or a value is not finite.
    """
    names = sorted({p.tensor for p in products(onnx.load_from_string(model)) if p.group not in LEFT_ALONE})
    session = _session(model, names)
    largest, elements, samples = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), 0
    for feed in calibration:
        samples += 1
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            largest[name] = max(largest[name], _magnitude(value, name))
            elements[name] += value.size
    if not samples:
        raise InputError("nothing to calibrate INT8 with", found="0 samples", expected="at least 1")
    return {name: Range(largest[name], elements[name] / samples) for name in names}


def _magnitude(value: NDArray[Any], name: str) -> float:
    found = float(np.abs(value).max())
    if not np.isfinite(found):
        raise InputError(f"a calibration sample makes '{name}' not finite", fix="Calibrate again.")
    return found


def _session(model: bytes, names: list[str]) -> Any:
    """Open the graph with more outputs."""
    ort = require("onnxruntime", "onnxruntime", "INT8")
    graph = onnx.load_from_string(model)
    there = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
