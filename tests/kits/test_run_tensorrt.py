"""run.py of an engine kit. The build is the real TensorRT for RTX; the GPU and what runs an engine are stand-ins."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_toys import PROMPTS, SPEC, toy_masks
from kits import call, copied, engine_artifact, kit_of, runner

from samx.benchmarks.results import BenchReport
from samx.formats.tensorrt.stamp import Gpu as Described
from samx.formats.tensorrt.stamp import describe_gpu
from samx.validators.report import ParityReport


class FakeDriver:
    """Stand in for libcuda: memory as bytes by address, one stream; what it is asked is noted."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.log: list[str] = []
        self.fails: dict[str, int] = {}
        self.room = 1 << 24
        self.facts = {75: 8, 76: 7}

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        work = getattr(self, f"do_{name}", lambda *arguments: 0)

        def called(*arguments: Any) -> int:
            self.log.append(name)
            code: int = self.fails.get(name) or work(*arguments) or 0
            return code

        return called

    def do_cuDeviceGetCount(self, answer: Any) -> None:  # noqa: N802 - the driver's names
        """One GPU."""
        answer._obj.value = 1

    def do_cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> None:  # noqa: N802
        """A name."""
        buffer.value = b"Toy GPU"

    def do_cuDeviceGetAttribute(self, answer: Any, fact: int, device: Any) -> None:  # noqa: N802
        """Compute capability."""
        answer._obj.value = self.facts[fact]

    def do_cuDriverGetVersion(self, answer: Any) -> None:  # noqa: N802
        """CUDA 12.6."""
        answer._obj.value = 12060

    def do_cuGetErrorString(self, code: int, answer: Any) -> None:  # noqa: N802
        """Words."""
        answer._obj.value = b"what went wrong"

    def do_cuStreamCreate(self, answer: Any, flags: int) -> None:  # noqa: N802
        """A handle."""
        assert flags == 1
        answer._obj.value = 7

    def do_cuMemAlloc_v2(self, answer: Any, size: Any) -> int:  # noqa: N802
        """Reserve memory of this process."""
        if size.value > self.room:
            return 2
        block = ctypes.create_string_buffer(size.value)
        answer._obj.value = ctypes.addressof(block)
        self.memory[answer._obj.value] = block
        return 0

    def do_cuMemFree_v2(self, address: Any) -> None:  # noqa: N802
        """Give it back; twice is an error."""
        del self.memory[address.value]

    def do_cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        """Copy to memory that was reserved."""
        assert size.value <= len(self.memory[to.value])
        ctypes.memmove(to.value, source.value, size.value)

    def do_cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        """Copy from memory that was reserved."""
        assert size.value <= len(self.memory[source.value])
        ctypes.memmove(to.value, source.value, size.value)


class FakeContext:
    """Execute the toy decoder on the driver's memory, within the profile's limits."""

    error = np.float32(0)

    def __init__(self, driver: FakeDriver) -> None:
        self.driver, self.shapes, self.addresses = driver, dict[str, tuple[int, ...]](), dict[str, int]()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Take a shape of the profile."""
        self.shapes[name] = tuple(shape)
        return name not in ("point_coords", "point_labels") or 1 <= shape[0] <= PROMPTS.max

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Take memory."""
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Compute an output's shape."""
        rows = self.shapes["point_coords"][0]
        return {"low_res_masks": (rows, 3, 4, 4), "iou_predictions": (rows, 3)}[name]

    def execute_async_v3(self, stream: int) -> bool:
        """Compute."""
        assert stream == 7
        feed = [self._read(tensor.name) for tensor in SPEC.inputs]
        for name, value in toy_masks(*feed).items():
            ctypes.memmove(self.addresses[name], (value + self.error).tobytes(), value.nbytes)
        return True

    def _read(self, name: str) -> Any:
        size = int(np.prod(self.shapes[name])) * 4
        return np.frombuffer(ctypes.string_at(self.addresses[name], size), np.float32).reshape(self.shapes[name])


