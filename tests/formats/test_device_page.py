"""The page about Apple devices names what coremltools and samx really have."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from coremltools.models.ml_program.experimental import perf_utils, remote_device

from samx.formats.coreml.lint import SHOWS
from samx.runtimes.coreml.compute_plan import ComputePlan
from samx.runtimes.coreml.runtime import UNITS

PAGE = (Path(__file__).parents[2] / "docs" / "devices" / "apple.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def imported(code: str) -> list[tuple[str, str]]:
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    return [(str(node.module), alias.name) for node in nodes for alias in node.names]


@pytest.mark.parametrize("code", EXAMPLES, ids=["plan", "mac", "phone"])
def test_what_the_examples_import_is_there(code: str) -> None:
    names = imported(code)
    assert names
    assert [name for module, name in names if not hasattr(importlib.import_module(module), name)] == []


def parameters(of: Any) -> list[str]:
    return [name for name in inspect.signature(of).parameters if name != "self"]


def test_the_benchmarker_takes_what_the_page_gives() -> None:
    made = perf_utils.MLModelBenchmarker
    assert parameters(made) == ["model", "device"]
    assert parameters(made.benchmark_predict) == ["inputs", "iterations", "warmup"]
    assert inspect.iscoroutinefunction(made.benchmark_predict)
    assert "benchmark_load" in vars(made)
    assert {"median"} <= set(made.Statistics.__dataclass_fields__)


def test_the_phone_is_prepared_as_the_page_does() -> None:
    assert parameters(remote_device.Device.get_connected_devices) == ["device_type"]
    assert parameters(remote_device.Device.prepare_for_model_debugging)[0] == "credentials"
    assert "development_team" in remote_device.AppSigningCredentials.__dataclass_fields__
    assert "IPHONE" in remote_device.DeviceType.__members__


def test_a_plan_has_what_the_page_reads() -> None:
    assert {"lines", "to_json"} <= set(dir(ComputePlan))
    assert "operations" in ComputePlan.__dataclass_fields__


@pytest.mark.parametrize("device", UNITS)
def test_every_device_is_on_the_page(device: str) -> None:
    assert f"| `{device}` |" in PAGE


def test_the_page_claims_no_run() -> None:
    assert "**Not run on hardware so far:** everything on a device." in PAGE
    assert "is a lint" in PAGE
    assert "nothing ran on a Neural Engine" in SHOWS
