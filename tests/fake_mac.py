"""A Mac that is none: coremltools' own classes over a stand-in for its native part, which exists on macOS only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.models import compute_device, compute_plan, model, utils

from samx.runtimes.coreml import compute_plan as mac

Predict = Callable[[str, Mapping[str, Any]], dict[str, Any]]
CONSTANTS = ("const", "ios18.constexpr_blockwise_shift_scale")
DEVICES = {
    "ANE": compute_device.MLNeuralEngineComputeDevice,
    "GPU": compute_device.MLGPUComputeDevice,
    "CPU": compute_device.MLCPUComputeDevice,
}
Line = tuple[str, str | None, float | None]  # operator, preferred device, weight


def device(word: str) -> Any:
    """Make a compute device; coremltools' own constructor wants a native object."""
    return object.__new__(DEVICES[word])


def operation(operator: str, *inputs: str, blocks: list[Any] | None = None) -> Any:
    """Make an operation of a plan's model structure."""
    argument = compute_plan.MLModelStructureProgramArgument([compute_plan.MLModelStructureProgramBinding("x", None)])
    value = compute_plan.MLModelStructureProgramNamedValueType("y", compute_plan.MLModelStructureProgramValueType())
    return compute_plan.MLModelStructureProgramOperation(
        dict.fromkeys(inputs, argument), operator, [value], blocks or [], SimpleNamespace()
    )


def block(operations: list[Any]) -> Any:
    """Make a block of a plan's model structure."""
    return compute_plan.MLModelStructureProgramBlock([], operations, ["y"])


class FakePlanProxy:
    """Answer for the operations of one function, as Core ML does for the default function alone."""

    def __init__(self, functions: Mapping[str, list[Line]], default: str) -> None:
        self.lines: dict[int, Line] = {}
        blocks = {name: self._block(lines, name == default) for name, lines in functions.items()}
        made = {name: compute_plan.MLModelStructureProgramFunction([], made) for name, made in blocks.items()}
        self.model_structure = compute_plan.MLModelStructure(None, compute_plan.MLModelStructureProgram(made), None)

    def _block(self, lines: list[Line], asked: bool) -> Any:
        operations = [operation(line[0], "x", "weight") for line in lines]
        if asked:
            self.lines |= {id(made): line for made, line in zip(operations, lines, strict=True)}
        return block(operations)

    def get_compute_device_usage_for_mlprogram_operation(self, asked: Any) -> Any:
        _, preferred, _ = self.lines.get(id(asked), ("", None, None))
        if preferred is None:
            return None
        supported = [device(word) for word in dict.fromkeys((preferred, "CPU"))]
        return compute_plan.MLComputePlanDeviceUsage(device(preferred), supported)

    def get_estimated_cost_for_mlprogram_operation(self, asked: Any) -> Any:
        weight = self.lines.get(id(asked), ("", None, None))[2]
        return None if weight is None else compute_plan.MLComputePlanCost(weight)


class FakeMac:
    """Stand in for coremltools' native part, and note what it is asked."""

    def __init__(self) -> None:
        self.devices = ["CPU", "GPU", "ANE"]
        self.plans: dict[str, list[Line]] = {}
        self.predict: Predict = lambda function, feed: {}
        self.log: list[tuple[Any, ...]] = []
        self.newest = 10  # specification version that this macOS knows
        self.fault: Exception | None = None

    def native(self) -> type:
        """Make the class that coremltools calls `_MLModelProxy`."""
        mac = self

        class Proxy:
            def __init__(self, path: str, units: str, function: str, hints: dict[str, str], asset: object) -> None:
                mac.fail()
                assert Path(path, "Manifest.json").is_file()
                mac.log.append(("load", units, function))
                self.function = function

            def predict(self, feed: dict[str, Any], state: object) -> dict[str, Any]:
                mac.fail()
                mac.log.append(("predict", self.function))
                return mac.predict(self.function, feed)

            def get_compiled_model_path(self) -> str:
                return "somewhere.mlmodelc"

            @staticmethod
            def maximum_supported_specification_version() -> int:
                return mac.newest

            @staticmethod
            def get_all_compute_devices() -> list[Any]:
                mac.fail()
                return [device(word) for word in mac.devices]

            @staticmethod
            def get_compute_plan(path: str, units: str) -> Any:
                mac.fail()
                default = Path(path, "default").read_text(encoding="utf-8")
                mac.log.append(("plan", units, default))
                plan = object.__new__(compute_plan.MLComputePlan)
                plan.__proxy__ = FakePlanProxy(mac.plans, default)
                return plan

        return Proxy

    def compile_model(self, source: str, destination_path: str) -> str:
        """Compile to a directory that knows no more than its default function."""
        self.fail()
        assert destination_path.endswith(".mlmodelc")
        Path(destination_path).mkdir()
        default = ct.utils.load_spec(source).description.defaultFunctionName or "main"
        Path(destination_path, "default").write_text(default, encoding="utf-8")
        self.log.append(("compile", default))
        return destination_path

    def fail(self) -> None:
        """Raise what was planted."""
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def fake_mac(monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    """Pretend that this is a Mac with macOS 15.1 and an M4."""
    made = FakeMac()
    pretend(monkeypatch, "15.1")
    for module in (model, compute_plan, compute_device):
        assert hasattr(module, "_MLModelProxy")
        monkeypatch.setattr(module, "_MLModelProxy", made.native())
    monkeypatch.setattr(utils, "compile_model", made.compile_model)
    monkeypatch.setattr(mac, "chip", lambda: "Apple M4")
    return made


def pretend(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Pretend to be a Mac with a version of macOS."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: (version, ("", "", ""), "arm64"))


def package(path: Path, programs: Mapping[str, Any]) -> Path:
    """Save MIL programs as the functions of one package; `main` is a package of its own kind, with one function."""
    parts = {name: _save(program, path.with_name(f"{name}.mlpackage")) for name, program in programs.items()}
    if set(parts) == {"main"}:
        return parts["main"].rename(path)
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, part in parts.items():
        descriptor.add_function(str(part), "main", name)
    descriptor.default_function_name = next(iter(parts))
    ct.utils.save_multifunction(descriptor, str(path))
    for part in parts.values():
        shutil.rmtree(part)
    return path


def doubling(*shape: int) -> Any:
    """Make a program that doubles a float16 tensor."""
    mb = ct.converters.mil.Builder
    specs = [mb.TensorSpec(shape, ct.converters.mil.mil.types.fp16)]
    return mb.program(input_specs=specs, opset_version=ct.target.iOS18)(
        lambda x: mb.mul(x=x, y=np.float16(2), name="y")
    )


def _save(program: Any, path: Path) -> Path:
    keep = ct.precision.FLOAT32  # the types as they are written
    made = ct.convert(program, minimum_deployment_target=ct.target.iOS18, compute_precision=keep, skip_model_load=True)
    made.save(str(path))
    return path