def fake_library(name: str, driver: FakeDriver) -> ModuleType:
    """Stand in for tensorrt: what run.py uses of it, and nothing else. The builder gives an engine that is none."""
    context = FakeContext(driver)
    config = SimpleNamespace(clear_flag=lambda flag: None, add_optimization_profile=lambda profile: 0)
    shapes: dict[str, Any] = {}
    profile = SimpleNamespace(set_shape=lambda name, *limits: shapes.update({name: limits}))
    builder = SimpleNamespace(
        create_network=lambda flags: SimpleNamespace(flags=flags), create_builder_config=lambda: config,
        create_optimization_profile=lambda: profile,
        build_serialized_network=lambda network, config: f"engine of {network.flags}".encode(),
    )  # fmt: skip
    engine = SimpleNamespace(
        num_layers=5, create_execution_context=lambda *config: context, create_runtime_config=SimpleNamespace,
        context=context, shapes=shapes, builder=builder,
    )  # fmt: skip
    module = ModuleType(name)
    module.__dict__.update(
        __version__={"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1"}[name], engine=engine,
        Logger=type("Logger", (), {"ERROR": "error", "__init__": lambda self, level: None}),
        Builder=lambda logger: builder, BuilderFlag=SimpleNamespace(TF32="tf32"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        OnnxParser=lambda network, logger: SimpleNamespace(parse=lambda data: data.startswith(b"\x08")),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )  # fmt: skip
    return module


@pytest.fixture(scope="module", params=["trt", "trt-rtx"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit_of(engine_artifact(tmp_path_factory.mktemp("engine") / "toy", request.param))


@pytest.fixture
def kit(made: Path, tmp_path: Path) -> Path:
    return copied(made, tmp_path)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    found = FakeDriver()
    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *more: found if "cuda" in str(name) else real(name, *more))
    return found


@pytest.fixture
def library(kit: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name = json.loads((kit / "kit.json").read_bytes())["devices"]["cuda"]["library"]
    module = fake_library(name, driver)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_an_engine_is_built_compared_and_timed(kit: Path, library: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert call(runner(kit), kit, tmp_path / "report.json") == 0, capsys.readouterr().err
    report = BenchReport.load(tmp_path / "report.json")
    subject = report.subjects[0]
    assert (subject.parity.level, subject.parity.device, subject.parity.runtime) == ("device", "cuda", library.__name__)
    assert subject.placement is not None
    assert subject.placement["operations"] == {"cuda": 5}
    details = subject.placement["details"]
    assert (details["gpu"], details["compute_capability"], details["driver"]) == ("Toy GPU", "8.7", "CUDA 12.6")
    assert details["engine"].startswith("built in ")
    assert subject.bytes == len(b"engine of 2")  # strongly typed: flag 1 is bit 1
    assert report.device.environment[library.__name__] == library.__version__
    assert library.engine.shapes["point_coords"] == ((1, 1, 2), (2, 2, 2), (4, 3, 2))


def test_the_engine_that_was_built_here_is_kept(kit: Path, library: ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert call(runner(kit), kit, tmp_path / "one.json") == 0
    assert "building the engine" in capsys.readouterr().out
    assert call(runner(kit), kit, tmp_path / "two.json") == 0
    assert "building the engine" not in capsys.readouterr().out
    placement = BenchReport.load(tmp_path / "two.json").subjects[0].placement
    assert placement is not None
    assert placement["details"]["engine"] == "built before"


def another_gpu(kit: Path, driver: FakeDriver, library: ModuleType) -> None:
    driver.facts = {75: 9, 76: 0}


def another_version(kit: Path, driver: FakeDriver, library: ModuleType) -> None:
    library.__dict__["__version__"] += ".9"


def another_engine(kit: Path, driver: FakeDriver, library: ModuleType) -> None:
    (kit / "engine" / "decoder.engine").write_bytes(b"a stranger's code")


def no_stamp(kit: Path, driver: FakeDriver, library: ModuleType) -> None:
    (kit / "engine" / "engine.json").write_text("{")


@pytest.mark.parametrize("change", [another_gpu, another_version, another_engine, no_stamp])
def test_an_engine_of_elsewhere_is_built_again(
    kit: Path, driver: FakeDriver, library: ModuleType, change: Any, tmp_path: Path, capsys: Any
) -> None:
    call(runner(kit), kit, tmp_path / "one.json")
    change(kit, driver, library)
    capsys.readouterr()
    assert call(runner(kit), kit, tmp_path / "two.json") == 0
    assert "building the engine" in capsys.readouterr().out


def test_a_wrong_engine_is_not_timed(kit: Path, library: ModuleType, tmp_path: Path, capsys: Any) -> None:
    library.engine.context.error = np.float32(0.5)
    assert call(runner(kit), kit, tmp_path / "report.json") == 3
    judged = ParityReport.from_bytes((tmp_path / "report.json").read_bytes(), "report")
    assert (judged.passed, judged.level) == (False, "device")
    assert "logit_error is 0.5" in capsys.readouterr().err


def test_memory_only_grows(kit: Path, library: ModuleType, driver: FakeDriver, tmp_path: Path) -> None:
    assert call(runner(kit), kit, tmp_path / "report.json") == 0
    allocated, freed = (driver.log.count(name) for name in ("cuMemAlloc_v2", "cuMemFree_v2"))
    assert allocated - freed == len(SPEC.inputs) + len(SPEC.outputs) == len(driver.memory)


def no_context(driver: FakeDriver, library: ModuleType) -> None:
    library.engine.create_execution_context = lambda *config: None


def no_engine(driver: FakeDriver, library: ModuleType) -> None:
    library.engine.builder.build_serialized_network = lambda network, config: None


def no_start(driver: FakeDriver, library: ModuleType) -> None:
    def refuse(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library.__dict__["Builder"] = refuse


def no_graph(driver: FakeDriver, library: ModuleType) -> None:
    library.__dict__["OnnxParser"] = lambda network, logger: SimpleNamespace(parse=lambda data: False)


def no_driver(driver: FakeDriver, library: ModuleType) -> None:
    driver.fails["cuInit"] = 100


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (no_context, "does not open its engine"), (no_engine, "cannot build artifact/decoder.onnx"),
        (no_start, "does not open the decoder on 'cuda': TypeError"), (no_graph, "cannot read artifact/decoder.onnx"),
        (no_driver, "the GPU refuses cuInit: what went wrong (CUDA error 100)"),
    ],
)  # fmt: skip
def test_what_does_not_start_is_one_line(
    kit: Path, driver: FakeDriver, library: ModuleType, fault: Any, words: str, tmp_path: Path, capsys: Any
) -> None:
    fault(driver, library)
    assert call(runner(kit), kit, tmp_path / "report.json") == 5
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_gpu_that_runs_full_fails_the_case(
    kit: Path, driver: FakeDriver, library: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    driver.room = 700  # bytes: the image does not fit
    assert call(runner(kit), kit, tmp_path / "report.json") == 3
    assert "cuMemAlloc_v2: what went wrong (CUDA error 2)" in capsys.readouterr().err


def test_a_missing_library_is_named(kit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    name = json.loads((kit / "kit.json").read_bytes())["devices"]["cuda"]["library"]
    monkeypatch.setitem(sys.modules, name, None)
    assert call(runner(kit), kit, tmp_path / "report.json") == 5
    error = capsys.readouterr().err
    assert f"'cuda' needs the library '{name}'" in error
    assert ("Install it: JetPack 6.1 or newer" in error) or ("Install it: pip install 'tensorrt-rtx-cu13" in error)


def test_no_driver_here_is_one_line(kit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    name = json.loads((kit / "kit.json").read_bytes())["devices"]["cuda"]["library"]
    monkeypatch.setitem(sys.modules, name, fake_library(name, FakeDriver()))

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert call(runner(kit), kit, tmp_path / "report.json") == 5
    assert "error: no NVIDIA driver is here" in capsys.readouterr().err


def test_the_graph_runs_on_the_cpu_too(kit: Path, tmp_path: Path) -> None:
    assert call(runner(kit), kit, tmp_path / "report.json", "--device", "cpu") == 0
    parity = BenchReport.load(tmp_path / "report.json").subjects[0].parity
    assert (parity.level, parity.device, parity.runtime) == ("graph", "cpu", "onnxruntime")


def test_the_gpu_is_described_as_samx_does(kit: Path, driver: FakeDriver) -> None:
    facts = runner(kit).Gpu().facts
    assert Described(facts["gpu"], facts["compute_capability"], facts["driver"]) == describe_gpu(driver)


def test_the_real_library_builds_what_the_plan_says(tmp_path: Path) -> None:
    """TensorRT for RTX builds without a GPU; nothing is run."""
    kit = kit_of(engine_artifact(tmp_path / "toy", "trt-rtx"))
    program, module = runner(kit), importlib.import_module("tensorrt_rtx")
    opened = program.Kit(kit)
    engine = program.build_engine(opened, opened.says["devices"]["cuda"], module, module.Logger(module.Logger.ERROR))
    assert len(engine) > 1000


def test_the_real_library_refuses_a_damaged_graph(tmp_path: Path) -> None:
    kit = kit_of(engine_artifact(tmp_path / "toy", "trt-rtx"))
    program, module = runner(kit), importlib.import_module("tensorrt_rtx")
    opened = program.Kit(kit)
    opened.read = lambda name: b'{"profile": {}}' if name.endswith(".json") else b"no graph"
    with pytest.raises(program.KitError, match="tensorrt_rtx cannot read artifact/decoder"):
        program.build_engine(opened, opened.says["devices"]["cuda"], module, module.Logger(module.Logger.ERROR))


def uses() -> Any:
    """Load the collector of what a source asks of the library."""
    path = Path(__file__).parents[1] / "formats" / "test_api.py"
    spec = importlib.util.spec_from_file_location("library_uses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_that_is_used_of_the_library_exists_in_the_installed_one() -> None:
    api, source = uses(), Path(__file__).parents[2] / "samx" / "kits" / "runner" / "tensorrt.py"
    found = api.Uses(source.read_text(encoding="utf-8"))
    assert list(api.missing(found.found)) == []
    assert found.untracked == []
    assert {
        ("", "Builder"), ("", "OnnxParser"), ("", "Logger"), ("Logger", "ERROR"), ("BuilderFlag", "TF32"),
        ("Builder", "build_serialized_network"), ("IBuilderConfig", "num_compute_capabilities"),
        ("IOptimizationProfile", "set_shape"), ("Runtime", "deserialize_cuda_engine"), ("ICudaEngine", "num_layers"),
        ("ICudaEngine", "create_execution_context"), ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_input_shape"), ("IExecutionContext", "get_tensor_shape"),
        ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    } <= found.found  # fmt: skip
