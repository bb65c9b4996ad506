"""An engine knows what it is bound to, and says in words what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from samx.errors import ArtifactError
from samx.formats.tensorrt.stamp import Gpu, Machine, Stamp, differs

ORIN = Machine("10.3.0", "Linux aarch64", "Orin", "8.7", "CUDA 12.6")
TRT = Stamp("trt", "this_gpu", ORIN, "a" * 64, "b" * 64, "2026-01-01T00:00:00+00:00")
RTX = Stamp("trt-rtx", "ampere_plus", Machine("1.7.1.116", "Linux x86_64"), "a" * 64, "b" * 64, TRT.created)
DESKTOP = Machine("1.7.0.2", "Windows AMD64", "RTX 4090", "8.9", "CUDA 13.0")


@pytest.mark.parametrize("stamp", [TRT, RTX])
def test_a_stamp_is_read_back_as_it_was_written(stamp: Stamp) -> None:
    assert Stamp.from_bytes(stamp.to_bytes(), "engine.json") == stamp


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"version": "10.7.0"}, ["built with TensorRT 10.3.0, here is 10.7.0"]),
        ({"gpu": "Thor"}, ["built for GPU Orin, here is Thor"]),
        ({"compute_capability": "11.0"}, ["built for compute capability 8.7, here is 11.0"]),
        ({"driver": "CUDA 13.0"}, ["built for driver CUDA 12.6, here is CUDA 13.0"]),
        ({"os": "Linux x86_64"}, ["built for system Linux aarch64, here is Linux x86_64"]),
        ({"gpu": None}, ["built for GPU Orin, here is none"]),
    ],
)
def test_a_tensorrt_engine_is_bound_to_everything(change: dict[str, Any], words: list[str]) -> None:
    assert differs(TRT, replace(ORIN, **change)) == words


@pytest.mark.parametrize(
    ("stamp", "change", "words"),
    [
        (RTX, {}, []),
        (RTX, {"compute_capability": "12.0", "gpu": "RTX 5090"}, []),
        (RTX, {"version": "1.8.0"}, ["built with TensorRT for RTX 1.7.1.116, here is 1.8.0"]),
        (RTX, {"compute_capability": "7.5"}, ["compiled for Ampere and later (8.0), here is compute capability 7.5"]),
        (replace(RTX, compute="sm75"), {}, ["compiled for Turing (7.5), here is compute capability 8.9"]),
        (replace(RTX, compute="sm75"), {"compute_capability": "7.5"}, []),
    ],
)
def test_an_rtx_engine_is_bound_to_the_minor_version_and_the_generation(
    stamp: Stamp, change: dict[str, Any], words: list[str]
) -> None:
    assert differs(stamp, replace(DESKTOP, **change)) == words


def test_this_machine_is_described_with_and_without_a_gpu() -> None:
    assert Machine.here("10.3.0", None).gpu is None
    assert Machine.here("10.3.0", Gpu("Orin", "8.7", "CUDA 12.6")).compute_capability == "8.7"


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda stamp: stamp.update(format="other"),
    "target": lambda stamp: stamp.update(target="onnx"),
    "compute": lambda stamp: stamp.update(compute="sm75"),
    "hash": lambda stamp: stamp.update(engine_sha256="b"),
    "machine": lambda stamp: stamp["machine"].update(version=10),
    "less": lambda stamp: stamp["machine"].pop("os"),
    "gpu": lambda stamp: stamp["machine"].update(gpu=""),
}


@pytest.mark.parametrize("how", EDITS)
def test_an_edited_stamp_is_refused(how: str) -> None:
    body = json.loads(TRT.to_bytes())
    EDITS[how](body)
    with pytest.raises(ArtifactError, match=r"engine\.json"):
        Stamp.from_bytes(json.dumps(body).encode(), "engine.json")
